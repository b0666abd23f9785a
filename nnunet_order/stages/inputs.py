"""Digests of what an experiment reads from outside its folder: by content, not by place or date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Split

END = 1 << 16  # bytes
BLOCK = 1 << 24
TOLD_BY_THEIR_END = (".gz", ".pt", ".pth")


def dataset_digest(dataset: RawDataset, splits: Sequence[Split]) -> str:
    """sha256 of all files of a raw data set that an experiment reads, of their ids, and of its folds."""
    names = ("dataset.json", "test_sets.json", "groups.json")
    parts = [(name, dataset.folder / name) for name in names if (dataset.folder / name).is_file()]
    for kind, cases in (("Tr", dataset.training_cases), ("Ts", dataset.test_cases)):
        for case in cases:
            files = [*case.images, *([case.label] if case.label else [])]
            parts += [(f"{kind}/{case.id}/{place}", path) for place, path in enumerate(files)]
            parts += [(f"{kind}/{case.id}/{of}", path) for of, path in dataset.spacing_files(case).items()]
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
        found = path.stat()
        digest.update(f"{name} {_content_digest(path, found.st_size, found.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@cache
def _content_digest(path: Path, size: int, changed: int) -> str:
    """sha256 of a file's content; of some, of size and end: a .gz ends in the CRC-32 of all it holds, and so
    does each entry in the list at the end of PyTorch's archives.

    Read once per process: every arm and fold asks for the same base.
    """
    with path.open("rb") as file:
        if path.suffix in TOLD_BY_THEIR_END:
            file.seek(max(0, size - END))
            return hashlib.sha256(f"{size} ".encode() + file.read()).hexdigest()
        digest = hashlib.sha256()
        while block := file.read(BLOCK):
            digest.update(block)
        return digest.hexdigest()
