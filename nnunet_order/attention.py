"""Bidirectional skip attention, the module that makes an MK-UNet an ORDER (paper section 3.2.2).

Decoder features and the encoder skip look at each other through one similarity matrix S, read along its rows
by the decoder and along its columns by the encoder; a confidence gate scales what each of them takes over.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AttentionPath = Literal["sdpa", "materialized"]


class ConfidenceGate(nn.Module):
    """Confidence c in [0, 1], one scalar per image, from globally pooled features (paper after eq. 17).

    The paper names the inputs only; an MLP 2C -> C/2 -> 1 gives its parameter count.
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // 2)
        self.mlp = nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, decoder: Tensor, encoder: Tensor) -> Tensor:
        """decoder, encoder: (B, C, H, W) -> (B, 1, 1, 1)."""
        pooled = torch.cat([decoder.mean(dim=(2, 3)), encoder.mean(dim=(2, 3))], dim=1)  # (B, 2C)
        return torch.sigmoid(self.mlp(pooled))[:, :, None, None]


class BidirectionalSkipAttention(nn.Module):
    """(decoder, encoder) -> (decoder', encoder'), each (B, C, H, W): equations 14-17.

    Args:
        channels: C, of the decoder features and of the skip alike.
        inner_channels: D, width of queries, keys and values, over all heads.
        num_heads: splits D; neither parameters nor FLOPs depend on it.
        zero_init: start the output projections at zero, so that the module starts as the identity.
        attention_path: "sdpa" never writes S; "materialized" does, literally as in the paper. Same numbers.

    Raises:
        ValueError: inner_channels is no multiple of num_heads, or the path is unknown.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int = 64,
        num_heads: int = 4,
        zero_init: bool = False,
        attention_path: AttentionPath = "sdpa",
    ):
        super().__init__()
        if inner_channels % num_heads:
            raise ValueError(f"inner_channels {inner_channels} is no multiple of num_heads {num_heads}")
        if attention_path not in ("sdpa", "materialized"):
            raise ValueError(f"attention_path is 'sdpa' or 'materialized', not {attention_path!r}")
        self.num_heads = num_heads
        self.attention_path = attention_path

        def project(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)

        self.decoder_query = project(channels, inner_channels)
        self.encoder_key = project(channels, inner_channels)
        self.decoder_value = project(channels, inner_channels)
        self.encoder_value = project(channels, inner_channels)
        self.decoder_out = project(inner_channels, channels)
        self.encoder_out = project(inner_channels, channels)
        self.gate = ConfidenceGate(channels)
        if zero_init:
            nn.init.zeros_(self.decoder_out.weight)
            nn.init.zeros_(self.encoder_out.weight)

    def forward(self, decoder: Tensor, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """decoder, encoder: (B, C, H, W)."""
        height, width = decoder.shape[2:]
        # Half precision rounds 1/sqrt(d) sums over thousands of tokens; nnU-Net users met NaNs there.
        # Autocast leaves the weights in fp32; who calls .half() gets half.
        precision = self.decoder_query.weight.dtype
        decoder_in, encoder_in = decoder.to(precision), encoder.to(precision)
        with autocast_off(decoder.device.type):
            query, key, decoder_value, encoder_value = self.tokens(decoder_in, encoder_in)
            if self.attention_path == "sdpa":
                decoder_update = F.scaled_dot_product_attention(query, key, encoder_value)
                encoder_update = F.scaled_dot_product_attention(key, query, decoder_value)
            else:
                similarity = scaled_similarity(query, key)
                decoder_update = similarity.softmax(dim=-1) @ encoder_value
                encoder_update = similarity.mT.softmax(dim=-1) @ decoder_value
            confidence = self.gate(decoder_in, encoder_in)
            decoder_delta = self.decoder_out(self._unfold(decoder_update, height, width))
            encoder_delta = self.encoder_out(self._unfold(encoder_update, height, width))
        return decoder + confidence * decoder_delta, encoder + confidence * encoder_delta

    def tokens(self, decoder: Tensor, encoder: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q_d, K_e, V_d and V_e (eq. 14), each (B, heads, N, D / heads) with N = H * W."""
        return (
            self._fold(self.decoder_query(decoder)),
            self._fold(self.encoder_key(encoder)),
            self._fold(self.decoder_value(decoder)),
            self._fold(self.encoder_value(encoder)),
        )

    def _fold(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, heads, N, D / heads)."""
        # Contiguous, or scaled_dot_product_attention silently writes S out (33 times the memory at N = 4096).
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).mT.contiguous()

    @staticmethod
    def _unfold(x: Tensor, height: int, width: int) -> Tensor:
        """(B, heads, N, D / heads) -> (B, D, H, W)."""
        return x.mT.flatten(1, 2).unflatten(2, (height, width))


def autocast_off(device_type: str) -> AbstractContextManager:
    """Leave autocast; the meta device has none to leave."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def scaled_similarity(query: Tensor, key: Tensor) -> Tensor:
    """S = Q_d K_e^T / sqrt(d_h) (eq. 15); query, key: (B, heads, N, d_h) -> (B, heads, N_dec, N_enc)."""
    return query @ key.mT / math.sqrt(query.shape[-1])
