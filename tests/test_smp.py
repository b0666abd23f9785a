"""SMP's decoders with timm's encoders: as networks, with published weights, through nnU-Net's commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch

from dataset_conversion.system.errors import UserError
from nnunet_order.complexity import paper_rows
from nnunet_order.model_folder import load_model
from nnunet_order.networks.sigmoid_head import SigmoidHead
from nnunet_order.networks.smp import SMP, check_names
from nnunet_order.pretrained import adapt_stem, load_pretrained, packaged_weights
from nnunet_order.registry import SMP_ENCODER, network_path
from nnunet_order.trainer_options import OPTIONS_VARIABLE
from nnunet_order.trainers import nnUNetTrainerSMP

SMALL = "samples_per_step=2 largest_patch=32"
SMALLEST = "tu-test_resnet"

smp = pytest.importorskip("segmentation_models_pytorch", reason="the extra smp is not installed")


@pytest.mark.parametrize(
    ("decoder", "encoder", "channels"),
    [
        ("FPN", SMP_ENCODER, 1),  # TensorFlow's padding
        ("Unet", SMALLEST, 2),
        ("UnetPlusPlus", "tu-resnet10t", 3),
        ("Segformer", "tu-convnext_atto", 5),  # no features at half the size
    ],
)
def test_logits_are_smps_at_any_size(decoder, encoder, channels):
    network = SMP(channels, 2, decoder=decoder, encoder=encoder).eval()
    reference = getattr(smp, decoder)(encoder, encoder_weights=None, in_channels=channels, classes=2).eval()
    reference.encoder.load_state_dict(network.encoder.state_dict())
    reference.decoder.load_state_dict(network.decoder.layers.state_dict())
    reference.segmentation_head.load_state_dict(network.decoder.seg_layers.state_dict())
    x = torch.randn(2, channels, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(x))
        for height, width in ((1, 2), (33, 47), (65, 32)):
            logits = network(torch.randn(1, channels, height, width))
            assert logits.shape == (1, 2, height, width) and torch.isfinite(logits).all()
        part = x[:, :, :50, :70]
        repeated = torch.nn.functional.pad(part, (0, 26, 0, 14), mode="replicate")
        torch.testing.assert_close(network(part), reference(repeated)[:, :, :50, :70])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_the_packages_weights_reach_every_tensor(channels):
    weights = packaged_weights("tf_efficientnet_lite0")
    network = SigmoidHead(channels, 2, network_path("SMP"))
    decoder = {name: one.clone() for name, one in network.decoder.state_dict().items()}
    load_pretrained(network, "package")
    own = network.network.encoder.model.state_dict()
    assert torch.equal(own.pop("conv_stem.weight"), adapt_stem(weights["conv_stem.weight"], channels))
    assert len(own) > 200 and all(torch.equal(one, weights[name]) for name, one in own.items())
    assert all(torch.equal(one, decoder[name]) for name, one in network.decoder.state_dict().items())


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mobilenetv4_conv_small_035"])
def test_a_file_of_another_networks_weights(tmp_path, name):
    """timm takes some networks to pieces, whose parameters then have other names."""
    trained = timm.create_model(name).eval()
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    network = SMP(3, 1, encoder=f"tu-{name}").eval()
    load_pretrained(network, str(tmp_path / "weights.pth"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = trained.forward_intermediates(x, indices=1, intermediates_only=True)[-1]
        torch.testing.assert_close(network.encoder(x)[-1], expected)
    with pytest.raises(
        UserError, match=rf"found pretrained=package for {name}, expected tf_eff.*; give timm"
    ):
        load_pretrained(network, "package")
    with pytest.raises(UserError, match=r"weights\.pth: found .*, expected the state dict of timm's tf_eff"):
        load_pretrained(SMP(3, 1), str(tmp_path / "weights.pth"))


BAD = [
    ("create_model", SMP_ENCODER, "found decoder='create_model', expected one of FPN, Unet"),
    ("from_pretrained", SMP_ENCODER, "found decoder='from_pretrained'"),
    (["FPN"], SMP_ENCODER, "found decoder="),
    ("FPN\n", SMP_ENCODER, r"found decoder='FPN\\n'"),
    ("DPT", SMP_ENCODER, "found decoder='DPT'"),
    ("FPN", "resnet34", "found encoder='resnet34', expected tu- and the name of a network of timm"),
    ("FPN", "tu-hf-hub:user/weights", "found encoder='tu-hf-hub:user/weights'"),
    ("FPN", "tu-hf_hub:user/weights", "found encoder="),
    ("FPN", "tu-local-dir:/tmp/model", "found encoder="),
    ("FPN", "tu-https://example.org/resnet18", "found encoder="),
    ("FPN", "tu-../resnet18", "found encoder="),
    ("FPN", "tu-resnet18\n", "found encoder="),
    ("FPN", "tu-no_such_network", "found encoder="),
    ("FPN", "tu-resnet18.no_such_weights", "found encoder="),
    ("FPN", 7, "found encoder=7"),
    ("FPN", None, "found encoder=None"),
]


@pytest.mark.parametrize(("decoder", "encoder", "message"), BAD)
def test_other_names_are_refused(decoder, encoder, message):
    for refuse in (
        lambda: check_names(decoder, encoder),
        lambda: SigmoidHead(3, 2, network_path("SMP"), decoder=decoder, encoder=encoder),
    ):
        with pytest.raises(UserError, match=message) as error:
            refuse()
        assert "\n" not in str(error.value)


def test_tags_of_weights_are_part_of_a_name():
    check_names("Unet", "tu-resnet18.a1_in1k")


def test_pairs_that_do_not_fit_are_one_line():
    with pytest.raises(UserError, match=r"decoder=FPN with encoder=tu-vit_tiny_.*SMP cannot build") as error:
        SMP(3, 1, encoder="tu-vit_tiny_patch16_224")
    assert "\n" not in str(error.value)


@pytest.fixture
def given(monkeypatch):
    return lambda text="": monkeypatch.setenv(OPTIONS_VARIABLE, f"{SMALL} {text}")


def test_without_smp_all_else_works(make, given, monkeypatch):
    given()
    with_it = [row.name for row in paper_rows()]
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    for build in (lambda: make(nnUNetTrainerSMP), lambda: SMP(3, 1)):
        with pytest.raises(UserError, match=r"segmentation_models_pytorch .*pip install 'law-order\[smp\]'"):
            build()
    without = [row.name for row in paper_rows()]
    assert [name for name in with_it if name not in without] == ["SMP, FPN with EfficientNet-Lite0"]


def test_a_training_begins_with_the_packages_weights(make, given):
    given()
    trainer = make(nnUNetTrainerSMP)
    trainer.on_train_start()
    part = trainer.network.network.encoder.model
    weights = packaged_weights("tf_efficientnet_lite0")
    assert all(torch.equal(one, weights[name]) for name, one in part.state_dict().items())
    new, published = trainer.optimizer.param_groups
    assert (new["lr"], published["lr"]) == (5e-3, 1.25e-3)
    assert set(published["params"]) == set(part.parameters())
    assert set(new["params"]) == set(trainer.network.decoder.parameters())


class MyTrainer(nnUNetTrainerSMP):
    decoder, encoder, pretrained = "Unet", "tu-resnet10t", "none"


def test_a_subclass_and_options_choose_decoder_and_encoder(make, given, tmp_path):
    def options_in_plans(trainer) -> dict:
        return trainer.plans_manager.plans["configurations"]["2d"]["architecture"]["arch_kwargs"]

    given()
    mine = make(MyTrainer)
    assert options_in_plans(mine) == {
        "network": network_path("SMP"),
        "decoder": "Unet",
        "encoder": "tu-resnet10t",
        "strides": [[1, 1], *[[2, 2]] * 5],
    }
    mine.initialize()
    mine.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    given(f"encoder={SMALLEST}")
    other = make(MyTrainer)
    assert options_in_plans(other)["encoder"] == SMALLEST
    with pytest.raises(UserError, match=f"found encoder={SMALLEST}, expected encoder=tu-resnet10t as when"):
        other.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    given("encoder=tu-hf-hub:user/weights")
    with pytest.raises(UserError, match="found encoder='tu-hf-hub:user/weights'"):
        make(MyTrainer)


@pytest.mark.slow
def test_training_prediction_and_export_by_command(nnunet, tmp_path):
    """The training alone knows of the options: plans.json has what the others need."""
    short = "epochs=1 iterations_per_epoch=2 maximum_validation_iterations=1 final_validation=none"
    options = f"{SMALL} encoder={SMALLEST} pretrained=none {short}"
    trainer = "nnUNetTrainerSMP"
    train = ("nnUNetv2_train", 901, "2d", 0, "-tr", trainer, "-device", "cpu")
    nnunet.run(*train, NNUNET_ORDER_OPTIONS=options)
    model = nnunet.results / "Dataset901_Phantom" / f"{trainer}__nnUNetPlans__2d"
    images, predictions = nnunet.raw / "Dataset901_Phantom" / "imagesTs", tmp_path / "predicted"
    predict = ("-i", images, "-o", predictions, "-d", 901, "-c", "2d", "-f", 0, "-tr", trainer)
    nnunet.run("nnUNetv2_predict", *predict, "-device", "cpu", "--disable_tta")
    onnx = tmp_path / "smp.onnx"
    nnunet.run("nnunet-order", "export", "--model", model, "--out", onnx, "--logits-only")
    nnunet.run("nnunet-order", "predict", "--model", onnx, "--images", images, "--out", tmp_path / "onnx")
    assert len([*predictions.glob("*.png")]) == 4 == len([*(tmp_path / "onnx").glob("*.png")])
    network, x = load_model(model, None).network, torch.randn(2, 3, 97, 131)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(onnx))
    (given,) = session.get_inputs()
    with torch.no_grad():
        expected = network(x)
    found = torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    plans = json.loads((model / "plans.json").read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    assert architecture["arch_kwargs"]["encoder"] == SMALLEST
    architecture["arch_kwargs"]["encoder"] = "tu-local-dir:/tmp"
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match="found encoder='tu-local-dir:/tmp'"):
        load_model(Path(model), None)
    printed = nnunet.run("nnUNetv2_predict", *predict, "-device", "cpu", code=2)
    assert "found encoder='tu-local-dir:/tmp'" in printed and "Traceback" not in printed
