"""The 1x1 convolutions that make segmentation maps, under the name by which nnU-Net knows them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class SegLayers(nn.ModuleList):
    """A 1x1 convolution for the decoder's last width and, with deep supervision, one for each width before.

    The attribute that holds them must be called `seg_layers`: nnU-Net's -pretrained_weights leaves those out,
    so that weights carry over to a data set with other labels. Without deep supervision there is one, as
    unused parameters stop DDP; nnU-Net trains with it and predicts with a network built without, which skips
    the others of the checkpoint.

    Args:
        widths: of the decoder's features, low to high resolution.
        num_classes: output channels.
        deep_supervision: whether the lower resolutions have theirs.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, deep_supervision: bool):
        *low, full = widths
        super().__init__(
            nn.Conv2d(width, num_classes, 1) for width in (full, *(low if deep_supervision else ()))
        )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *messages) -> None:
        strict = strict and len(self) > 1
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *messages)
