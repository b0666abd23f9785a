"""Remarks on files that a conversion has read, for its end."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from pathlib import Path

logger = logging.getLogger(__name__)


class Notes:
    """Remarks on files, counted from any thread and said once per kind."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._pixels: Counter[str] = Counter()
        self._examples: dict[str, Path] = {}
        self._lock = threading.Lock()

    def add(self, remark: str, path: Path, pixels: int = 0) -> None:
        """Count one file, and so many of its pixels, to which `remark` applies."""
        with self._lock:
            self._files[remark] += 1
            self._pixels[remark] += pixels
            self._examples.setdefault(remark, path)

    def report(self) -> None:
        """Log each remark once, with its number of files and pixels and one example."""
        for remark, files in sorted(self._files.items()):
            pixels = f", {self._pixels[remark]} pixels" if self._pixels[remark] else ""
            example = Path(*self._examples[remark].parts[-2:])
            logger.warning("%s: %d file(s)%s, e.g. %s", remark, files, pixels, example)
