"""Long conversions that go on where they were killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dataset_conversion.raw.description import load_json
from dataset_conversion.system.errors import UserError, writing
from dataset_conversion.system.folders import take_name
from dataset_conversion.system.json_files import write_json
from dataset_conversion.system.lock import alone
from dataset_conversion.system.names import check_inside

JOURNAL = ".journal"


@contextmanager
def resumable_folder(out: Path, options: dict) -> Iterator[Path]:
    """As `report_folder.new_folder`, but parts in its `Journal` outlive a kill or an error.

    Parts made under other `options` (a JSON object) are thrown away. UserError: as there.
    """
    partial = out.parent / f".{out.name}.partial"
    journal = partial / JOURNAL
    with alone(out):
        try:
            if not (journal / "options").is_file() or load_json(journal / "options") != options:
                shutil.rmtree(partial, ignore_errors=True)
            journal.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {partial} ({error.strerror}); choose another --out") from error
        try:
            write_json(journal / "options", options)
            with writing(out):
                yield partial
                take_name(partial, out)
                shutil.rmtree(out / JOURNAL)
        finally:
            if not any(journal.glob("*.json")):
                shutil.rmtree(partial, ignore_errors=True)


class Journal:
    """What is finished in a `resumable_folder`: one record for each part, written after the part's files.

    What the folder holds beside finished parts is deleted: files of a half-written part, or of one whose
    source has changed since, or of which a file is gone. UserError: a record is not as it was written.

    Args:
        stamps: name of each part -> anything that changes with its source (a JSON value).
    """

    def __init__(self, folder: Path, stamps: Mapping[str, list]):
        self._folder, self._stamps = folder, stamps
        self._records: dict[str, dict] = {}
        for path in (folder / JOURNAL).glob("*.json"):
            record = _read_record(path)
            is_whole = all((folder / name).is_file() for name in record["files"])
            if is_whole and record["stamp"] == stamps.get(path.stem):
                self._records[path.stem] = record
            else:
                path.unlink()
        finished = {name for record in self._records.values() for name in record["files"]}
        for path in folder.rglob("*"):
            is_record = path.parent.name == JOURNAL
            if path.is_file() and not is_record and path.relative_to(folder).as_posix() not in finished:
                path.unlink()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, name: str) -> dict | None:
        """The facts given to `add` when the part was finished; None when it is not."""
        return self._records[name]["facts"] if name in self._records else None

    def add(self, name: str, files: list[Path], facts: dict) -> None:
        """Note that a part is finished: its files, and what the conversion must know of it at its end."""
        names = [path.relative_to(self._folder).as_posix() for path in files]
        record = {"stamp": self._stamps[name], "files": names, "facts": facts}
        write_json(self._folder / JOURNAL / f"{name}.json", record)


def _read_record(path: Path) -> dict:
    """As `Journal.add` writes it. UserError: it is none, or names files outside of the folder."""
    record = load_json(path)
    kinds = {"stamp": list, "files": list, "facts": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kinds[key]) for key in kinds):
        raise UserError(f"{path}: found no record of a finished part, expected one; remove that file")
    for name in record["files"]:
        check_inside(name, path)
    return record
