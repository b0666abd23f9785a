"""The recipe for networks with published weights: when they are loaded, and at which rates they learn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from dataset_conversion.system.errors import UserError
from nnunet_order.model_folder import load_model
from nnunet_order.pretrained import packaged_weights
from nnunet_order.registry import NETWORKS
from nnunet_order.trainer_options import OPTIONS_VARIABLE
from nnunet_order.trainers import nnUNetTrainerLite40K, nnUNetTrainerLite40K_scratch, nnUNetTrainerORDER

SMALL = "samples_per_step=2 largest_patch=32"


@pytest.fixture
def given(monkeypatch):
    """given("name=value"): NNUNET_ORDER_OPTIONS beside those that make a training small."""
    return lambda text="": monkeypatch.setenv(OPTIONS_VARIABLE, f"{SMALL} {text}")


def encoder(trainer) -> torch.nn.Module:
    return trainer.network.network.encoder  # in the sigmoid head


def holds_published_weights(trainer) -> bool:
    published = packaged_weights("tf_efficientnet_lite0")
    return all(torch.equal(one, published[name]) for name, one in encoder(trainer).state_dict().items())


def test_published_layers_learn_at_a_rate_of_their_own(make, given):
    given()
    trainer = make(nnUNetTrainerLite40K)
    trainer.initialize()
    assert type(trainer.optimizer) is torch.optim.AdamW
    for epoch in (0, 25):
        trainer.lr_scheduler.step(epoch)
        expected = 5e-3 * (1 + math.cos(math.pi * epoch / 100)) / 2
        new, published = trainer.optimizer.param_groups
        assert (new["lr"], published["lr"]) == pytest.approx((expected, expected / 4))
        assert new["weight_decay"] == published["weight_decay"] == 1e-2
    assert set(published["params"]) == set(encoder(trainer).parameters())
    assert set(new["params"]) | set(published["params"]) == set(trainer.network.parameters())
    assert not set(new["params"]) & set(published["params"])


def test_from_scratch_all_layers_learn_at_one_rate(make, given):
    given("pretrained_rate=0.5")
    trainer = make(nnUNetTrainerLite40K_scratch)
    trainer.initialize()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [5e-3, 5e-3]


def test_the_papers_recipe_has_one_group(make, given):
    """Of all parameters in the network's order, which the optimizer's state depends on."""
    given("pretrained_rate=0.5 pretrained=timm")  # which mean nothing to it
    trainer = make(nnUNetTrainerORDER)
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, trainer.network.parameters()))
    assert group["lr"] == 1e-4 and not {"pretrained", "pretrained_rate"} & trainer.recipe.keys()
    log = Path(trainer.log_file).read_text()
    assert "ignored, as this trainer has no such options: pretrained_rate, pretrained " in log


@pytest.mark.parametrize("name", [name for name, one in NETWORKS.items() if one.recipe == "fine-tuning"])
def test_a_training_begins_with_the_published_weights(make, given, name):
    from nnunet_order import trainers

    given()
    trainer = make(getattr(trainers, f"nnUNetTrainer{name}"))
    trainer.on_train_start()
    assert holds_published_weights(trainer)
    assert "ignored" not in Path(trainer.log_file).read_text()
    assert trainer.recipe["pretrained"] == "package" and trainer.recipe["pretrained_rate"] == 0.25


def test_a_training_from_scratch_does_not(make, given):
    given()
    trainer = make(nnUNetTrainerLite40K_scratch)
    trainer.on_train_start()
    assert not holds_published_weights(trainer)


def test_only_a_training_that_begins_needs_them(make, given, tmp_path):
    """Neither one that goes on, nor one from nnU-Net's -pretrained_weights, nor a prediction."""
    given(f"pretrained={tmp_path / 'none.pth'} iterations_per_epoch=1 epochs=1")
    trainer = make(nnUNetTrainerLite40K)
    with pytest.raises(UserError, match=r"none\.pth: not found, expected the state dict of timm's"):
        trainer.run_training()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))

    resumed = make(nnUNetTrainerLite40K)
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.on_train_start()
    other = make(nnUNetTrainerLite40K)
    other.initialize()
    load_pretrained_weights(other.network, str(tmp_path / "checkpoint.pth"))
    other.on_train_start()
    expected = encoder(trainer).state_dict()
    for one in (resumed, other):
        assert all(torch.equal(value, expected[name]) for name, value in encoder(one).state_dict().items())


def test_a_resumed_training_keeps_groups_and_source(make, given, tmp_path):
    checkpoint = str(tmp_path / "checkpoint.pth")

    def begun(text: str):
        given(text)
        trainer = make(nnUNetTrainerLite40K)
        trainer.initialize()
        return trainer

    trainer = begun("epochs=4")
    for parameter in trainer.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    trainer.current_epoch = 1
    trainer.save_checkpoint(checkpoint)

    resumed = begun("epochs=4")
    resumed.load_checkpoint(checkpoint)
    resumed.lr_scheduler.step(resumed.current_epoch)
    assert [group["lr"] for group in resumed.optimizer.param_groups] == pytest.approx([2.5e-3, 6.25e-4])
    for old, new in zip(trainer.optimizer.param_groups, resumed.optimizer.param_groups, strict=True):
        for one, other in zip(old["params"], new["params"], strict=True):
            state = resumed.optimizer.state[other]
            assert torch.equal(trainer.optimizer.state[one]["exp_avg"], state["exp_avg"])
    with pytest.raises(
        UserError, match=r"found pretrained_rate=0\.25, expected pretrained_rate=0\.5 as when"
    ):
        begun("epochs=4 pretrained_rate=0.5").save_checkpoint(checkpoint)
        begun("epochs=4 final_validation=none").load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="found pretrained=none, expected pretrained=package as when"):
        begun("epochs=4 pretrained_rate=0.5 pretrained=none").load_checkpoint(checkpoint)
    faster = begun("epochs=4 pretrained_rate=1")
    faster.load_checkpoint(checkpoint)
    faster.lr_scheduler.step(2)
    assert [group["lr"] for group in faster.optimizer.param_groups] == pytest.approx([2.5e-3, 2.5e-3])


def test_augmentation_of_nnunet_is_nnunets_own(given):
    arguments = ((32, 32), (-math.pi, math.pi), None, (0, 1), False)
    labels = {"use_mask_for_norm": [False], "foreground_labels": [1]}
    given("augmentation=nnunet")
    _, own, _ = nnUNetTrainerLite40K.get_training_transforms(*arguments, **labels).transforms
    nnunets = nnUNetTrainer.get_training_transforms(*arguments, **labels)
    assert list(map(repr, own.transforms)) == list(map(repr, nnunets.transforms))
    given("augmentation=paper")
    _, *own, _ = nnUNetTrainerLite40K.get_training_transforms(*arguments, **labels).transforms
    assert len(own) == 3  # the first and the last one carry soft labels


@pytest.mark.parametrize("dataset", [901, 902, 903, 904], ids=["binary", "ignore", "multi-class", "regions"])
def test_one_step_on_labels_of_every_kind(make, given, dataset):
    given()
    trainer = make(nnUNetTrainerLite40K, dataset)
    trainer.on_train_start()
    before = [one.clone() for one in trainer.network.parameters()]
    trainer.on_train_epoch_start()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    after = trainer.network.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.slow
def test_training_resume_prediction_and_export_by_command(nnunet, tmp_path):
    """With nnU-Net's own commands; those after the training know nothing of published weights."""
    options = f"{SMALL} iterations_per_epoch=2 maximum_validation_iterations=1 checkpoint_every=1"
    trainer = "nnUNetTrainerLite40K"
    command = ("nnUNetv2_train", 901, "2d", 0, "-tr", trainer, "-device", "cpu")
    model = nnunet.results / "Dataset901_Phantom" / f"{trainer}__nnUNetPlans__2d"
    earlier = set((model / "fold_0").glob("training_log*"))  # of other tests
    nnunet.run(*command, NNUNET_ORDER_OPTIONS=f"{options} epochs=1 final_validation=none")
    nnunet.run(*command, "--c", NNUNET_ORDER_OPTIONS=f"{options} epochs=2 final_validation=none")
    logs = [path.read_text() for path in set((model / "fold_0").glob("training_log*")) - earlier]
    assert len(logs) == 2 and "".join(logs).count("published weights: package") == 1
    plans = json.loads((model / "plans.json").read_text())["configurations"]["2d"]
    assert plans["architecture"]["arch_kwargs"]["network"] == "nnunet_order.networks.Lite40K"
    images, predictions = nnunet.raw / "Dataset901_Phantom" / "imagesTs", tmp_path / "predicted"
    predict = ("-i", images, "-o", predictions, "-d", 901, "-c", "2d", "-f", 0, "-tr", trainer)
    nnunet.run("nnUNetv2_predict", *predict, "-device", "cpu", "--disable_tta")
    onnx = tmp_path / "lite.onnx"
    nnunet.run("nnunet-order", "export", "--model", model, "--out", onnx, "--logits-only")
    nnunet.run("nnunet-order", "predict", "--model", onnx, "--images", images, "--out", tmp_path / "onnx")
    names = sorted(path.name for path in predictions.glob("*.png"))
    assert len(names) == 4 == len(list((tmp_path / "onnx").glob("*.png")))
    network = load_model(model, None).network.eval()
    x = torch.randn(2, 3, 97, 131)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(onnx))
    (given,) = session.get_inputs()
    with torch.no_grad():
        expected = network(x)
    found = torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
