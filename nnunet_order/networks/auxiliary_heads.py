"""Heads at lower resolutions for deep supervision."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class AuxiliaryHeads(nn.ModuleList):
    """A 1x1 head per decoder width; none without deep supervision, as unused parameters stop DDP.

    nnU-Net trains with deep supervision and predicts with a network built without it: that one skips the
    auxiliary weights of the checkpoint.
    """

    def __init__(self, widths: Iterable[int], num_classes: int, deep_supervision: bool):
        super().__init__(nn.Conv2d(width, num_classes, 1) for width in widths if deep_supervision)

    def _load_from_state_dict(self, *arguments) -> None:
        if len(self):
            super()._load_from_state_dict(*arguments)
