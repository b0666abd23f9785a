"""Cosine annealing as a function of the epoch, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from torch.optim import Optimizer

NNUNET_EPOCH = 250  # iterations


class CosineSchedule:
    """lr(epoch) = lr_0 (1 + cos(pi epoch / epochs)) / 2, with nnU-Net's `step(epoch)` interface.

    lr_0 is what each of the optimizer's groups has when this is made. torch's CosineAnnealingLR deprecates an
    epoch argument and would count calls instead.
    """

    def __init__(self, optimizer: Optimizer, epochs: int):
        self.optimizer = optimizer
        self.initial_rates = [group["lr"] for group in optimizer.param_groups]
        self.epochs = epochs

    def step(self, epoch: int) -> None:
        """Set the learning rates of this epoch (0-based)."""
        for group, initial in zip(self.optimizer.param_groups, self.initial_rates, strict=True):
            group["lr"] = initial * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


def one_pass(cases: int, slices: int, batch_size: int) -> int:
    """Iterations that see each image once, at least 1; of volumes each slice, but at most nnU-Net's 250.

    `slices` per case is 1 for images. The paper's recipe is for images; 168 volumes of KiTS19 have 18,000
    slices, and a pass over 168 of them would be no epoch.
    """
    whole_volumes = min(NNUNET_EPOCH, round(cases * slices / batch_size))
    return max(1, round(cases / batch_size), whole_volumes)
