"""One process at a time writes a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from dataset_conversion.system.errors import UserError


def hold(path: Path, out: Path, wait: bool = False) -> FileLock:
    """The lock file `path` of the folder `out`, until it is released or its process ends.

    A job submitted twice must not mix its files with itself. UserError: another process has it (unless
    `wait`), `path` cannot be made.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UserError(
            f"{out}: found another process that writes there, expected none; wait for it or "
            "choose another --out"
        ) from None
    except OSError as error:
        raise UserError(f"cannot create {path} ({error.strerror}); choose another --out") from error
    return lock


def lock_path(out: Path) -> Path:
    """The lock file that `alone` holds."""
    return out.with_name(f".{out.name}.lock")


@contextmanager
def alone(out: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock beside `out` during the block. UserError: as `hold`.

    The block leaves no lock behind, and no new empty folder above `out`.
    """
    path = lock_path(out)
    with leaving_no_empty_parents(out):
        lock = hold(path, out, wait)
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                path.unlink(missing_ok=True)
            lock.release()


@contextmanager
def leaving_no_empty_parents(path: Path) -> Iterator[None]:
    """At the end of the block, remove the folders above `path` that it has made and left empty."""
    new = [*takewhile(lambda folder: not folder.exists(), path.parents)]
    try:
        yield
    finally:
        for folder in new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
