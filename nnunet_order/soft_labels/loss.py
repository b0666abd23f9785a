"""The loss of a training with soft labels: cross-entropy and Dice on them beside nnU-Net's own on labels.

After Hinton et al., arXiv:1503.02531, with a Dice term as in nnU-Net's loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

SMOOTH = 1e-5  # of the Dice, as in nnU-Net


class SoftLabelLoss(nn.Module):
    """(1 - weight) x nnU-Net's loss on the labels + weight x the loss on soft labels.

    Targets are those of `AppendSoftLabels`: nnU-Net's own channels, then the K soft labels. A target without
    soft labels, as in validation, gets nnU-Net's loss alone.

    Args:
        loss: nnU-Net's.
        own_channels: of nnU-Net's target: 1 for a label map, else one for each region and the ignore label.
        has_regions: the network's outputs are K regions, else the background and K labels.
        weight: from 0 to 1.
        temperature: divides the logits of teacher and student. The cross-entropy is multiplied by its square,
            so that gradients keep their size.
        dice: options of nnU-Net's Dice loss, `batch_dice` and `ddp`.

    Raises:
        FloatingPointError: from forward, when a term is not finite.
    """

    def __init__(
        self,
        loss: nn.Module,
        own_channels: int,
        has_regions: bool,
        weight: float,
        temperature: float,
        dice: dict[str, Any],
    ):
        super().__init__()
        self.loss, self.own_channels, self.has_regions = loss, own_channels, has_regions
        self.weight, self.temperature = weight, temperature
        self.dice = MemoryEfficientSoftDiceLoss(do_bg=has_regions, smooth=SMOOTH, **dice)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C, H, W) and target -> a number."""
        own, soft_labels = target[:, : self.own_channels], target[:, self.own_channels :]
        if not soft_labels.shape[1]:
            return self.loss(output, own)
        soft = self.on_soft_labels(output, soft_labels)
        if not torch.isfinite(soft):
            raise FloatingPointError(
                f"non-finite loss on soft labels: {float(soft)}. Training stopped; try a lower learning rate "
                "or soft_label_weight=0, and check the images for NaN"
            )
        if self.weight == 1:
            return soft
        return (1 - self.weight) * self.loss(output, own) + self.weight * soft

    def on_soft_labels(self, output: Tensor, soft: Tensor) -> Tensor:
        """Cross-entropy + Dice of logits (B, C, H, W) with probabilities (B, K, H, W) of the foreground."""
        logits = output / self.temperature
        if self.has_regions:
            target = softened(torch.stack([1 - soft, soft]), self.temperature)[1]
            entropy = F.binary_cross_entropy_with_logits(logits, target)
            student = torch.sigmoid(logits)
        else:
            background = (1 - soft.sum(1, keepdim=True)).clamp_min(0)
            target = softened(torch.cat([background, soft], dim=1).movedim(1, 0), self.temperature)
            target = target.movedim(0, 1)
            entropy = F.cross_entropy(logits, target)
            student = torch.softmax(logits, dim=1)
        return self.temperature**2 * entropy + self.dice(student, target)


def softened(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities (C, ...) of logits that are divided by a temperature; they add up to 1 again."""
    powers = probabilities if temperature == 1 else probabilities ** (1 / temperature)
    return powers / powers.sum(0)
