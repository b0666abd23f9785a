"""Networks: the contract that all keep (`NetworkTester`), published outputs, what only one of them does."""

from __future__ import annotations

import os
import re
from itertools import accumulate
from operator import mul
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from nnunet_order import ORDER, MKUNet, networks
from nnunet_order.networks.ege_unet import EGEUNet
from nnunet_order.networks.mk_unet import MKUNetWide
from nnunet_order.networks.nanonet import NanoNetC, contract
from nnunet_order.networks.sigmoid_head import SigmoidHead
from nnunet_order.networks.ultraseg import UltraSeg130K
from nnunet_order.networks.unext import UNeXt
from nnunet_order.registry import FIVE_HALVINGS, NETWORKS, SMP_ENCODER, network_path, total_stride

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


class NetworkTester:
    """The contract of `nnunet_order.networks`. Each network has a subclass with its name and numbers."""

    name: str
    """In the registry."""
    parameters: tuple[tuple[int, dict], ...]
    """(expected number, options), for three input channels and one class unless the options say otherwise."""
    has_lower_heads = True
    """Whether deep supervision adds parameters."""
    draws = 1
    """Initialisations until every parameter has learnt; a fresh ReLU may be off for a whole batch."""

    def make(self, input_channels=3, num_classes=1, **options) -> torch.nn.Module:
        return getattr(networks, self.name)(input_channels, num_classes, **options)

    @property
    def strides(self) -> list[list[int]]:
        return [list(stride) for stride in NETWORKS[self.name].strides]

    def test_parameters(self):
        for expected, options in self.parameters:
            assert sum(p.numel() for p in self.make(**options).parameters()) == expected

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.integers(1, 130), st.integers(1, 130), st.integers(1, 4), st.integers(1, 7))
    @example(1, 1, 1, 2)
    @example(2, 3, 1, 2)
    @example(33, 47, 1, 2)
    @example(100, 100, 4, 3)
    @example(64, 31, 2, 7)
    @example(96, 160, 1, 1)
    def test_any_size_channels_and_classes(self, height, width, inputs, classes):
        with torch.no_grad():
            logits = self.make(inputs, classes).eval()(torch.randn(2, inputs, height, width))
        assert logits.shape == (2, classes, height, width) and torch.isfinite(logits).all()

    def test_any_channels_and_classes_in_training(self):
        for inputs, classes in ((1, 1), (4, 3), (2, 7)):
            assert self.make(inputs, classes)(torch.randn(2, inputs, 64, 64)).shape == (2, classes, 64, 64)

    def test_deep_supervision_gives_the_targets_of_nnunet(self):
        network = self.make(3, 2, deep_supervision=True, strides=self.strides)
        rows, columns = (list(accumulate(factors, mul)) for factors in zip(*self.strides, strict=True))
        side = 3 * total_stride(self.strides)
        sizes = [(side // y, 2 * side // x) for y, x in zip(rows, columns, strict=True)]
        expected = [(2, 2, *size) for size in sizes[:-1]]
        x = torch.randn(2, 3, side, 2 * side)
        assert [tuple(output.shape) for output in network(x)] == expected
        network.eval()
        with torch.no_grad():
            outputs = network(x)
            assert [tuple(output.shape) for output in outputs] == expected
            network.decoder.deep_supervision = False  # as nnU-Net does for validation
            assert torch.equal(network(x), outputs[0])

    def test_weights_load_with_and_without_deep_supervision(self, tmp_path):
        """nnU-Net predicts with a network built without it."""
        trained, x = self.make(3, 2, deep_supervision=True).eval(), torch.randn(1, 3, 40, 72)
        plain, same = self.make(3, 2).eval(), self.make(3, 2, deep_supervision=True).eval()
        torch.save(trained.state_dict(), tmp_path / "weights.pth")
        for network in (plain, same):
            network.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
        with torch.no_grad():
            expected = trained(x)
            assert torch.equal(plain(x), expected[0])
            assert all(map(torch.equal, same(x), expected))
        if self.has_lower_heads:
            with pytest.raises(RuntimeError, match="Missing key"):
                trained.load_state_dict(plain.state_dict())

    def test_weights_of_another_network_are_refused(self):
        other = self.make(3, 2).state_dict() | {"decoder.other.weight": torch.zeros(1)}
        with pytest.raises(RuntimeError, match=r"decoder\.other\.weight"):
            self.make(3, 2).load_state_dict(other)

    @pytest.mark.parametrize("num_classes", [1, 3])
    @pytest.mark.parametrize("deep_supervision", [False, True])
    def test_every_parameter_learns(self, num_classes, deep_supervision):
        alive = set()
        for seed in range(self.draws):
            torch.manual_seed(seed)
            network = self.make(3, num_classes, deep_supervision=deep_supervision)
            outputs = network(torch.randn(4, 3, 64, 64))
            outputs = outputs if deep_supervision else [outputs]
            sum(F.mse_loss(output, torch.randn_like(output)) for output in outputs).backward()
            gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
            assert not [name for name, gradient in gradients.items() if gradient is None]
            alive |= {name for name, gradient in gradients.items() if gradient.abs().max() > 0}
            if alive == set(gradients):
                break
        assert alive == set(gradients)

    def test_trains_under_ddp(self, tmp_path):
        """DDP stops at the second step when a parameter had no gradient in the first."""
        os.environ.pop("MASTER_ADDR", None)
        store = f"file://{tmp_path / 'store'}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            network = DistributedDataParallel(self.make())
            for _ in range(2):
                network(torch.randn(2, 3, 64, 64)).square().mean().backward()
        finally:
            torch.distributed.destroy_process_group()

    def test_a_plans_file_builds_it_by_name(self):
        options = {"strides": self.strides}
        network = get_network_from_plans(network_path(self.name), options, [], 3, 4, deep_supervision=True)
        assert type(network) is getattr(networks, self.name)
        assert len(network(torch.randn(1, 3, 64, 64))) == len(self.strides) - 1
        head = SigmoidHead(3, 2, network_path(self.name), **options)
        assert type(head.network) is type(network) and head(torch.randn(1, 3, 64, 64)).shape[1] == 2

    def test_other_strides_are_refused(self):
        own = self.strides
        for wrong in (own[:-1], [[2, 2], *own[1:]], [[*stride, stride[0]] for stride in own]):
            with pytest.raises(ValueError, match=r"strides .* down-samples by") as caught:
                self.make(3, 2, strides=wrong)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_runs_in_the_precision_of_its_weights(self, dtype):
        torch.manual_seed(0)
        network, x = self.make().eval(), torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected = network(x)
            given = network.to(dtype)(x.to(dtype))
        assert given.dtype == dtype
        torch.testing.assert_close(given.float(), expected, rtol=0.05, atol=0.05 * expected.std().item())


class TestORDER(NetworkTester):
    name = "ORDER"
    parameters = (
        (42_457, {}),
        (42_462, {"num_classes": 2}),
        (26_223, {"attention_stages": ()}),
        (35_785, {"attention_stages": (1, 2)}),
        (30_925, {"attention_stages": (2, 3)}),
        (27_780, {"attention_stages": (3,)}),
        (47_159, {"attention_stages": (0, 1, 2, 3)}),
    )
    draws = 5


class TestMKUNet(NetworkTester):
    name = "MKUNet"
    full = 315_566 - 115  # the official number without three unused heads
    parameters = ((27_353, {}), (full, {"channels": (16, 32, 64, 96, 160)}))
    draws = 5


class TestMKUNetWide(NetworkTester):
    name = "MKUNetWide"
    parameters = ((41_055, {}),)
    draws = 5


class TestUNeXt(NetworkTester):
    name = "UNeXt"
    parameters = ((1_471_921, {}),)


class TestEGEUNet(NetworkTester):
    name = "EGEUNet"
    parameters = ((53_374, {}),)
    has_lower_heads = False


class TestNanoNetC(NetworkTester):
    name = "NanoNetC"
    parameters = ((34_073, {}),)
    draws = 10  # two of its attentions squeeze to one channel, whose ReLU is off in half of the draws


class TestUltraSeg130K(NetworkTester):
    name = "UltraSeg130K"
    parameters = ((147_674, {}), (147_683, {"num_classes": 2}))


class TestLite40K(NetworkTester):
    name = "Lite40K"
    parameters = ((39_745, {}), (39_751, {"input_map": "affine"}), (39_169, {"input_channels": 1}))
    draws = 5


class TestLite95K(NetworkTester):
    name = "Lite95K"
    parameters = ((95_139, {}),)
    draws = 5


class TestLite333K(NetworkTester):
    name = "Lite333K"
    parameters = ((333_507, {}),)
    draws = 5


class TestLiteUNet(NetworkTester):
    name = "LiteUNet"
    parameters = ((3_617_633, {}),)
    draws = 5


@pytest.mark.skipif(not NETWORKS["SMP"].can_be_built, reason="the extra smp is not installed")
class TestSMP(NetworkTester):
    name = "SMP"
    parameters = (
        (4_710_785, {"encoder": SMP_ENCODER}),
        (4_710_914, {"encoder": SMP_ENCODER, "num_classes": 2}),
    )

    def make(self, input_channels=3, num_classes=1, encoder="tu-test_efficientnet", **options):
        """With timm's smallest encoder, where its size does not matter."""
        return super().make(input_channels, num_classes, encoder=encoder, **options)

    def test_deep_supervision_gives_the_targets_of_nnunet(self):
        with pytest.raises(ValueError, match="SMP has no deep supervision; train it with nnUNetTrainerSMP"):
            self.make(3, 2, deep_supervision=True)

    test_weights_load_with_and_without_deep_supervision = None

    @pytest.mark.parametrize("num_classes", [1, 2, 3])
    def test_every_parameter_learns(self, num_classes):
        super().test_every_parameter_learns(num_classes, deep_supervision=False)

    def test_a_plans_file_builds_it_by_name(self):
        options = {"strides": self.strides, "decoder": "Unet", "encoder": "tu-resnet10t"}
        network = get_network_from_plans(network_path("SMP"), options, [], 3, 4, deep_supervision=False)
        assert type(network) is networks.SMP and "Unet" in type(network.decoder.layers).__name__
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 4, 64, 64)


def is_variant(name: str) -> bool:
    """Whether a network is another one's subclass: the same forward pass with other sizes."""
    return any(base.__name__ in NETWORKS for base in getattr(networks, name).__mro__[1:])


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if not is_variant(name) and NETWORKS[name].can_be_built]
)
def test_the_whole_forward_is_one_graph(name):
    """nnU-Net compiles networks on GPUs: no graph break, no data-dependent branch.

    In training mode alone, as none of them asks for its mode; a trace takes seconds.
    """
    compiled = torch.compile(getattr(networks, name)(3, 2), backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(torch.randn(2, 3, 64, 64)).shape == (2, 2, 64, 64)


def test_every_registered_network_is_tested():
    assert sorted(one.name for one in NetworkTester.__subclasses__()) == sorted(NETWORKS)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


# (pattern, replacement) from the published names to ours; digits count from 1 there and from 0 here.
MK_UNET_NAMES = [
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
UNEXT_NAMES = [
    (r"^encoder([123])\.", lambda m: f"encoder.{int(m[1]) - 1}.conv."),
    (r"^ebn([123])\.", lambda m: f"encoder.{int(m[1]) - 1}.norm."),
    (r"^patch_embed([34])\.proj\.", lambda m: f"encoder.{m[1]}.embed."),
    (r"^patch_embed([34])\.norm\.", lambda m: f"encoder.{m[1]}.embed_norm."),
    (r"^block([12])\.0\.", lambda m: f"encoder.{int(m[1]) + 2}.block."),
    (r"^norm([34])\.", lambda m: f"encoder.{m[1]}.norm."),
    (r"^decoder(\d)\.", lambda m: f"decoder.stages.{int(m[1]) - 1}.conv."),
    (r"^dbn(\d)\.", lambda m: f"decoder.stages.{int(m[1]) - 1}.norm."),
    (r"^dblock([12])\.0\.", lambda m: f"decoder.refinements.{int(m[1]) - 1}.block."),
    (r"^dnorm([34])\.", lambda m: f"decoder.refinements.{int(m[1]) - 3}.norm."),
    (r"^final\.", "decoder.seg_layers.0."),
    (r"\.norm2\.", ".norm."),
    (r"\.mlp\.fc1\.", ".linear_in."),
    (r"\.mlp\.fc2\.", ".linear_out."),
    (r"\.mlp\.dwconv\.dwconv\.", ".depthwise."),
]
EGE_UNET_NAMES = [
    (r"^encoder6\.0\.", "bottleneck."),
    (r"^encoder(\d)\.0\.", lambda m: f"encoder.{int(m[1]) - 1}.layer."),
    (r"^ebn(\d)\.", lambda m: f"encoder.{int(m[1]) - 1}.norm."),
    (r"^decoder(\d)\.0\.", lambda m: f"decoder.stages.{int(m[1]) - 1}.layer."),
    (r"^dbn(\d)\.", lambda m: f"decoder.stages.{int(m[1]) - 1}.norm."),
    (r"^gt_conv(\d)\.0\.", lambda m: f"decoder.stages.{int(m[1]) - 1}.guidance."),
    (r"^GAB(\d)\.", lambda m: f"decoder.stages.{5 - int(m[1])}.bridge."),
    (r"^final\.", "decoder.head."),
    (r"\.pre_project\.", ".project."),
    (r"\.g(\d)\.", r".groups.\1."),
    (r"\.tail_conv\.", ".join."),
    (r"\.params_xy$", ".plane.values"),
    (r"\.params_zx$", ".height.values"),
    (r"\.params_zy$", ".width.values"),
    (r"\.conv_xy\.", ".plane.refine."),
    (r"\.conv_zx\.", ".height.refine."),
    (r"\.conv_zy\.", ".width.refine."),
    (r"\.norm1\.", ".norm_in."),
    (r"\.norm2\.", ".norm_out."),
    (r"\.ldw\.", ".mix."),
    (r"\.dw\.", ".local."),
]


def renamed(name: str, table: list) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


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
        renamed(name, MK_UNET_NAMES): value
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


def load_reference(network: torch.nn.Module, tensors: dict, table: list) -> None:
    ours = network.state_dict()
    weights = {
        renamed(name.removeprefix("weights."), table): value
        for name, value in tensors.items()
        if name.startswith("weights.")
    }
    # Their linear layers are our 1x1 convolutions, their flat 2-D maps our 1-D ones: equal but for the shape.
    network.load_state_dict({name: value.reshape(ours[name].shape) for name, value in weights.items()})


REFERENCE_THREADS = 2  # with one, the rounding of EGE-UNet is just above the tolerance


def reference_run(network_class: type, file_name: str, table: list, side: int) -> tuple:
    """Our output and theirs from their weights and input."""
    if not (REFERENCE / file_name).is_file():
        pytest.skip(f"the reference weights shared/reference/{file_name} are not beside this checkout")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    tensors = safetensors.load_file(REFERENCE / file_name)
    network = network_class(3, 1).eval()
    load_reference(network, tensors, table)
    threads = torch.get_num_threads()
    torch.set_num_threads(REFERENCE_THREADS)  # other tests change it, and with it the rounding
    try:
        with torch.no_grad():
            return network(tensors[f"input_{side}"]), tensors[f"output_{side}"]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("side", [256, 128])
def test_unext_reproduces_the_published_network(side):
    logits, expected = reference_run(UNeXt, "unext.safetensors", UNEXT_NAMES, side)
    tolerance = 1e-5 * (expected.max() - expected.min()).item()
    assert (logits - expected).abs().max().item() <= tolerance


@pytest.mark.parametrize("side", [256, 128])
def test_ege_unet_reproduces_the_published_network(side):
    logits, probability = reference_run(EGEUNet, "ege_unet.safetensors", EGE_UNET_NAMES, side)
    # Bit for bit with the thread count of the reference run. With another the network, with these weights,
    # amplifies rounding: float64 is 7e-5 away from the published probabilities too. So compare the logits
    # (range about 60), where the published probability is not saturated.
    assert (torch.sigmoid(logits) - probability).abs().max().item() <= 2e-4
    certain = (probability < 1e-3) | (probability > 1 - 1e-3)
    assert certain.float().mean().item() < 0.5
    error = (logits - torch.logit(probability))[~certain].abs().max()
    assert error.item() <= 1e-5 * (logits.max() - logits.min()).item()


def test_nanonet_has_the_published_count_with_running_statistics():
    network = NanoNetC(3, 1)
    statistics = [buffer for name, buffer in network.named_buffers() if ".running_" in name]
    assert sum(tensor.numel() for tensor in (*network.parameters(), *statistics)) == 36_561


def test_nanonet_halves_as_keras_does():
    """Keras pads even sides by one pixel at the end alone; pretrained kernels expect their windows there."""
    layers, x = contract(8, 16, halve=True).eval(), torch.randn(1, 8, 10, 14)
    expected = layers[2:](F.conv2d(F.pad(x, (0, 1, 0, 1)), layers[1].weight, stride=2, groups=8))
    torch.testing.assert_close(layers(x), expected)
    assert layers(x[..., :9, :13]).shape == expected.shape


def test_nanonet_reads_the_stages_that_the_paper_names():
    network = NanoNetC(3, 1)
    features = [torch.randn(1, 3, 64, 64)]
    for stage in network.encoder:
        features.append(stage(features[-1]))
    assert [tuple(x.shape[1:]) for x in features[1:]] == [(48, 32, 32), (48, 16, 16), (96, 8, 8)]
    assert [stage.project[0].out_channels for stage in network.decoder.stages] == [32, 24, 16]


def test_ultraseg_has_the_published_count_in_convolutions_and_batch_norms():
    counted = [
        module
        for module in UltraSeg130K(3, 1).modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d)
    ]
    assert sum(p.numel() for module in counted for p in module.parameters()) == 129_712


def test_ultraseg_predicts_one_region_and_one_boundary_whatever_the_classes():
    merges = [stage.merge for stage in UltraSeg130K(3, 7).decoder.stages]
    assert [[gate.out_channels for gate in merge.gates] for merge in merges] == [[1], [1, 1], [1, 1], [1, 1]]


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


def test_attention_stages_of_a_plans_file():
    options = {"attention_stages": [0], "strides": [list(stride) for stride in FIVE_HALVINGS]}
    network = get_network_from_plans("nnunet_order.networks.ORDER", options, [], 3, 4, deep_supervision=True)
    assert isinstance(network, ORDER)
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
    head = SigmoidHead(3, 2, "nnunet_order.networks.ORDER", strides=FIVE_HALVINGS).eval()
    assert sum(parameter.numel() for parameter in head.parameters()) == 42_457
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiles_and_trains_in_half_precision_on_a_gpu():
    network = torch.compile(ORDER(3, 1).cuda())
    with torch.autocast("cuda"):
        loss = network(torch.randn(2, 3, 128, 128, device="cuda")).square().mean()
    loss.backward()
    assert torch.isfinite(loss)
