"""One training of a model from scratch, with checkpoints: a killed training goes on exactly where it was."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.terminal import pace, progress
from nnunet_order.torch_file import load_torch

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

logger = logging.getLogger(__name__)

CHECK_EVERY = 10  # steps between looks at the loss; each waits for the GPU


@dataclass
class ModelTraining:
    """One of the two trainings: what is trained, and a loss that depends on nothing but weights and step."""

    name: str
    model: torch.nn.Module
    loss: Callable[[int], Tensor]
    steps: int
    learning_rate: float
    ema: EMAModel | None = None
    losses: list[float] = field(default_factory=list)

    def train(self, checkpoint: Path, every: int, images_per_step: int) -> None:
        """Train from the checkpoint, if there is one, to the end. UserError: the loss is not finite."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate, weight_decay=0.0)
        start = self._restore(checkpoint, optimizer)
        pending = []
        with _progress(self.name, self.steps, start, images_per_step) as report:
            for step in range(start, self.steps):
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * learning_rate_factor(step, self.steps)
                loss = self.loss(step)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                if self.ema:
                    self.ema.step(self.model.parameters())
                pending.append(loss.detach())
                done = step + 1
                if done % CHECK_EVERY == 0 or done % every == 0 or done == self.steps:
                    self._note(pending, done)
                    pending = []
                    report(done, self.losses[-1])
                if done % every == 0 or done == self.steps:
                    self._save(checkpoint, optimizer, done)
        self.model.requires_grad_(False).eval()

    def _note(self, pending: list[Tensor], done: int) -> None:
        values = torch.stack(pending).tolist()
        if not all(map(math.isfinite, values)):
            raise UserError(
                f"the {self.name} loss is not finite at one of the steps {done - len(values) + 1} to {done}, "
                "expected a number; lower --learning-rate and start with another --out"
            )
        self.losses += values

    def _save(self, path: Path, optimizer: torch.optim.Optimizer, done: int) -> None:
        temporary = path.with_suffix(".partial")
        state = {
            "step": done,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "losses": self.losses,
        }
        torch.save(state, temporary)
        os.replace(temporary, path)

    def _restore(self, path: Path, optimizer: torch.optim.Optimizer) -> int:
        """-> the number of steps already done."""
        if not path.is_file():
            return 0
        needed = ("step", "model", "optimizer", "ema", "losses")
        remedy = "remove it and give the same command again, to train this part anew"
        state = load_torch(path, "a checkpoint of init-base", remedy, needed)
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(next(self.model.parameters()).device)
        self.losses = state["losses"]
        logger.info("%s: %d of %d steps were done already", self.name, state["step"], self.steps)
        return state["step"]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then half a cosine down to a twentieth."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@contextmanager
def _progress(
    name: str, steps: int, start: int, images_per_step: int
) -> Iterator[Callable[[int, float], None]]:
    """A progress bar; yields the function that reports the steps done and the loss."""
    began = time.perf_counter()
    with progress("loss {task.fields[loss]:.4f}  {task.fields[pace]}") as bar:
        task = bar.add_task(f"train {name}", total=steps, completed=start, loss=math.nan, pace=pace(0, 0))

        def report(done: int, loss: float) -> None:
            images = (done - start) * images_per_step
            bar.update(task, completed=done, loss=loss, pace=pace(images, time.perf_counter() - began))

        yield report
