"""How a command recognises the data set that it has made: a kill may come just after its last rename."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_json, write_json
from dataset_conversion.system.lock import alone, lock_path
from dataset_conversion.system.resumable import JOURNAL

logger = logging.getLogger(__name__)

RECORD = ".conversion.json"  # hidden, so that it is none of the data set's own files
NOT_THE_RESULT = ("out", "workers")  # options that change no file


@dataclass(frozen=True)
class Conversion:
    """A command that makes a data set; `conversion_of` makes it."""

    out: Path
    digest: str
    """Hash of everything that decides the files: options, sources and version."""

    def is_done(self) -> bool:
        """Whether `out` holds what this command has written, no file more or less; the log then says so."""
        out = self.out.resolve()
        try:
            record = read_json(out / RECORD, dict)
        except UserError:
            return False
        if record != self._record(out):
            return False
        if (out / JOURNAL).exists() or lock_path(out).exists():  # a kill left them
            with alone(out, wait=True):
                shutil.rmtree(out / JOURNAL, ignore_errors=True)
        logger.info("%s is finished already: this command has written it; nothing to do", self.out)
        return True

    def sign(self, folder: Path) -> None:
        """Leave the record in a folder whose files are all there and that is going to be `out`."""
        write_json(folder / RECORD, self._record(folder))

    def _record(self, folder: Path) -> dict[str, str]:
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        seen = sorted(path.as_posix() for path in paths if not any(part[0] == "." for part in path.parts))
        files = [[name, (folder / name).stat().st_size] for name in seen]
        return {"command": self.digest, "files": _digest(files)}


def conversion_of(verb: object, sources: Iterable[Path] = ()) -> Conversion:
    """The command that options of `convert` give, a dataclass with the field `out`.

    Of the files `sources`, which it reads, path, size and date count.
    """
    options = {name: value for name, value in asdict(verb).items() if name not in NOT_THE_RESULT}
    stats = {str(path.resolve()): path.stat() for path in sources}
    found = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in sorted(stats.items())]
    try:
        of_package = version("law-order")
    except PackageNotFoundError:  # a checkout that is not installed
        of_package = None
    return Conversion(Path(verb.out), _digest([type(verb).__name__, options, found, of_package]))


def _digest(content: list) -> str:
    text = json.dumps(content, default=lambda path: str(path.resolve()))
    return hashlib.sha256(text.encode()).hexdigest()
