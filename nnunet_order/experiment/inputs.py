"""Digests of what an experiment reads from outside its folder: by content, not by place or date."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset_conversion.raw import RawDataset
from dataset_conversion.splits import Split

END = 1 << 16  # bytes
TOLD_BY_THEIR_END = (".gz", ".safetensors", ".bin", ".pt", ".pth")


def dataset_digest(dataset: RawDataset, splits: Sequence[Split]) -> str:
    """sha256 of all files of a raw data set that an experiment reads, of their ids, and of its folds."""
    names = ("dataset.json", "test_sets.json", "groups.json")
    parts = [(name, dataset.folder / name) for name in names if (dataset.folder / name).is_file()]
    for kind, cases in (("Tr", dataset.training_cases), ("Ts", dataset.test_cases)):
        for case in cases:
            files = [*case.images, *([case.label] if case.label else [])]
            parts += [(f"{kind}/{case.id}/{place}", path) for place, path in enumerate(files)]
    return _digest(parts, json.dumps(splits, sort_keys=True))


def files_digest(paths: Iterable[Path]) -> str:
    """sha256 of files and of all files in folders; what does not exist, such as a hub's id, is left out."""
    parts = [
        (path.relative_to(root).as_posix(), path)
        for root in paths
        for path in ([root] if root.is_file() else sorted(root.rglob("*")))
        if path.is_file()
    ]
    return _digest(parts) if parts else ""


def _digest(parts: Iterable[tuple[str, Path]], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for name, path in parts:
        digest.update(f"{name} {hashlib.sha256(_telling_bytes(path)).hexdigest()}\n".encode())
    return digest.hexdigest()


def _telling_bytes(path: Path) -> bytes:
    """A file's content; of one that may be huge, size and end: a .gz ends in the CRC-32 of all it holds."""
    if path.suffix not in TOLD_BY_THEIR_END:
        return path.read_bytes()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END))
        return f"{size} ".encode() + file.read()
