"""Where what can be fetched or made again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`CIAR_CACHE`, or `ciar` in the user's cache folder. Raises `RuntimeError` without a home."""
    if os.environ.get("CIAR_CACHE"):
        return Path(os.environ["CIAR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ciar"
