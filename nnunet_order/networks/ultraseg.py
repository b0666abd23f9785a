"""UltraSeg-130K: dilated and Hadamard-product stages, and skips weighted by predicted masks and boundaries.

Gao et al., "Enabling Real-Time Colonoscopic Polyp Segmentation on Commodity CPUs via Ultra-Lightweight
Architecture", arXiv:2602.04381, 2026. Same function and parameters as `UltraSeg130` of AI-thpremed/ultraseg
(Apache-2.0; its NOTICE names a patent application, CN 202610130842.1) on images whose sides are multiples of
16; written anew. The reference also supervises the masks and boundaries that weight the skips; here only the
segmentation is supervised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_order.networks.ege_unet import ChannelNorm, WeightMap, initialize, resize
from nnunet_order.networks.seg_layers import SegLayers
from nnunet_order.networks.strides import check_strides
from nnunet_order.registry import FOUR_HALVINGS

CHANNELS = (8, 16, 48, 64, 96)  # at 1/2, 1/4, 1/8 and 1/16 of the image, and of the bottleneck at 1/16
DILATIONS = (1, 2, 3)
NORM_GROUPS = 4
DILATED_SHARE = 0.1  # these three are learned, and start here
ATTENDED_SHARE = 0.3
GATE_WEIGHTS = (0.3, 0.1)  # of the region, of the boundary


class DilatedBlock(nn.Module):
    """Enhanced dilated block: residual grouped convolutions of three dilations, (B, C, H, W) -> same."""

    def __init__(self, channels: int):
        super().__init__()
        share = channels // len(DILATIONS)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, share, 3, padding=d, dilation=d, groups=share) for d in DILATIONS
        )
        self.join = nn.Conv2d(channels, channels, 1)
        self.weight = nn.Parameter(torch.tensor(DILATED_SHARE))

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return x + self.weight * joined


class PlaneAttention(nn.Module):
    """Hadamard product attention with a learned plane for each quarter, (B, C_in, H, W) -> (B, C_out, H, W).

    EGE-UNet's attention, but every quarter of the channels is weighted over height and width. The quarters
    change places before they are mixed.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm_in = ChannelNorm(in_channels)
        self.planes = nn.ModuleList(WeightMap(in_channels // 4, axes=2) for _ in range(4))
        self.norm_out = ChannelNorm(in_channels)
        self.mix = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels),
            nn.GELU(),
            nn.Conv2d(in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        quarters = self.norm_in(x).chunk(4, dim=1)
        first, second, third, fourth = (
            quarter * plane(x.shape[2:]) for quarter, plane in zip(quarters, self.planes, strict=True)
        )
        return self.mix(self.norm_out(torch.cat((second, fourth, first, third), dim=1)))


def learned_halving(channels: int) -> nn.Sequential:
    """Batch norm and a 2x2 convolution of stride 2, (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ZeroPad2d((0, 1, 0, 1)),  # which only odd sides use
        nn.Conv2d(channels, channels, 2, stride=2),
    )


def encoder_stage(layer: nn.Module, channels: int, halving: nn.Module) -> nn.Sequential:
    """Layer, group norm, halving, GELU: (B, C_in, H, W) -> (B, C_out, ceil(H/2), ceil(W/2))."""
    return nn.Sequential(layer, nn.GroupNorm(NORM_GROUPS, channels), halving, nn.GELU())


def encoder(input_channels: int) -> nn.ModuleList:
    """The four stages, shallow to deep."""
    half, quarter, eighth, sixteenth, _ = CHANNELS
    dilated = nn.Sequential(
        nn.Conv2d(quarter, eighth, 3, padding=1), DilatedBlock(eighth), DilatedBlock(eighth)
    )
    return nn.ModuleList(
        (
            encoder_stage(nn.Conv2d(input_channels, half, 3, padding=1), half, learned_halving(half)),
            encoder_stage(nn.Conv2d(half, quarter, 3, padding=1), quarter, learned_halving(quarter)),
            encoder_stage(dilated, eighth, learned_halving(eighth)),
            encoder_stage(PlaneAttention(eighth, sixteenth), sixteenth, nn.MaxPool2d(2, ceil_mode=True)),
        )
    )


class FusionBottleneck(nn.Module):
    """Cross-layer fusion: a weighted sum of the two deepest stages, convolved and partly gated.

    shallow (B, C_shallow, H, W), deep (B, C_deep, h, w) -> (B, C_out, h, w). The gate of a pixel is the
    sigmoid of its mean over the channels.
    """

    def __init__(self, shallow_channels: int, deep_channels: int, out_channels: int):
        super().__init__()
        inner = deep_channels // 4
        self.project = nn.Conv2d(shallow_channels, deep_channels, 1)
        self.shares = nn.Sequential(
            nn.Conv2d(2 * deep_channels, inner, 3, padding=1),
            nn.BatchNorm2d(inner),
            nn.GELU(),
            nn.Conv2d(inner, 2, 1),
            nn.Softmax(dim=1),
        )
        self.conv = nn.Conv2d(deep_channels, out_channels, 3, padding=1)
        self.attended_share = nn.Parameter(torch.tensor(ATTENDED_SHARE))

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        shallow = self.project(resize(shallow, deep.shape[2:]))
        of_shallow, of_deep = self.shares(torch.cat((shallow, deep), dim=1)).split(1, dim=1)  # (B, 1, h, w)
        x = self.conv(of_shallow * shallow + of_deep * deep)
        attended = x * torch.sigmoid(x.mean(dim=1, keepdim=True))
        return (1 - self.attended_share) * x + self.attended_share * attended


class GuidedMerge(nn.Module):
    """Add the skip, both strengthened where a region or boundary is predicted, (B, C, H, W) twice -> same.

    The predictions have one channel whatever the number of classes, as in the reference.
    """

    def __init__(self, channels: int, boundary: bool):
        super().__init__()
        weights = GATE_WEIGHTS if boundary else GATE_WEIGHTS[:1]
        self.gates = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in weights)
        self.skip_weights = nn.Parameter(torch.tensor(weights))
        inner = channels // 8
        self.adapt = (
            nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1))
            if channels > 16
            else nn.Identity()
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        gates = [torch.sigmoid(gate(x)) for gate in self.gates]  # (B, 1, H, W) each
        weighted = sum(weight * gate for weight, gate in zip(self.skip_weights, gates, strict=True))
        return self.adapt(x + x * sum(gates)) + skip + skip * weighted


class DecoderStage(nn.Module):
    """Layer, group norm, up-sampling to the skip, GELU, merge.

    x (B, C_in, h, w), skip (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, layer: nn.Module, channels: int, boundary: bool):
        super().__init__()
        self.layer = layer
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.merge = GuidedMerge(channels, boundary)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.merge(F.gelu(resize(self.norm(self.layer(x)), skip.shape[2:])), skip)


class UltraSegDecoder(nn.Module):
    """Guided decoder; with deep supervision it returns logits at 1, 1/2, 1/4 and 1/8."""

    def __init__(self, num_classes: int, deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
        half, quarter, eighth, sixteenth, deepest = CHANNELS
        self.stages = nn.ModuleList(
            (
                DecoderStage(PlaneAttention(deepest, sixteenth), sixteenth, boundary=False),
                DecoderStage(PlaneAttention(sixteenth, eighth), eighth, boundary=True),
                DecoderStage(PlaneAttention(eighth, quarter), quarter, boundary=True),
                DecoderStage(nn.Conv2d(quarter, half, 3, padding=1), half, boundary=True),
            )
        )
        self.seg_layers = SegLayers((eighth, quarter, half, half), num_classes, deep_supervision)

    def forward(self, x: Tensor, skips: list[Tensor], size: torch.Size) -> Tensor | list[Tensor]:
        """Decode the bottleneck and the skips, shallow to deep, to logits of the image's `size`."""
        decoded = []
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            x = stage(x, skip)
            decoded.append(x)
        full, *low = self.seg_layers
        logits = resize(full(x), size)
        if not self.deep_supervision:
            return logits
        # nnU-Net has no target at 1/16.
        auxiliary = [layer(x) for layer, x in zip(low, decoded[1:], strict=True)]
        return [logits, *reversed(auxiliary)]


class UltraSeg130K(nn.Module):
    """UltraSeg-130K with 147,674 parameters at 3 input channels and 1 class (arXiv:2602.04381).

    The published 0.130 M are thop's count, 129,712 for one class. It has only the convolutions and batch
    norms, and misses the group and channel norms, the learned planes and the learned weights.

    `deep_supervision` adds heads at 1/2, 1/4 and 1/8 of the input size; `strides` is what nnU-Net plans say
    and must be the network's own. Raises ValueError for other strides.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__()
        check_strides(strides, FOUR_HALVINGS)
        self.encoder = encoder(input_channels)
        self.bottleneck = FusionBottleneck(*CHANNELS[2:])
        self.decoder = UltraSegDecoder(num_classes, deep_supervision)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images (B, input_channels, H, W), any H and W, to logits (B, num_classes, H, W).

        With `decoder.deep_supervision`, a list of logits at 1, 1/2, 1/4 and 1/8 of the size.
        """
        size = x.shape[2:]
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        return self.decoder(self.bottleneck(*skips[-2:]), skips, size)
