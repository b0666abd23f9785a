"""The options that say how the stages of an experiment are shown or run."""

from __future__ import annotations

from dataclasses import dataclass

from dataset_conversion.system.errors import UserError


@dataclass(frozen=True)
class Execution:
    """How the stages of an experiment run."""

    jobs: int = 1
    """Number of stages that run at a time on the CPU. They share its cores."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs to use. Each runs one stage at a time."""
    dry_run: bool = False
    """Print all commands as a shell script and stop."""
    list_stages: bool = False
    """Print a line per stage and stop: its name, its state and the stages before it, separated by tabs."""
    stage: str | None = None
    """Run this stage only, for example as one job on a cluster."""
    again: bool = False
    """Rerun the stages that other versions of law-order, nnU-Net, PyTorch and the like finished, and all
    stages that follow them. Without it they are kept, with a warning."""

    def check(self) -> None:
        """UserError: options that contradict each other, or impossible numbers."""
        if self.again and (self.dry_run or self.list_stages):
            raise UserError("found --again without a run, expected it where stages run; drop it")
        if self.jobs < 1:
            raise UserError(f"found --jobs {self.jobs}, expected 1 or more; change it")
        if self.gpus and (self.jobs != 1 or len(set(self.gpus)) < len(self.gpus) or min(self.gpus) < 0):
            raise UserError(
                f"found --gpus {self._given_gpus} and --jobs {self.jobs}, expected numbers of different "
                "GPUs, each of which runs one stage at a time; correct them"
            )

    def check_device(self, device: str) -> None:
        """UserError: --gpus for commands that are to run on the CPU."""
        if self.gpus and device == "cpu":
            raise UserError(
                f"found --gpus {self._given_gpus} and device cpu, expected a GPU that PyTorch sees; leave "
                "--gpus out, or name the device cuda"
            )

    @property
    def _given_gpus(self) -> str:
        return " ".join(map(str, self.gpus))
