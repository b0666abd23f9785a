"""UNeXt and EGE-UNet: equal to the published networks, and fit for nnU-Net."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nnunet_order.networks.ege_unet import EGEUNet
from nnunet_order.networks.unext import UNeXt

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
STRIDES = [[1, 1]] + [[2, 2]] * 5
NETWORKS = [UNeXt, EGEUNet]

# (pattern, replacement) from the published names to ours; digits count from 1 there and from 0 here.
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


def load_reference(network: torch.nn.Module, tensors: dict, table: list) -> None:
    ours = network.state_dict()
    weights = {
        renamed(name.removeprefix("weights."), table): value
        for name, value in tensors.items()
        if name.startswith("weights.")
    }
    # Their linear layers are our 1x1 convolutions, their flat 2-D maps our 1-D ones: equal but for the shape.
    network.load_state_dict({name: value.reshape(ours[name].shape) for name, value in weights.items()})


def reference_run(network_class: type, file_name: str, table: list, side: int) -> tuple:
    """Our output and theirs from their weights and input."""
    if not (REFERENCE / file_name).is_file():
        pytest.skip(f"the reference weights shared/reference/{file_name} are not beside this checkout")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    tensors = safetensors.load_file(REFERENCE / file_name)
    network = network_class(3, 1).eval()
    load_reference(network, tensors, table)
    with torch.no_grad():
        return network(tensors[f"input_{side}"]), tensors[f"output_{side}"]


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


@pytest.mark.parametrize(("network_class", "expected"), [(UNeXt, 1_471_921), (EGEUNet, 53_374)])
def test_parameter_count(network_class, expected):
    assert sum(p.numel() for p in network_class(3, 1).parameters()) == expected


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 47), (100, 100), (64, 31), (96, 160)])
def test_any_image_size(network_class, size):
    network = network_class(input_channels=1, num_classes=2).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 1, *size))
    assert logits.shape == (2, 2, *size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize(("input_channels", "num_classes"), [(1, 1), (4, 3), (2, 7)])
def test_any_number_of_channels_and_classes(network_class, input_channels, num_classes):
    logits = network_class(input_channels, num_classes)(torch.randn(2, input_channels, 64, 64))
    assert logits.shape == (2, num_classes, 64, 64)


@pytest.mark.parametrize("network_class", NETWORKS)
def test_deep_supervision_follows_nnunet(network_class):
    network = network_class(3, 2, deep_supervision=True, strides=STRIDES).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs = network(x)
        assert [tuple(o.shape) for o in outputs] == [(1, 2, 64 >> i, 96 >> i) for i in range(5)]
        network.decoder.deep_supervision = False  # what nnU-Net does for inference
        assert torch.equal(network(x), outputs[0])


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_every_parameter_learns(network_class, num_classes, deep_supervision):
    torch.manual_seed(0)
    network = network_class(3, num_classes, deep_supervision=deep_supervision)
    outputs = network(torch.randn(2, 3, 64, 64))
    outputs = outputs if deep_supervision else [outputs]
    sum(F.mse_loss(o, torch.randn_like(o)) for o in outputs).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("network_class", NETWORKS)
def test_weights_trained_with_deep_supervision_load_without_it(network_class, tmp_path):
    trained = network_class(3, 2, deep_supervision=True).eval()
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    network = network_class(3, 2).eval()
    network.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(network(x), trained(x)[0])


@pytest.mark.parametrize("network_class", NETWORKS)
def test_weights_of_another_network_are_refused(network_class):
    other = network_class(3, 2).state_dict()
    other["decoder.other.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"decoder\.other\.weight"):
        network_class(3, 2).load_state_dict(other)


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize("strides", [[[1, 1]] + [[2, 2]] * 4, [[2, 2]] * 6, [[1, 1, 1]] + [[2, 2, 2]] * 5])
def test_other_strides_are_refused(network_class, strides):
    with pytest.raises(ValueError, match="strides") as caught:
        network_class(3, 2, strides=strides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network_class", NETWORKS)
def test_traces_as_one_graph_for_compile(network_class):
    network = network_class(3, 2).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))
