"""Soft labels in training: the loss, the augmentation that moves them, and their preprocessing."""

from __future__ import annotations

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from nnunet_order.soft_labels.files import read_soft_label, soft_label_path, write_soft_label
from nnunet_order.soft_labels.loss import SoftLabelLoss, softened
from nnunet_order.soft_labels.training_data import (
    prepare_soft_labels,
    preprocessed,
    save_segmentation,
    segmentation_path,
    shape_before_preprocessing,
)
from nnunet_order.soft_labels.transforms import AppendSoftLabels, TakeOutSoftLabels
from nnunet_order.trainer_options import OPTIONS_VARIABLE, trainer_options
from nnunet_order.trainers import nnUNetTrainerLite40K

SMALL = "samples_per_step=2 largest_patch=64"


def with_loss(make, dataset: int, monkeypatch, options: str = ""):
    """The loss of a trainer on a data set that says that it has soft labels."""
    monkeypatch.setenv(OPTIONS_VARIABLE, f"{SMALL} {options}")
    trainer = make(nnUNetTrainerLite40K, dataset)
    trainer.dataset_json = trainer.dataset_json | {"soft_labels": True}
    return trainer._build_loss()


@pytest.mark.parametrize(("dataset", "classes"), [(901, 2), (903, 3)])
def test_soft_labels_that_are_certain_give_nnunets_loss(make, monkeypatch, dataset, classes):
    loss = with_loss(make, dataset, monkeypatch)
    assert isinstance(loss, SoftLabelLoss) and loss.own_channels == 1
    torch.manual_seed(0)
    logits, label = torch.randn(3, classes, 8, 8), torch.randint(0, classes, (3, 1, 8, 8))
    certain = torch.nn.functional.one_hot(label[:, 0], classes).movedim(-1, 1)[:, 1:].float()
    nothing = torch.zeros_like(label).float()
    expected = loss.loss(logits, label)
    # Weight 1: what the label map says does not count.
    assert loss(logits, torch.cat([nothing, certain], 1)) == pytest.approx(expected.item(), rel=1e-5)
    assert loss(logits, label) == expected  # a validation target has no soft labels


def test_regions_have_a_soft_label_each(make, monkeypatch):
    loss = with_loss(make, 904, monkeypatch)
    assert loss.own_channels == 3  # two regions and the ignore label
    torch.manual_seed(0)
    logits, regions = torch.randn(3, 2, 8, 8), torch.randint(0, 2, (3, 2, 8, 8)).float()
    own = torch.cat([regions, torch.zeros(3, 1, 8, 8)], dim=1)
    # nnU-Net adds up the regions' cross-entropies where there is an ignore label; ours is their mean.
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, regions)
    expected = entropy + loss.loss.loss.dc(logits, regions)
    assert loss(logits, torch.cat([own, regions], 1)) == pytest.approx(expected.item(), rel=1e-5)
    assert loss(logits, own) == loss.loss(logits, own)


def test_weight_mixes_both_losses(make, monkeypatch):
    half = with_loss(make, 901, monkeypatch, "soft_label_weight=0.25")
    torch.manual_seed(0)
    logits, label, soft = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 1, 8, 8)), torch.rand(2, 1, 8, 8)
    target = torch.cat([label.float(), soft], 1)
    expected = 0.75 * half.loss(logits, label) + 0.25 * half.on_soft_labels(logits, soft)
    assert half(logits, target) == pytest.approx(expected.item(), rel=1e-6)
    none = with_loss(make, 901, monkeypatch, "soft_label_weight=0")
    assert not isinstance(none, SoftLabelLoss)


class NoDice(torch.nn.Module):
    def forward(self, student, target):
        return 0


def test_a_student_that_agrees_has_the_smallest_cross_entropy_at_any_temperature(make, monkeypatch):
    for temperature in (1, 3):
        loss = with_loss(make, 903, monkeypatch, f"soft_label_temperature={temperature}")
        loss.dice = NoDice()  # whose optimum is elsewhere
        torch.manual_seed(0)
        teacher = torch.randn(2, 3, 4, 4)
        soft = torch.softmax(teacher, 1)[:, 1:]
        student = teacher.clone().requires_grad_()
        loss.on_soft_labels(student, soft).backward()
        assert student.grad.abs().max() < 1e-6
        other = loss.on_soft_labels(teacher + torch.randn_like(teacher), soft)
        assert other > loss.on_soft_labels(teacher, soft)


def test_temperature_flattens():
    probabilities = torch.tensor([0.1, 0.9])
    logits = torch.logit(torch.tensor(0.9)) / 2
    assert softened(probabilities, 2) == pytest.approx([1 - logits.sigmoid().item(), logits.sigmoid().item()])
    assert torch.equal(softened(probabilities, 1), probabilities)


def test_a_loss_that_is_not_finite_is_told(make, monkeypatch):
    loss = with_loss(make, 901, monkeypatch)
    with pytest.raises(FloatingPointError, match="on soft labels"):
        loss(torch.full((1, 2, 4, 4), torch.nan), torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    "text", ["soft_label_weight=1.5", "soft_label_weight=-1", "soft_label_temperature=0"]
)
def test_impossible_options_are_refused(text):
    with pytest.raises(UserError, match="expected a number"):
        trainer_options(text)


@pytest.mark.parametrize("augmentation", ["paper", "nnunet"])
def test_soft_labels_turn_with_the_label(monkeypatch, augmentation):
    monkeypatch.setenv(OPTIONS_VARIABLE, f"augmentation={augmentation} rotation_probability=1")
    transforms = nnUNetTrainerLite40K.get_training_transforms(
        (48, 48), (-3, 3), None, (0, 1), False, use_mask_for_norm=[False], foreground_labels=[1]
    )
    y, x = np.indices((64, 64))
    label = ((y - 20) ** 2 + (x - 40) ** 2 < 150).astype(np.int16)
    soft = (255 * label).astype(np.int16)
    np.random.seed(0)
    torch.manual_seed(0)
    for _ in range(8):
        sample = transforms(
            image=torch.from_numpy(label[None]).float(),
            segmentation=torch.from_numpy(np.stack([label, soft])),
        )
        segmentation = sample["segmentation"]
        assert segmentation.shape == (2, 48, 48) and segmentation.dtype == torch.float32
        assert "regression_target" not in sample
        moved, probabilities = segmentation
        assert probabilities.min() >= 0 and probabilities.max() <= 1
        if augmentation == "paper":  # nothing but interpolation happens to either
            assert torch.allclose(probabilities, sample["image"][0], atol=1e-5)
        assert ((probabilities > 0.5) != (moved == 1)).float().mean() < 0.02
        assert moved.sum() > 50


def test_samples_without_soft_labels_stay():
    segmentation = torch.randint(0, 2, (1, 8, 8), dtype=torch.int16)
    sample = {"image": torch.rand(3, 8, 8), "segmentation": segmentation}
    after = AppendSoftLabels()(**TakeOutSoftLabels()(**sample))
    assert torch.equal(after["segmentation"], segmentation) and after["segmentation"].dtype == torch.int16
    assert after.keys() == sample.keys()


def test_padding_is_background():
    segmentation = torch.tensor([[[-1, 1]], [[-1, 255]]], dtype=torch.int16)
    sample = TakeOutSoftLabels()(image=torch.rand(3, 1, 2), segmentation=segmentation)
    assert sample["regression_target"].tolist() == [[[0, 1]]]


def test_files_keep_steps_of_a_255th(tmp_path):
    probabilities = np.random.default_rng(0).random((2, 1, 5, 7))
    path = soft_label_path(tmp_path, "case")
    write_soft_label(path, probabilities)
    found = read_soft_label(path, 2, (1, 5, 7))
    assert found.dtype == np.uint8 and np.abs(found / 255 - probabilities).max() <= 0.5 / 255 + 1e-9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 broken", "cannot be read"),
        (np.zeros((1, 1, 4, 4), np.uint8), "cannot be read"),  # an .npy of another name
        ({"other": np.zeros(1, np.uint8)}, "cannot be read"),
        ({"probabilities": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
        ({"probabilities": np.zeros((1, 1, 4, 4), np.float32)}, "found float32"),
        ({"probabilities": np.zeros((1, 1, 4, 5), np.uint8)}, r"expected uint8 \(1, 1, 4, 4\)"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "case.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        with path.open("wb") as file:
            np.save(file, content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(UserError, match=message):
        read_soft_label(path, 1, (1, 4, 4))


def test_damage_within_a_file_is_refused(tmp_path):
    """Its directory is whole, so that only unpacking shows it."""
    path = tmp_path / "case.npz"
    write_soft_label(path, np.random.default_rng(0).random((1, 1, 64, 64)))
    content = bytearray(path.read_bytes())
    content[200:1200] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_soft_label(path, 1, (1, 64, 64))


def test_pictures_are_cropped_as_nnunet_crops_them(make, nnunet, tmp_path, monkeypatch):
    """The segmentation that is trained on says the same in both channels."""
    raw = read_dataset(nnunet.raw / "Dataset903_MultiClass")
    trainer = make(nnUNetTrainerLite40K, 903)
    source = trainer.preprocessed_dataset_folder
    dataset = infer_dataset_class(source)(source, [case.id for case in raw.training_cases])
    copy = tmp_path / "raw" / raw.name
    for case in raw.training_cases:
        label = raw.read_label(case.label)
        write_soft_label(soft_label_path(copy, case.id), np.stack([label == value for value in (1, 2)]))
    folder = tmp_path / "soft"
    arguments = (dataset, folder, raw.name, 2, trainer.plans_manager, trainer.configuration_manager)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="found no variable nnUNet_raw"):
        prepare_soft_labels(*arguments)
    monkeypatch.setenv("nnUNet_raw", str(copy.parent))
    prepare_soft_labels(*arguments)
    for case in raw.training_cases:
        own, *soft = blosc2.open(str(segmentation_path(folder, case.id)))[:]
        assert np.array_equal(own == 1, soft[0] == 255) and np.array_equal(own == 2, soft[1] == 255)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    prepare_soft_labels(*arguments)
    assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_volumes_are_turned_cropped_and_resampled():
    """Of axes in another order and with another spacing, as nnU-Net's own preprocessing does with a label."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    y, x = np.indices((40, 36))
    label = np.stack([((y - 20) ** 2 + (x - 18) ** 2 < (10 + z) ** 2) for z in range(5)]).astype(np.int16)
    image = np.zeros((1, 5, 40, 36), np.float32)
    image[:, :, 4:37, 3:34] = 100 + np.random.default_rng(0).random((33, 31))
    resampling = {
        f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")
    }
    options = {"force_separate_z": None, "order_z": 0}
    configuration = {
        "architecture": {},
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "resampling_fn_data_kwargs": options | {"is_seg": False, "order": 3},
        "resampling_fn_seg_kwargs": options | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": options | {"is_seg": False, "order": 1},
    }
    plans = PlansManager(
        {
            "transpose_forward": [2, 0, 1],
            "transpose_backward": [1, 2, 0],
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"2d": configuration},
        }
    )
    manager = plans.get_configuration("2d")
    properties = {"spacing": [3.0, 0.7, 0.8]}
    dataset_json = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "MR"}}
    preprocessor = DefaultPreprocessor(verbose=False)
    preprocessor._sample_foreground_locations = lambda *_, **__: {}
    _, segmentation, properties = preprocessor.run_case_npy(
        image, label[None], properties, plans, manager, dataset_json
    )
    assert shape_before_preprocessing(properties, [2, 0, 1]) == (5, 40, 36)
    soft = preprocessed(
        (255 * label[None]).astype(np.uint8), segmentation.shape[1:], properties, plans, manager
    )
    assert soft.dtype == np.uint8 and soft.shape == segmentation.shape and soft.shape != (1, 36, 5, 40)
    assert ((soft > 127) != (segmentation == 1)).mean() < 0.01 and (segmentation == 1).mean() > 0.1


def test_a_killed_writer_leaves_nothing_in_the_way(tmp_path):
    path = segmentation_path(tmp_path, "case")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(b"half")
    save_segmentation(path, np.ones((2, 1, 4, 4), np.int16))
    assert [item.name for item in tmp_path.iterdir()] == ["case_seg.b2nd"]
