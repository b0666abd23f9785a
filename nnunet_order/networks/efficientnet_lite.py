"""The first stages of EfficientNet-Lite0, whose parameters have timm's names, for images of any size.

EfficientNet: Tan and Le, ICML 2019, arXiv:1905.11946. Lite0 is B0 without squeeze-and-excitation and with
ReLU6 (Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020). Same function
and names as timm's `tf_efficientnet_lite0` (Apache-2.0) for even sizes; written anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

STEM_CHANNELS = 32
norm = partial(nn.BatchNorm2d, eps=1e-3)  # TensorFlow's


@dataclass(frozen=True)
class Stage:
    """What the blocks of a stage have in common; the first block has the stride."""

    blocks: int
    kernel: int
    stride: int
    channels: int
    expansion: int = 6


STAGES = (
    Stage(1, 3, 1, 16, expansion=1),
    Stage(2, 3, 2, 24),
    Stage(2, 5, 2, 40),
    Stage(3, 3, 2, 80),
    Stage(3, 5, 1, 112),
    Stage(4, 5, 2, 192),
    Stage(1, 3, 1, 320),
)
ALL_BLOCKS = tuple(stage.blocks for stage in STAGES)


class HalvingConvolution(nn.Conv2d):
    """Convolution of stride 2 with TensorFlow's padding "SAME"; sizes are halved and rounded up.

    For an even side "SAME" pads (kernel - 2) // 2 zeros before and the rest behind. One more zero behind
    changes nothing there, and lets an odd side count as the even side that one line of zeros makes of it. So
    the padding is the same for all sizes, as exported graphs want it. (For odd sides TensorFlow pads another
    zero before instead.)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride=2, groups=groups, bias=False)
        before = (kernel - 2) // 2
        behind = kernel - 1 - before
        self.zeros = (before, behind, before, behind)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.zeros))


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size, or halves it for stride 2."""
    if stride == 2:
        return HalvingConvolution(inputs, outputs, kernel, groups)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


class DepthwiseSeparable(nn.Module):
    """The block without expansion: depthwise and 1x1 convolution, (B, inputs, H, W) -> (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv_dw = convolution(inputs, inputs, kernel, groups=inputs)
        self.bn1 = norm(inputs)
        self.conv_pw = convolution(inputs, outputs)
        self.bn2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).

    The input is added where it has the shape of the output.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        expanded = inputs * expansion
        self.conv_pw = convolution(inputs, expanded)
        self.bn1 = norm(expanded)
        self.conv_dw = convolution(expanded, expanded, kernel, stride, groups=expanded)
        self.bn2 = norm(expanded)
        self.conv_pwl = convolution(expanded, outputs)
        self.bn3 = norm(outputs)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        expanded = F.relu6(self.bn1(self.conv_pw(x)))
        filtered = F.relu6(self.bn2(self.conv_dw(expanded)))
        projected = self.bn3(self.conv_pwl(filtered))
        return x + projected if self.is_residual else projected


def make_blocks(inputs: int, stage: Stage, number: int) -> nn.Sequential:
    """The first `number` blocks of a stage."""
    if stage.expansion == 1:
        return nn.Sequential(DepthwiseSeparable(inputs, stage.channels, stage.kernel))
    widths = (inputs, *[stage.channels] * number)
    strides = (stage.stride, *[1] * (number - 1))
    return nn.Sequential(
        *(
            InvertedResidual(before, stage.channels, stage.kernel, stride, stage.expansion)
            for before, stride in zip(widths, strides, strict=False)
        )
    )


def initialize(module: nn.Module) -> None:
    """The reference's initialisation of convolutions, for a training from scratch."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0's stem and the first blocks of each stage.

    (B, input_channels, H, W) -> the last features at each size, from (B, 16, H/2, W/2) on; sizes are rounded
    up.

    Args:
        input_channels: image channels.
        blocks: how many of its blocks each stage has; later stages are left out.
    """

    published = "tf_efficientnet_lite0"
    """timm's name of the network whose weights `nnunet_order.pretrained` can load."""
    stems = ("conv_stem.weight",)
    """The weights whose shape depends on the input channels."""

    def __init__(self, input_channels: int, blocks: Sequence[int] = ALL_BLOCKS):
        super().__init__()
        self.conv_stem = HalvingConvolution(input_channels, STEM_CHANNELS, 3)
        self.bn1 = norm(STEM_CHANNELS)
        self.stages = STAGES[: len(blocks)]
        widths = (STEM_CHANNELS, *(stage.channels for stage in self.stages))
        self.blocks = nn.Sequential(*map(make_blocks, widths, self.stages, blocks))
        self.apply(initialize)

    @property
    def channels(self) -> list[int]:
        """Of the features that `forward` returns."""
        halves = [stage.stride for stage in self.stages[1:]] + [2]
        return [
            stage.channels for stage, next_stride in zip(self.stages, halves, strict=True) if next_stride == 2
        ]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self.bn1(self.conv_stem(x)))
        features: list[Tensor] = []
        for stage, blocks in zip(self.stages, self.blocks, strict=True):
            x = blocks(x)
            if stage.stride == 1:
                features[-1:] = [x]  # in place of the earlier ones of this size
            else:
                features.append(x)
        return features
