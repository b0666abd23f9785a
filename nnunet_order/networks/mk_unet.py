"""MK-UNet and ORDER: one multi-kernel backbone, two ways to fuse a skip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_order.attention import AttentionPath, BidirectionalSkipAttention
from nnunet_order.networks.multi_kernel import (
    ChannelAttention,
    GroupedAttentionGate,
    MultiKernelInvertedResidual,
    SpatialAttention,
    start_residuals_at_unit_gain,
)
from nnunet_order.networks.seg_layers import SegLayers
from nnunet_order.networks.strides import check_strides


class AdditiveSkip(nn.Module):
    """d + e."""

    def forward(self, decoder: Tensor, skip: Tensor) -> Tensor:
        return decoder + skip


class GatedSkip(nn.Module):
    """d + gate(d, e) * e, MK-UNet's skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = GroupedAttentionGate(channels)

    def forward(self, decoder: Tensor, skip: Tensor) -> Tensor:
        return decoder + self.gate(decoder, skip)


class AttentiveSkip(nn.Module):
    """d' + e', ORDER's skip (paper section 3.2.2)."""

    def __init__(self, channels: int, **attention):
        super().__init__()
        self.attention = BidirectionalSkipAttention(channels, **attention)

    def forward(self, decoder: Tensor, skip: Tensor) -> Tensor:
        decoder, skip = self.attention(decoder, skip)
        return decoder + skip


class Decoder(nn.Module):
    """Five stages of attention, MKIR block, bilinear up-sampling and skip fusion; the last has no skip.

    nnU-Net switches `deep_supervision` on for training and off for inference.
    """

    def __init__(
        self,
        channels: Sequence[int],
        make_skip: Callable[[int, int], nn.Module],
        num_classes: int,
        kernel_sizes: Sequence[int],
        expansion: int,
        deep_supervision: bool,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        inputs = list(reversed(channels))
        outputs = [*inputs[1:], inputs[-1]]
        reductions = [16] * (len(inputs) - 2) + [8, 4]
        self.channel_attention = nn.ModuleList(map(ChannelAttention, inputs, reductions))
        self.spatial_attention = SpatialAttention()  # one for all stages, as in the official code
        self.blocks = nn.ModuleList(
            MultiKernelInvertedResidual(i, o, kernel_sizes, expansion)
            for i, o in zip(inputs, outputs, strict=True)
        )
        self.skips = nn.ModuleList(make_skip(stage, width) for stage, width in enumerate(outputs[:-1]))
        self.seg_layers = SegLayers(outputs, num_classes, deep_supervision)

    def forward(self, x: Tensor, skips: list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """x: bottleneck; skips: high to low resolution; size: of the image -> logits, or a list of them."""
        decoded = []
        for stage, block in enumerate(self.blocks):
            x = x * self.channel_attention[stage](x)
            x = x * self.spatial_attention(x)
            skip = skips[-1 - stage] if stage < len(skips) else None
            # To the skip's own size: plans may ask for patches that five halvings do not divide.
            target = size if skip is None else skip.shape[2:]
            x = F.relu(F.interpolate(block(x), size=target, mode="bilinear"))
            if skip is not None:
                decoded.append(x)
                x = self.skips[stage](x, skip)
        full, *low = self.seg_layers
        if not self.deep_supervision:
            return full(x)
        auxiliary = [layer(features) for layer, features in zip(low, decoded, strict=True)]
        return [full(x), *reversed(auxiliary)]


class MultiKernelUNet(nn.Module):
    """The backbone: five MKIR encoder stages, each followed by max-pooling, and the decoder above.

    x (B, input_channels, H, W), any H and W -> logits (B, num_classes, H, W); with deep supervision a list of
    them at 1, 1/2, 1/4, 1/8 and 1/16 of the size.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        channels: Sequence[int],
        make_skip: Callable[[int, int], nn.Module],
        kernel_sizes: Sequence[int],
        expansion: int,
        deep_supervision: bool,
        strides: Sequence[Sequence[int]] | None,
    ):
        super().__init__()
        check_strides(strides)
        if len(channels) != 5:
            raise ValueError(f"channels gives {len(channels)} stages, expected 5")
        self.encoder = nn.ModuleList(
            MultiKernelInvertedResidual(i, o, kernel_sizes, expansion)
            for i, o in zip([input_channels, *channels[:-1]], channels, strict=True)
        )
        self.decoder = Decoder(channels, make_skip, num_classes, kernel_sizes, expansion, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        size = x.shape[2:]
        if x.device.type == "cpu":  # 1.7 times as fast there, forward and backward
            x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for block in self.encoder:
            # ceil_mode keeps the last row and column of odd sizes; on even sizes it changes nothing.
            x = F.max_pool2d(block(x), 2, ceil_mode=True)
            features.append(x)
        return self.decoder(x, features[:-1], size)


class MKUNet(MultiKernelUNet):
    """MK-UNet (Rahman & Marculescu 2025); the default channels are MK-UNet-T's.

    27,353 parameters at three input channels and one class: the official 27,384 less 31 in three heads that
    its forward never returns.

    Args:
        input_channels: image channels.
        num_classes: output channels (logits).
        channels: per encoder stage; (16, 32, 64, 96, 160) is the full MK-UNet.
        kernel_sizes: of the parallel depthwise convolutions.
        expansion: of the inverted residual.
        deep_supervision: return five outputs, high to low resolution, with a head each.
        strides: accepted from nnU-Net plans, checked.

    Raises:
        ValueError: channels are not five, or the strides are not the network's.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        channels: Sequence[int] = (4, 8, 16, 24, 32),
        kernel_sizes: Sequence[int] = (1, 3, 5),
        expansion: int = 2,
        deep_supervision: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__(
            input_channels,
            num_classes,
            channels,
            lambda stage, width: GatedSkip(width),
            kernel_sizes,
            expansion,
            deep_supervision,
            strides,
        )


class ORDER(MultiKernelUNet):
    """ORDER (arXiv:2603.04795, section 3.2): MK-UNet's backbone with additive skips, the deepest attentive.

    42,457 parameters with the defaults at three input channels and one class.

    Args:
        input_channels, num_classes, channels, kernel_sizes, expansion, deep_supervision, strides: as in
            `MKUNet`.
        attention_stages: skips with bidirectional attention, counted from the deepest: 0 at H/16, 1 at H/8,
            2 at H/4, 3 at H/2; () is the attention-free backbone.
        inner_channels, num_heads, zero_init, attention_path: see `BidirectionalSkipAttention`.

    Raises:
        ValueError: as `MKUNet`; a stage without skip; see also `BidirectionalSkipAttention`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        channels: Sequence[int] = (4, 8, 16, 24, 32),
        attention_stages: Sequence[int] = (0, 1),
        inner_channels: int = 64,
        num_heads: int = 4,
        zero_init: bool = False,
        attention_path: AttentionPath = "sdpa",
        kernel_sizes: Sequence[int] = (1, 3, 5),
        expansion: int = 2,
        deep_supervision: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ):
        if unknown := set(attention_stages) - {0, 1, 2, 3}:
            raise ValueError(f"attention_stages has {sorted(unknown)}; the network has skips 0, 1, 2 and 3")

        def make_skip(stage: int, width: int) -> nn.Module:
            if stage not in attention_stages:
                return AdditiveSkip()
            return AttentiveSkip(
                width,
                inner_channels=inner_channels,
                num_heads=num_heads,
                zero_init=zero_init,
                attention_path=attention_path,
            )

        super().__init__(
            input_channels,
            num_classes,
            channels,
            make_skip,
            kernel_sizes,
            expansion,
            deep_supervision,
            strides,
        )


class MKUNetWide(ORDER):
    """Our own alternative within ORDER's 42.5 K parameters and 0.56 GFLOPs: width instead of attention.

    ORDER's backbone with additive skips, wider at high resolution (41,055 parameters, 0.22 GFLOPs), whose
    residual convolutions start at unit gain: the official N(0, 0.02) starts them near zero. Evidence:
    docs/reproduction.md.

    Args: as `ORDER`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        channels: Sequence[int] = (12, 16, 24, 32, 32),
        attention_stages: Sequence[int] = (),
        **options,
    ):
        super().__init__(input_channels, num_classes, channels, attention_stages, **options)
        start_residuals_at_unit_gain(self)
