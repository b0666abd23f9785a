"""Stop at the first non-finite loss and say which term it was, instead of training on NaN for days."""

from __future__ import annotations

from collections.abc import Callable

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
        values: dict[str, float] = {}

        def noting(name: str) -> Callable:
            return lambda module, inputs, value: values.update({name: float(value.mean())})

        # Noted on their way: in the sum of regions' terms a weight of 0 would turn infinity into NaN.
        modules = {"cross-entropy": terms.ce, "Dice": terms.dc}
        hooks = [module.register_forward_hook(noting(name)) for name, module in modules.items()]
        distributed, terms.dc.ddp = terms.dc.ddp, False  # the other processes may have finite losses
        terms(highest, truth)
        terms.dc.ddp = distributed
        for hook in hooks:
            hook.remove()
        broken = (~torch.isfinite(highest)).sum()
        return (
            "non-finite loss: "
            + ", ".join(f"{name} {values[name]:.4g}" for name in modules if name in values)
            + f"; {broken} of {highest.numel()} network outputs are not finite. Training stopped; try a "
            "lower learning rate or the _fp32 trainer, and check the images for NaN"
        )
