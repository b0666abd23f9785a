"""The networks that `order_variants.py` compares: the literal ORDER, its baselines, and ideas to mend it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_order.attention import BidirectionalSkipAttention
from nnunet_order.networks.mk_unet import ORDER, MKUNet
from nnunet_order.networks.multi_kernel import initialize_normal


def attention_modules(network: nn.Module) -> list[BidirectionalSkipAttention]:
    return [module for module in network.modules() if isinstance(module, BidirectionalSkipAttention)]


def order_official_init() -> ORDER:
    """Projections from N(0, 0.02), as the official MK-UNet starts all its convolutions."""
    network = ORDER(3, 1)
    for module in attention_modules(network):
        module.apply(initialize_normal)
    return network


class NormalizedAttention(BidirectionalSkipAttention):
    """Queries and keys of unit RMS per head with a learned temperature: S starts with contrast."""

    def __init__(self, channels: int, **options):
        super().__init__(channels, **options)
        self.temperature = nn.Parameter(torch.ones(self.num_heads, 1, 1))

    def tokens(self, decoder: Tensor, encoder: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, decoder_value, encoder_value = super().tokens(decoder, encoder)
        size = query.shape[-1:]
        query = F.rms_norm(query, size) * self.temperature
        return query, F.rms_norm(key, size), decoder_value, encoder_value


class PositionalAttention(BidirectionalSkipAttention):
    """A depthwise 3x3 convolution before the projections: tokens know their surroundings."""

    def __init__(self, channels: int, **options):
        super().__init__(channels, **options)
        self.decoder_position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.encoder_position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def tokens(self, decoder: Tensor, encoder: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        decoder = decoder + self.decoder_position(decoder)
        return super().tokens(decoder, encoder + self.encoder_position(encoder))


class BatchNormAttention(BidirectionalSkipAttention):
    """Batch norm on both inputs of the projections: skips and decoder features differ in scale."""

    def __init__(self, channels: int, **options):
        super().__init__(channels, **options)
        self.decoder_norm = nn.BatchNorm2d(channels)
        self.encoder_norm = nn.BatchNorm2d(channels)

    def tokens(self, decoder: Tensor, encoder: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return super().tokens(self.decoder_norm(decoder), self.encoder_norm(encoder))


def order_with(attention: type[BidirectionalSkipAttention], **options) -> ORDER:
    network = ORDER(3, 1, **options)
    for skip in network.decoder.skips:
        if hasattr(skip, "attention"):
            channels = skip.attention.decoder_query.in_channels
            inner = skip.attention.decoder_query.out_channels
            skip.attention = attention(channels, inner_channels=inner, num_heads=skip.attention.num_heads)
    return network


def kaiming_residuals(network: nn.Module) -> nn.Module:
    """Residual 1x1 convolutions at unit gain: at N(0, 0.02) the blocks start with nearly no residual."""
    for name, module in network.named_modules():
        if name.endswith("residual") and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return network


WIDE = (12, 16, 24, 32, 32)

VARIANTS = {
    "MKUNet": lambda: MKUNet(3, 1),
    "additive": lambda: ORDER(3, 1, attention_stages=()),
    "ORDER": lambda: ORDER(3, 1),
    "ORDER_zero_init": lambda: ORDER(3, 1, zero_init=True),
    "ORDER_official_init": order_official_init,
    "ORDER_one_head": lambda: ORDER(3, 1, num_heads=1),
    "ORDER_qk_norm": lambda: order_with(NormalizedAttention),
    "ORDER_position": lambda: order_with(PositionalAttention),
    "ORDER_batch_norm": lambda: order_with(BatchNormAttention),
    # The attention's parameters spent on width instead: 41,055 parameters, 0.22 GFLOPs.
    "wide": lambda: ORDER(3, 1, channels=WIDE, attention_stages=()),
    "wide_kaiming": lambda: kaiming_residuals(ORDER(3, 1, channels=WIDE, attention_stages=())),
    "ORDER_kaiming": lambda: kaiming_residuals(ORDER(3, 1)),
    "additive_kaiming": lambda: kaiming_residuals(ORDER(3, 1, attention_stages=())),
    "MKUNet_kaiming": lambda: kaiming_residuals(MKUNet(3, 1)),
}
