"""The verb `evaluate` on generated data sets: agreement with nnU-Net, files, pictures, bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.subset import ConvertSubset, convert_subset
from dataset_conversion.system.errors import UserError
from nnunet_order.bootstrap import interval, resampled_means
from nnunet_order.evaluate import evaluate
from nnunet_order.evaluation import Evaluation, score_folders
from nnunet_order.examples import chosen_examples, shown_slice
from nnunet_order.metrics import FOREGROUND_MEAN, binary_metrics
from nnunet_order.options import Evaluate
from nnunet_order.pictures import compare_bars, draw_examples

SIZE = 48


def blob(rng: np.random.Generator, values: tuple[int, ...] = (1,), shift: int = 0) -> np.ndarray:
    """Nested discs, the outer one with the first value."""
    y, x = np.mgrid[:SIZE, :SIZE] - rng.integers(14, SIZE - 14, (2, 1, 1)) - shift
    label = np.zeros((SIZE, SIZE), np.uint8)
    for value, radius in zip(values, (12, 6), strict=False):
        label[np.hypot(y, x) < radius] = value
    return label


def write_dataset(folder: Path, labels: dict, cases: int = 6, **more) -> Path:
    """A raw data set of RGB images with `cases` test cases and one training case."""
    rng = np.random.default_rng(0)
    values = tuple(sorted({v for value in labels.values() for v in np.ravel(value)} - {0}))[:2]
    for part, number in (("Tr", 1), ("Ts", cases)):
        (folder / f"images{part}").mkdir(parents=True)
        (folder / f"labels{part}").mkdir()
        for i in range(number):
            label = blob(rng, values)
            image = np.clip(label[..., None] * 60 + rng.normal(90, 20, (SIZE, SIZE, 3)), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(image).save(folder / f"images{part}" / f"case{i}_0000.png")
            Image.fromarray(label).save(folder / f"labels{part}" / f"case{i}.png")
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": labels, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".png"} | more))
    return folder


def write_predictions(folder: Path, dataset: Path, shift: int = 2) -> Path:
    """Predictions: the labels moved by `shift` pixels."""
    folder.mkdir()
    for path in sorted((dataset / "labelsTs").iterdir()):
        Image.fromarray(np.roll(np.array(Image.open(path)), shift, (0, 1))).save(folder / path.name)
    return folder


@pytest.fixture
def polyps(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "Dataset001_Polyps", {"background": 0, "polyp": 1})


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        ({"background": 0, "polyp": 1}, {}),
        ({"background": 0, "organ": 1, "tumour": 2}, {}),
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, {"regions_class_order": [1, 2]}),
    ],
    ids=["binary", "labels", "regions and ignore"],
)
def test_dice_is_nnunets(tmp_path, labels, more):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    folder = write_dataset(tmp_path / "Dataset002_Any", labels, **more)
    empty = np.zeros((SIZE, SIZE), np.uint8)
    Image.fromarray(empty).save(folder / "labelsTs" / "case0.png")  # both empty: NaN, not in the mean
    predicted = write_predictions(tmp_path / "predicted", folder)
    Image.fromarray(empty).save(predicted / "case1.png")  # missed: 0
    if "ignore" in labels:
        partly_ignored = np.array(Image.open(folder / "labelsTs" / "case2.png"))
        partly_ignored[:, : SIZE // 2] = 3
        Image.fromarray(partly_ignored).save(folder / "labelsTs" / "case2.png")

    evaluate(Evaluate(str(folder), (str(predicted),), tmp_path / "out"))
    dataset = read_dataset(folder)
    regions = [v if len(v) > 1 else v[0] for v in dataset.regions.values()]
    theirs = compute_metrics_on_folder(
        str(folder / "labelsTs"),
        str(predicted),
        None,
        NaturalImage2DIO(),
        ".png",
        regions,
        dataset.ignore_label,
        num_processes=1,
    )
    rows = {row["label"]: row for row in json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]}
    for ours, metric in (("mDice", "Dice"), ("mIoU", "IoU")):
        assert rows[FOREGROUND_MEAN][ours] == pytest.approx(theirs["foreground_mean"][metric], abs=1e-6)
        for name, region in zip(dataset.regions, regions, strict=True):
            assert rows[name][ours] == pytest.approx(theirs["mean"][region][metric], abs=1e-6)
    assert rows[FOREGROUND_MEAN]["N"] == 6 and rows[FOREGROUND_MEAN]["N_scored"] == 5


def test_test_sets_differences_and_files(polyps, tmp_path, capsys):
    test_sets = {"Kvasir": ["case0", "case1", "case2"], "ClinicDB": ["case3", "case4", "case5"]}
    (polyps / "test_sets.json").write_text(json.dumps(test_sets))
    good = write_predictions(tmp_path / "good", polyps, shift=1)
    bad = write_predictions(tmp_path / "bad", polyps, shift=5)
    out = tmp_path / "results" / "out"
    evaluate(Evaluate(str(polyps), (f"ORDER={good}", str(bad)), out))
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.png",
        "examples.png",
        "per_case.csv",
        "summary.csv",
        "summary.json",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    cases = read_csv(out / "per_case.csv")
    assert len(cases) == 6 * 2 and {row["prediction"] for row in cases} == {"ORDER", "bad"}
    rows = [row for row in read_csv(out / "summary.csv") if row["label"] == FOREGROUND_MEAN]
    assert [(row["test_set"], row["prediction"]) for row in rows] == [
        (name, prediction) for name in test_sets for prediction in ("ORDER", "bad")
    ]
    for row in rows:
        of_row = [
            float(case["Dice"])
            for case in cases
            if case["test_set"] == row["test_set"] and case["prediction"] == row["prediction"]
        ]
        assert float(row["mDice"]) == pytest.approx(np.mean(of_row))
        assert float(row["mDice_low"]) <= float(row["mDice"]) <= float(row["mDice_high"])
    first, second = rows[:2]
    difference = float(second["mDice"]) - float(first["mDice"])
    assert first["delta_mDice"] == "" and float(second["delta_mDice"]) == pytest.approx(difference)
    assert float(second["delta_mDice_low"]) <= difference <= float(second["delta_mDice_high"]) < 0

    protocol = json.loads((out / "summary.json").read_text())["protocol"]
    assert protocol["N"] == {"Kvasir": 3, "ClinicDB": 3} and protocol["seed"] == 0
    printed = capsys.readouterr().out
    assert "Kvasir" in printed and "ClinicDB" in printed and f"{100 * float(first['mDice']):.1f}" in printed


def test_workers_give_the_same_as_one_process(tmp_path):
    folder = write_dataset(tmp_path / "Dataset003_Many", {"background": 0, "polyp": 1}, cases=70)
    predicted = write_predictions(tmp_path / "predicted", folder)
    for processes in (1, 2):
        evaluate(Evaluate(str(folder), (str(predicted),), tmp_path / f"{processes}", processes=processes))
    assert (tmp_path / "1" / "per_case.csv").read_text() == (tmp_path / "2" / "per_case.csv").read_text()
    assert (tmp_path / "1" / "summary.csv").read_text() == (tmp_path / "2" / "summary.csv").read_text()


def test_volumes_use_the_spacing_of_the_file(tmp_path):
    folder = tmp_path / "Dataset004_CT"
    label = np.zeros((6, 20, 20), np.uint8)
    label[2:4, 5:15, 5:15] = 1
    for name in ("imagesTr/a_0000", "imagesTs/b_0000", "labelsTr/a", "labelsTs/b", "../predicted/b"):
        array = np.roll(label, 3, axis=2) if "predicted" in name else label * (100 if "images" in name else 1)
        image = sitk.GetImageFromArray(array.astype(np.float32 if "images" in name else np.uint8))
        image.SetSpacing((0.5, 0.5, 5.0))  # x, y, z
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
    (row,) = read_csv(tmp_path / "out" / "per_case.csv")
    assert float(row["HD95"]) == pytest.approx(1.5)  # 3 pixels of 0.5 mm
    assert float(row["NSD"]) == 1  # all within 2 mm
    assert (tmp_path / "out" / "examples.png").is_file()


@pytest.mark.parametrize("axis", [0, 2])
def test_volumes_of_one_slice_are_images(tmp_path, axis):
    """However the slice lies, and even if it is thinner than its pixels: a pixel inside is no boundary."""
    folder = tmp_path / "Dataset008_CT"
    label = np.zeros((40, 40), np.uint8)
    label[10:30, 10:30] = 1
    predicted = label.copy()
    predicted[18:22, 18:22] = 0  # a hole far from the boundary of the truth
    for name in ("imagesTr/a_0000", "imagesTs/b_0000", "labelsTr/a", "labelsTs/b", "../predicted/b"):
        array = np.expand_dims(predicted if "predicted" in name else label, axis)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(np.where(np.arange(3) == 2 - axis, 0.5, 1.0).tolist())
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
    (row,) = read_csv(tmp_path / "out" / "per_case.csv")
    scores = binary_metrics(label == 1, predicted == 1)
    assert {name: float(row[name]) for name in scores} == pytest.approx(scores) and scores["NSD"] < 1
    examples = Image.open(tmp_path / "out" / "examples.png")
    assert 2 < examples.width / examples.height < 4  # three square panels beside each other


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", None])
def test_spacing_is_that_of_the_data_sets_reader(tmp_path, reader):
    """Of a header with axes not at right angles, which SimpleITK refuses; slices along the first axis.

    Without a reader in dataset.json, nnU-Net finds one that reads the first image.
    """
    import nibabel

    folder = tmp_path / "Dataset005_CT"
    label = np.zeros((6, 20, 20), np.uint8)  # (X, Y, Z)
    label[2:4, 5:15, 5:15] = 1
    affine = np.array([[0, 0.5, 0.01, 0], [0.01, 0, 0.5, 0], [5, 0, 0, 0], [0, 0, 0, 1]])  # x is up
    for name in ("imagesTr/a_0000", "imagesTs/b_0000", "labelsTr/a", "labelsTs/b", "../predicted/b"):
        array = np.roll(label, 3, axis=1) if "predicted" in name else label
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "numTraining": 1}
    content |= {"file_ending": ".nii.gz"} | ({"overwrite_image_reader_writer": reader} if reader else {})
    (folder / "dataset.json").write_text(json.dumps(content))
    evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
    (row,) = read_csv(tmp_path / "out" / "per_case.csv")
    assert float(row["HD95"]) == pytest.approx(1.5, abs=0.01)  # 3 pixels of 0.5 mm, not of 5 mm


STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def write_cube(path: Path, spacing=(0.8, 0.8, 3.0), origin=(10.0, -20.0, 5.0), direction=STRAIGHT) -> None:
    """A volume (6, 20, 24) with a box of label 1 that lies to one side."""
    label = np.zeros((6, 20, 24), np.uint8)
    label[1:4, 4:10, 3:9] = 1
    image = sitk.GetImageFromArray(label)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_cubes(root: Path, ending: str = ".nii.gz", label: dict | None = None, **prediction) -> Path:
    """Two test cases in a raw data set and their perfect predictions, the second one's at another place.

    Args:
        label: place of the second label, if it is another than its image's.
    """
    folder = root / "Dataset009_CT"
    for name in ("imagesTr/a_0000", "labelsTr/a", "imagesTs/b_0000", "imagesTs/c_0000", "labelsTs/b"):
        write_cube(folder / f"{name}{ending}")
    write_cube(folder / f"labelsTs/c{ending}", **label or {})
    write_cube(root / "predicted" / f"b{ending}")
    write_cube(root / "predicted" / f"c{ending}", **prediction)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "box": 1}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ending}))
    return folder


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("prediction", "found"),
    [
        ({"direction": (-1.0, *STRAIGHT[1:])}, "direction -1 0 0 0 1 0 0 0 1, expected 1 0 0 0 1 0 0 0 1"),
        ({"spacing": (0.8, 0.8, 6.0)}, "spacing 0.8 0.8 6, expected 0.8 0.8 3"),
        ({"origin": (10.0, -20.0, 8.0)}, "origin 10 -20 8, expected 10 -20 5"),
    ],
    ids=["mirrored", "spacing", "moved"],
)
def test_a_prediction_elsewhere_in_space_is_refused(tmp_path, ending, prediction, found):
    """Voxel by voxel it would score 100."""
    folder = write_cubes(tmp_path, ending, **prediction)
    with pytest.raises(UserError) as error:
        evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
    assert str(error.value) == (
        f"{tmp_path}/predicted/c{ending}: found {found} as of its label {folder}/labelsTs/c{ending}; bring "
        "the prediction into the label's grid, or correct the header that is wrong"
    )
    assert not (tmp_path / "out").exists()


def test_rounded_headers_are_one_place(tmp_path):
    turn = np.deg2rad(0.05)
    direction = (np.cos(turn), -np.sin(turn), 0.0, np.sin(turn), np.cos(turn), 0.0, 0.0, 0.0, 1.0)
    folder = write_cubes(
        tmp_path, spacing=(0.8001, 0.8, 3.0), origin=(10.004, -20.0, 5.0), direction=direction
    )
    evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
    assert [float(row["Dice"]) for row in read_csv(tmp_path / "out" / "per_case.csv")] == [1, 1]


def test_a_label_beside_its_image_is_named(tmp_path, caplog):
    """nnU-Net's prediction lies where its image does, and nnU-Net itself compares voxels."""
    folder = write_cubes(tmp_path, label={"origin": (0.0, 0.0, 0.0)})
    with caplog.at_level("WARNING"):
        evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
    assert (
        "1 label(s) lie elsewhere than their image and prediction, compared voxel by voxel: c" in caplog.text
    )
    assert [float(row["Dice"]) for row in read_csv(tmp_path / "out" / "per_case.csv")] == [1, 1]


def test_a_label_of_another_spacing_than_its_image_is_refused(tmp_path):
    """HD95 and NSD would be in its millimetres."""
    folder = write_cubes(tmp_path, label={"spacing": (1.0, 1.0, 1.0)})
    with pytest.raises(UserError, match=r"c.nii.gz: found spacing 0.8 0.8 3, expected 1 1 1 as of its label"):
        evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))


@pytest.mark.parametrize("reader", ["SimpleITKIOWithReorient", "NibabelIOWithReorient", "NibabelIO"])
def test_places_are_those_of_the_data_sets_reader(tmp_path, reader):
    """One that turns the axes finds a turned copy of a label in the label's place, another does not."""
    folder = write_cubes(tmp_path)
    content = json.loads((folder / "dataset.json").read_text()) | {"overwrite_image_reader_writer": reader}
    (folder / "dataset.json").write_text(json.dumps(content))
    path = tmp_path / "predicted" / "c.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RPS"), str(path))
    verb = Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out")
    if reader == "NibabelIO":
        with pytest.raises(UserError, match=r"c.nii.gz: found direction -1 0 0 0 1 0 0 0 1, expected 1 0 0"):
            evaluate(verb)
        return
    evaluate(verb)
    assert [float(row["Dice"]) for row in read_csv(tmp_path / "out" / "per_case.csv")] == [1, 1]
    write_cube(path, direction=(-1.0, *STRAIGHT[1:]))
    with pytest.raises(UserError, match=r"c.nii.gz: found origin"):
        evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "again"))


def test_3d_tiff_has_a_spacing_where_a_json_file_says_so(tmp_path):
    import tifffile

    folder = tmp_path / "Dataset009_Tiff"
    label = np.zeros((6, 20, 24), np.uint8)
    label[1:4, 4:10, 3:9] = 1
    for name in ("imagesTr/a_0000", "labelsTr/a", "imagesTs/b_0000", "labelsTs/b", "../predicted/b"):
        path = folder / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, label)
        path.with_name(path.name.replace("_0000", "")).with_suffix(".json").write_text(
            '{"spacing": [3, 1, 1]}'
        )
    content = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "box": 1}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".tif"}))
    predicted = tmp_path / "predicted" / "b.json"
    predicted.write_text('{"spacing": [6, 1, 1]}')
    with pytest.raises(UserError, match=r"b.tif: found spacing 1 1 6, expected 1 1 3 as of its label"):
        evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
    for step in (lambda: predicted.write_text('{"spacing": [3, 1, 1]}'), predicted.unlink):
        step()
        evaluate(Evaluate(str(folder), (str(tmp_path / "predicted"),), tmp_path / "out"))
        assert [float(row["Dice"]) for row in read_csv(tmp_path / "out" / "per_case.csv")] == [1]


def test_several_labels_have_a_group_of_bars_each(tmp_path):
    folder = write_dataset(tmp_path / "Dataset006_CT", {"background": 0, "kidney": 1, "tumour": 2})
    names = tuple(
        str(write_predictions(tmp_path / name, folder, shift)) for name, shift in (("A", 1), ("B", 3))
    )
    evaluate(Evaluate(str(folder), names, tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert [(row["label"], row["prediction"]) for row in rows] == [
        (label, name) for label in (FOREGROUND_MEAN, "kidney", "tumour") for name in "AB"
    ]
    wide = Image.open(tmp_path / "out" / "comparison.png")
    compare_bars(rows[:2], tmp_path / "one_label.png")
    assert wide.width > 1.5 * Image.open(tmp_path / "one_label.png").width


def test_labels_of_another_folder(polyps, tmp_path):
    predicted = write_predictions(tmp_path / "predicted", polyps)
    truth = write_predictions(tmp_path / "second_reader", polyps, shift=0)
    evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "out", labels=truth))
    assert {row["test_set"] for row in read_csv(tmp_path / "out" / "summary.csv")} == {"second_reader"}


def test_intervals_are_over_patients(polyps, tmp_path, capsys):
    """Three patients of two like images each, in groups.json."""
    predicted = write_predictions(tmp_path / "predicted", polyps, shift=3)
    for index, shift in enumerate((0, 0, 3, 4, 9, 9)):
        truth = np.array(Image.open(polyps / "labelsTs" / f"case{index}.png"))
        Image.fromarray(np.roll(truth, shift, (0, 1))).save(predicted / f"case{index}.png")
    evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "alone"))
    groups = {f"case{index}": f"patient {index // 2}" for index in range(6)}
    (polyps / "groups.json").write_text(json.dumps(groups))
    capsys.readouterr()
    evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "grouped"))
    assert "in 3" in capsys.readouterr().out
    alone, grouped = (read_csv(tmp_path / name / "summary.csv")[0] for name in ("alone", "grouped"))
    assert (alone["groups"], grouped["groups"], grouped["N"]) == ("6", "3", "6")
    assert alone["mDice"] == grouped["mDice"]
    dice = np.array([[float(row["Dice"])] for row in read_csv(tmp_path / "grouped" / "per_case.csv")])
    expected = interval(resampled_means(dice, groups=list(groups.values())))
    assert (float(grouped["mDice_low"]), float(grouped["mDice_high"])) == pytest.approx(expected)
    assert grouped["mDice_low"] != alone["mDice_low"]


def test_validation_cases_of_a_fold(polyps, tmp_path):
    """Of labelsTr, by the written splits; test cases of the same ids and summary.json are left alone."""
    for i in range(1, 6):
        for part, name in (("imagesTr", f"case{i}_0000.png"), ("labelsTr", f"case{i}.png")):
            (polyps / part / name).write_bytes((polyps / part / name.replace(str(i), "0", 1)).read_bytes())
    Image.fromarray(blob(np.random.default_rng(9))).save(polyps / "labelsTr" / "case4.png")
    content = json.loads((polyps / "dataset.json").read_text()) | {"numTraining": 6}
    (polyps / "dataset.json").write_text(json.dumps(content))
    folds = [
        {"train": ["case0"], "val": ["case1"]},
        {"train": ["case1"], "val": ["case4", "case0"]},
        {"train": ["case1"], "val": []},
    ]
    (polyps / "splits_final.json").write_text(json.dumps(folds))
    predicted = tmp_path / "validation"
    predicted.mkdir()
    for i in (0, 4):
        (predicted / f"case{i}.png").write_bytes((polyps / "labelsTr" / f"case{i}.png").read_bytes())
    (predicted / "summary.json").write_text("{}")
    evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "out", fold=1))
    rows = read_csv(tmp_path / "out" / "per_case.csv")
    assert [row["case"] for row in rows] == ["case0", "case4"]
    assert {row["test_set"] for row in rows} == {"validation of fold 1"}
    assert [float(row["Dice"]) for row in rows] == [1, 1]
    for options, message in (
        ({"fold": 3}, "found --fold 3, expected 0 to 2"),
        ({"fold": -1}, "found --fold -1"),
        ({"fold": 2}, "found no validation cases in fold 2"),
        ({"fold": 0}, "found no case1.png"),
        ({"fold": 1, "labels": predicted}, "found --fold and --labels"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "no", **options))
    assert not (tmp_path / "no").exists()


def test_predictions_are_named_after_the_case_where_dataset_json_lists_labels(polyps, tmp_path):
    listed = {"one": {"images": ["imagesTr/case0_0000.png"], "label": "labelsTr/case0.png"}}
    content = json.loads((polyps / "dataset.json").read_text()) | {"dataset": listed}
    (polyps / "dataset.json").write_text(json.dumps(content))
    (polyps / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["one"]}]))
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    (predicted / "one.png").write_bytes((polyps / "labelsTr" / "case0.png").read_bytes())
    evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "out", fold=0))
    (row,) = read_csv(tmp_path / "out" / "per_case.csv")
    assert row["case"] == "one" and float(row["Dice"]) == 1


def test_an_earlier_evaluation_is_replaced(polyps, tmp_path):
    for shift in (0, 3):
        predicted = write_predictions(tmp_path / f"predicted{shift}", polyps, shift)
        evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "out"))
    assert {row["prediction"] for row in read_csv(tmp_path / "out" / "per_case.csv")} == {"predicted3"}


def remove_one(folder: Path) -> None:
    (folder / "case3.png").unlink()


def shrink_one(folder: Path) -> None:
    Image.new("L", (SIZE, SIZE - 1)).save(folder / "case3.png")


def save_as_255(folder: Path) -> None:
    Image.fromarray(np.array(Image.open(folder / "case3.png")) * 255).save(folder / "case3.png")


def truncate_one(folder: Path) -> None:
    (folder / "case3.png").write_bytes((folder / "case3.png").read_bytes()[:40])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_one, r"case3.png \(1 of 6 missing\)"),
        (shrink_one, r"case3.png: found size"),
        (save_as_255, r"case3.png: found label values 255,"),
        (truncate_one, r"case3.png: cannot be read"),
    ],
)
def test_bad_predictions_leave_nothing_behind(polyps, tmp_path, spoil, message):
    predicted = write_predictions(tmp_path / "predicted", polyps)
    spoil(predicted)
    with pytest.raises(UserError, match=message):
        evaluate(Evaluate(str(polyps), (str(predicted),), tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Dataset001_Polyps", "predicted"]


def test_predictions_may_be_of_the_size_before_or_after_shrinking(tmp_path, caplog):
    """Labels of the original images with predictions of shrunk ones, and the other way round."""
    originals = write_dataset(tmp_path / "Dataset001_Polyps", {"background": 0, "polyp": 1})
    shrunk = tmp_path / "Dataset002_Small"
    convert_subset(ConvertSubset(str(originals), shrunk, max_side=32))
    small, large = (write_predictions(tmp_path / folder.name[-5:], folder) for folder in (shrunk, originals))
    labels = originals / "labelsTs"
    expected = {}
    for case in range(6):
        truth, prediction = (Image.open(folder / f"case{case}.png") for folder in (labels, small))
        back = np.asarray(prediction.resize((SIZE, SIZE), Image.Resampling.NEAREST))
        expected[f"case{case}"] = binary_metrics(np.asarray(truth) > 0, back > 0, (1, 1), 2.0)["Dice"]
    evaluate(Evaluate(str(shrunk), (str(small),), tmp_path / "out", labels=labels))
    found = {row["case"]: float(row["Dice"]) for row in read_csv(tmp_path / "out" / "per_case.csv")}
    assert found == pytest.approx(expected, abs=1e-6) and 0.5 < min(expected.values()) < 1
    assert "6 prediction(s) are not as large as their labels" in caplog.text
    assert (tmp_path / "out" / "examples.png").is_file()
    evaluate(Evaluate(str(shrunk), (str(large),), tmp_path / "out2"))
    (row,) = [row for row in read_csv(tmp_path / "out2" / "summary.csv") if row["label"] == FOREGROUND_MEAN]
    assert 0.5 < float(row["mDice"]) < 1
    Image.fromarray(np.zeros((31, 31), np.uint8)).save(small / "case0.png")
    with pytest.raises(UserError, match=r"case0\.png: found size \(1, 31, 31\)"):
        evaluate(Evaluate(str(shrunk), (str(small),), tmp_path / "out3"))


def test_bad_arguments(polyps, tmp_path):
    predicted = str(write_predictions(tmp_path / "predicted", polyps))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    cases = [
        ((), tmp_path / "out", None, "no predictions"),
        ((predicted, predicted), tmp_path / "out", None, "two predictions called predicted"),
        ((f"A={tmp_path}/nowhere",), tmp_path / "out", None, "nowhere: found no such folder"),
        ((predicted,), other, None, "found notes.txt"),
        ((predicted,), tmp_path / "out", other, "found no .png files"),
    ]
    for option, expected in {"seed": "0 to 4294967295", "nsd_tolerance": "0 or more"}.items():
        with pytest.raises(UserError, match=f" -1, expected {expected}; change it"):
            evaluate(Evaluate(str(polyps), (predicted,), tmp_path / "out", **{option: -1}))
    for predictions, out, labels, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(Evaluate(str(polyps), predictions, out, labels=labels))
    (polyps / "labelsTs" / "case1.png").unlink()
    with pytest.raises(UserError, match="no label for case1"):
        evaluate(Evaluate(str(polyps), (predicted,), tmp_path / "out"))
    assert not (tmp_path / "out").exists() and (other / "notes.txt").read_text() == "mine"


def test_pictures_hold_their_panels(polyps, tmp_path):
    first = write_predictions(tmp_path / "first", polyps, 1)
    second = write_predictions(tmp_path / "second", polyps, 4)
    for number, predictions in enumerate([(str(first),), (str(first), str(second))]):
        evaluate(Evaluate(str(polyps), predictions, tmp_path / f"{number}"))
    narrow, wide = (Image.open(tmp_path / f"{n}" / "examples.png") for n in range(2))
    assert wide.width > 1.2 * narrow.width  # one more column
    rows = json.loads((tmp_path / "1" / "summary.json").read_text())["rows"]
    compare_bars([row for row in rows if row["label"] == FOREGROUND_MEAN], tmp_path / "bars.png")
    colours = {
        tuple(colour) for colour in np.array(Image.open(tmp_path / "bars.png").convert("RGB")).reshape(-1, 3)
    }
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= colours  # a bar for each of the two methods


def test_of_a_volume_the_slice_with_most_of_the_rarest_label_is_shown(tmp_path):
    """Slices along the last axis of the array, as KiTS19 stores them, in a window around the foreground."""
    kidney, tumour = (np.zeros((40, 30, 8), np.uint8) for _ in range(2))
    kidney[10:30, 5:25, :6] = 1
    tumour[12:14, 6:8, 3] = tumour[20:25, 8:12, 5] = 1
    label = np.where(tumour == 1, 2, kidney)
    label[:, :, 7] = 3
    image = np.select([label == 2, label == 1], [50, 150], -1000).astype(np.int16)
    folder = tmp_path / "Dataset007_CT"
    for name in ("imagesTr/a_0000", "imagesTs/b_0000", "labelsTr/a", "labelsTs/b", "../predicted/b"):
        array = image if "images" in name else np.where(label == 3, 0, label) if "pred" in name else label
        written = sitk.GetImageFromArray(array.astype(np.int16))
        written.SetSpacing((5.0, 0.5, 1.0))  # x, y, z
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(written, str(path))
    labels = {"background": 0, "kidney": [1, 2], "tumour": [2], "ignore": 3}
    content = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "numTraining": 1,
        "regions_class_order": [1, 2],
    }
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    dataset = read_dataset(folder)
    truths, folders = {"b": folder / "labelsTs" / "b.nii.gz"}, {"ORDER": tmp_path / "predicted"}
    scores = score_folders(dataset, truths, folders, tolerance=2)
    evaluation = Evaluation(dataset, folders, truths, {"CT": ["b"]}, scores, [], nsd_tolerance=2, seed=0)
    (example,) = chosen_examples(evaluation)
    assert example.truth.tolist() == label[:, :, 5].tolist()
    assert example.predictions["ORDER"][1] == {"kidney": 1, "tumour": 1}
    assert example.pixel_aspect == 2 and example.aspect == 2 * 40 / 30
    # The foreground is 50 to 150 HU; a quarter more on either side.
    assert "\nslice 6 of 8\nCT 25 to 175" in example.caption
    shown = {value: example.image[example.truth == value].mean() for value in (0, 1, 2)}
    assert shown == {0: 0, 1: pytest.approx(125 / 150), 2: pytest.approx(25 / 150)}

    draw_examples([example], tmp_path / "examples.png")
    pixels = np.array(Image.open(tmp_path / "examples.png").convert("RGB"))
    legend = {tuple(colour) for colour in pixels[-60:].reshape(-1, 3)}
    assert {(0x00, 0x9E, 0x73), (0xE6, 0x9F, 0x00)} <= legend


def test_slice_without_foreground_is_the_middle_one():
    empty, found = np.zeros((9, 5, 5), int), np.zeros((9, 5, 5), int)
    found[7, 1, 1] = 1
    assert shown_slice([empty, found], {"tumour": (1,)}, axis=0) == 7
    assert shown_slice([empty], {"tumour": (1,)}, axis=0) == 4


def test_names_in_brackets_are_shown_and_hidden_files_do_not_matter(polyps, tmp_path, capsys):
    predicted = write_predictions(tmp_path / "predicted", polyps)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"of a Finder")
    evaluate(Evaluate(str(polyps), (f"A[v1]={predicted}", f"A[/x]={predicted}"), tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "A[v1]" in printed and "A[/x]" in printed
