"""Reading, checking and writing nnU-Net raw folders."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion.raw.dataset import find_dataset, read_dataset
from dataset_conversion.raw.folds import grouped_splits, leak_free_fold, read_splits, write_splits
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.folders import new_folder
from dataset_conversion.system.resumable import resumable_folder

LABELS = {"background": 0, "polyp": 1}


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def picture(seed: int = 0, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random RGB image (size, size + 8, 3) and a mask with a square."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size + 8), np.uint8)
    mask[10:20, 12:30] = 1
    return rng.integers(0, 256, (*mask.shape, 3), np.uint8), mask


def write_dataset(folder: Path, cases: int = 6, labels: dict = LABELS) -> Path:
    """A raw folder of `cases` training and two test cases, the second of them without a label."""
    with RawDatasetWriter(folder, RGB, labels) as writer:
        for i in range(cases):
            writer.add_training_case(f"case_{i:03d}", *picture(i))
        writer.add_test_case("test_000", *picture(100), test_set="Kvasir")
        writer.add_test_case("test_001", picture(101)[0])
    return folder


def edit_json(folder: Path, **changes) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_written_folder_passes_nnunet_and_reads_back(tmp_path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    folder = write_dataset(tmp_path / "Dataset500_Polyps")
    verify_dataset_integrity(str(folder), 1)

    image, mask = picture(3)
    read, _ = NaturalImage2DIO().read_images([str(folder / "imagesTr" / "case_003_0000.png")])
    np.testing.assert_array_equal(read[:, 0], image.transpose(2, 0, 1))
    dataset = read_dataset(folder)
    ours, label = dataset.read_case(dataset.training_cases[3])
    np.testing.assert_array_equal(ours, read)
    np.testing.assert_array_equal(label[0], mask)
    assert [case.id for case in dataset.training_cases] == [f"case_{i:03d}" for i in range(6)]
    assert [case.label is None for case in dataset.test_cases] == [False, True]
    assert dataset.test_sets == {"Kvasir": ["test_000"]}
    assert dataset.channel_names == ["R", "G", "B"]


def test_regions_ignore_label_and_channels_of_any_file_ending(tmp_path):
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    volume, label = rng.normal(size=(5, 12, 16)).astype(np.float32), rng.integers(0, 4, (5, 12, 16), np.uint8)
    for name, array in {
        "imagesTr/a_0000": volume,
        "imagesTr/a_0001": -volume,
        "labelsTr/a": label,
    }.items():
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path)
    image, read_label = dataset.read_case(dataset.training_cases[0])
    np.testing.assert_array_equal(image, np.stack([volume, -volume]))
    np.testing.assert_array_equal(read_label, label)
    assert dataset.regions == {"whole": (1, 2), "core": (2,)}
    assert dataset.ignore_label == 3
    assert dataset.label_values == [0, 1, 2, 3]

    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case a has channel files \['0000'\]"):
        read_dataset(tmp_path)
    edit_json(tmp_path, regions_class_order=[1])
    with pytest.raises(UserError, match="regions_class_order"):
        read_dataset(tmp_path)


def test_files_listed_in_dataset_json(tmp_path):
    folder = write_dataset(tmp_path / "Dataset500_Polyps", cases=1)
    listed = {"one": {"images": ["imagesTr/case_000_0000.png"], "label": "labelsTr/case_000.png"}}
    edit_json(folder, dataset=listed)
    assert [case.id for case in read_dataset(folder).training_cases] == ["one"]
    (folder / "labelsTr" / "case_000.png").unlink()
    with pytest.raises(UserError, match=r"case_000.png: not found"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": {"R": 0, "G": 1, "B": 2}}, "swap"),
        ({"channel_names": {"0": "R", "1": "G", "3": "B"}}, "renumber"),
        ({"labels": {"0": "background", "1": "polyp"}}, "from name to value"),
        ({"labels": {"background": 0, "polyp": 255}}, "consecutive"),
        ({"labels": {"background": 0, "ignore": 1, "polyp": 2}}, "expected ignore to have the highest value"),
        ({"file_ending": "png"}, "with a dot"),
        ({"file_ending": ".nii.gz"}, "correct file_ending"),
        ({"numTraining": 7}, "found 6 training cases, expected numTraining = 7"),
    ],
)
def test_wrong_dataset_json_is_one_line(tmp_path, changes, message):
    folder = write_dataset(tmp_path / "Dataset500_Polyps")
    edit_json(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        read_dataset(folder)
    assert "\n" not in str(error.value)


DATASET_JSON = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": LABELS,
    "numTraining": 6,
    "file_ending": ".png",
}
LISTED = {"case_000": {"images": ["imagesTr/case_000_0000.png"], "label": "labelsTr/case_000.png"}}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("dataset", [], "found array, expected object"),
        ("dataset", None, "found null, expected object"),
        ("dataset", {"labels": LABELS}, "found no key channel_names, expected one"),
        ("dataset", DATASET_JSON | {"channel_names": ["R", "G", "B"]}, "found channel_names"),
        ("dataset", DATASET_JSON | {"channel_names": {"0": 7, "1": "G", "2": "B"}}, "at channel_names"),
        ("dataset", DATASET_JSON | {"labels": ["background", "polyp"]}, "found labels"),
        ("dataset", DATASET_JSON | {"labels": {"background": 0, "polyp": "1"}}, "found labels"),
        ("dataset", DATASET_JSON | {"labels": {"background": 0, "polyp": [[1]]}}, "found labels"),
        ("dataset", DATASET_JSON | {"regions_class_order": 1}, "found int at regions_class_order"),
        ("dataset", DATASET_JSON | {"regions_class_order": ["1"]}, "found str at regions_class_order"),
        ("dataset", DATASET_JSON | {"file_ending": None}, "found null at file_ending, expected str"),
        ("dataset", DATASET_JSON | {"numTraining": [6]}, "found array at numTraining, expected int"),
        ("dataset", DATASET_JSON | {"numTraining": "6"}, "found str at numTraining, expected int"),
        ("dataset", DATASET_JSON | {"subset_of": 3}, "found int at subset_of, expected str"),
        (
            "dataset",
            DATASET_JSON | {"overwrite_image_reader_writer": None},
            "at overwrite_image_reader_writer",
        ),
        ("dataset", DATASET_JSON | {"dataset": None}, "found null at dataset, expected object"),
        ("dataset", DATASET_JSON | {"dataset": [LISTED]}, "found array at dataset, expected object"),
        ("dataset", DATASET_JSON | {"dataset": {"a": {"label": "a"}}}, "found no key images at dataset"),
        ("dataset", DATASET_JSON | {"dataset": {"a": {"label": "a", "images": "a"}}}, "found str at dataset"),
        ("groups", ["case_000"], "found array, expected object"),
        ("groups", {"case_000": 3}, "found int"),
        ("groups", {"case_000": None}, "found null"),
        ("groups", {"case_000": ["P1"]}, "found array"),
        ("test_sets", [], "found array, expected object"),
        ("test_sets", {"Kvasir": None}, "found null"),
        ("test_sets", {"Kvasir": "test_000"}, "found str"),
        ("test_sets", {"Kvasir": [0]}, "found int"),
        ("splits_final", {"train": [], "val": []}, "found object, expected array"),
        ("splits_final", [[]], r"found array at \[0\], expected object"),
        ("splits_final", [{"train": ["case_000"], "validation": []}], r"found no key val at \[0\]"),
        ("splits_final", [{"train": "case_000", "val": []}], r"found str at \[0\].train, expected array"),
        ("splits_final", [{"train": [None], "val": []}], r"found null at \[0\].train\[0\], expected str"),
    ],
)
def test_a_wrong_type_in_a_file_is_one_line_that_names_its_place(raw_folder, tmp_path, name, content, words):
    folder = shutil.copytree(raw_folder, tmp_path / raw_folder.name)
    (folder / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{name}\.json: .*{words}") as error:
        dataset = read_dataset(folder)
        _ = dataset.groups, dataset.test_sets, read_splits(dataset)
    assert "\n" not in f"{error.value}"


@pytest.fixture(scope="module")
def raw_folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("raw") / "Dataset500_Polyps")


def test_missing_and_malformed_dataset_json(tmp_path):
    with pytest.raises(UserError, match="not found"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="malformed"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(UserError, match="found no key channel_names, expected one"):
        read_dataset(tmp_path)


def test_a_line_break_in_the_name_of_a_case_is_refused(tmp_path):
    """nnU-Net would train on it; left out without a word, it would be missed."""
    dataset = read_dataset(write_dataset(tmp_path / "Dataset500_Polyps"))
    path = dataset.training_cases[0].images[0]
    path.rename(path.with_name("case\n000_0000.png"))
    with pytest.raises(UserError, match=r"case\\n000") as error:
        _ = read_dataset(dataset.folder).training_cases
    assert "\n" not in str(error.value)


def test_faulty_files_are_named(tmp_path):
    folder = write_dataset(tmp_path / "Dataset500_Polyps")
    dataset = read_dataset(folder)
    files = [case.images[0] for case in dataset.training_cases]
    files[0].write_bytes(files[0].read_bytes()[:200])
    with pytest.raises(UserError, match=r"case_000_0000.png: cannot be read"):
        dataset.read_image(dataset.training_cases[0])
    Image.fromarray(picture()[0][..., 0]).save(files[1])
    with pytest.raises(UserError, match="found 1 channels, expected 3"):
        dataset.read_image(dataset.training_cases[1])
    Image.fromarray(picture()[1] * 255).save(dataset.training_cases[2].label)
    with pytest.raises(UserError, match=r"values 255, expected only \[0, 1\].*save 0/255 masks as 0/1"):
        dataset.read_case(dataset.training_cases[2])
    Image.fromarray(picture()[1][:20]).save(dataset.training_cases[3].label)
    with pytest.raises(UserError, match="same size"):
        dataset.read_case(dataset.training_cases[3])
    dataset.training_cases[4].label.unlink()
    with pytest.raises(UserError, match="found no label file of training case case_004"):
        read_dataset(folder)


def test_test_sets_must_name_test_cases(tmp_path):
    folder = write_dataset(tmp_path / "Dataset500_Polyps")
    (folder / "test_sets.json").write_text('{"Kvasir": ["case_000"]}')
    with pytest.raises(UserError, match="case_000"):
        _ = read_dataset(folder).test_sets


def test_find_dataset_by_id_name_and_path(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "Dataset007_Polyps")
    assert find_dataset(folder).folder == folder
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        find_dataset(7)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert {find_dataset(name).folder for name in (7, "7", "007", "Dataset007_Polyps")} == {folder}
    for nothing in ("", ".", "/"):
        with pytest.raises(UserError, match="expected its id, its full name or its path"):
            find_dataset(nothing)
    with pytest.raises(UserError, match="found none for data set 8"):
        find_dataset("8")


def test_find_dataset_without_a_name_part(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_dataset(tmp_path / "Dataset501")
    for name in (501, "501", "Dataset501"):
        assert find_dataset(name).folder == tmp_path / "Dataset501"
    (tmp_path / "Dataset501_Other").mkdir()
    with pytest.raises(UserError, match="found Dataset501, Dataset501_Other for data set 501"):
        find_dataset(501)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (picture()[0], picture()[1][:-1], "expected the same size"),
        (picture()[0], picture()[1] * 255, "found label values 255"),
        (picture()[0] * np.float32("nan"), picture()[1], "NaN or Inf"),
        (picture()[0][..., :2], picture()[1], "found 2 channels"),
        (picture()[0].astype(np.int64), picture()[1], "found int64 pixels"),
        (picture()[0], picture()[1] * 0, "found only background"),
    ],
)
def test_bad_case_leaves_nothing(tmp_path, image, mask, message):
    out = tmp_path / "Dataset500_Polyps"
    with pytest.raises(UserError, match=message), RawDatasetWriter(out, RGB, LABELS) as writer:
        writer.add_training_case("a", image, mask)
    assert list(tmp_path.iterdir()) == []


def test_duplicate_ids_and_empty_data_set(tmp_path):
    out = tmp_path / "Dataset500_Polyps"
    with pytest.raises(UserError, match="A twice"), RawDatasetWriter(out, RGB, LABELS) as writer:
        writer.add_training_case("a", *picture())
        writer.add_test_case("A", *picture())
    with (
        pytest.raises(UserError, match="found no training case"),
        RawDatasetWriter(out, RGB, LABELS) as writer,
    ):
        writer.add_test_case("a", *picture())
    assert list(tmp_path.iterdir()) == []


def test_out_is_refused_when_taken_or_misnamed(tmp_path):
    with pytest.raises(UserError, match="expected a name like Dataset500_Polyps"):
        RawDatasetWriter(tmp_path / "Polyps", RGB, LABELS)
    taken = tmp_path / "Dataset500_Polyps"
    taken.mkdir()
    write_dataset(taken)  # an empty folder is free
    before = sorted(taken.rglob("*"))
    with pytest.raises(UserError, match="found existing content"):
        write_dataset(taken)
    assert sorted(taken.rglob("*")) == before
    with pytest.raises(UserError, match="another data set of number 500"):
        RawDatasetWriter(tmp_path / "Dataset500_Other", RGB, LABELS)


def test_name_part_is_optional_but_the_number_is_taken_either_way(tmp_path):
    write_dataset(tmp_path / "Dataset501")
    with pytest.raises(UserError, match="Dataset501: found another data set of number 501"):
        RawDatasetWriter(tmp_path / "Dataset501_Other", RGB, LABELS)
    write_dataset(tmp_path / "Dataset502_Other")
    with pytest.raises(UserError, match="Dataset502_Other: found another data set of number 502"):
        RawDatasetWriter(tmp_path / "Dataset502", RGB, LABELS)
    (tmp_path / "Dataset5031_FourDigits").mkdir()
    write_dataset(tmp_path / "Dataset503")


def test_kill_leaves_no_folder_and_the_next_run_cleans_up(tmp_path):
    out = tmp_path / "Dataset500_Polyps"
    script = (
        "import os, signal, numpy as np\n"
        "from dataset_conversion.raw.writer import RawDatasetWriter\n"
        f"with RawDatasetWriter({str(out)!r}, 'R', {LABELS}) as writer:\n"
        "    writer.add_training_case('stale', np.zeros((8, 8), 'uint8'), np.ones((8, 8), 'uint8'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == -9
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".Dataset500_Polyps.lock", ".Dataset500_Polyps.partial"]
    write_dataset(out)
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset500_Polyps"]
    assert not (out / "imagesTr" / "stale_0000.png").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_a_user_error(tmp_path):
    out = tmp_path / "Dataset500_Polyps"
    with pytest.raises(UserError, match="no space left"), RawDatasetWriter(out, RGB, LABELS) as writer:
        writer.add_training_case("a", *picture())
        with open("/dev/full", "w") as full:  # every write to it fails with ENOSPC
            full.write("x" * 100000)
    assert list(tmp_path.iterdir()) == []


def test_float_and_16_bit_channels_go_into_one_file_each(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(32, 40, 2)).astype(np.float32)
    mask = (image[..., 0] > 0).astype(np.uint8)
    with RawDatasetWriter(tmp_path / "Dataset500_T", ("a", "b"), LABELS, file_ending=".tif") as writer:
        writer.add_training_case("x", image, mask)
    dataset = read_dataset(tmp_path / "Dataset500_T")
    np.testing.assert_array_equal(
        dataset.read_image(dataset.training_cases[0])[:, 0], image.transpose(2, 0, 1)
    )
    deep = rng.integers(0, 65536, (32, 40, 3)).astype(np.uint16)
    with RawDatasetWriter(tmp_path / "Dataset501_U", ("a", "b", "c"), LABELS) as writer:
        writer.add_training_case("x", deep, mask)
    dataset = read_dataset(tmp_path / "Dataset501_U")
    np.testing.assert_array_equal(
        dataset.read_image(dataset.training_cases[0])[:, 0], deep.transpose(2, 0, 1)
    )


def test_groups_are_read_back_and_checked(tmp_path):
    folder = write_dataset(tmp_path / "Dataset500_Polyps", cases=3)
    assert read_dataset(folder).groups == {
        name: name for name in ("case_000", "case_001", "case_002", "test_000", "test_001")
    }
    with RawDatasetWriter(tmp_path / "Dataset501_Grouped", RGB, LABELS) as writer:
        writer.set_groups({"case_000": "patient 7", "test_001": "patient 8"})
        writer.add_training_case("case_000", *picture())
        writer.add_training_case("case_001", *picture(1))
        writer.add_test_case("test_001", picture(2)[0])
    groups = read_dataset(tmp_path / "Dataset501_Grouped").groups
    assert groups == {"case_000": "patient 7", "case_001": "case_001", "test_001": "patient 8"}

    for content, message in (
        ('{"case_000": ""}', "groups.json: found the group ''"),
        ('{"case_009": "p", "case_000": "p"}', r"groups.json: found case_009 \(1 such\), expected ids"),
        ("{", "groups.json: malformed"),
    ):
        (folder / "groups.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_dataset(folder).groups  # noqa: B018


def test_grouped_splits_keep_groups_together_and_balance():
    groups = {f"c{i:03d}": f"g{i // 7}" if i < 70 else f"c{i:03d}" for i in range(103)}
    splits = grouped_splits(groups, folds=5)
    assert sorted(case for split in splits for case in split["val"]) == sorted(groups)
    for split in splits:
        train, val = ({groups[case] for case in split[side]} for side in ("train", "val"))
        assert not train & val
        assert set(split["train"]) | set(split["val"]) == set(groups)
    sizes = [len(split["val"]) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    assert splits == grouped_splits(dict(reversed(groups.items())), folds=5)
    assert splits != grouped_splits(groups, folds=5, seed=1)
    with pytest.raises(UserError, match="found 2 groups"):
        grouped_splits({"a": "1", "b": "2"}, folds=5)


def test_splits_go_where_nnunet_reads_them_and_never_over_others(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    folder = write_dataset(tmp_path / "raw" / "Dataset500_Polyps")
    default = read_splits(read_dataset(folder))
    assert [len(split["val"]) for split in default] == [2, 1, 1, 1, 1]

    splits = grouped_splits({f"case_{i:03d}": str(i % 3) for i in range(6)}, folds=3)
    write_splits(folder, splits)
    target = tmp_path / "preprocessed" / "Dataset500_Polyps" / "splits_final.json"
    assert json.loads(target.read_text()) == json.loads((folder / "splits_final.json").read_text()) == splits
    assert read_splits(read_dataset(folder)) == splits
    write_splits(folder, splits)  # the same again is fine
    with pytest.raises(UserError, match="found other splits"):
        write_splits(folder, splits[:2])
    assert json.loads(target.read_text()) == splits


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            [{"train": ["case_000", "gone"], "val": []}],
            "found gone .1 such., expected ids of training cases",
        ),
        ([{"train": ["case_000"], "val": ["gone"]}], "found gone"),
        ([], "splits_final.json: found no folds"),
        ([{"train": [], "val": ["case_000"]}], "found no training cases in fold 0"),
    ],
)
def test_wrong_splits_are_one_line(tmp_path, splits, message):
    folder = write_dataset(tmp_path / "raw" / "Dataset500_Polyps")
    (folder / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match=message) as error:
        leak_free_fold(read_dataset(folder), 0)
    assert "\n" not in str(error.value)


def test_a_raw_folder_never_stands_without_its_folds(tmp_path, monkeypatch):
    """nnU-Net would draw its own, which part patients."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    (tmp_path / "preprocessed").write_text("a file in the way")
    out = tmp_path / "raw" / "Dataset500_Polyps"
    with pytest.raises(UserError, match="while writing"), RawDatasetWriter(out, RGB, LABELS) as writer:
        for index in range(2):
            writer.add_training_case(f"case_{index}", *picture(index))
        writer.set_splits(grouped_splits({"case_0": "1", "case_1": "2"}, folds=2))
    assert not out.exists()


def test_content_that_appears_meanwhile_stops_in_a_line(tmp_path):
    for folder in (new_folder, functools.partial(resumable_folder, options={})):
        out = tmp_path / "Dataset500_Polyps"
        out.mkdir()
        with pytest.raises(UserError, match="was not there before"), folder(out) as partial:
            (partial / "a").touch()
            (out / ".DS_Store").touch()
        assert [path.name for path in out.iterdir()] == [".DS_Store"]
        shutil.rmtree(out)


def test_conflicting_splits_stop_a_conversion(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    target = tmp_path / "preprocessed" / "Dataset500_Polyps" / "splits_final.json"
    target.parent.mkdir(parents=True)
    target.write_text("[]")
    out = tmp_path / "raw" / "Dataset500_Polyps"
    with pytest.raises(UserError, match="other splits"), RawDatasetWriter(out, RGB, LABELS) as writer:
        writer.set_splits(grouped_splits({"a": "1", "b": "2"}, folds=2))
    assert not out.exists()
    assert target.read_text() == "[]"


def test_hidden_files_are_no_cases(tmp_path):
    folder = write_dataset(tmp_path / "Dataset500_Polyps")
    shutil.rmtree(folder / "imagesTs")
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / ".DS_Store").write_bytes(b"of a Finder")
    assert read_dataset(folder).test_cases == []


def test_planned_folders_without_a_name_part_are_found(tmp_path, monkeypatch):
    from nnunet_order.plan import preprocessed_folder

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset501").mkdir()
    assert preprocessed_folder("501") == preprocessed_folder("Dataset501") == tmp_path / "Dataset501"
    (tmp_path / "Dataset501_Other").mkdir()
    with pytest.raises(UserError, match="found Dataset501, Dataset501_Other for data set 501"):
        preprocessed_folder("501")
