"""Where things that can be made again are kept between runs: lab artefacts, reference scores."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """TRUELINE_CACHE, or the folder where this platform keeps a user's caches."""
    if given := os.environ.get("TRUELINE_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "trueline" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "trueline"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trueline"
