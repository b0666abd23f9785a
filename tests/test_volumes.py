"""ORDER on CT volumes by the real nnU-Net commands: several channels, labels, regions, an ignore label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dataset_conversion.system.errors import UserError
from nnunet_order import networks
from nnunet_order.evaluate import evaluate
from nnunet_order.export import check_supported, metadata
from nnunet_order.model_folder import load_model
from nnunet_order.options import Evaluate, Plan
from nnunet_order.plan import plan

pytestmark = pytest.mark.slow

ORDER = "nnUNetTrainerORDER"
SHORT = "epochs=1 samples_per_step=4 learning_rate=1e-2 optimizer_name=AdamW rotation_probability=0"
LABELS = {"background": 0, "organ": 1, "tumour": 2}
REGIONS = {"background": 0, "organ and tumour": [1, 2], "tumour": [2], "ignore": 3}


def draw(rng: np.random.Generator, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """CT in Hounsfield units, int16, and labels of an organ with a tumour; (depth, 44, 48) each."""
    z, y, x = np.mgrid[-1 : 1 : depth * 1j, :44, :48]
    centre_y, centre_x = rng.uniform(16, 28, 2)
    distance = np.hypot(y - centre_y, x - centre_x)
    label = (distance < 12 * np.sqrt(1 - z**2 / 1.2)).astype(np.uint8)
    label[(np.hypot(distance, 12 * z) < 6) & (np.abs(z) < 0.9)] = 2
    body = np.hypot((y - 22) / 21, (x - 24) / 23) < 1
    density = np.select([label == 2, label == 1, body], [60, 160, 0], -1000)
    return (density + rng.normal(0, 15, label.shape)).astype(np.int16), label


def write(path: Path, array: np.ndarray, case: int) -> None:
    """As NIfTI: every case has a spacing of its own, every second one is stored upside down."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.75, 0.75, 4.0 + case % 3))  # x, y, z in mm
    image.SetOrigin((10.0, -20.0, 5.0 * case))
    if case % 2:
        image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, -1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_dataset(folder: Path, labels: dict, channels: tuple[str, ...], **more) -> None:
    """Six training volumes of 6 to 8 slices and two test volumes."""
    for case in range(8):
        rng = np.random.default_rng([907, case])
        image, label = draw(rng, 6 + case % 3)
        part = "Tr" if case < 6 else "Ts"
        if "ignore" in labels and part == "Tr":
            label[0] = labels["ignore"]  # slices that nobody has annotated
        for number in range(len(channels)):
            pixels = image if number == 0 else (label > 0) * 300 + rng.integers(0, 40, label.shape)
            name = f"images{part}/ct_{case}_{number:04d}.nii.gz"
            write(folder / name, pixels.astype(np.int16), case)
        write(folder / f"labels{part}" / f"ct_{case}.nii.gz", label, case)
    names = {str(number): name for number, name in enumerate(channels)}
    content = {"channel_names": names, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content | more))


@pytest.fixture(scope="module")
def volumes(nnunet):
    """Planned: 907 with two channels and two labels, 908 with regions and an ignore label."""
    write_dataset(nnunet.raw / "Dataset907_CT", LABELS, ("CT", "PET"))
    write_dataset(nnunet.raw / "Dataset908_Regions", REGIONS, ("CT",), regions_class_order=[1, 2])
    nnunet.plan(907, 908)
    return nnunet


@pytest.fixture
def folders(volumes, monkeypatch):
    """The same, with nnU-Net's variables set in this process."""
    for name, value in volumes.environment.items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    return volumes


def train(nnunet, dataset: int, steps: int) -> Path:
    """Train ORDER on fold 0 by the real command; -> model folder."""
    output = nnunet.run(
        *("nnUNetv2_train", dataset, "2d", 0, "-tr", ORDER, "-device", "cpu"),
        NNUNET_ORDER_OPTIONS=f"{SHORT} iterations_per_epoch={steps}",
    )
    assert "patch [64, 64], batch 4, seed 0" in output
    return next(nnunet.results.glob(f"Dataset{dataset}_*/{ORDER}__nnUNetPlans__2d"))


@pytest.fixture(scope="module")
def model(volumes) -> Path:
    return train(volumes, 907, steps=90)


def rows_of(out: Path) -> dict[str, dict]:
    rows = json.loads((out / "summary.json").read_text())["rows"]
    return {row["label"]: row for row in rows}


def assert_same_dice(out: Path, validation: Path, labels: dict) -> None:
    """Ours by `evaluate --fold` and nnU-Net's by its own validation."""
    rows, theirs = rows_of(out), json.loads((validation / "summary.json").read_text())
    assert rows["foreground mean"]["mDice"] == pytest.approx(theirs["foreground_mean"]["Dice"], abs=1e-6)
    names = [name for name in labels if name not in ("background", "ignore")]
    assert list(rows) == ["foreground mean", *names]
    for name, expected in zip(names, theirs["mean"].values(), strict=True):
        assert rows[name]["mDice"] == pytest.approx(expected["Dice"], abs=1e-6)


def test_two_channels_and_two_labels_train_and_validate(folders, model, tmp_path):
    settings = json.loads((model / "plans.json").read_text())["configurations"]["2d"]
    assert settings["architecture"]["network_class_name"] == "nnunet_order.networks.ORDER"
    validation = model / "fold_0" / "validation"
    evaluate(Evaluate("907", (str(validation),), tmp_path / "out", fold=0))
    assert_same_dice(tmp_path / "out", validation, LABELS)
    rows = rows_of(tmp_path / "out")
    assert rows["organ"]["mDice"] > 0.5  # it has learnt something, so the comparison means something
    assert rows["foreground mean"]["N"] == 2


def test_predictions_keep_the_geometry_and_are_evaluated_in_mm(folders, model, tmp_path):
    images = folders.raw / "Dataset907_CT" / "imagesTs"
    out = tmp_path / "predicted"
    folders.run(
        "nnUNetv2_predict",
        *("-i", images, "-o", out, "-d", 907, "-c", "2d", "-f", 0, "-tr", ORDER, "-device", "cpu"),
        *("-npp", 1, "-nps", 1),
    )
    for case in ("ct_6", "ct_7"):
        predicted = sitk.ReadImage(str(out / f"{case}.nii.gz"))
        image = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        assert predicted.GetSize() == image.GetSize()
        for read in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(predicted, read)() == pytest.approx(getattr(image, read)())
        assert set(np.unique(sitk.GetArrayFromImage(predicted))) <= {0, 1, 2}
    evaluate(Evaluate("907", (f"ORDER={out}",), tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert list(rows) == ["foreground mean", "organ", "tumour"] and rows["organ"]["mDice"] > 0.5
    assert 0 < rows["organ"]["HD95"] < np.linalg.norm([44 * 0.75, 48 * 0.75, 8 * 6])
    assert (tmp_path / "out" / "examples.png").stat().st_size > 10_000


def test_regions_and_the_ignore_label(folders, tmp_path):
    validation = train(folders, 908, steps=2) / "fold_0" / "validation"
    evaluate(Evaluate("908", (str(validation),), tmp_path / "out", fold=0))
    assert_same_dice(tmp_path / "out", validation, REGIONS)
    for path in validation.glob("*.nii.gz"):
        assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))) <= {0, 1, 2}


def test_stock_trainer_takes_order_as_an_architecture(folders):
    """A step of nnUNetTrainer, of regions, with deep supervision; test_nnunet_cli has the command."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plan(Plan("908", batch_size=4))
    folder = folders.preprocessed / "Dataset908_Regions"
    plans, dataset_json = (
        json.loads((folder / name).read_text()) for name in ("ORDERPlans.json", "dataset.json")
    )
    trainer = nnUNetTrainer(
        plans | {"continue_training": False}, "2d", 0, dataset_json, device=torch.device("cpu")
    )
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    assert type(trainer.network) is networks.ORDER
    batch = next(trainer.dataloader_train)
    assert [tuple(target.shape[2:]) for target in batch["target"]] == [
        (64 // n,) * 2 for n in (1, 2, 4, 8, 16)
    ]
    assert np.isfinite(trainer.train_step(batch)["loss"])


def test_three_dimensions_end_in_one_line(folders):
    output = folders.run("nnUNetv2_train", 907, "3d_fullres", 0, "-tr", ORDER, "-device", "cpu", code=2)
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith(
        "error: found patch size [10, 48, 48] in configuration 3d_fullres, "
    )
    assert output.splitlines()[-1].endswith("; train with 2d")
    assert not list(folders.results.glob("Dataset907_CT/*3d_fullres*"))


def test_export_says_that_predict_cannot_run_a_model_of_volumes(model, caplog):
    """That `predict` refuses it: test_export.test_segmenter_refuses_other_models."""
    about = metadata(load_model(model, None, "checkpoint_final.pth"))
    check_supported(about, logits_only=True)
    assert "found a model of 2-channel .nii.gz images, expected grey or RGB ones of .png" in caplog.text
    with pytest.raises(UserError, match=r"found a model of 2-channel .*give --logits-only to export the net"):
        check_supported(about, logits_only=False)
