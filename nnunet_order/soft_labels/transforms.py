"""Soft labels on their way through nnU-Net's augmentation, which turns and mirrors them like the image."""

from __future__ import annotations

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform


class TakeOutSoftLabels(BasicTransform):
    """The channels of a segmentation after the first, 0 to 255, become a `regression_target`, 0 to 1.

    It belongs before all others. Spatial transforms interpolate such a target like the image, and those of
    intensities leave it alone. A segmentation of one channel stays as it is.
    """

    def apply(self, data_dict: dict, **params) -> dict:
        """Of the sample of nnU-Net's data loader; padding, -1, is background."""
        segmentation = data_dict["segmentation"]
        if len(segmentation) > 1:
            data_dict["regression_target"] = segmentation[1:].float().clamp_min(0) / 255
            data_dict["segmentation"] = segmentation[:1]
        return data_dict


class AppendSoftLabels(BasicTransform):
    """Undoes `TakeOutSoftLabels` after all others: the target's channels follow the segmentation's, in float.

    nnU-Net's data loader passes on image and segmentation only.
    """

    def apply(self, data_dict: dict, **params) -> dict:
        """A sample without soft labels stays as it is."""
        soft = data_dict.pop("regression_target", None)
        if soft is not None:
            data_dict["segmentation"] = torch.cat([data_dict["segmentation"].float(), soft])
        return data_dict
