"""Long conversions that continue where they were killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dataset_conversion.system.errors import UserError, writing
from dataset_conversion.system.folders import take_name
from dataset_conversion.system.json_files import as_json, converted, read_json, write_json
from dataset_conversion.system.lock import alone
from dataset_conversion.system.names import check_inside

Facts = TypeVar("Facts")

JOURNAL = ".journal"
REMOVE = "remove that file"


@contextmanager
def resumable_folder(out: Path, options: dict) -> Iterator[Path]:
    """As `folders.new_folder`, but parts in its `Journal` outlive a kill or an error.

    Parts made under other `options` (a JSON object) are thrown away. UserError: as there.
    """
    partial = out.parent / f".{out.name}.partial"
    journal = partial / JOURNAL
    with alone(out):
        try:
            if not (journal / "options").is_file() or read_json(journal / "options", dict, REMOVE) != options:
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


@dataclass(frozen=True)
class Part:
    """The record of a part that is finished."""

    stamp: list
    files: list[str]
    """Paths relative to the folder."""
    facts: dict


class Journal(Generic[Facts]):
    """What is finished in a `resumable_folder`: one record for each part, written after the part's files.

    What the folder holds beside finished parts is deleted: files of a half-written part, of one whose source
    has changed since, or of one that has lost a file. UserError: a record is not as it was written.

    Args:
        stamps: name of each part -> anything that changes with its source (a JSON value).
        kind: what is noted of a finished part, as a dataclass.
    """

    def __init__(self, folder: Path, stamps: Mapping[str, list], kind: type[Facts]):
        self._folder, self._stamps = folder, stamps
        self._parts: dict[str, Part] = {}
        self._facts: dict[str, Facts] = {}
        for path in (folder / JOURNAL).glob("*.json"):
            part = read_json(path, Part, REMOVE)
            facts = converted(part.facts, kind, path, REMOVE)
            is_whole = all((folder / check_inside(name, path)).is_file() for name in part.files)
            if is_whole and part.stamp == stamps.get(path.stem):
                self._parts[path.stem], self._facts[path.stem] = part, facts
            else:
                path.unlink()
        finished = {name for part in self._parts.values() for name in part.files}
        for path in folder.rglob("*"):
            is_record = path.parent.name == JOURNAL
            if path.is_file() and not is_record and path.relative_to(folder).as_posix() not in finished:
                path.unlink()

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, name: str) -> Facts | None:
        """The facts given to `add` when the part was finished; None when it is not."""
        return self._facts.get(name)

    def add(self, name: str, files: list[Path], facts: Any) -> None:
        """Note that a part is finished: its files, and what the conversion must know of it at its end."""
        names = [path.relative_to(self._folder).as_posix() for path in files]
        write_json(self._folder / JOURNAL / f"{name}.json", as_json(Part(self._stamps[name], names, facts)))
