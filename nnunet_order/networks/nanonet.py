"""NanoNet-C: the first blocks of MobileNetV2 and a thin decoder of residual blocks, in 34 K parameters.

Jha et al., "NanoNet: Real-Time Polyp Segmentation in Video Capsule Endoscopy and Colonoscopy", CBMS 2021,
arXiv:2104.11138. Same function and parameters as `NanoNet_C` of DebeshJha/NanoNet (Keras) on images whose
sides are multiples of 8, but logits instead of probabilities; written anew. The paper starts the encoder from
ImageNet weights, which only Keras offers for download; here it starts at random.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_order.networks.seg_layers import SegLayers
from nnunet_order.networks.strides import check_strides
from nnunet_order.registry import THREE_HALVINGS

# MobileNetV2 at a width of 0.35, every number of channels rounded to a multiple of 8.
STEM_CHANNELS = 16
BLOCK_CHANNELS = (8, 8, 16)  # at 1/2, 1/4 and 1/8 of the image
EXPANSION = 6
BOTTLENECK_CHANNELS = 48
DECODER_CHANNELS = (32, 24, 16)  # at 1/4, 1/2 and 1/1
SQUEEZE = 16
EPS = 1e-3  # batch norm's in Keras
# Windows start at pixel 0, as Keras places them on even sides. The second pixel lets odd sides round up.
PADDING_BEFORE_HALVING = (0, 2, 0, 2)


def expand(channels: int) -> nn.Sequential:
    """The first third of an inverted residual, (B, C, H, W) -> (B, 6 C, H, W)."""
    wide = EXPANSION * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=EPS), nn.ReLU6(inplace=True)
    )


def contract(in_channels: int, out_channels: int, halve: bool = False) -> nn.Sequential:
    """The rest of an inverted residual: a depthwise 3x3 convolution and a linear projection.

    (B, C_in, H, W) -> (B, C_out, H, W), or (B, C_out, ceil(H/2), ceil(W/2)) with `halve`.
    """
    stride, padding = (2, 0) if halve else (1, 1)
    return nn.Sequential(
        nn.ZeroPad2d(PADDING_BEFORE_HALVING) if halve else nn.Identity(),
        nn.Conv2d(in_channels, in_channels, 3, stride, padding, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels, eps=EPS),
        nn.ReLU6(inplace=True),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels, eps=EPS),
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block of stride 1, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.expand = expand(channels)
        self.contract = contract(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.contract(self.expand(x))


def encoder(input_channels: int) -> nn.ModuleList:
    """MobileNetV2 up to the expansion of its block 6, in three stages that end where the decoder reads.

    These are the expansions of blocks 1, 3 and 6. The layers have the order of Keras's.
    """
    half, quarter, eighth = BLOCK_CHANNELS
    stem = (
        nn.ZeroPad2d(PADDING_BEFORE_HALVING),
        nn.Conv2d(input_channels, STEM_CHANNELS, 3, stride=2, bias=False),
        nn.BatchNorm2d(STEM_CHANNELS, eps=EPS),
        nn.ReLU6(inplace=True),
    )
    return nn.ModuleList(
        (
            nn.Sequential(*stem, contract(STEM_CHANNELS, half), expand(half)),
            nn.Sequential(
                contract(EXPANSION * half, quarter, halve=True), InvertedResidual(quarter), expand(quarter)
            ),
            nn.Sequential(
                contract(EXPANSION * quarter, eighth, halve=True),
                InvertedResidual(eighth),
                InvertedResidual(eighth),
                expand(eighth),
            ),
        )
    )


class SqueezeExcitation(nn.Module):
    """Weight channels by what their means tell, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // SQUEEZE, 1, bias=False)
        self.excite = nn.Conv2d(channels // SQUEEZE, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class ResidualBlock(nn.Module):
    """NanoNet's modified residual block, (B, C_in, H, W) -> (B, C_out, H, W) (figure 1).

    The paper draws a 1x1 convolution of the input as the shortcut. The reference normalises the main branch a
    second time instead, and the published numbers of parameters are those of the reference.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        inner = out_channels // 4
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1),
            nn.BatchNorm2d(inner, eps=EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.BatchNorm2d(inner, eps=EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels, eps=EPS),
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=EPS)
        self.attention = SqueezeExcitation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        return self.attention(F.relu(x + self.norm(x)))


class DecoderStage(nn.Module):
    """Up-sample to the skip, join both, residual block.

    x (B, C_in, h, w), skip (B, C_skip, H, W) -> (B, C_out, H, W).
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(skip_channels, out_channels, 1),
            nn.BatchNorm2d(out_channels, eps=EPS),
            nn.ReLU(inplace=True),
        )
        self.block = ResidualBlock(in_channels + out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return self.block(torch.cat((x, self.project(skip)), dim=1))


class NanoNetDecoder(nn.Module):
    """Decoder whose last skip is the image; with deep supervision it returns logits at 1, 1/2 and 1/4."""

    def __init__(self, skip_channels: Sequence[int], num_classes: int, deep_supervision: bool):
        super().__init__()
        self.deep_supervision = deep_supervision
        widths = (BOTTLENECK_CHANNELS, *DECODER_CHANNELS)
        self.bottleneck = ResidualBlock(EXPANSION * BLOCK_CHANNELS[-1], BOTTLENECK_CHANNELS)
        self.stages = nn.ModuleList(map(DecoderStage, widths, skip_channels, DECODER_CHANNELS))
        self.seg_layers = SegLayers(DECODER_CHANNELS, num_classes, deep_supervision)

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Decode the image and the encoder's features, shallow to deep, to logits of the image's size."""
        deepest, *skips = reversed(features)
        x = self.bottleneck(deepest)
        decoded = []
        for stage, skip in zip(self.stages, skips, strict=True):
            x = stage(x, skip)
            decoded.append(x)
        full, *low = self.seg_layers
        if not self.deep_supervision:
            return full(x)
        auxiliary = [layer(x) for layer, x in zip(low, decoded[:-1], strict=True)]
        return [full(x), *reversed(auxiliary)]


def initialize(module: nn.Module) -> None:
    """Initialise convolutions as Keras does."""
    if isinstance(module, SqueezeExcitation):
        for layer in (module.squeeze, module.excite):
            nn.init.kaiming_normal_(layer.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class NanoNetC(nn.Module):
    """NanoNet-C with 34,073 parameters at 3 input channels and 1 class (arXiv:2104.11138).

    The published 36,561 are Keras's count, which adds the 2,488 running statistics of batch norm.

    `deep_supervision` adds heads at 1/2 and 1/4 of the input size; `strides` is what nnU-Net plans say and
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
        check_strides(strides, THREE_HALVINGS)
        self.encoder = encoder(input_channels)
        half, quarter, _ = (EXPANSION * channels for channels in BLOCK_CHANNELS)
        self.decoder = NanoNetDecoder((quarter, half, input_channels), num_classes, deep_supervision)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images (B, input_channels, H, W), any H and W, to logits (B, num_classes, H, W).

        With `decoder.deep_supervision`, a list of logits at 1, 1/2 and 1/4 of the size.
        """
        features = [x]
        for stage in self.encoder:
            features.append(stage(features[-1]))
        return self.decoder(features)
