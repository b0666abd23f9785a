"""sha256 of files of any size."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_conversion.system.errors import UserError

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK = 1 << 20  # bytes; a real UNet's weights have 3.4 GB


def hash_file(path: Path) -> str:
    """sha256 of a file's content. UserError: it cannot be read."""
    digest = hashlib.sha256()
    feed(digest, path)
    return digest.hexdigest()


def feed(digest: _Hash, path: Path) -> None:
    """Add a file's content to a digest. UserError: it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a file; correct the path"
        ) from error
