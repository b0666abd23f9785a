"""Small networks on the first stages of EfficientNet-Lite0, which can start from ImageNet weights.

Our own, not from a paper; `docs/trainers.md` says what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_order.networks.efficientnet_lite import ALL_BLOCKS, EfficientNetLite
from nnunet_order.networks.mk_unet import AdditiveSkip, Decoder
from nnunet_order.networks.multi_kernel import MultiKernelInvertedResidual, start_residuals_at_unit_gain
from nnunet_order.networks.seg_layers import SegLayers
from nnunet_order.networks.strides import check_strides
from nnunet_order.registry import FIVE_HALVINGS, FOUR_HALVINGS, Strides


def make_input_map(kind: str, channels: int) -> nn.Module:
    """What the encoder's input goes through: "none", or "affine", a learned a x + b per channel.

    The affine map starts as the identity. ValueError: another kind.
    """
    if kind == "none":
        return nn.Identity()
    if kind != "affine":
        raise ValueError(f"input_map is {kind!r}, expected 'none' or 'affine'")
    affine = nn.Conv2d(channels, channels, 1, groups=channels)
    nn.init.ones_(affine.weight)
    nn.init.zeros_(affine.bias)
    return affine


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation, (B, C, ...) -> (B, C, *size)."""
    return F.interpolate(x, size=size, mode="bilinear")


class LiteNetwork(nn.Module):
    """An encoder of EfficientNet-Lite0's first blocks, and a decoder of its features.

    x (B, input_channels, H, W), any H and W -> logits (B, num_classes, H, W); with deep supervision a list of
    them, one per stride but the last.

    Args:
        input_channels: image channels.
        blocks: see `EfficientNetLite`.
        input_map: see `make_input_map`.
        strides: from a plans file, checked.

    Raises:
        ValueError: strides that are not the network's, or another input map.
    """

    own_strides: Strides = FIVE_HALVINGS
    decoder: nn.Module

    def __init__(self, input_channels: int, blocks: Sequence[int], input_map: str, strides: Strides | None):
        super().__init__()
        check_strides(strides, self.own_strides)
        self.input_map = make_input_map(input_map, input_channels)
        self.encoder = EfficientNetLite(input_channels, blocks)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        size = x.shape[2:]
        if x.device.type == "cpu":  # LiteUNet is 1.3 times as fast there; the smaller ones are as they were
            x = x.contiguous(memory_format=torch.channels_last)
        return self.decoder(self.encoder(self.input_map(x)), size)


class PyramidDecoder(nn.Module):
    """A feature pyramid of one width: MKIR blocks on the way down to 1/32 and on the way up to 1/2.

    Logits are made at 1/2 and interpolated.
    """

    def __init__(self, channels: Sequence[int], width: int, num_classes: int, deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.lateral = nn.ModuleList(
            nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1) for inputs in channels
        )
        self.down, self.up = (
            nn.ModuleList(
                MultiKernelInvertedResidual(width, width, kernel_sizes=(1, 3)) for _ in range(number)
            )
            for number in (2, 4)
        )
        self.seg_layers = SegLayers([width] * 5, num_classes, deep_supervision)

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """features: at 1/2, 1/4 and 1/8 of the image's `size` -> logits, or a list of them."""
        levels = [layer(x) for layer, x in zip(self.lateral, features, strict=True)]
        for block in self.down:
            levels.append(F.max_pool2d(block(levels[-1]), 2, ceil_mode=True))
        *skips, x = levels
        decoded = []
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(resize(x, skip.shape[2:]) + skip)
            decoded.append(x)
        full, *low = self.seg_layers
        logits = resize(full(x), size)
        if not self.deep_supervision:
            return logits
        auxiliary = [layer(x) for layer, x in zip(low, decoded, strict=True)]
        return [logits, *reversed(auxiliary)]


class Lite40K(LiteNetwork):
    """39,745 parameters at three input channels and one class, 29,264 of them of EfficientNet-Lite0.

    Its stem, stages 0 and 1 and the first block of stage 2, then a feature pyramid.

    Args: as `LiteNetwork`, and
        num_classes: output channels (logits).
        deep_supervision: return five outputs, high to low resolution, with a head each.
        width: channels of the pyramid.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        strides: Strides | None = None,
        width: int = 16,
        input_map: str = "none",
    ):
        super().__init__(input_channels, (1, 2, 1), input_map, strides)
        self.decoder = PyramidDecoder(self.encoder.channels, width, num_classes, deep_supervision)


class DeepenedDecoder(Decoder):
    """MKIR blocks from the encoder's last features down to 1/32, then MK-UNet's decoder."""

    def __init__(
        self, channels: Sequence[int], deep: Sequence[int], num_classes: int, deep_supervision: bool
    ):
        super().__init__(
            (*channels, *deep),
            lambda stage, width: AdditiveSkip(),
            num_classes,
            kernel_sizes=(1, 3, 5),
            expansion=1,
            deep_supervision=deep_supervision,
        )
        self.down = nn.ModuleList(map(MultiKernelInvertedResidual, (channels[-1], *deep[:-1]), deep))
        start_residuals_at_unit_gain(self)

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """features: from 1/2 of the image's `size` on -> logits, or a list of them."""
        features = list(features)
        for block in self.down:
            features.append(F.max_pool2d(block(features[-1]), 2, ceil_mode=True))
        *skips, x = features
        return super().forward(x, skips, size)


class Lite95K(LiteNetwork):
    """95,139 parameters: stem and stages 0 to 2 of EfficientNet-Lite0, MKIR stages, MK-UNet's decoder.

    Args: as `Lite40K`, and
        blocks: see `EfficientNetLite`.
        deep: channels of the MKIR stages that follow, down to 1/32.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        strides: Strides | None = None,
        blocks: Sequence[int] = ALL_BLOCKS[:3],
        deep: Sequence[int] = (40, 40),
        input_map: str = "none",
    ):
        super().__init__(input_channels, blocks, input_map, strides)
        self.decoder = DeepenedDecoder(self.encoder.channels, deep, num_classes, deep_supervision)


class Lite333K(Lite95K):
    """333,507 parameters: as `Lite95K` with EfficientNet-Lite0's stage 3, too."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        strides: Strides | None = None,
        blocks: Sequence[int] = ALL_BLOCKS[:4],
        deep: Sequence[int] = (64,),
        input_map: str = "none",
    ):
        super().__init__(input_channels, num_classes, deep_supervision, strides, blocks, deep, input_map)


def convolution_block(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNetDecoder(nn.Module):
    """Per skip: interpolate to its size, concatenate, two 3x3 convolutions."""

    def __init__(
        self, channels: Sequence[int], widths: Sequence[int], num_classes: int, deep_supervision: bool
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        bottleneck, *skips = reversed(channels)
        self.stages = nn.ModuleList(
            nn.Sequential(convolution_block(below + skip, width), convolution_block(width, width))
            for below, skip, width in zip((bottleneck, *widths[:-1]), skips, widths, strict=True)
        )
        self.seg_layers = SegLayers(widths, num_classes, deep_supervision)

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """features: from the images' own size on; `size` is not needed -> logits, or a list of them."""
        *skips, x = features
        decoded = []
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            x = stage(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
            decoded.append(x)
        full, *low = self.seg_layers
        if not self.deep_supervision:
            return full(x)
        auxiliary = [layer(x) for layer, x in zip(low, decoded, strict=False)]
        return [full(x), *reversed(auxiliary)]


class LiteUNet(LiteNetwork):
    """3,617,633 parameters: all stages of EfficientNet-Lite0, a U-Net decoder, images at twice their size.

    Twice the size gives the first features the image's own size, so that the outlines are not interpolated.

    Args: as `Lite40K` (four outputs), and
        widths: channels of the decoder, low to high resolution.
    """

    own_strides = FOUR_HALVINGS

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        strides: Strides | None = None,
        widths: Sequence[int] = (96, 64, 48, 32),
        input_map: str = "none",
    ):
        super().__init__(input_channels, ALL_BLOCKS, input_map, strides)
        self.decoder = UNetDecoder(self.encoder.channels, widths, num_classes, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return super().forward(F.interpolate(x, scale_factor=2, mode="bilinear"))
