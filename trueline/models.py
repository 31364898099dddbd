"""Models in and out: any Hugging Face causal LM, reward model or adapter folder becomes a `Loaded`, and goes back.

`load` refuses everything that would train or score something else than the user meant: missing weights, a foreign
tokenizer, a reward model read as a language model, an adapter whose base is gone. Weights are fp32 for training:
at the learning rates of preference losses most updates of bf16 weights round away. `save` and `merge` write plain
Hugging Face folders. Chat templates are not needed here; encoding a conversation asks for one.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn

from trueline.engine.backbone import MEMBER, is_ensemble
from trueline.errors import TruelineError
from trueline.headlabels import HeadLabels
from trueline.hub import HUB_ID, explained, first_line, quiet
from trueline.memory import memory_estimate
from trueline.quantise import Quantisation, quantise, round_weights
from trueline.randomness import derive
from trueline.saving import save
from trueline.subjects import LABELS, READ_AS
from trueline.vocabulary import (
    add_special_tokens,
    check_fits,
    embedding_rows,
    ensure_pad,
    find_eos_ids,
    vocabulary_hash,
)

__all__ = ["Loaded", "load", "memory_estimate", "merge", "save", "vocabulary_hash"]

CLASSIFIER = "ForSequenceClassification"


@dataclass
class Loaded:
    """A model ready to use.

    eos_ids: every id that ends a response, the tokenizer's own first. adapter: "pretrained" when `path` held an adapter
    (then `base` says on what). notes: what was decided on the way that a user should know. revision: hub commit.
    """

    model: Any
    tokenizer: Any
    eos_ids: list[int]
    path: str
    adapter: Literal["none", "pretrained"]
    vocabulary_hash: str
    base: str | None = None
    revision: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def chat_template(self) -> str | None:
        """The chat template, None if the model has none: conversations cannot be encoded then, plain text can."""
        return self.tokenizer.chat_template


def load(
    path: str | os.PathLike[str],
    *,
    head: Literal["lm", "scalar"] = "lm",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    offline: bool = False,
    add_tokens: Sequence[str] = (),
    eos_tokens: Sequence[str] = (),
    chat_template: str | None = None,
    for_training: bool = True,
    seed: int = 0,
    members: int = 1,
    subject: str = "responses",
) -> Loaded:
    """Load a model folder, a finished run folder, an adapter folder or a hub id, on the CPU and in eval mode.

    head: "lm", or "scalar" for a reward model (one number a response); a causal LM gets a new seeded head for it.
    members: heads of a new ensemble of reward models on one body; a trained head keeps the number it has.
    subject: what the number is about (`subjects.py`); a judge whose own labels say something else is refused.
    dtype: of the weights; "auto" is that of the checkpoint, allowed when nothing is trained. offline: never ask a hub.
    chat_template: a Jinja file that replaces the tokenizer's template. seed: new head and new embedding rows.
    Code that comes with a model is never run.
    """
    if head not in ("lm", "scalar"):
        raise TruelineError(f"head is {head!r}; expected 'lm' or 'scalar'.")
    if for_training and dtype not in (torch.float32, torch.float64):
        raise TruelineError(f"Weights for training must be float32, not {dtype}: small updates vanish in fewer bits.")
    request = _Request(_text_path(path), head, dtype, offline, for_training, seed, members=members, subject=subject)
    with quiet(), explained(request.path, offline=offline):
        loaded = request.open(eos_tokens=eos_tokens, add_tokens=add_tokens, chat_template=chat_template)
    _own_memory(loaded.model)
    if not for_training:
        loaded.model.requires_grad_(False)
    loaded.model.eval()
    return loaded


def load_frozen(path: str | os.PathLike[str], device: str | torch.device, **options: Any) -> Loaded:
    """A model that only scores or samples: without gradients, on the device. options: `load`'s.

    It is moved before any policy is built on it, whose probe must see the device's own attention.
    """
    loaded = load(path, for_training=False, **options)
    nn.Module.to(loaded.model, device)  # a 4-bit model refuses its own `to`
    return loaded


def _own_memory(model: nn.Module) -> None:
    """Copy every tensor out of the mapped file, aligned.

    Where a tensor stands in its file decides its alignment, and matrix products round differently with it: without this,
    equal weights from two folders give log-probs that differ in the last bit. It also unties the model from the file.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


def merge(adapter: str | os.PathLike[str], output: str | os.PathLike[str], *, offline: bool = False) -> Path:
    """Write the model that an adapter folder stands for as a plain model folder without an adapter.

    An adapter trained on a 4-bit base is merged into the values that base computes with, so log-probs stay those of
    the trained policy. Returns the output folder.
    """
    from trueline.modelcard import merged_card

    path, target = _text_path(adapter), Path(output)
    if target.exists() and any(target.iterdir()):
        raise TruelineError(f"'{target}' is not empty. Give a new folder for the merged model.")
    request = _Request(path, "lm", torch.float32, offline, for_training=False, seed=0, keep_quantised=False)
    with quiet(), explained(request.path, offline=offline):
        config = request.adapter_config()
        if config is None:
            raise TruelineError(f"'{path}' holds no adapter_config.json, so there is nothing to merge.")
        request.head = "scalar" if config.task_type == "SEQ_CLS" else "lm"
        loaded = request.open()
        _untie_trained_head(loaded.model)
        merged = loaded.model.merge_and_unload(safe_merge=True)
    save(merged, loaded.tokenizer, target, card=merged_card(loaded.path, str(loaded.base)), eos_ids=loaded.eos_ids)
    return target


def _untie_trained_head(model: Any) -> None:
    """Where an adapter changes one of two tied matrices, merging must not change the other: give each its own."""
    inner = model.get_base_model()
    embedding, output = inner.get_input_embeddings(), inner.get_output_embeddings()
    layers = [getattr(layer, "base_layer", layer) for layer in (embedding, output) if layer is not None]
    adapted = any(hasattr(layer, "base_layer") for layer in (embedding, output) if layer is not None)
    if adapted and len(layers) == 2 and layers[0].weight is layers[1].weight:
        layers[1].weight = nn.Parameter(layers[1].weight.detach().clone())
        inner.config.get_text_config().tie_word_embeddings = False
        inner.config.tie_word_embeddings = False
        inner.all_tied_weights_keys = {}


@dataclass
class _Request:
    """One call of `load`: what was asked, and the steps that answer it."""

    path: str
    head: str
    dtype: torch.dtype | Literal["auto"]
    offline: bool
    for_training: bool
    seed: int
    keep_quantised: bool = True
    members: int = 1
    subject: str | None = None  # None: whatever the labels say
    notes: list[str] = field(default_factory=list)

    def open(
        self, *, eos_tokens: Sequence[str] = (), add_tokens: Sequence[str] = (), chat_template: str | None = None
    ) -> Loaded:
        adapter = self.adapter_config()
        base = self._base_of(adapter) if adapter is not None else self.path
        model = self._model(base, adapter)
        tokenizer = self._tokenizer(base)
        if chat_template is not None:
            tokenizer.chat_template = _read_template(chat_template)
        if adapter is None:
            check_fits(tokenizer, embedding_rows(model), self.path)
        else:
            model = self._with_adapter(model, tokenizer)
        rows = embedding_rows(model)
        eos_ids = find_eos_ids(
            tokenizer, self._listed_eos(base), [t for t in eos_tokens if t not in add_tokens], rows, self.path
        )
        if add_tokens:
            self.notes += add_special_tokens(model, tokenizer, add_tokens, self.seed)
            ids = tokenizer.convert_tokens_to_ids([t for t in eos_tokens if t in add_tokens])
            eos_ids = list(dict.fromkeys([*eos_ids, *ids]))
        self.notes += ensure_pad(model, tokenizer, head=self.head, ends=eos_ids, seed=self.seed)
        return Loaded(
            model,
            tokenizer,
            eos_ids,
            self.path,
            "none" if adapter is None else "pretrained",
            vocabulary_hash(tokenizer),
            base=None if adapter is None else base,
            revision=getattr(model.config, "_commit_hash", None),
            notes=self.notes,
        )

    @property
    def hub(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained` call."""
        return {"local_files_only": self.offline, "trust_remote_code": False}

    def adapter_config(self) -> Any | None:
        """The peft config if `path` holds an adapter. Also where a path that is neither folder nor hub id ends."""
        folder = Path(self.path)
        if folder.is_dir():
            if not (folder / "adapter_config.json").exists():
                _check_folder(folder)
                return None
        elif folder.exists() or not HUB_ID.fullmatch(self.path):
            found = "is a file" if folder.exists() else "does not exist"
            raise TruelineError(
                f"model '{self.path}' {found}. Expected a folder with config.json and *.safetensors, or a hub id 'owner/name'."
            )
        else:
            from transformers.utils import find_adapter_config_file

            if find_adapter_config_file(self.path, local_files_only=self.offline) is None:
                return None
        from peft import PeftConfig

        return PeftConfig.from_pretrained(self.path, local_files_only=self.offline)

    def _base_of(self, adapter: Any) -> str:
        base = adapter.base_model_name_or_path
        if (adapter.task_type == "SEQ_CLS") != (self.head == "scalar"):
            kind, other = ("reward model", "--objective dpo or another language-model objective")
            if self.head == "scalar":
                kind, other = ("language model", "a reward model (an adapter saved by --objective bt)")
            raise TruelineError(f"The adapter '{self.path}' is that of a {kind}; this place needs {other}.")
        if not base:
            raise TruelineError(
                f"The adapter '{self.path}' does not say what its base model is (base_model_name_or_path)."
            )
        if not Path(base).is_dir() and not HUB_ID.fullmatch(base):
            raise TruelineError(
                f"The adapter '{self.path}' was trained on '{base}', which is gone. Put the base model back there, or write its "
                f"new place into base_model_name_or_path of {Path(self.path) / 'adapter_config.json'}."
            )
        if Path(base).is_dir():
            _check_folder(Path(base))
        return str(base)

    def _tokenizer(self, base: str) -> Any:
        """The folder's own tokenizer, else (for a foreign adapter folder) the base's."""
        from transformers import AutoTokenizer

        own = self.path == base or not Path(self.path).is_dir() or _has_tokenizer(Path(self.path))
        place = self.path if own else base
        try:
            return AutoTokenizer.from_pretrained(place, **self.hub)
        except (ValueError, KeyError, TypeError) as error:
            raise TruelineError(
                f"'{place}' has no tokenizer that can be read ({first_line(error)}). Copy tokenizer.json and "
                "tokenizer_config.json of the model into the folder."
            ) from error

    def _model(self, base: str, adapter: Any | None) -> Any:
        """The base model with the head asked for, every weight accounted for."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

        config = AutoConfig.from_pretrained(base, **self.hub)
        trained_head = any(CLASSIFIER in name for name in config.architectures or ())
        if self.head == "lm" and trained_head:
            raise TruelineError(
                f"'{base}' is a reward model or classifier ({config.architectures[0]}), which has no words to say. Use it as "
                f"--feedback reward:{base}, or give a causal language model."
            )
        if self.head == "scalar":
            self._label(config, base, trained_head, HeadLabels.read(Path(self.path)) if adapter else None)
        kind: Any = AutoModelForCausalLM if self.head == "lm" else AutoModelForSequenceClassification
        if type(config) not in kind._model_mapping:
            what = "causal language model" if self.head == "lm" else "sequence classifier, which a reward model needs"
            raise TruelineError(f"transformers has no {what} for the architecture '{config.model_type}' of '{base}'.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "new_weights"))
            model, info = kind.from_pretrained(
                base,
                config=config,
                dtype=self.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **self.hub,
            )
        self._account_for(model, info, base, adapter)
        stored = getattr(config, "dtype", None)
        if stored not in (None, self.dtype) and self.dtype != "auto":
            self.notes.append(f"Weights stored as {_short(stored)} were widened to {_short(self.dtype)}.")
        return model

    def _label(self, config: Any, base: str, trained_head: bool, stored: HeadLabels | None) -> None:
        """Give the head its labels: those it was trained with (in the base or beside the adapter), else new ones."""
        if stored is not None:
            config.id2label = dict(enumerate(stored.labels))
            config.num_labels = len(stored.labels)
        elif trained_head and config.num_labels != 1 and not is_ensemble(config):
            raise TruelineError(f"'{base}' is a classifier with {config.num_labels} labels; a reward model has one.")
        trained = trained_head or stored is not None
        if trained and self.members not in (1, config.num_labels):
            raise TruelineError(
                f"'{self.path}' has {config.num_labels} trained reward head{'s' * (config.num_labels > 1)}, which cannot become "
                f"{self.members} members. Give members {config.num_labels}, or start from a language model."
            )
        own = str((config.id2label or {}).get(0))
        known = next((name for name, label in LABELS.items() if label == own), None) if trained else None
        wanted = self.subject or known or "responses"
        if known not in (None, wanted) and not self.for_training:
            raise TruelineError(
                f"'{self.path}' scores {known}, and {wanted} are to be scored here. Give it as {READ_AS[known]}."
            )
        if known not in (None, wanted):
            self.notes.append(f"The reward head was trained on {known}; it goes on with {wanted}.")
        if not trained or (self.for_training and not is_ensemble(config)):
            names = [f"{MEMBER}{i}" for i in range(self.members)] if self.members > 1 else [LABELS[wanted]]
            config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in config.id2label.items()}

    def _account_for(self, model: Any, info: dict[str, Any], base: str, adapter: Any | None) -> None:
        """Nothing may be left at its random initialisation unsaid: only a new scalar head may be new."""
        if info["mismatched_keys"]:
            name, stored, expected = next(iter(sorted(info["mismatched_keys"])))
            raise TruelineError(
                f"The weights of '{base}' do not fit its config.json: {name} has shape {tuple(stored)}, the config makes it "
                f"{tuple(expected)} ({len(info['mismatched_keys'])} such). The folder mixes two models."
            )
        body = f"{model.base_model_prefix}."
        new_head = {k for k in info["missing_keys"] if self.head == "scalar" and not k.startswith(body)}
        missing = sorted(set(info["missing_keys"]) - new_head)
        if missing:
            raise TruelineError(
                f"'{base}' lacks {len(missing)} weights of its architecture ({', '.join(missing[:3])}, ...). The download or the "
                "save was cut short, or the files belong to another model."
            )
        if new_head and adapter is None and not self.for_training:
            raise TruelineError(
                f"'{base}' is not a reward model: it has no trained reward head ({', '.join(sorted(new_head))}), and random "
                "weights would judge. Train one with --objective bt, or give implicit:RUN to judge with a run of dpo."
            )
        if new_head:
            _initialise_head(model, new_head, self.seed)
            if adapter is None:
                names = ", ".join(sorted(new_head))
                self.notes.append(f"The reward head ({names}) is new, with small random weights (seed {self.seed}).")
        unused = sorted(k for k in info["unexpected_keys"] if not (self.head == "scalar" and "lm_head" in k))
        if unused:
            self.notes.append(
                f"{len(unused)} stored weights are not used by {type(model).__name__}: {', '.join(unused[:3])}."
            )
        packed = [n for n, p in model.named_parameters() if not p.is_floating_point()]
        if packed and self.for_training:
            raise TruelineError(
                f"'{base}' is stored quantised ({packed[0]}), which cannot be trained in full. Use the unquantised model; "
                "--adapter qlora quantises it on loading."
            )

    def _with_adapter(self, model: Any, tokenizer: Any) -> Any:
        """Put the stored adapter on its base: same vocabulary, same quantisation, every adapter weight found."""
        from peft import PeftModel

        how = Quantisation.read(Path(self.path))
        if how is not None:
            model = (quantise if self.keep_quantised else round_weights)(model, how)
            if not self.keep_quantised:
                self.notes.append("The base was rounded to the 4-bit values that the adapter was trained on.")
        needed = max(tokenizer.get_vocab().values()) + 1
        if needed > embedding_rows(model):
            model.resize_token_embeddings(needed, mean_resizing=False)  # the adapter file holds the trained rows
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error below
            warnings.filterwarnings("ignore", message=".*tied layer is part of the adapter")  # `merge` unties
            adapted = PeftModel.from_pretrained(
                model, self.path, is_trainable=self.for_training, local_files_only=self.offline
            )
        self._check_adapter(adapted)
        check_fits(tokenizer, embedding_rows(adapted), self.path)
        return adapted

    def _check_adapter(self, adapted: Any) -> None:
        """peft skips stored weights that have no place in the base, and leaves places without weights at zero."""
        from peft.utils import get_peft_model_state_dict
        from transformers.utils import cached_file

        file = cached_file(
            self.path,
            "adapter_model.safetensors",
            local_files_only=self.offline,
            _raise_exceptions_for_missing_entries=False,
        )
        if file is None:
            raise TruelineError(
                f"The adapter '{self.path}' has no adapter_model.safetensors; other formats are not read."
            )
        with safe_open(file, framework="pt") as opened:
            stored = set(opened.keys())
        inner = adapted.get_base_model()
        layers = (inner.get_input_embeddings(), inner.get_output_embeddings())
        embeddings = {f"base_model.model.{n}.weight" for n, m in inner.named_modules() if any(m is x for x in layers)}
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        missing, unused = expected - stored, stored - expected - embeddings
        if missing or unused:
            raise TruelineError(
                f"The adapter '{self.path}' does not fit its base: {len(missing)} of its weights are missing from the file and "
                f"{len(unused)} have no place in the base (first: {min(missing | unused)}). It was trained on another model."
            )
        inner.trueline_added_tokens = bool(stored & embeddings)  # a later save must carry the embedding too

    def _listed_eos(self, base: str) -> list[int]:
        """EOS ids in generation_config.json, else in config.json *as written*: class defaults belong to other models."""
        from transformers import GenerationConfig, PreTrainedConfig

        listed: Any = None
        for place in dict.fromkeys([self.path, base]):
            try:
                listed = GenerationConfig.from_pretrained(place, local_files_only=self.offline).eos_token_id
            except OSError:
                continue
            break
        if listed is None:
            listed = PreTrainedConfig.get_config_dict(base, local_files_only=self.offline)[0].get("eos_token_id")
        return [] if listed is None else [listed] if isinstance(listed, int) else [int(i) for i in listed]


@torch.no_grad()
def _initialise_head(model: Any, names: set[str], seed: int) -> None:
    """Normal weights of a tenth of 1/sqrt(D + 1), biases zero.

    1/sqrt(D + 1) is the scale of arXiv 2009.01325; a tenth of it starts every margin near 0, so the first loss is
    log 2 whatever the seed.
    """
    generator = torch.Generator().manual_seed(derive(seed, "reward_head"))
    for name, parameter in model.named_parameters():
        if name in names and parameter.ndim > 1:
            scale = 0.1 / math.sqrt(parameter.shape[-1] + 1)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        elif name in names:
            parameter.zero_()


def _text_path(path: str | os.PathLike[str]) -> str:
    text = os.path.expanduser(os.fspath(path))
    if not text.strip():
        raise TruelineError("The model path is empty. Expected a model folder or a hub id 'owner/name'.")
    return text


def _check_folder(folder: Path) -> None:
    """A folder that cannot hold a model is refused with what it does hold."""
    names = sorted(p.name for p in folder.iterdir())
    if "config.json" not in names:
        if "trueline" in names:
            raise TruelineError(
                f"'{folder}' is the folder of a run that has not finished: the model is written at the end. Go on with "
                "--resume; its checkpoints are in trueline/checkpoints."
            )
        raise TruelineError(
            f"'{folder}' is not a model folder: config.json is missing. It holds: {', '.join(names[:8]) or 'nothing'}."
        )
    if not any(n.endswith((".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")) for n in names):
        raise TruelineError(
            f"'{folder}' has no weights: expected *.safetensors (or *.bin) beside config.json. It holds: {', '.join(names[:8])}."
        )


def _has_tokenizer(folder: Path) -> bool:
    return any(
        (folder / n).exists() for n in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    )


def _read_template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TruelineError(f"chat_template '{file}' cannot be read ({error}). Expected a Jinja file.") from error


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
