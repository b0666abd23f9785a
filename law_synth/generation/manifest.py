"""What a generation has done so far: one file per finished chunk, so that it can be killed and go on.

A chunk's images are written first, its labels second and its chunk file last, each under a temporary name and
renamed. A chunk counts as done when its chunk file is there and every file it lists has the recorded sha256.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dataset_conversion.names import check_case_id, check_inside
from dataset_conversion.raw_writer import check_out, write_atomically, write_json
from dataset_conversion.user_error import UserError, check_writable
from law_synth.hashing import hash_file
from law_synth.slices import Slice

logger = logging.getLogger(__name__)

FOLDER = ".generation"
DESCRIPTION = "synthesis.json"


def check_generation(out: Path, description: dict) -> None:
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


def open_generation(out: Path, description: dict) -> None:
    """Start a generation in a free folder, or go on with the same one. UserError: as `check_generation`."""
    if not (out / DESCRIPTION).is_file():
        try:
            _start(out, description)
        except UserError:
            if not (out / DESCRIPTION).is_file():  # else another process started it just now
                raise
    before = _check_same_options(out, description)
    if before["versions"] != description["versions"]:
        logger.warning(
            "begun with %s, goes on with %s: the images may differ in the last bit",
            before["versions"],
            description["versions"],
        )


def _check_same_options(out: Path, description: dict) -> dict:
    """The record of the generation in `out`. UserError: it has other options."""
    path = out / DESCRIPTION
    before = _read(path)
    if before is None or not {"options", "versions"} <= before.keys():
        raise UserError(
            f"{path}: malformed, expected the record of a generation; remove {out} and start anew"
        )
    description = json.loads(json.dumps(description))  # tuples become lists, as in the file
    found, now = before["options"], description["options"]
    for name in [*now, *found]:  # either may have options that the other has not
        if found.get(name) != now.get(name):
            raise UserError(
                f"{out}: found a generation with {name.replace('_', '-')} {found.get(name)}, "
                f"expected {now.get(name)} as now; give the same options or choose another --out"
            )
    return before


def _start(out: Path, description: dict) -> None:
    """Create `out` with its record in one step."""
    check_out(out)
    staging = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        (staging / FOLDER).mkdir(parents=True)
        write_json(staging / DESCRIPTION, description)
        if out.is_dir():
            out.rmdir()  # empty, see check_out
        os.rename(staging, out)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UserError(f"cannot create {out} ({error.strerror}); choose another --out") from error


def write_chunk(
    out: Path, chunk: int, images: Mapping[str, bytes], labels: Mapping[str, bytes], rows: list[dict]
) -> None:
    """Write a chunk's files (name below `out` -> content), then its chunk file. UserError: disk full."""
    files = {**images, **labels}
    for name, content in files.items():
        write_atomically(out / name, content)
    record = {
        "chunk": chunk,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "rows": rows,
    }
    write_json(_chunk_path(out, chunk), record)


def read_chunk(out: Path, chunk: int) -> list[dict] | None:
    """Rows of a finished chunk; None when it is not there, or not as it was written.

    UserError: its record names files outside of `out`.
    """
    path = _chunk_path(out, chunk)
    record = _read(path)
    if record is None or not {"files", "rows"} <= record.keys():
        return None
    for row in record["rows"]:
        check_case_id(row["case"], path)
    for name, digest in record["files"].items():
        check_inside(name, path)
        if not (out / name).is_file() or hash_file(out / name) != digest:
            return None
    return record["rows"]


@contextmanager
def no_ruins(out: Path, is_alone: bool) -> Iterator[None]:
    """Remove the generation in `out` when the block ends in a UserError and no image has been kept so far.

    Enter it only after `open_generation`, which proves that `out` holds this generation and nothing else. It
    stays where other processes may be at work there (not `is_alone`), and where a chunk file is damaged.
    """
    try:
        yield
    except UserError:
        records = [_read(path) for path in (out / FOLDER).glob("chunk_*.json")]
        if is_alone and all(record is not None and not _keeps_images(record) for record in records):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _keeps_images(record: dict) -> bool:
    """Whether a chunk's record lists files."""
    return bool(record.get("files", True))


def count_chunks(out: Path) -> int:
    """Number of chunk files, whoever wrote them."""
    return sum(1 for _ in (out / FOLDER).glob("chunk_*.json"))


def source_slice(row: Mapping) -> Slice | None:
    """The real image that owns the mask of a line of synthesis.jsonl; None for a mask from elsewhere.

    A name proves nothing: a file of --masks that is called like a training case may hold another mask, and
    then the case's image does not show what it says. So only a mask that `generate` took from the case itself
    is the case's own, and only that image is compared with the synthetic one. `generate` records a file with
    the very pixels and place of its case's mask as that mask, see `plan.with_own_masks`.

    Args:
        row: `source_case` and, unless all masks are the cases' own, `source_mask`; `source_slice` of volumes.
    """
    case = row.get("source_case")
    is_own = case is not None and row.get("source_mask", case) == case
    return Slice(case, row.get("source_slice")) if is_own else None


def write_rows(path: Path, rows: list[dict]) -> None:
    """JSON lines, sorted by case id."""
    lines = [json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["case"])]
    write_atomically(path, "".join(lines).encode())


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


def _chunk_path(out: Path, chunk: int) -> Path:
    return out / FOLDER / f"chunk_{chunk:06d}.json"


def _read(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
