"""Bidirectional skip attention: the two paths agree, the fast one never writes S, the gate gates."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_order.attention import BidirectionalSkipAttention, scaled_similarity


def pair(seed: int = 0, **options) -> tuple[BidirectionalSkipAttention, BidirectionalSkipAttention]:
    """Fast and literal module with the same weights."""
    torch.manual_seed(seed)
    fast = BidirectionalSkipAttention(**options)
    literal = BidirectionalSkipAttention(**options, attention_path="materialized")
    literal.load_state_dict(fast.state_dict())
    return fast, literal


def outputs_and_gradients(module, decoder, encoder) -> list[torch.Tensor]:
    inputs = [decoder.clone().requires_grad_(), encoder.clone().requires_grad_()]
    outputs = module(*inputs)
    sum(
        (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum() for output in outputs
    ).backward()
    return [*outputs, *(x.grad for x in inputs), *(p.grad for p in module.parameters())]


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 3),
)
def test_fast_path_equals_literal_path(height, width, channels, heads, batch):
    fast, literal = pair(channels=channels, inner_channels=8 * heads, num_heads=heads)
    decoder, encoder = torch.randn(2, batch, channels, height, width, dtype=torch.float64) * 3
    for a, b in zip(
        outputs_and_gradients(fast.double(), decoder, encoder),
        outputs_and_gradients(literal.double(), decoder, encoder),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, b.abs().max().item()))


def test_matches_the_equations_written_out():
    """Equations 14-17 token by token, for one head."""
    module, _ = pair(channels=3, inner_channels=4, num_heads=1)
    decoder, encoder = torch.randn(2, 1, 3, 2, 2)
    weight = {name: value[:, :, 0, 0] for name, value in module.state_dict().items() if value.dim() == 4}
    d, e = decoder[0].flatten(1).T, encoder[0].flatten(1).T  # (N, C)
    query, key = d @ weight["decoder_query.weight"].T, e @ weight["encoder_key.weight"].T
    similarity = query @ key.T / 2  # sqrt(d_h) = 2
    delta_d = similarity.softmax(1) @ (e @ weight["encoder_value.weight"].T) @ weight["decoder_out.weight"].T
    delta_e = (
        similarity.T.softmax(1) @ (d @ weight["decoder_value.weight"].T) @ weight["encoder_out.weight"].T
    )
    confidence = module.gate(decoder, encoder).item()
    assert 0 < confidence < 1
    new_d, new_e = module(decoder, encoder)
    torch.testing.assert_close(new_d[0].flatten(1).T, d + confidence * delta_d)
    torch.testing.assert_close(new_e[0].flatten(1).T, e + confidence * delta_e)
    tokens = module.tokens(decoder, encoder)
    torch.testing.assert_close(scaled_similarity(*tokens[:2])[0, 0], similarity)


def test_zero_init_starts_as_identity_and_learns():
    module = BidirectionalSkipAttention(6, zero_init=True)
    decoder, encoder = torch.randn(2, 2, 6, 5, 5)
    new_decoder, new_encoder = module(decoder, encoder)
    assert torch.equal(new_decoder, decoder) and torch.equal(new_encoder, encoder)
    (new_decoder.square().sum() + new_encoder.square().sum()).backward()
    assert module.decoder_out.weight.grad.abs().max() > 0


def test_gate_depends_on_both_streams_and_is_one_number_per_image():
    module = BidirectionalSkipAttention(4)
    decoder, encoder = torch.randn(2, 3, 4, 6, 6)
    gate = module.gate(decoder, encoder)
    assert gate.shape == (3, 1, 1, 1)
    assert not torch.allclose(gate, module.gate(decoder + 1, encoder))
    assert not torch.allclose(gate, module.gate(decoder, encoder + 1))


@pytest.mark.parametrize("path", ["sdpa", "materialized"])
def test_attention_runs_in_fp32_under_autocast(path):
    module = BidirectionalSkipAttention(4, attention_path=path)
    decoder, encoder = torch.randn(2, 2, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(decoder, encoder)
    for a, b in zip(inside, module(decoder, encoder), strict=True):
        assert torch.equal(a, b)


PEAK = """
import sys, torch
from nnunet_order.attention import BidirectionalSkipAttention
from nnunet_order.benchmark import resident_peak
module = BidirectionalSkipAttention(16, attention_path=sys.argv[1])
decoder, encoder = (torch.randn(2, 16, side, side, requires_grad=True) for side in (8, 8))
sum(x.sum() for x in module(decoder, encoder)).backward()  # libraries are loaded now
before = resident_peak()
decoder, encoder = (torch.randn(2, 16, 64, 64, requires_grad=True) for _ in range(2))
sum(x.sum() for x in module(decoder, encoder)).backward()
print(resident_peak() - before)
"""


def test_fast_path_never_writes_the_similarity():
    """At N = 4096 tokens S alone is 2 x 4 x 4096^2 floats = 512 MiB."""
    pytest.importorskip("resource", reason="peak memory is read with the resource module (Unix)")
    peak = {
        path: float(
            subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, check=True).stdout
        )
        for path in ("sdpa", "materialized")
    }
    assert peak["materialized"] > 512, peak  # the measurement sees S where it is written
    assert peak["sdpa"] < 128, peak


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        BidirectionalSkipAttention(4, inner_channels=10, num_heads=4)
    with pytest.raises(ValueError, match="'sdpa' or 'materialized'"):
        BidirectionalSkipAttention(4, attention_path="flash")
