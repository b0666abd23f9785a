"""Folders that appear or are replaced as a whole, also when their writer is killed or run again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset_conversion.system.errors import UserError, check_writable, writing
from dataset_conversion.system.lock import alone


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield `.<name>.partial` beside `out`; it takes that name when the block ends well, and goes otherwise.

    `out` is free or empty, see `raw_writer.check_out`. UserError: the folder cannot be made, another process
    writes it, no space left.
    """
    partial = out.parent / f".{out.name}.partial"
    with alone(out):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
            partial.mkdir()
        except OSError as error:
            raise UserError(f"cannot create {partial} ({error.strerror}); choose another --out") from error
        try:
            with writing(out):
                yield partial
                take_name(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def take_name(partial: Path, out: Path) -> None:
    """Rename a finished folder to `out`, which is free or empty. UserError: it has been filled since."""
    if out.is_dir():
        try:
            out.rmdir()
        except OSError as error:
            raise UserError(
                f"{out}: found content that was not there before, expected an empty folder; remove it and "
                "give the same command again"
            ) from error
    os.replace(partial, out)


def visible_files(folder: Path) -> list[str]:
    """Sorted names of what lies in `folder`, without hidden files such as the Finder's .DS_Store."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def check_report_folder(out: Path, files: Collection[str]) -> None:
    """UserError unless `out` is free, or holds nothing but earlier `files`, and can be written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: found a file, expected a folder to write into; choose another --out")
    if not out.name:
        raise UserError(f"found --out {out}, expected a folder with a name of its own; choose another --out")
    other = [name for name in visible_files(out) if name not in files] if out.is_dir() else []
    if other:
        raise UserError(f"{out}: found {other[0]} in it, expected an empty folder; choose another --out")
    check_writable(out)


@contextmanager
def report_folder(out: Path, files: Collection[str]) -> Iterator[Path]:
    """A folder beside `out` to write into; its files replace `files` in `out` when the block ends well.

    Another process that writes there is waited for. UserError: as `writing`.
    """
    partial = out.with_name(f".{out.name}.partial")
    with alone(out, wait=True):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with writing(out):
                partial.mkdir()
                yield partial
                out.mkdir(exist_ok=True)
                for name in files:
                    (out / name).unlink(missing_ok=True)
                for path in sorted(partial.iterdir()):
                    os.replace(path, out / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
