"""A generation in its folder: it starts there once, goes on after a kill, and leaves no ruins."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset_conversion.raw.writer import check_out
from dataset_conversion.system.errors import UserError, check_writable
from dataset_conversion.system.json_files import write_json
from law_synth.records.synthetic import (
    DESCRIPTION,
    FOLDER,
    Begun,
    SynthesisRecord,
    may_hold_images,
    read_begun,
)

logger = logging.getLogger(__name__)


def check_generation(out: Path, description: SynthesisRecord) -> None:
    """UserError where `open_generation` would refuse; writes nothing."""
    try:
        if not (out / DESCRIPTION).is_file():
            check_out(out)
            check_writable(out)
            return
    except UserError:
        if not (out / DESCRIPTION).is_file():  # else another process started it just now
            raise
    _check_same_options(out, description)


def open_generation(out: Path, description: SynthesisRecord) -> None:
    """Start a generation in a free folder, or go on with the same one. UserError: as `check_generation`."""
    if not (out / DESCRIPTION).is_file():
        try:
            _start(out, description)
        except UserError:
            if not (out / DESCRIPTION).is_file():  # else another process started it just now
                raise
    before = _check_same_options(out, description)
    if before.versions != description.versions:
        logger.warning(
            "begun with %s, goes on with %s: the images may differ in the last bit",
            before.versions,
            description.versions,
        )


def _check_same_options(out: Path, description: SynthesisRecord) -> Begun:
    """The record of the generation in `out`. UserError: it has other options."""
    before = read_begun(out)
    found, now = before.options, description.json["options"]
    for name in [*now, *found]:  # either may have options that the other has not
        if found.get(name) != now.get(name):
            raise UserError(
                f"{out}: found a generation with {name.replace('_', '-')} {found.get(name)}, "
                f"expected {now.get(name)} as now; give the same options or choose another --out"
            )
    return before


def _start(out: Path, description: SynthesisRecord) -> None:
    """Create `out` with its record in one step."""
    check_out(out)
    staging = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        (staging / FOLDER).mkdir(parents=True)
        write_json(staging / DESCRIPTION, description.json)
        if out.is_dir():
            out.rmdir()  # empty, see check_out
        os.rename(staging, out)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UserError(f"cannot create {out} ({error.strerror}); choose another --out") from error


@contextmanager
def no_ruins(out: Path, is_alone: bool) -> Iterator[None]:
    """Remove the generation in `out` when the block ends in a UserError and no image has been kept so far.

    Enter it only after `open_generation`, which proves that `out` holds this generation and nothing else. It
    stays where other processes may be at work there (not `is_alone`), and where a chunk file is damaged.
    """
    try:
        yield
    except UserError:
        if is_alone and not may_hold_images(out):
            shutil.rmtree(out, ignore_errors=True)
        raise


def remove_leftovers(out: Path, prefix: str, kept: Collection[str]) -> None:
    """Remove what killed processes left of cases `<prefix>_...`, once all chunks are done.

    Among it may be whole files of a sample that was dropped when its chunk was made again.
    """
    case_id = re.compile(re.escape(prefix) + r"_\d+")
    for folder in ("imagesTr", "labelsTr"):
        for path in (out / folder).glob(f".{prefix}_*.partial"):
            path.unlink(missing_ok=True)
        for path in (out / folder).glob(f"{prefix}_*"):
            if (found := case_id.match(path.name)) and found[0] not in kept:
                path.unlink(missing_ok=True)
