"""Asking transformers and the hub for a model, quietly, and saying in plain words what went wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from trueline.errors import TruelineError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and load reports off the screen: what matters of them is checked and said here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def explained(path: str, *, offline: bool) -> Iterator[None]:
    """Turn the libraries' errors about files and the hub into ours."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _explanation(error, path, offline) from error


def _explanation(error: BaseException, path: str, offline: bool) -> BaseException:
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    said = first_line(error)
    mismatch = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), None)
    if mismatch is not None:
        return TruelineError(f"'{path}' does not fit its base: {mismatch[:200]}")
    if caused_by(hub.GatedRepoError):
        return TruelineError(
            f"'{path}' is gated: accept its licence at https://huggingface.co/{path}, then `hf auth login` (or set HF_TOKEN)."
        )
    if caused_by(hub.RepositoryNotFoundError):
        return TruelineError(
            f"There is no folder '{path}' here and no model '{path}' on the hub (or it is private: `hf auth login`)."
        )
    if not Path(path).is_dir() and (offline or caused_by(hub.OfflineModeIsEnabled)):
        return TruelineError(
            f"'{path}' is not a folder and not in the hub cache, and offline mode is on. Download it first."
        )
    if caused_by(hub.LocalEntryNotFoundError):
        return TruelineError(
            f"There is no folder '{path}' here, and the hub cannot be reached to look for it there. Check the path or the network."
        )
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return TruelineError(
            f"'{path}' brings its own code, which Trueline does not run. Use a model that transformers implements."
        )
    if isinstance(error, (OSError, ValueError, SafetensorError)):
        return TruelineError(f"'{path}' cannot be loaded: {said}")
    return error
