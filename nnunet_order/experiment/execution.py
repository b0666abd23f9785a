"""The options with which any experiment's stages are shown or run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from nnunet_order.experiment.runner import Experiment, make_workers


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

    def carry_out(self, experiment: Experiment, begin: Callable[[], None]) -> bool:
        """Show or run the stages; whether all of them have run. `begin` is called before the first one does.

        UserError: options that contradict each other, or whatever ends a stage.
        """
        workers = make_workers(self.jobs, self.gpus)
        if self.dry_run:
            sys.stdout.write(experiment.script())
        elif self.list_stages:
            experiment.list_stages()
        else:
            begin()
            if self.stage is None:
                experiment.run(workers)
                return True
            experiment.run_stage(self.stage, workers[0])
        return False
