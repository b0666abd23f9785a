"""The options with which any experiment's stages are shown or run."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.raw.description import load_table
from dataset_conversion.system.errors import UserError, check_writable
from dataset_conversion.system.json_files import write_json
from nnunet_order.stages.runner import Experiment, make_workers

FORMAT = 1  # of experiment.json


@dataclass(frozen=True)
class Execution:
    """How an experiment's stages run."""

    jobs: int = 1
    """Stages at a time on CPUs, which share the cores."""
    gpus: tuple[int, ...] = ()
    """Numbers of GPUs to use, one stage on each at a time."""
    dry_run: bool = False
    """Print all commands as a shell script and stop."""
    list_stages: bool = False
    """Print one line per stage (name, state, stages before it; tabs between) and stop."""
    stage: str | None = None
    """Run this stage alone, on a cluster for example."""
    again: bool = False
    """Run stages that other versions of law-order, nnU-Net, PyTorch and the like finished once more, and all
    that follow them; without it they are kept, with a warning."""

    def check_device(self, device: str) -> None:
        """UserError: --gpus for commands that are to run on the CPU."""
        if self.gpus and device == "cpu":
            raise UserError(
                f"found --gpus {' '.join(map(str, self.gpus))} and device cpu, expected a GPU that PyTorch "
                "sees; leave --gpus out, or name the device cuda"
            )

    def carry_out(self, experiment: Experiment, record: Mapping) -> bool:
        """Show or run the stages; whether all of them have run.

        `record` becomes experiment.json before the first one does. UserError: options that contradict each
        other, a folder with something else in it, or whatever ends a stage.
        """
        if self.again and (self.dry_run or self.list_stages):
            raise UserError("found --again without a run, expected it where stages run; drop it")
        workers = make_workers(self.jobs, self.gpus)
        if self.dry_run:
            sys.stdout.write(experiment.script())
        elif self.list_stages:
            experiment.list_stages()
        else:
            stage = experiment.ready_stage(self.stage) if self.stage is not None else None
            begin(experiment.folder, record)
            if stage is None:
                experiment.run(workers, self.again)
                return True
            experiment.run_stage(stage.name, workers[0], self.again)
        return False


def begin(folder: Path, record: Mapping) -> None:
    """Write experiment.json. UserError: the folder holds something else, or an experiment of another kind.

    An experiment of the same kind that has changed is gone on with, its changed stages from scratch.
    """
    path = folder / "experiment.json"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder for the experiment; choose another --out")
    check_writable(folder)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    # A kill may have left a part of the first record.
    if not path.is_file() and not all(
        re.fullmatch(r"\.experiment\.json\..*\.partial", name) for name in names
    ):
        raise UserError(
            f"{folder}: found other content, expected an experiment or nothing; choose another --out"
        )
    if path.is_file():
        found = begun_record(folder).get("kind")
        if found != record["kind"]:
            raise UserError(
                f"{path}: found an experiment of {found or 'an unknown kind'}, expected one of "
                f"{record['kind']}; choose another --out"
            )
    write_json(path, dict(record))


def begun_record(folder: Path) -> dict:
    """Content of experiment.json; empty where there is none. UserError: it is damaged."""
    path = folder / "experiment.json"
    return load_table(path, "the record of an experiment", "choose another --out") if path.is_file() else {}
