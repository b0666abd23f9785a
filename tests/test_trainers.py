"""The recipe: plans, schedule, epoch length, loss check, labels of every kind, resume."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from dataset_conversion.system.errors import UserError
from nnunet_order.finite_loss import FiniteLoss
from nnunet_order.model_folder import load_checkpoint
from nnunet_order.network_plans import patch_size, with_network
from nnunet_order.networks import ORDER, MKUNet
from nnunet_order.networks.sigmoid_head import SigmoidHead
from nnunet_order.registry import FIVE_HALVINGS, NETWORKS, TRAINERS
from nnunet_order.schedule import CosineSchedule, one_pass
from nnunet_order.trainer_options import HYPER_PARAMETERS, OPTIONS_VARIABLE, trainer_options


@pytest.fixture
def plans(nnunet) -> dict:
    """nnUNetPlans of the phantom data set."""
    return json.loads((nnunet.preprocessed / "Dataset901_Phantom" / "nnUNetPlans.json").read_text())


@pytest.mark.parametrize(
    ("median", "largest", "expected"),
    [
        ([222, 256], 512, [224, 256]),
        ([528.0, 622.0], 512, [512, 512]),
        ([20, 100], 512, [32, 128]),
        ([512, 512], 500, [480, 480]),
    ],
)
def test_patch_is_the_median_image_up_to_the_limit(median, largest, expected):
    assert patch_size(median, largest) == expected


def test_plans_are_copied_and_say_which_head(plans):
    before = json.dumps(plans)
    new = with_network(
        plans, "2d", "nnunet_order.networks.ORDER", {}, batch_size=16, largest_patch=512, sigmoid_head=True
    )
    assert json.dumps(plans) == before
    settings = new["configurations"]["2d"]
    assert settings["batch_size"] == 16 and settings["patch_size"] == [64, 64]
    assert settings["architecture"]["network_class_name"] == "nnunet_order.networks.SigmoidHead"
    assert settings["architecture"]["arch_kwargs"]["network"] == "nnunet_order.networks.ORDER"


def test_a_network_may_have_strides_of_its_own(plans):
    strides = ((1, 1), (2, 2), (2, 1), (2, 2))  # 8 in height, 4 in width
    options = {"strides": strides, "batch_size": 2, "sigmoid_head": False}
    new = with_network(plans, "2d", "my_nets.Net", {}, largest_patch=60, **options)["configurations"]["2d"]
    assert new["patch_size"] == [56, 56]
    assert new["architecture"]["arch_kwargs"] == {"strides": [[1, 1], [2, 2], [2, 1], [2, 2]]}
    with pytest.raises(UserError, match=r"found largest patch 7 .*expected at least 8 and 1"):
        with_network(plans, "2d", "my_nets.Net", {}, largest_patch=7, **options)


def test_trainers_give_plans_the_strides_of_their_network(make, monkeypatch):
    from nnunet_order import trainers

    other = replace(NETWORKS["MKUNet"], strides=FIVE_HALVINGS[:4])
    monkeypatch.setitem(NETWORKS, "MKUNet", other)
    entry = TRAINERS["nnUNetTrainerMKUNet"]
    trainer = make(trainers.make_trainer("nnUNetTrainerMKUNet", entry))
    architecture = trainer.configuration_manager.configuration["architecture"]
    assert architecture["arch_kwargs"]["strides"] == [[1, 1], [2, 2], [2, 2], [2, 2]]
    assert architecture["network_class_name"].endswith("SigmoidHead")
    with pytest.raises(
        ValueError, match="the network down-samples by"
    ):  # for MK-UNet itself halves five times
        trainer.initialize()


def test_three_dimensions_are_refused_in_one_line(plans):
    plans["configurations"]["3d_fullres"] = {"patch_size": [64, 128, 128]}
    options = {"batch_size": 2, "largest_patch": 512, "sigmoid_head": False}
    with pytest.raises(UserError, match=r"size \[64, 128, 128\] .* since ORDER is 2D; train with 2d"):
        with_network(plans, "3d_fullres", "nnunet_order.networks.ORDER", {}, **options)
    with pytest.raises(UserError, match="no configuration 3d_lowres"):
        with_network(plans, "3d_lowres", "nnunet_order.networks.ORDER", {}, **options)
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres"}
    with pytest.raises(UserError, match=r"size \[64, 128, 128\] in configuration 3d_cascade_fullres"):
        with_network(plans, "3d_cascade_fullres", "nnunet_order.networks.ORDER", {}, **options)


def test_configurations_that_inherit_are_resolved(plans):
    plans["configurations"]["2d_mine"] = {"inherits_from": "2d", "normalization_schemes": ["NoNormalization"]}
    options = {"batch_size": 2, "largest_patch": 512, "sigmoid_head": False}
    new = with_network(plans, "2d_mine", "nnunet_order.networks.ORDER", {}, **options)
    mine = PlansManager(new).get_configuration("2d_mine")
    assert mine.normalization_schemes == ["NoNormalization"] and mine.patch_size == [64, 64]
    assert mine.network_arch_class_name == "nnunet_order.networks.ORDER"
    stock = PlansManager(plans).get_configuration("2d").network_arch_class_name
    assert PlansManager(new).get_configuration("2d").network_arch_class_name == stock


def test_cosine_schedule_depends_on_the_epoch_alone():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-4, 3e-4)]
    optimizer = torch.optim.SGD(groups)
    schedule = CosineSchedule(optimizer, epochs=100)
    rates = {}
    for epoch in (0, 50, 25, 99):
        schedule.step(epoch)
        rates[epoch], other = (group["lr"] for group in optimizer.param_groups)
        assert other == pytest.approx(3 * rates[epoch])
    assert rates[0] == 1e-4 and rates[50] == pytest.approx(5e-5)
    assert rates[25] == pytest.approx(1e-4 * (1 + math.cos(math.pi / 4)) / 2) and 0 < rates[99] < 1e-7


def test_recipe_is_the_papers(make):
    from nnunet_order.trainers import nnUNetTrainerORDER

    trainer = make(nnUNetTrainerORDER)
    trainer.initialize()
    optimizer = trainer.optimizer
    assert type(optimizer).__name__ == "AdEMAMix" and optimizer.defaults["lr"] == 1e-4
    assert optimizer.defaults["weight_decouple"] is True
    assert trainer.num_epochs == 100 and trainer.configuration_manager.batch_size == 16
    assert trainer.num_iterations_per_epoch == 50  # ten cases; never fewer
    assert optimizer.defaults["t_alpha_beta3"] == 5000.0
    assert trainer.save_every == 5 and trainer.enable_deep_supervision is False


def test_the_trainers_schedule_is_the_cosine(make):
    from nnunet_order.trainers import nnUNetTrainerORDER

    trainer = make(nnUNetTrainerORDER)
    trainer.initialize()
    trainer.current_epoch = 25
    trainer.lr_scheduler.step(25)
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] == pytest.approx(1e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert group["weight_decay"] == 1e-2


@pytest.mark.parametrize(
    ("name", "parameters", "epochs", "learning_rate"),
    [
        ("ORDER", 42_457, 100, 1e-4),
        ("ORDER_none", 26_223, 100, 1e-4),
        ("ORDER_early", 27_780, 100, 1e-4),
        ("ORDER_mid", 30_925, 100, 1e-4),
        ("ORDER_all", 47_159, 100, 1e-4),
        ("ORDER_fp32", 42_457, 100, 1e-4),
        ("MKUNet", 27_353, 100, 1e-4),
        ("MKUNetWide", 41_055, 100, 1e-4),
        ("UNeXt", 1_471_921, 100, 1e-4),
        ("EGEUNet", 53_374, 100, 1e-4),
        ("NanoNetC", 34_073, 100, 1e-4),
        ("UltraSeg130K", 147_674, 100, 1e-4),
        ("ORDER_30epochs", 42_457, 30, 5e-3),
        ("MKUNet_30epochs", 27_353, 30, 5e-3),
        ("MKUNetWide_30epochs", 41_055, 30, 5e-3),
        ("ORDER_5epochs", 42_457, 5, 5e-3),
        ("MKUNet_5epochs", 27_353, 5, 5e-3),
        ("Lite40K", 39_745, 100, 5e-3),
        ("Lite40K_scratch", 39_745, 100, 5e-3),
        ("Lite95K", 95_139, 100, 5e-3),
        ("Lite95K_30epochs", 95_139, 30, 5e-3),
        ("Lite333K", 333_507, 100, 5e-3),
        ("Lite333K_5epochs", 333_507, 5, 5e-3),
        ("LiteUNet", 3_617_633, 100, 5e-3),
    ],
)
def test_every_trainer_builds_what_it_is_named_after(make, name, parameters, epochs, learning_rate):
    from nnunet_order import trainers

    trainer = make(getattr(trainers, f"nnUNetTrainer{name}"))
    trainer.initialize()
    assert sum(p.numel() for p in trainer.network.parameters()) == parameters
    assert (trainer.num_epochs, trainer.initial_lr) == (epochs, learning_rate)


def test_the_batch_must_part_evenly():
    from nnunet_order.small_network_trainer import check_processes

    check_processes(16, 4)
    with pytest.raises(UserError, match="found -num_gpus 3 for a batch of 16"):
        check_processes(16, 3)


def test_another_optimizer_is_one_line(make):
    from nnunet_order.trainers import nnUNetTrainerORDER

    class WithAdamW(nnUNetTrainerORDER):
        optimizer_name = "AdamW"

    class WithTypo(nnUNetTrainerORDER):
        optimizer_name = "adam"

    trainer = make(WithAdamW)
    trainer.initialize()
    assert type(trainer.optimizer) is torch.optim.AdamW and trainer.optimizer.defaults["weight_decay"] == 1e-2
    with pytest.raises(UserError, match="found optimizer_name adam, expected AdEMAMix or AdamW"):
        make(WithTypo).initialize()


def test_options_change_hyper_parameters_of_one_process(make, monkeypatch):
    from nnunet_order.trainers import nnUNetTrainerORDER, nnUNetTrainerSMP

    values = {
        "epochs": 7,
        "optimizer_name": "AdamW",
        "learning_rate": 5e-3,
        "decoder": "Unet",
        "encoder": "tu-resnet10t",
        "decoupled_weight_decay": 0.0,
        "pretrained": "none",
        "pretrained_rate": 0.5,
        "samples_per_step": 3,
        "largest_patch": 32,
        "augmentation": "paper",
        "rotation_probability": 0.0,
        "iterations_per_epoch": 11,
        "minimum_iterations": 20,
        "maximum_validation_iterations": 1,
        "checkpoint_every": 2,
        "soft_label_weight": 0.5,
        "soft_label_temperature": 2.0,
    }
    assert list(values) == list(HYPER_PARAMETERS)
    recipe = {
        name
        for one in nnUNetTrainerSMP.__mro__
        for name, value in vars(one).items()
        if one.__module__.startswith("nnunet_order.") and type(value) in (int, float, str)
    }
    recipe = {name for name in recipe if not name.startswith("_")} - {"network_class"}
    assert set(values) == recipe | {"iterations_per_epoch"}
    monkeypatch.setenv(OPTIONS_VARIABLE, " ".join(f"{name}={value}" for name, value in values.items()))
    trainer = make(nnUNetTrainerORDER)
    trainer.initialize()
    settings = trainer.configuration_manager
    assert (trainer.num_epochs, trainer.save_every) == (7, 2)
    assert (settings.batch_size, settings.patch_size) == (3, [32, 32])
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert (trainer.optimizer.defaults["lr"], trainer.optimizer.defaults["weight_decay"]) == (5e-3, 0)
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (11, 1)
    transforms = nnUNetTrainerORDER.get_training_transforms((32, 32), (0, 1), None, (0, 1), False)
    assert transforms.transforms[1].p_rotation == 0
    log = Path(trainer.log_file).read_text()
    assert "options: epochs=7, optimizer_name=AdamW, learning_rate=0.005, " in log

    monkeypatch.delenv(OPTIONS_VARIABLE)
    assert nnUNetTrainerORDER.epochs == 100 and make(nnUNetTrainerORDER).num_epochs == 100


def test_a_resumed_training_keeps_its_recipe(make, monkeypatch, tmp_path):
    from nnunet_order.trainers import nnUNetTrainerORDER

    def begun(text):
        monkeypatch.setenv(OPTIONS_VARIABLE, text)
        trainer = make(nnUNetTrainerORDER)
        trainer.initialize()
        return trainer

    checkpoint = str(tmp_path / "checkpoint_latest.pth")
    small = "samples_per_step=2 largest_patch=32"
    begun(f"{small} epochs=2 learning_rate=0.005").save_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"found epochs=100 learning_rate=0\.0001 samples") as error:
        begun("").load_checkpoint(checkpoint)
    export = f'export {OPTIONS_VARIABLE}="epochs=2 learning_rate=0.005 {small}"'
    assert export in str(error.value)
    with pytest.raises(
        UserError, match=r'found learning_rate=0\.0001, .*="epochs=4 .* learning_rate=0\.005"'
    ):
        begun(f"epochs=4 {small}").load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="found optimizer_name=AdamW, expected optimizer_name=AdEMAMix"):
        begun(f"{small} epochs=2 learning_rate=0.005 optimizer_name=AdamW").load_checkpoint(checkpoint)
    other = str(tmp_path / "other.pth")
    begun(f"{small} optimizer_name=AdamW").save_checkpoint(other)
    with pytest.raises(UserError, match="found optimizer_name=AdEMAMix, expected optimizer_name=AdamW"):
        begun(small).load_checkpoint(other)

    changed = begun(f"{small} epochs=4 learning_rate=0.001 decoupled_weight_decay=0.5")
    changed.load_checkpoint(checkpoint)
    (group,) = changed.optimizer.param_groups
    assert (group["weight_decay"], group["t_alpha_beta3"]) == (0.5, 200.0)  # 4 epochs of 50
    changed.save_checkpoint(checkpoint)
    begun(f"{small} epochs=4 learning_rate=0.001 decoupled_weight_decay=0.5").load_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"expected learning_rate=0\.001 decoupled_weight_decay=0\.5"):
        begun(f"{small} epochs=4").load_checkpoint(checkpoint)


def test_pretrained_weights_carry_over_to_other_labels(make, monkeypatch, tmp_path):
    """nnU-Net's own -pretrained_weights: from one label to several, and the other way round."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    from nnunet_order.trainers import nnUNetTrainerMKUNet, nnUNetTrainerORDER, nnUNetTrainerUNeXt

    monkeypatch.setenv(OPTIONS_VARIABLE, "samples_per_step=2 largest_patch=32")
    for trainer_class in (nnUNetTrainerORDER, nnUNetTrainerMKUNet, nnUNetTrainerUNeXt):
        networks = {}
        for dataset in (901, 903):
            trainer = make(trainer_class, dataset)
            trainer.initialize()
            trainer.save_checkpoint(str(tmp_path / f"{dataset}.pth"))
            networks[dataset] = trainer.network.eval()
        assert (
            networks[901](torch.zeros(2, 3, 32, 32)).shape != networks[903](torch.zeros(2, 3, 32, 32)).shape
        )
        for source, target in ((901, 903), (903, 901), (901, 901)):
            trainer = make(trainer_class, target)
            trainer.initialize()
            load_pretrained_weights(trainer.network, str(tmp_path / f"{source}.pth"))
            loaded, original = (one.state_dict() for one in (trainer.network, networks[source]))
            carried = [name for name in loaded if ".seg_layers." not in name]
            assert len(carried) == len(loaded) - 2  # weight and bias
            assert all(torch.equal(loaded[name], original[name]) for name in carried)


def test_only_fold_all_has_no_final_validation(make, monkeypatch, tmp_path):
    """Which says nothing about the training: checkpoints do not hold it, and --val may differ in it."""
    from nnunet_order.trainers import nnUNetTrainerORDER

    class Careless(nnUNetTrainerORDER):
        final_validation = "none"

    class WithTypo(nnUNetTrainerORDER):
        final_validation = "All"

    found = [
        make(one, fold=fold).final_validation for one in (nnUNetTrainerORDER, Careless) for fold in (0, "all")
    ]
    assert found == ["full", "none", "none", "none"]
    with pytest.raises(UserError, match="found final_validation=All, expected full or none"):
        make(WithTypo)
    monkeypatch.setenv(OPTIONS_VARIABLE, "final_validation=full")
    trainer = make(Careless, fold="all")
    assert trainer.final_validation == "full" and "final_validation" not in trainer.recipe
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    monkeypatch.setenv(OPTIONS_VARIABLE, "final_validation=none")
    make(nnUNetTrainerORDER, fold="all").load_checkpoint(str(tmp_path / "checkpoint.pth"))


def test_a_skipped_validation_keeps_what_belongs_to_the_same_weights(make, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_order.trainers import nnUNetTrainerMKUNet

    monkeypatch.setenv(
        OPTIONS_VARIABLE, "epochs=1 iterations_per_epoch=1 samples_per_step=2 largest_patch=32"
    )
    validated = []
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, npz: validated.append(npz))
    trainer = make(nnUNetTrainerMKUNet, fold="all")
    fold = Path(trainer.output_folder)
    summary = fold / "validation" / "summary.json"
    summary.parent.mkdir()
    summary.write_text("of an earlier training")
    trainer.run_training()
    trainer.perform_actual_validation()
    skipped = json.loads(summary.read_text())
    assert skipped["metric_per_case"] == [] and "--val" in skipped["skipped"]
    assert skipped["skipped"] in Path(trainer.log_file).read_text() and not validated
    trainer.perform_actual_validation(True)  # --npz
    trainer.load_checkpoint(str(fold / "checkpoint_best.pth"))
    trainer.perform_actual_validation()  # --val_best
    assert validated == [True, False]

    summary.write_text("by --val")
    finished = make(nnUNetTrainerMKUNet, fold="all")
    finished.load_checkpoint(str(fold / "checkpoint_final.pth"))
    finished.perform_actual_validation()  # --val
    assert validated == [True, False, False]
    finished.run_training()  # --c of a finished training trains nothing
    finished.perform_actual_validation()
    assert summary.read_text() == "by --val" and len(validated) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch=5", r'found "epoch=5", .* epochs, .*soft_label_temperature, final_validation'),
        ("final_validation=some", "found final_validation=some, expected full or none"),
        ("network_class=x", "network_class=x"),
        ("epochs", "found epochs=, expected a whole number above 0"),
        ("epochs=5.5", "found epochs=5.5, expected a whole number"),
        ("epochs=0", "found epochs=0, expected a whole number above 0"),
        ("iterations_per_epoch=-1", "found iterations_per_epoch=-1"),
        ("epochs=5 learning_rate=fast", "learning_rate=fast, expected a number above 0"),
        ("learning_rate=nan", "learning_rate=nan"),
        ("learning_rate=inf", "learning_rate=inf"),
        ("rotation_probability=-0.1", "number from 0 to 1"),
        ("augmentation=strong", "found augmentation=strong, expected paper or nnunet"),
    ],
)
def test_wrong_options_are_one_line(monkeypatch, text, message):
    monkeypatch.setenv(OPTIONS_VARIABLE, text)
    with pytest.raises(UserError, match=message) as error:
        trainer_options()
    assert "\n" not in str(error.value)


def test_epoch_is_one_pass_over_the_fold(make):
    from nnunet_order.trainers import nnUNetTrainerORDER

    class OneByOne(nnUNetTrainerORDER):
        samples_per_step, minimum_iterations = 2, 1

    for fold, training, validation in ((0, 9, 3), ("all", 12, 12)):
        trainer = make(OneByOne, fold=fold)
        trainer.initialize()
        assert trainer.num_iterations_per_epoch == round(training / 2)
        assert trainer.num_val_iterations_per_epoch == round(validation / 2)


@pytest.mark.parametrize(
    ("cases", "slices", "expected"),
    [
        (1450, 1, 91),  # images, each once
        (8000, 1, 500),
        (3, 1, 1),
        (24, 32, 48),  # volumes, each slice once
        (168, 107, 250),  # KiTS19: an epoch of nnU-Net
    ],
)
def test_epoch_of_volumes_is_a_pass_over_their_slices(cases, slices, expected):
    assert one_pass(cases, slices, batch_size=16) == expected


@pytest.mark.parametrize(
    ("dataset", "head", "channels"),
    [
        (901, SigmoidHead, 2),
        (902, SigmoidHead, 2),
        (903, ORDER, 3),
        (904, ORDER, 2),  # two channels, yet no sigmoid head
    ],
    ids=["binary", "ignore", "multi-class", "regions"],
)
def test_one_step_on_labels_of_every_kind(make, dataset, head, channels):
    from nnunet_order.trainers import nnUNetTrainerORDER

    class Small(nnUNetTrainerORDER):
        samples_per_step = 2

    trainer = make(Small, dataset)
    trainer.initialize()
    assert type(trainer.network) is head
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    before = [p.clone() for p in trainer.network.parameters()]
    batch = next(trainer.dataloader_train)
    assert np.isfinite(trainer.train_step(batch)["loss"])
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert trainer.network(batch["data"]).shape[1] == channels == trainer.label_manager.num_segmentation_heads
    trainer.network.eval()
    assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])


@pytest.mark.parametrize(
    ("options", "at_least", "at_most"), [("", 5, 12), ("rotation_probability=0", 3, 4)], ids=["all", "flips"]
)
def test_augmentation_rotates_and_flips_images_with_their_labels(monkeypatch, options, at_least, at_most):
    from nnunet_order.trainers import nnUNetTrainerORDER

    monkeypatch.setenv(OPTIONS_VARIABLE, options)
    transform = nnUNetTrainerORDER.get_training_transforms(
        (32, 32), (-math.pi, math.pi), None, (0, 1), False, use_mask_for_norm=[False], foreground_labels=[1]
    )
    torch.manual_seed(0)
    np.random.seed(0)
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    label = ((y > 18) & (y < 30) & (x > 14) & (x < 34))[None].to(torch.int16)
    seen = set()
    for _ in range(12):
        result = transform(image=label.float(), segmentation=label)
        assert result["image"].shape == result["segmentation"].shape == (1, 32, 32)
        # The image is the label: wherever one goes, the other has to follow.
        agreement = ((result["image"] > 0.5) == (result["segmentation"] > 0)).float().mean()
        assert agreement > 0.97
        seen.add(result["image"].numpy().tobytes())
    assert at_least <= len(seen) <= at_most


@pytest.mark.parametrize("mirror_axes", [None, ()])
def test_trainers_without_mirroring_train(mirror_axes):
    from nnunet_order.trainers import nnUNetTrainerORDER

    transform = nnUNetTrainerORDER.get_training_transforms(
        (32, 32), (0, 0), None, mirror_axes, False, use_mask_for_norm=[False], foreground_labels=[1]
    )
    image = torch.arange(32 * 32, dtype=torch.float32).reshape(1, 32, 32)
    for _ in range(5):
        result = transform(image=image, segmentation=torch.zeros(1, 32, 32, dtype=torch.int16))
        assert torch.allclose(result["image"], image, atol=1e-2)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_non_finite_loss_names_the_term(deep_supervision):
    loss = DC_and_CE_loss(
        {"do_bg": False, "batch_dice": True, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    finite = FiniteLoss(DeepSupervisionWrapper(loss, [1.0]) if deep_supervision else loss)
    wrap = (lambda x: [x]) if deep_supervision else (lambda x: x)
    target = torch.zeros(1, 1, 4, 4)
    good = torch.randn(1, 2, 4, 4)
    assert torch.isfinite(finite(wrap(good), wrap(target)))
    overflow = good.clone()
    overflow[0, :, 1, 2] = torch.tensor([-torch.inf, 0])  # probability 0 for the true class: -log 0
    with pytest.raises(FloatingPointError, match=r"cross-entropy inf, Dice -?\d.*1 of 32"):
        finite(wrap(overflow), wrap(target))
    assert torch.isfinite(finite(wrap(good), wrap(target)))  # its weights were put back
    with pytest.raises(FloatingPointError, match="cross-entropy nan, Dice nan; 32 of 32"):
        finite(wrap(good * torch.nan), wrap(target))


def test_non_finite_loss_of_regions_names_the_term():
    finite = FiniteLoss(
        DC_and_BCE_loss(
            {}, {"do_bg": True, "batch_dice": True, "ddp": False}, dice_class=MemoryEfficientSoftDiceLoss
        )
    )
    with pytest.raises(FloatingPointError, match="cross-entropy nan"):
        finite(torch.full((1, 2, 4, 4), torch.nan), torch.zeros(1, 2, 4, 4))
    overflow = torch.randn(1, 2, 4, 4)
    overflow[0, 1, 1, 2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"cross-entropy inf, Dice -?\d.*1 of 32"):
        finite(overflow, torch.zeros(1, 2, 4, 4))


def test_what_a_kill_left_of_a_checkpoint_never_becomes_one(make, tmp_path):
    from nnunet_order.trainers import nnUNetTrainerORDER

    trainer = make(nnUNetTrainerORDER)
    trainer.initialize()
    checkpoint = tmp_path / "checkpoint_best.pth"
    checkpoint.write_text("whole")
    checkpoint.with_name("checkpoint_best.pth.partial").write_text("trunc")
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(checkpoint))
    assert checkpoint.read_text() == "whole"
    trainer.disable_checkpointing = False
    trainer.save_checkpoint(str(checkpoint))
    assert load_checkpoint(checkpoint)["trainer_name"] == "nnUNetTrainerORDER"


def test_seed_decides_weights_and_every_epoch(make, monkeypatch):
    from nnunet_order.trainers import nnUNetTrainerMKUNet

    weights = []
    for seed in ("1", "1", "2"):
        monkeypatch.setenv("NNUNET_ORDER_SEED", seed)
        trainer = make(nnUNetTrainerMKUNet)
        trainer.initialize()
        weights.append(torch.cat([p.flatten() for p in trainer.network.parameters()]))
        trainer._seed_everything(epoch=3)
        weights[-1] = torch.cat(
            [weights[-1], torch.rand(3), torch.tensor([random.random(), np.random.rand()])]
        )
    assert isinstance(trainer.network.network, MKUNet)
    assert torch.equal(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2])
    drawn = []
    for epoch, rank in ((3, 0), (4, 0), (3, 1)):
        trainer.local_rank = rank
        trainer._seed_everything(epoch)
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert all(len(set(values)) == 3 for values in zip(*drawn, strict=True))


def test_fp32_trainer_leaves_autocast(make):
    from nnunet_order.trainers import nnUNetTrainerORDER, nnUNetTrainerORDER_fp32

    x = torch.randn(2, 3, 64, 64)
    types = {}
    for trainer_class in (nnUNetTrainerORDER, nnUNetTrainerORDER_fp32):
        trainer = make(trainer_class)
        trainer.initialize()
        assert trainer.grad_scaler is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            types[trainer_class] = trainer.network(x).dtype
    assert types == {nnUNetTrainerORDER: torch.bfloat16, nnUNetTrainerORDER_fp32: torch.float32}
    copied = copy.deepcopy(trainer.network)  # as averages of weights are made
    torch.nn.utils.vector_to_parameters(torch.zeros(42_457), copied.parameters())
    assert not copied(x).any() and trainer.network(x).any()


def test_variables_that_are_empty_odd_or_wrong(make, monkeypatch):
    from nnunet_order.trainers import nnUNetTrainerORDER

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")  # of two nested levels
    monkeypatch.setenv("NNUNET_ORDER_SEED", "")
    assert make(nnUNetTrainerORDER).seed is None and torch.get_num_threads() == 1
    torch.set_num_threads(before)
    for wrong in ("-1", "abc"):
        monkeypatch.setenv("NNUNET_ORDER_SEED", wrong)
        with pytest.raises(UserError, match=f"found {wrong}, expected a whole number"):
            make(nnUNetTrainerORDER)


@pytest.mark.parametrize("changes", [{"largest_patch": 16}, {"batch_size": 0}])
def test_sizes_that_nothing_can_be_trained_with(plans, changes):
    options = {"batch_size": 2, "largest_patch": 64, "sigmoid_head": True} | changes
    with pytest.raises(UserError, match="expected at least 32 and 1"):
        with_network(plans, "2d", "nnunet_order.networks.ORDER", {}, **options)
