"""Stop at the first non-finite loss and say which term it was, instead of training on NaN for days."""

from __future__ import annotations

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn


class FiniteLoss(nn.Module):
    """nnU-Net's cross-entropy + Dice loss with a check.

    Raises:
        FloatingPointError: from forward, when the loss is not finite; it names the terms and the outputs.
    """

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        value = self.loss(output, target)
        # Costs no extra synchronisation worth the name: nnU-Net copies every loss to the CPU anyway.
        if not torch.isfinite(value):
            raise FloatingPointError(self._explain(output, target))
        return value

    @torch.no_grad()
    def _explain(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> str:
        terms = self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss
        highest = output[0] if isinstance(output, list) else output
        truth = target[0] if isinstance(target, list) else target
        weights = terms.weight_ce, terms.weight_dice
        distributed, terms.dc.ddp = terms.dc.ddp, False  # the other processes may have finite losses
        terms.weight_ce, terms.weight_dice = 1, 0
        values = {"cross-entropy": float(terms(highest, truth))}
        terms.weight_ce, terms.weight_dice = 0, 1
        values["Dice"] = float(terms(highest, truth))
        terms.weight_ce, terms.weight_dice = weights
        terms.dc.ddp = distributed
        broken = (~torch.isfinite(highest)).sum()
        return (
            "non-finite loss: "
            + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            + f"; {broken} of {highest.numel()} network outputs are not finite. Training stopped; try a "
            "lower learning rate or the _fp32 trainer, and check the images for NaN"
        )
