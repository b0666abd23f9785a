"""Run the stages of a pipeline: in parallel, resumed after a kill, skipped when nothing has changed."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import write_atomically
from nnunet_order.registration import VARIABLE
from nnunet_order.stages.run import StageRun
from nnunet_order.stages.stage import Stage, stage_keys
from nnunet_order.stages.stage_files import StageFiles
from nnunet_order.stages.stage_record import OURS, versions

logger = logging.getLogger(__name__)

POLL = 0.2  # seconds
NNUNET_FOLDERS = {name: name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
Worker = Mapping[str, str]  # variables that send a command to its processor


@dataclass(frozen=True)
class Pipeline:
    """A folder and the stages that fill it. Their commands run in it and use relative paths only."""

    folder: Path
    stages: tuple[Stage, ...]
    """The stages, each behind all that it is `after`."""
    environment: Mapping[str, str] = field(default_factory=lambda: NNUNET_FOLDERS)
    """Variables of all commands; they override the user's own."""

    def __post_init__(self) -> None:
        stage_keys(self.stages)  # which checks them

    @cached_property
    def keys(self) -> dict[str, str]:
        """Stage name -> digest of everything that its outputs depend on."""
        return stage_keys(self.stages)

    def run(self, workers: Sequence[Worker] = ({},), again: bool = False) -> None:
        """Run what is not done, one stage per worker at a time. UserError: a stage failed; the others end.

        Stages that other versions of the packages finished are kept, with a warning. With `again`, they and
        all that follow them run once more.
        """
        self._look_at_versions(self.stages, again)
        self._write_script()
        self._run(self.stages, workers)

    def run_stage(self, name: str, worker: Worker | None = None, again: bool = False) -> None:
        """Run one stage, with `again` as in `run`. UserError: as `ready_stage`, or it fails."""
        stage = self.ready_stage(name)
        self._look_at_versions([stage] if again else [*self._before(stage), stage], again)
        self._write_script()
        self._run([stage], [worker or {}])

    def ready_stage(self, name: str) -> Stage:
        """A stage that can run now. UserError: there is none of this name; those before it are not done."""
        stage = {stage.name: stage for stage in self.stages}.get(name)
        if stage is None:
            raise UserError(f"found --stage {name}, expected one of --list-stages; correct the name")
        missing = [one.name for one in self._before(stage) if not self.files(one).is_done()]
        if missing:
            raise UserError(
                f"found {', '.join(missing)} not done, expected all stages before {name}; run them first"
            )
        return stage

    def list_stages(self) -> None:
        """Print a line per stage for scripts: name, state and the stages before it, separated by tabs."""
        for stage in self.stages:
            sys.stdout.write(f"{stage.name}\t{self.state(stage)}\t{','.join(dict.fromkeys(stage.after))}\n")

    def state(self, stage: Stage) -> str:
        """done, waiting (for stages before it), begun (and not finished) or ready."""
        if self.files(stage).is_done():
            return "done"
        if not all(self.files(one).is_done() for one in self._before(stage)):
            return "waiting"
        return "ready" if self.files(stage).attempts() is None else "begun"

    def script(self) -> str:
        """A shell script of all commands, which does what `run` does, one stage after the other."""
        return self._script(shlex.quote(str(self.folder.resolve())))

    def files(self, stage: Stage) -> StageFiles:
        """Records and log of a stage."""
        return StageFiles(self.folder.resolve(), stage, self.keys[stage.name])

    def _before(self, stage: Stage) -> list[Stage]:
        return [one for one in self.stages if one.name in stage.after]

    def _look_at_versions(self, stages: Sequence[Stage], again: bool) -> None:
        """Say which of these stages are kept though other versions finished them; `again`: forget those."""
        done = [stage for stage in stages if self.files(stage).is_done()]
        found = {stage.name: self.files(stage).read().other_versions() for stage in done}
        kept = {name: other for name, other in found.items() if other != []}
        if not kept:
            return
        if again:
            self._forget(kept)
            return
        made_by = sorted({name for other in kept.values() for name in other or ["unknown versions"]})
        packages = [
            package for package in versions() if any(name.startswith(f"{package} ") for name in made_by)
        ]
        now = [f"{package} {versions()[package] or 'missing'}" for package in packages or [OURS]]
        logger.warning(
            "kept %d of %d stages that other versions finished (%s; now %s): their results may have faults "
            "that have since been mended; give --again to rerun these stages and all that follow them",
            *(len(kept), len(self.stages), ", ".join(made_by), ", ".join(now)),
        )

    def _forget(self, names: Collection[str]) -> None:
        """Let these stages and all that follow them count as not done."""
        behind = set(names)
        for stage in self.stages:
            if behind & {*stage.after}:
                behind.add(stage.name)
        # The last one first: after a kill none is left that is newer than what it was made from.
        for stage in reversed(self.stages):
            if stage.name in behind and self.files(stage).is_done():
                self.files(stage).forget()
        logger.info("%d of %d stages will run again", len(behind), len(self.stages))

    def _script(self, place: str) -> str:
        programs = shlex.quote(str(Path(sys.executable).parent))
        variables = {**user_trainers(), **self.environment}
        lines = ["#!/bin/sh", "set -e", f"mkdir -p {place}", f"cd {place}", f"export PATH={programs}:$PATH"]
        lines += [f"export {_assignment(*variable)}" for variable in variables.items()]
        for stage in self.stages:
            variables = [_assignment(*variable) for variable in stage.environment.items()]
            lines += ["", f"# {stage.name}", *(" ".join([*variables, one]) for one in stage.commands)]
        return "\n".join(lines) + "\n"

    def _write_script(self) -> None:
        # From its own place, so that the folder can be moved.
        script = self._script('"$(dirname "$0")"')
        write_atomically(self.folder.resolve() / "commands.sh", script.encode())

    def _run(self, stages: Sequence[Stage], workers: Sequence[Worker]) -> None:
        if os.name != "posix":  # locks and process groups that outlive a kill
            raise UserError(
                "found Windows, expected Linux or macOS for demos, compare and experiment; use WSL, or run "
                "the commands that --dry-run prints"
            )
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, TimeElapsedColumn()) as progress:
            crew = _Crew(self, list(workers), progress, len(stages))
            try:
                waiting = list(stages)
                while waiting or crew.running:
                    before = {one.name for one in waiting} | crew.running.keys()
                    waiting = [stage for stage in waiting if before & {*stage.after} or not crew.take(stage)]
                    crew.look_after()
            finally:
                crew.end()


class _Crew:
    """Workers, what runs on them, and the bars that show it."""

    def __init__(self, pipeline: Pipeline, idle: list[Worker], progress: Progress, stages: int):
        self._pipeline, self._idle, self._progress = pipeline, idle, progress
        self._total = progress.add_task("stages", total=stages, note=f"0 of {stages}")
        self._held_elsewhere: set[str] = set()
        self.running: dict[str, tuple[StageRun, Worker, TaskID]] = {}

    def take(self, stage: Stage) -> bool:
        """Start a stage; False when no worker is idle or another process has it."""
        if not self._idle:
            return False
        worker, pipeline = self._idle[0], self._pipeline
        settings = {"PYTHONUNBUFFERED": "1", **user_trainers(), **pipeline.environment, **stage.environment}
        run = StageRun(pipeline.files(stage), {**os.environ, **settings, **worker})
        try:
            started = run.start()
        except BaseException:
            run.end()
            raise
        if not started:
            if stage.name not in self._held_elsewhere:
                logger.info("%s: another process runs it; waiting", stage.name)
            self._held_elsewhere.add(stage.name)
            return False
        bar = self._progress.add_task(stage.name, total=None, note="")
        self.running[stage.name] = run, self._idle.pop(0), bar
        return True

    def look_after(self) -> None:
        """Carry on what runs. UserError: a stage failed."""
        finished = [name for name, (run, _, _) in self.running.items() if run.poll()]
        for name in finished:
            run, worker, bar = self.running.pop(name)
            self._idle.append(worker)
            self._progress.remove_task(bar)
            self._progress.advance(self._total)
            task = self._progress.tasks[0]
            done = f"{task.completed:.0f} of {task.total:.0f}"
            self._progress.update(self._total, note=done)
            if run.seconds is not None:
                logger.info("%s took %.0f s; %s stages are done", name, run.seconds, done)
        for run, _, bar in self.running.values():
            self._progress.update(bar, note=run.note())
        if not finished:
            time.sleep(POLL)

    def end(self) -> None:
        """Kill what runs."""
        for run, _, _ in self.running.values():
            run.end()


def make_workers(jobs: int, gpus: Sequence[int] = ()) -> list[dict[str, str]]:
    """Variables of each worker: one per GPU, or `jobs` that share the processor's cores.

    OMP_NUM_THREADS stays as the user set it.
    """
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in gpus]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // jobs))
    # Stock nnU-Net takes all cores whatever the number says. Threads that spin while they wait for one
    # another then make its trainings 30 times as slow (4.2 s for a step instead of 0.12 on two busy cores).
    return [{"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"} for _ in range(jobs)]


def user_trainers() -> dict[str, str]:
    """nnUNet_extTrainer with full paths, as commands run in another folder."""
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return {VARIABLE: os.pathsep.join(str(Path(folder).absolute()) for folder in folders)} if folders else {}


def _assignment(name: str, value: str) -> str:
    return f"{name}={shlex.quote(value)}"
