"""One process at a time writes a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dataset_conversion.user_error import UserError


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


@contextmanager
def alone(out: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock beside `out` during the block; nothing is left of it. UserError: as `hold`."""
    path = out.with_name(f".{out.name}.lock")
    lock = hold(path, out, wait)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps what is open
            path.unlink(missing_ok=True)
        lock.release()
