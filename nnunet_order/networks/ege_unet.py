"""EGE-UNet: Hadamard-product attention and mask-guided skip bridges in 53 K parameters.

Ruan et al., "EGE-UNet: an Efficient Group Enhanced UNet for skin lesion segmentation", MICCAI 2023,
arXiv:2307.08473. Same function and parameters as JCruan519/EGE-UNet (Apache-2.0) at one class, but logits
instead of probabilities; written anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_order.networks.strides import check_strides

CHANNELS = (8, 16, 24, 32, 48, 64)
WEIGHT_MAP_SIZE = 8
BRIDGE_DILATIONS = (1, 2, 5, 7)
NORM_GROUPS = 4


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear (or linear) interpolation with aligned corners, (B, C, ...) -> (B, C, *size)."""
    mode = "bilinear" if x.ndim == 4 else "linear"
    return F.interpolate(x, size=size, mode=mode, align_corners=True)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, (B, C, H, W) -> (B, C, H, W).

    In the reference's order of operations: the network amplifies rounding, and `F.layer_norm` alone moves its
    probabilities by up to 7e-5.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.pow(2).mean(dim=1, keepdim=True)
        normalised = centred / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * normalised + self.bias[:, None, None]


class WeightMap(nn.Module):
    """A learned map of weights, stretched to the feature's size and refined: size -> (1, C, *size)."""

    def __init__(self, channels: int, axes: int):
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv1d
        self.values = nn.Parameter(torch.ones(1, channels, *[WEIGHT_MAP_SIZE] * axes))
        self.refine = nn.Sequential(
            conv(channels, channels, 3, padding=1, groups=channels), nn.GELU(), conv(channels, channels, 1)
        )

    def forward(self, size: Sequence[int]) -> Tensor:
        return self.refine(resize(self.values, size))


class HadamardAttention(nn.Module):
    """Grouped multi-axis Hadamard product attention, (B, C_in, H, W) -> (B, C_out, H, W) (section 2.2).

    A quarter of the channels each is weighted over height-width, channel-height and channel-width, the last
    quarter is convolved.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        quarter = in_channels // 4
        self.norm_in = ChannelNorm(in_channels)
        self.plane = WeightMap(quarter, axes=2)
        self.height = WeightMap(quarter, axes=1)
        self.width = WeightMap(quarter, axes=1)
        self.local = nn.Sequential(
            nn.Conv2d(quarter, quarter, 1),
            nn.GELU(),
            nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter),
        )
        self.norm_out = ChannelNorm(in_channels)
        self.mix = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels),
            nn.GELU(),
            nn.Conv2d(in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        over_plane, over_height, over_width, local = self.norm_in(x).chunk(4, dim=1)  # (B, C/4, H, W) each
        weighted = (
            over_plane * self.plane((height, width)),
            over_height * self.height((height,)).unsqueeze(3),  # (1, C/4, H, 1)
            over_width * self.width((width,)).unsqueeze(2),  # (1, C/4, 1, W)
            self.local(local),
        )
        return self.mix(self.norm_out(torch.cat(weighted, dim=1)))


class AggregationBridge(nn.Module):
    """Group aggregation bridge: skip features joined with deeper ones and a predicted mask (section 2.3).

    deep (B, C_deep, h, w), skip (B, C, H, W), guidance logits (B, num_classes, H, W) -> (B, C, H, W).
    """

    def __init__(self, deep_channels: int, skip_channels: int, num_classes: int):
        super().__init__()
        self.project = nn.Conv2d(deep_channels, skip_channels, 1)
        group_channels = skip_channels // 2 + num_classes
        self.groups = nn.ModuleList(
            nn.Sequential(
                ChannelNorm(group_channels),
                nn.Conv2d(group_channels, group_channels, 3, padding=d, dilation=d, groups=group_channels),
            )
            for d in BRIDGE_DILATIONS
        )
        joined_channels = len(BRIDGE_DILATIONS) * group_channels
        self.join = nn.Sequential(ChannelNorm(joined_channels), nn.Conv2d(joined_channels, skip_channels, 1))

    def forward(self, deep: Tensor, skip: Tensor, guidance: Tensor) -> Tensor:
        deep = resize(self.project(deep), skip.shape[2:])
        quarters = zip(self.groups, deep.chunk(4, dim=1), skip.chunk(4, dim=1), strict=True)
        joined = [group(torch.cat((d, s, guidance), dim=1)) for group, d, s in quarters]
        return self.join(torch.cat(joined, dim=1))


def feature_layer(in_channels: int, out_channels: int, attention: bool) -> nn.Module:
    """The layer of a deep (attention) or shallow (3x3 convolution) stage."""
    if attention:
        return HadamardAttention(in_channels, out_channels)
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class EncoderStage(nn.Module):
    """Layer, group norm, halving, GELU: (B, C_in, H, W) -> (B, C_out, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int, attention: bool):
        super().__init__()
        self.layer = feature_layer(in_channels, out_channels, attention)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.max_pool2d(self.norm(self.layer(x)), 2, ceil_mode=True))


class DecoderStage(nn.Module):
    """Up-sample to the skip, predict a guiding mask from the result, and add the bridged skip."""

    def __init__(self, in_channels: int, out_channels: int, attention: bool, num_classes: int):
        super().__init__()
        self.layer = feature_layer(in_channels, out_channels, attention)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.guidance = nn.Conv2d(out_channels, num_classes, 1)
        self.bridge = AggregationBridge(in_channels, out_channels, num_classes)

    def forward(self, x: Tensor, deep: Tensor, skip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, deep (B, C_in, h, w), skip (B, C, H, W) -> features, bridged skip, guidance logits."""
        x = F.gelu(resize(self.norm(self.layer(x)), skip.shape[2:]))
        guidance = self.guidance(x)
        bridged = self.bridge(deep, skip, guidance)
        return x + bridged, bridged, guidance


class EGEUNetDecoder(nn.Module):
    """Mask-guided decoder; with deep supervision it returns logits at 1, 1/2, 1/4, 1/8 and 1/16.

    The guidance logits are the lower-resolution outputs, so deep supervision needs no extra heads.
    """

    def __init__(self, num_classes: int, deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
        channels = CHANNELS[::-1]
        attention = [True, True, True, False, False]
        self.stages = nn.ModuleList(
            DecoderStage(*widths, attentive, num_classes)
            for widths, attentive in zip(pairwise(channels), attention, strict=True)
        )
        self.head = nn.Conv2d(channels[-1], num_classes, 1)

    def forward(self, bottleneck: Tensor, skips: list[Tensor], size: torch.Size) -> Tensor | list[Tensor]:
        """Decode the bottleneck and the skips, shallow to deep, to logits of the image's `size`."""
        x = bridged = bottleneck
        guidances = []
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            x, bridged, guidance = stage(x, bridged, skip)
            guidances.append(guidance)
        logits = resize(self.head(x), size)
        if not self.deep_supervision:
            return logits
        return [logits, *reversed(guidances[1:])]  # nnU-Net has no target at 1/32


def initialize(module: nn.Module) -> None:
    """Initialise convolutions as the reference does."""
    if isinstance(module, nn.Conv1d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] * module.out_channels)))
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)


class EGEUNet(nn.Module):
    """EGE-UNet with 53,374 parameters at 3 input channels and 1 class (arXiv:2307.08473).

    With more classes the guiding masks have `num_classes` channels and every bridge takes all of them (the
    paper has one class). `strides` is what nnU-Net plans say and must be the network's own. Raises ValueError
    for other strides.
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
        channels = (input_channels, *CHANNELS[:-1])
        attention = [False, False, False, True, True]
        self.encoder = nn.ModuleList(
            EncoderStage(*widths, attentive)
            for widths, attentive in zip(pairwise(channels), attention, strict=True)
        )
        self.bottleneck = HadamardAttention(CHANNELS[-2], CHANNELS[-1])
        self.decoder = EGEUNetDecoder(num_classes, deep_supervision)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images (B, input_channels, H, W), any H and W, to logits (B, num_classes, H, W).

        With `decoder.deep_supervision`, a list of logits at 1, 1/2, 1/4, 1/8 and 1/16 of the size.
        """
        size = x.shape[2:]
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        return self.decoder(F.gelu(self.bottleneck(x)), skips, size)
