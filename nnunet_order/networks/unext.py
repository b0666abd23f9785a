"""UNeXt: convolutions at high resolution, shifted token MLPs at low resolution.

Valanarasu and Patel, "UNeXt: MLP-based Rapid Medical Image Segmentation Network", MICCAI 2022,
arXiv:2203.04967. Same function and parameters as class `UNext` of jeya-maria-jose/UNeXt-pytorch (MIT);
written anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_order.networks.seg_layers import SegLayers
from nnunet_order.networks.strides import check_strides

CONV_CHANNELS = (16, 32, 128)
TOKEN_CHANNELS = (160, 256)
SHIFT_GROUPS = 5  # channel groups, moved by -2, -1, 0, 1, 2 pixels


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def shift(x: Tensor, dim: int) -> Tensor:
    """Move five channel groups by -2..2 pixels along `dim`, zeros moving in: (B, C, H, W) -> (B, C, H, W).

    UNeXt section 2.2, "axial shift". `dim` is 2 (height) or 3 (width).
    """
    reach = SHIFT_GROUPS // 2
    padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    groups = F.pad(x, padding).chunk(SHIFT_GROUPS, dim=1)
    moved = [torch.roll(group, offset, dim) for offset, group in enumerate(groups, start=-reach)]
    return torch.cat(moved, dim=1).narrow(dim, reach, x.shape[dim])


class ShiftedMLPBlock(nn.Module):
    """Residual MLP whose two layers see features shifted along height, then width (UNeXt equations 1-3).

    (B, C, H, W) -> (B, C, H, W). The tokens' linear layers are 1x1 convolutions.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.linear_in = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.linear_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear_in(shift(self.norm(x), dim=2))
        hidden = F.gelu(self.depthwise(hidden))
        return x + self.linear_out(shift(hidden, dim=3))


def initialize_tokens(module: nn.Module) -> None:
    """Initialise the convolutions of the token stages as the reference does."""
    if not isinstance(module, nn.Conv2d):
        return
    if module.kernel_size == (1, 1):  # a linear layer in the reference
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    nn.init.zeros_(module.bias)


class ConvStage(nn.Module):
    """Convolution, batch norm, halving, ReLU: (B, C_in, H, W) -> (B, C_out, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(self.norm(self.conv(x)), 2, ceil_mode=True))


class TokenStage(nn.Module):
    """Overlapping patch embedding and one MLP block: (B, C_in, H, W) -> (B, C_out, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.embed = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.embed_norm = ChannelNorm(out_channels)
        self.block = ShiftedMLPBlock(out_channels)
        self.norm = ChannelNorm(out_channels)
        self.apply(initialize_tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.block(self.embed_norm(self.embed(x))))


class UpStage(nn.Module):
    """Convolution, batch norm, up-sampling to `size`, ReLU: (B, C_in, h, w) -> (B, C_out, *size)."""

    def __init__(self, in_channels: int, out_channels: int, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return F.relu(F.interpolate(self.norm(self.conv(x)), size=size, mode="bilinear", align_corners=False))


class TokenRefinement(nn.Module):
    """MLP block and norm after an additive skip, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.block = ShiftedMLPBlock(channels)
        self.norm = ChannelNorm(channels)
        self.apply(initialize_tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.block(x))


class UNeXtDecoder(nn.Module):
    """Additive-skip decoder; with deep supervision it returns logits at 1, 1/2, 1/4, 1/8 and 1/16."""

    def __init__(self, num_classes: int, deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
        channels = (*TOKEN_CHANNELS[::-1], *CONV_CHANNELS[::-1])  # of the encoder, deepest first
        stages = [UpStage(deep, skip) for deep, skip in pairwise(channels)]
        self.stages = nn.ModuleList([*stages, UpStage(channels[-1], channels[-1], norm=False)])
        self.refinements = nn.ModuleList(
            [TokenRefinement(channels[1]), TokenRefinement(channels[2]), nn.Identity(), nn.Identity()]
        )
        self.seg_layers = SegLayers((*channels[1:], channels[-1]), num_classes, deep_supervision)

    def forward(self, features: list[Tensor], size: torch.Size) -> Tensor | list[Tensor]:
        """Decode the encoder's features, shallow to deep, to logits of the image's `size`."""
        x, *skips = reversed(features)
        decoded = []
        for stage, refine, skip in zip(self.stages[:-1], self.refinements, skips, strict=True):
            x = refine(stage(x, skip.shape[2:]) + skip)
            decoded.append(x)
        full, *low = self.seg_layers
        logits = full(self.stages[-1](x, size))
        if not self.deep_supervision:
            return logits
        auxiliary = [layer(x) for layer, x in zip(low, decoded, strict=True)]
        return [logits, *reversed(auxiliary)]


class UNeXt(nn.Module):
    """UNeXt with 1,471,921 parameters at 3 input channels and 1 class (arXiv:2203.04967).

    `deep_supervision` adds heads at 1/2 to 1/16 of the input size; `strides` is what nnU-Net plans say and
    must be the network's own. Raises ValueError for other strides.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__()
        check_strides(strides)
        channels = (input_channels, *CONV_CHANNELS, *TOKEN_CHANNELS)
        stage_types = [ConvStage] * len(CONV_CHANNELS) + [TokenStage] * len(TOKEN_CHANNELS)
        self.encoder = nn.ModuleList(
            build(*widths) for build, widths in zip(stage_types, pairwise(channels), strict=True)
        )
        self.decoder = UNeXtDecoder(num_classes, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images (B, input_channels, H, W), any H and W, to logits (B, num_classes, H, W).

        With `decoder.deep_supervision`, a list of logits at 1, 1/2, 1/4, 1/8 and 1/16 of the size.
        """
        size = x.shape[2:]
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return self.decoder(features, size)
