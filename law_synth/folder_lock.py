"""One process at a time writes a folder: a job submitted twice must not mix its files with itself."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from dataset_conversion.user_error import UserError


def hold(folder: Path) -> FileLock:
    """The lock of `folder`, until it is released or its process ends. UserError: another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder.parent}: found another process that writes there, expected none; wait for it or "
            "choose another --out"
        ) from None
    return lock
