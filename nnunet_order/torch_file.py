"""Read files of torch.save without running code from them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dataset_conversion.user_error import UserError


def load_torch(
    path: Path,
    expected: str,
    remedy: str,
    needed: Collection[str] = (),
    allowed: Collection = (),
    mmap: bool = False,
) -> dict:
    """A table that torch.save wrote, on the CPU.

    UserError: the file is missing, empty, truncated or damaged, asks for code, or holds anything but a table
    with the keys `needed`.

    Args:
        expected, remedy: what the file should be and what to do, for the error.
        allowed: further types that it may hold, as torch.serialization.safe_globals takes them.
        mmap: map the file instead of reading it.
    """
    import torch

    try:
        with torch.serialization.safe_globals([*allowed]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected {expected}; {remedy}") from None
    except Exception as error:  # of a file of another kind the unpickler raises whatever it stumbles over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason[:150]}), expected {expected}; {remedy}") from error
    if not isinstance(content, dict) or not set(needed) <= set(content):
        names = ", ".join(sorted(needed)) or "table"
        raise UserError(f"{path}: found no {names}, expected {expected}; {remedy}")
    return content
