"""ORDER and MK-UNet: reference outputs, parameter counts, any size, deep supervision, DDP, plans."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from nnunet_order import ORDER, MKUNet
from nnunet_order.networks import EGEUNet, MKUNetWide, SigmoidHead, UNeXt

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


RENAMED = [  # official MK-UNet -> ours
    (r"encoder(\d)\.0\.", lambda m: f"encoder.{int(m[1]) - 1}."),
    (r"decoder(\d)\.0\.", lambda m: f"decoder.blocks.{int(m[1]) - 1}."),
    (r"AG(\d)\.", lambda m: f"decoder.skips.{int(m[1]) - 1}.gate."),
    (r"CA(\d)\.fc1", lambda m: f"decoder.channel_attention.{int(m[1]) - 1}.mlp.0"),
    (r"CA(\d)\.fc2", lambda m: f"decoder.channel_attention.{int(m[1]) - 1}.mlp.2"),
    (r"SA\.conv", "decoder.spatial_attention.convolution"),
    (r"out4\.", "decoder.seg_layers.0."),
    (r"pconv1\.", "expand.0."),
    (r"pconv2\.", "project."),
    (r"multi_scale_dwconv\.dwconvs\.(\d)\.", r"depthwise.\1.0."),
    (r"conv1x1", "residual"),
    (r"W_g\.", "decoder."),
    (r"W_x\.", "skip."),
    (r"psi\.", "gate."),
]


def our_name(official: str) -> str:
    for pattern, replacement in RENAMED:
        official = re.sub(pattern, replacement, official)
    return official


def parameters(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("file", "channels", "rounding"),
    [("mkunet_t", (4, 8, 16, 24, 32), 2e-6), ("mkunet", (16, 32, 64, 96, 160), 2e-4)],
)
def test_mk_unet_reproduces_the_official_outputs(file, channels, rounding, two_threads):
    path = REFERENCE / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip("the reference weights (../shared/reference) are not here")
    tensors = load_file(path)
    unused = ("out1.", "out2.", "out3.")  # heads that the official forward never returns
    weights = {
        our_name(name): value
        for name, value in (
            (n.removeprefix("weights."), v) for n, v in tensors.items() if n.startswith("weights.")
        )
        if not name.startswith(unused)
    }
    network = MKUNet(3, 1, channels=channels).eval()
    network.load_state_dict(weights)
    network.encoder[0].register_forward_pre_hook(lambda module, inputs: inputs[0].contiguous())

    def error(size: int, dtype: torch.dtype) -> float:
        """Largest difference to the published output, in terms of its range."""
        expected = tensors[f"output_{size}"].to(dtype)
        with torch.no_grad():
            found = network.to(dtype)(tensors[f"input_{size}"].to(dtype))
        return ((found - expected).abs().max() / (expected.max() - expected.min())).item()

    for size in (256, 128):
        # In the reference's own order of sums (NCHW, two threads, AVX-512), fp32 hardly differs.
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            assert error(size, torch.float32) < 1e-5
    for size in (256, 128):
        # On any processor, float64 differs by the rounding of the published fp32 outputs.
        assert error(size, torch.float64) < rounding


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: MKUNet(3, 1), 27_353),
        (lambda: MKUNet(3, 1, channels=(16, 32, 64, 96, 160)), 315_566 - 115),  # without three unused heads
        (lambda: ORDER(3, 1), 42_457),
        (lambda: ORDER(3, 2), 42_462),
        (lambda: ORDER(3, 1, attention_stages=()), 26_223),
        (lambda: ORDER(3, 1, attention_stages=(1, 2)), 35_785),
        (lambda: ORDER(3, 1, attention_stages=(2, 3)), 30_925),
        (lambda: ORDER(3, 1, attention_stages=(3,)), 27_780),
        (lambda: ORDER(3, 1, attention_stages=(0, 1, 2, 3)), 47_159),
        (lambda: MKUNetWide(3, 1), 41_055),
    ],
)
def test_parameter_counts(network, expected):
    assert parameters(network()) == expected


def test_order_flops_on_the_literal_path():
    network = ORDER(3, 1, attention_path="materialized").to("meta")
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 256, 256, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(0.540, abs=5e-4)


def test_order_flops_by_fvcore():
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore counts the paper's way")
    network = ORDER(3, 1, attention_path="materialized").eval()
    analysis = fvcore.FlopCountAnalysis(network, torch.zeros(1, 3, 256, 256)).unsupported_ops_warnings(False)
    assert 2 * analysis.total() / 1e9 == pytest.approx(0.56, abs=5e-3)


@pytest.mark.parametrize("make", [ORDER, MKUNet, MKUNetWide])
@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 130), width=st.integers(1, 130), inputs=st.integers(1, 4), classes=st.integers(1, 4)
)
def test_any_size_channels_and_classes(make, height, width, inputs, classes):
    network = make(inputs, classes).eval()
    with torch.no_grad():
        assert network(torch.randn(1, inputs, height, width)).shape == (1, classes, height, width)


@pytest.mark.parametrize("make", [ORDER, MKUNet])
def test_deep_supervision_outputs_match_the_targets_of_nnunet(make):
    network = make(3, 2, deep_supervision=True)
    outputs = network(torch.randn(2, 3, 96, 64))
    assert [tuple(x.shape) for x in outputs] == [(2, 2, 96 // s, 64 // s) for s in (1, 2, 4, 8, 16)]
    network.decoder.deep_supervision = False  # as nnU-Net does for validation
    assert network(torch.randn(2, 3, 96, 64)).shape == (2, 2, 96, 64)


@pytest.mark.parametrize("make", [ORDER, MKUNet])
def test_weights_of_deep_supervision_load_without_it(make):
    """nnU-Net predicts with a network built without deep supervision."""
    trained = make(3, 2, deep_supervision=True).eval()
    plain = make(3, 2).eval()
    plain.load_state_dict(trained.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(trained(x)[0], plain(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        trained.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("make", [ORDER, MKUNet])
def test_every_parameter_gets_a_gradient(make, deep_supervision):
    alive = set()
    for seed in range(5):  # a fresh ReLU may be off for a whole batch
        torch.manual_seed(seed)
        network = make(3, 2, deep_supervision=deep_supervision)
        outputs = network(torch.randn(4, 3, 64, 64))
        outputs = outputs if deep_supervision else [outputs]
        sum(F.cross_entropy(x, torch.randint(0, 2, (4, *x.shape[2:]))) for x in outputs).backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        assert not [name for name, gradient in gradients.items() if gradient is None]
        alive |= {name for name, gradient in gradients.items() if gradient.abs().max() > 0}
    assert alive == set(gradients)


def test_zero_initialised_order_equals_its_backbone():
    backbone = ORDER(3, 1, attention_stages=())
    network = ORDER(3, 1, zero_init=True)
    missing, unexpected = network.load_state_dict(backbone.state_dict(), strict=False)
    assert not unexpected and all(".attention." in name for name in missing)
    x = torch.randn(2, 3, 64, 96)
    assert torch.equal(network(x), backbone(x))


def test_whole_network_is_the_same_on_both_attention_paths():
    torch.manual_seed(0)
    fast = ORDER(3, 1).double()
    literal = ORDER(3, 1, attention_path="materialized").double()
    literal.load_state_dict(fast.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    results = []
    for network in (fast, literal):
        network(x).square().mean().backward()
        results.append([network(x), *(p.grad for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


def test_wide_network_stays_within_orders_budget_and_starts_with_live_residuals():
    with FlopCounterMode(display=False) as counter:
        MKUNetWide(3, 1)(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 1e9 < 0.56
    block = MKUNetWide(3, 1).encoder[1]
    x = torch.randn(1, 12, 32, 32)
    assert 0.5 < (block.residual(x).std() / x.std()).item() < 2
    assert ORDER(3, 1).encoder[1].residual.weight.std() < 0.05


def test_weights_load_with_weights_only(tmp_path):
    network = ORDER(3, 1).eval()
    torch.save(network.state_dict(), tmp_path / "order.pth")
    copy = ORDER(3, 1).eval()
    copy.load_state_dict(torch.load(tmp_path / "order.pth", weights_only=True))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(network(x), copy(x))


@pytest.mark.parametrize("make", [ORDER, MKUNet])
def test_trains_under_ddp(make, tmp_path):
    """DDP stops at the second step when a parameter had no gradient in the first."""
    os.environ.pop("MASTER_ADDR", None)
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        network = DistributedDataParallel(make(3, 1))
        for _ in range(2):
            network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_a_plans_file_builds_order_by_name():
    strides = [[1, 1]] + [[2, 2]] * 5
    network = get_network_from_plans(
        "nnunet_order.networks.ORDER",
        {"attention_stages": [0], "strides": strides},
        [],
        3,
        4,
        deep_supervision=True,
    )
    assert isinstance(network, ORDER) and len(network(torch.randn(1, 3, 64, 64))) == 5
    assert isinstance(network.decoder.skips[0].attention, torch.nn.Module)
    assert not hasattr(network.decoder.skips[1], "attention")


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"\[4\]; the network has skips 0, 1, 2 and 3"):
        ORDER(3, 1, attention_stages=(0, 4))
    with pytest.raises(ValueError, match="4 stages, expected 5"):
        MKUNet(3, 1, channels=(4, 8, 16, 24))
    with pytest.raises(ValueError, match="down-samples by"):
        ORDER(3, 1, strides=[[1, 1], [2, 2]])


def test_sigmoid_head_makes_softmax_the_sigmoid():
    head = SigmoidHead(3, 2, "nnunet_order.networks.ORDER", strides=[[1, 1]] + [[2, 2]] * 5).eval()
    assert parameters(head) == 42_457
    x, mask = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    two, one = head(x), head.network(x)
    torch.testing.assert_close(two.softmax(1)[:, 1:], one.sigmoid())
    torch.testing.assert_close(
        F.cross_entropy(two, mask), F.binary_cross_entropy_with_logits(one[:, 0], mask.float())
    )
    inside = torch.nn.Sequential(head)  # as in DDP and torch.compile, under a name of theirs
    weights = inside.state_dict()
    assert {f"0.{name}" for name in head.network.state_dict()} == set(weights)
    inside.load_state_dict(weights)
    deep = SigmoidHead(3, 2, "nnunet_order.networks.MKUNet", deep_supervision=True)
    assert [x.shape[1] for x in deep(x)] == [2] * 5
    deep.decoder.deep_supervision = False
    assert deep(x).shape == (2, 2, 64, 64)


def test_sigmoid_head_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="found 3 classes"):
        SigmoidHead(3, 3, "nnunet_order.networks.ORDER")
    with pytest.raises(ValueError, match=r"no\.such\.Network"):
        SigmoidHead(3, 2, "no.such.Network")


@pytest.mark.parametrize("make", [ORDER, MKUNet, UNeXt, EGEUNet])
def test_the_whole_forward_is_one_graph(make):
    """nnU-Net compiles networks on GPUs: no graph break, no data-dependent branch."""
    compiled = torch.compile(make(3, 1), backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(torch.randn(2, 3, 64, 64)).shape == (2, 1, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("make", [ORDER, MKUNet, UNeXt, EGEUNet])
def test_networks_run_in_the_precision_of_their_weights(make, dtype):
    torch.manual_seed(0)
    network, x = make(3, 1).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        given = network.to(dtype)(x.to(dtype))
    assert given.dtype == dtype
    torch.testing.assert_close(given.float(), expected, rtol=0.05, atol=0.05 * expected.std().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiles_and_trains_in_half_precision_on_a_gpu():
    network = torch.compile(ORDER(3, 1).cuda())
    with torch.autocast("cuda"):
        loss = network(torch.randn(2, 3, 128, 128, device="cuda")).square().mean()
    loss.backward()
    assert torch.isfinite(loss)
