"""Where a stage keeps its records, its lock and its log, and what they say about it."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.system.json_files import as_json, write_json
from dataset_conversion.system.names import check_inside
from nnunet_order.stages.stage import Stage
from nnunet_order.stages.stage_record import BegunStage, StageRecord, read_record

TAIL = 1 << 16  # bytes at the end of a log in which to look for what it says last


@dataclass(frozen=True)
class StageFiles:
    """A stage's records and log in the experiment's folder. UserError: a record that somebody has damaged."""

    folder: Path
    stage: Stage
    key: str

    @property
    def record(self) -> Path:
        return self.folder / "stages" / f"{self.stage.name}.json"

    @property
    def begun(self) -> Path:
        return self.folder / "stages" / f"{self.stage.name}.begun.json"

    @property
    def lock(self) -> Path:
        return self.folder / "stages" / f"{self.stage.name}.lock"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.stage.name}.txt"

    def read(self) -> StageRecord | None:
        """What the stage left when it finished, in whatever form it had then."""
        return read_record(self.record, StageRecord)

    def is_done(self) -> bool:
        """Whether the stage has finished as it stands now, and its outputs are still there."""
        record = self.read()
        return record is not None and record.key == self.key and not self.missing_outputs()

    def forget(self) -> None:
        """Let a finished stage count as not done; its record still names the outputs to remove."""
        write_json(self.record, as_json(replace(self.read(), key=None)))

    def attempts(self) -> int | None:
        """How often the stage has been started as it stands now without an end; None: never."""
        begun = None if self.record.exists() else read_record(self.begun, BegunStage)
        return begun.attempts if begun is not None and begun.key == self.key else None

    def missing_outputs(self) -> list[str]:
        return [output for output in self.stage.outputs if not (self.folder / output).exists()]

    def clear(self) -> None:
        """Remove what the stage wrote, also under the names that an earlier form of it gave.

        UserError: a record names something outside the experiment's folder.
        """
        outputs = {check_inside(output, self.folder) for output in self.stage.outputs}
        for path, kind in ((self.record, StageRecord), (self.begun, BegunStage)):
            if (record := read_record(path, kind)) is not None:
                outputs |= {check_inside(output, path) for output in record.outputs}
        for output in outputs:
            _remove(self.folder / output)
        self.record.unlink(missing_ok=True)
        self.begun.unlink(missing_ok=True)

    def remove_cut_checkpoints(self) -> None:
        """Remove the checkpoints whose writing a kill cut off, so that nnU-Net resumes from an earlier one.

        Stock nnU-Net overwrites a checkpoint in place, and fails on a part of one.
        """
        for output in self.stage.outputs:
            for path in (self.folder / output).rglob("*.pth"):
                if _is_cut_off(path):
                    path.unlink()

    def tail(self) -> str:
        """The end of its log since the last command was started."""
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - TAIL))
            text = stream.read().decode(errors="replace").replace("\r", "\n")
        return text.rpartition("\n=== ")[2]


def _is_cut_off(path: Path) -> bool:
    """Whether a file of torch.save, a ZIP archive, lacks its end, where the list of its contents stands."""
    with path.open("rb") as file:
        start = file.read(2)
    return start in (b"", b"PK") and not zipfile.is_zipfile(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
