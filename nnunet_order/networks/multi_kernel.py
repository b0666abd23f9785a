"""Building blocks of MK-UNet (Rahman & Marculescu 2025; official code SLDGroup/MK-UNet, BSD-3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def convolution_norm(inputs: int, outputs: int, kernel: int = 1, groups: int = 1, bias: bool = False):
    """Convolution that keeps the size, then batch norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def initialize_normal(module: nn.Module) -> None:
    """The official initialisation: convolutions from N(0, 0.02), biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups; (B, C, H, W) -> (B, C, H, W)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class MultiKernelInvertedResidual(nn.Module):
    """MKIR block (eq. 13): expand, parallel depthwise convolutions, sum, shuffle, project, residual.

    (B, inputs, H, W) -> (B, outputs, H, W). The residual is a 1x1 convolution where the channels change.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_sizes: Sequence[int] = (1, 3, 5), expansion: int = 2
    ):
        super().__init__()
        expanded = inputs * expansion
        self.expand = nn.Sequential(convolution_norm(inputs, expanded), nn.ReLU6(inplace=True))
        self.depthwise = nn.ModuleList(
            nn.Sequential(convolution_norm(expanded, expanded, kernel, expanded), nn.ReLU6(inplace=True))
            for kernel in kernel_sizes
        )
        self.shuffle_groups = math.gcd(expanded, outputs)
        self.project = convolution_norm(expanded, outputs)
        self.residual = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)
        self.apply(initialize_normal)

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.expand(x)
        multi_scale = sum(branch(expanded) for branch in self.depthwise)
        return self.residual(x) + self.project(channel_shuffle(multi_scale, self.shuffle_groups))


def start_residuals_at_unit_gain(network: nn.Module) -> None:
    """Initialise the residual convolutions of all MKIR blocks: the official N(0, 0.02) is nearly zero."""
    for module in network.modules():
        if isinstance(module, MultiKernelInvertedResidual) and isinstance(module.residual, nn.Conv2d):
            nn.init.kaiming_normal_(module.residual.weight, nonlinearity="linear")


class ChannelAttention(nn.Module):
    """Weights in [0, 1] per channel from average- and max-pooled features; (B, C, H, W) -> (B, C, 1, 1)."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.apply(initialize_normal)

    def forward(self, x: Tensor) -> Tensor:
        average = x.mean(dim=(2, 3), keepdim=True)
        maximum = x.amax(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.mlp(average) + self.mlp(maximum))


class SpatialAttention(nn.Module):
    """Weights in [0, 1] per pixel from channel mean and maximum; (B, C, H, W) -> (B, 1, H, W)."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.apply(initialize_normal)

    def forward(self, x: Tensor) -> Tensor:
        statistics = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return torch.sigmoid(self.convolution(statistics))


class GroupedAttentionGate(nn.Module):
    """MK-UNet's gate on a skip: the decoder decides per pixel how much of the skip passes.

    (decoder, skip), both (B, C, H, W) -> gated skip (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.decoder = convolution_norm(channels, inner, kernel=3, groups=inner, bias=True)
        self.skip = convolution_norm(channels, inner, kernel=3, groups=inner, bias=True)
        self.gate = convolution_norm(inner, 1, bias=True)
        self.apply(initialize_normal)

    def forward(self, decoder: Tensor, skip: Tensor) -> Tensor:
        return skip * torch.sigmoid(self.gate(torch.relu(self.decoder(decoder) + self.skip(skip))))
