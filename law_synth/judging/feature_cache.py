"""Features that are kept from one run to the next, in the user's cache folder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)


def cached(key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array stored under `key` in $XDG_CACHE_HOME/law_synth, else `compute()`, which is then stored."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "law_synth" / f"{key}.npy"
    if path.is_file():
        with contextlib.suppress(ValueError, OSError, EOFError):  # a damaged file is computed anew
            return np.load(path, allow_pickle=False)
    array = compute()
    partial = path.with_name(f".{key}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(partial, path)
    except OSError as error:
        logger.warning("%s: features are not kept for the next run (%s)", path, error.strerror)
    return array
