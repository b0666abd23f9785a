"""A share of a raw data set: which cases, which files, which folds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import ExifTags, Image

from dataset_conversion.images import resize_to
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.raw.folds import drawn_cases, grouped_splits, read_splits, restricted_splits
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from dataset_conversion.subset import ConvertSubset, convert_subset
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.lock import alone
from nnunet_order.stages.inputs import dataset_digest

LABELS = {"background": 0, "polyp": 1, "dye": 2}


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def picture(seed: int, channels: int = 3, size: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Random image (size / 2, size, channels) and its labels."""
    rng = np.random.default_rng(seed)
    shape = (size // 2, size)
    return rng.integers(0, 256, (*shape, channels), np.uint8), rng.integers(0, 3, shape, np.uint8)


def write_source(root: Path, cases: int = 20, folds: bool = True, channels=RGB) -> Path:
    """20 training cases in 10 groups of two with 5 folds by group, and three test cases, one unlabelled."""
    folder = root / "Dataset500_Source"
    with RawDatasetWriter(folder, channels, LABELS, license="CC0", description="noise") as writer:
        for i in range(cases):
            writer.add_training_case(f"case_{i:03d}", *picture(i, len(channels)))
        for i in range(2):
            writer.add_test_case(f"test_{i}", *picture(100 + i, len(channels)), test_set=f"set {i}")
        writer.add_test_case("test_2", picture(102, len(channels))[0])
        if folds:
            groups = {f"case_{i:03d}": f"{i // 2}" for i in range(cases)}
            writer.set_groups(groups)
            writer.set_splits(grouped_splits(groups))
    return folder


def test_share_of_every_fold_with_all_test_cases(tmp_path, monkeypatch):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    source = read_dataset(write_source(tmp_path / "raw"))
    out = tmp_path / "raw" / "Dataset001_Real"
    convert_subset(ConvertSubset(dataset=str(source.folder), out=out, fraction=0.5))
    verify_dataset_integrity(str(out), 1)
    made = read_dataset(out)
    assert made.json == source.json | {"numTraining": 10, "subset_of": source.name}
    assert made.test_sets == source.test_sets == {"set 0": ["test_0"], "set 1": ["test_1"]}
    assert [case.label is None for case in made.test_cases] == [False, False, True]
    for case in (*made.training_cases, *made.test_cases):  # the very same files
        for path in (*case.images, *[case.label] * (case.label is not None)):
            assert os.path.samefile(path, source.folder / path.relative_to(out))

    kept = {case.id for case in made.training_cases}
    splits = json.loads((tmp_path / "preprocessed" / out.name / "splits_final.json").read_text())
    assert json.loads((out / "splits_final.json").read_text()) == splits == read_splits(made)
    for before, after in zip(read_splits(source), splits, strict=True):
        assert len(before["val"]) == 4 and len(after["val"]) == 2
        for side in ("train", "val"):
            assert after[side] == [case_id for case_id in before[side] if case_id in kept]
        group = {case_id: int(case_id[-3:]) // 2 for case_id in kept}
        assert not {group[c] for c in after["train"]} & {group[c] for c in after["val"]}
    assert made.groups == {i: g for i, g in source.groups.items() if i in made.groups}
    assert set(made.groups) == kept | {"test_0", "test_1", "test_2"}
    assert len({made.groups[case_id] for case_id in kept}) < 10  # and not each its own
    with pytest.raises(UserError, match="found existing content"):
        convert_subset(ConvertSubset(dataset=str(source.folder), out=out, fraction=0.25))
    made_files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    convert_subset(ConvertSubset(dataset=str(source.folder), out=out, fraction=0.5))  # is done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == made_files
    convert_subset(ConvertSubset(dataset=str(out), out=tmp_path / "raw" / "Dataset002_Less", fraction=0.5))
    assert read_dataset(tmp_path / "raw" / "Dataset002_Less").origin == source.name == source.origin


def test_draw_depends_on_the_seed_alone_and_smaller_shares_lie_in_larger_ones():
    ids = [f"c{i:03d}" for i in range(100)]
    splits = grouped_splits({case_id: case_id for case_id in ids})
    kept = {fraction: drawn_cases(ids, splits, fraction, 0) for fraction in (0.1, 0.25, 0.5, 1)}
    assert [len(cases) for cases in kept.values()] == [10, 25, 50, 100]
    assert kept[0.1] < kept[0.25] < kept[0.5] < kept[1]
    assert drawn_cases(ids[::-1], splits, 0.1, 0) == kept[0.1] != drawn_cases(ids, splits, 0.1, 1)
    for fold in restricted_splits(splits, kept[0.1]):
        assert (len(fold["train"]), len(fold["val"])) == (8, 2)


def test_no_fold_runs_empty():
    ids = [f"c{i:02d}" for i in range(40)]
    assert len(drawn_cases(ids, [], 0.01, 0)) == 5  # nnU-Net makes five folds
    assert len(drawn_cases(ids[:3], [], 0.01, 0)) == 3
    fixed = [{"train": ids[:30], "val": ids[30:38]}]  # and two cases in neither
    (fold,) = restricted_splits(fixed, drawn_cases(ids, fixed, 0.25, 0))
    assert (len(fold["train"]), len(fold["val"])) == (8, 2)
    (fold,) = restricted_splits(fixed, drawn_cases(ids, fixed, 0.001, 0))
    assert (len(fold["train"]), len(fold["val"])) == (1, 1)


def test_source_without_folds_gets_nnunets_own(tmp_path):
    write_source(tmp_path, folds=False)
    out = tmp_path / "Dataset001_Real"
    convert_subset(ConvertSubset(dataset=str(tmp_path / "Dataset500_Source"), out=out, fraction=0.5))
    made = read_dataset(out)
    assert len(made.training_cases) == 10
    assert json.loads((out / "splits_final.json").read_text()) == read_splits(made)


def test_folds_of_a_given_file(tmp_path):
    source = write_source(tmp_path, cases=8, folds=False)
    (tmp_path / "mine.json").write_text(json.dumps([{"train": ["case_001"], "val": ["case_000"]}]))
    convert = {"dataset": str(source), "out": tmp_path / "Dataset001_Real", "fraction": 0.5}
    convert_subset(ConvertSubset(**convert, splits=tmp_path / "mine.json"))
    made = read_dataset(tmp_path / "Dataset001_Real")
    assert read_splits(made) == [{"train": ["case_001"], "val": ["case_000"]}]
    assert len(made.training_cases) == 2 + 3
    convert["out"] = tmp_path / "Dataset002_Real"
    with pytest.raises(UserError, match=r"no\.json: not found, expected a file like splits_final"):
        convert_subset(ConvertSubset(**convert, splits=tmp_path / "no.json"))
    (tmp_path / "mine.json").write_text(json.dumps([{"train": ["other"], "val": []}]))
    with pytest.raises(UserError, match=r"mine.json: found other .1 such., expected ids of training cases"):
        convert_subset(ConvertSubset(**convert, splits=tmp_path / "mine.json"))
    assert not convert["out"].exists()


def test_other_splits_in_place_stop_it_before_anything_is_written(tmp_path, monkeypatch):
    source = write_source(tmp_path / "raw")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    place = tmp_path / "preprocessed" / "Dataset001_Real" / "splits_final.json"
    place.parent.mkdir(parents=True)
    place.write_text("[]")
    with pytest.raises(UserError, match="found other splits"):
        convert_subset(ConvertSubset(dataset=str(source), out=tmp_path / "raw" / "Dataset001_Real"))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [source.name]


def test_volumes_listed_in_dataset_json(tmp_path, monkeypatch):
    """Symbolic links are followed, files of any name get nnU-Net's; copies where links do not work."""
    folder = tmp_path / "Dataset500_Volumes"
    volume = np.arange(3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8)
    listed = {}
    for i in range(6):
        files = {"images": [f"files/{i}/t1.nii.gz", f"files/{i}/t2.nii.gz"], "label": f"files/{i}/y.nii.gz"}
        (folder / "files" / str(i)).mkdir(parents=True)
        for number, name in enumerate((*files["images"], files["label"])):
            array = (volume % 2).astype(np.uint8) if number == 2 else volume + number + i
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / name))
        listed[f"patient {i}"] = files
    linked = folder / "files" / "0" / "t1.nii.gz"
    linked.rename(folder / "files" / "0" / "real.nii.gz")
    linked.symlink_to("real.nii.gz")
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "x": 1}, "numTraining": 6}
    content |= {"file_ending": ".nii.gz", "dataset": listed}
    (folder / "dataset.json").write_text(json.dumps(content))
    source = read_dataset(folder)

    def other_file_system(*_):
        raise OSError(18, "Invalid cross-device link")

    for name, link in (("Dataset001_Linked", os.link), ("Dataset002_Copied", other_file_system)):
        monkeypatch.setattr(os, "link", link)
        convert_subset(ConvertSubset(dataset=str(folder), out=tmp_path / name))
        made = read_dataset(tmp_path / name)
        assert "dataset" not in made.json and not (made.folder / "imagesTs").exists()
        assert [case.id for case in made.training_cases] == [f"patient {i}" for i in range(6)]
        for before, after in zip(source.training_cases, made.training_cases, strict=True):
            for a, b in zip(source.read_case(before), made.read_case(after), strict=True):
                np.testing.assert_array_equal(a, b)
        assert os.path.samefile(made.training_cases[0].images[0], linked) == (name == "Dataset001_Linked")
    with pytest.raises(UserError, match=r"found \.nii\.gz volumes .* for --max-side"):
        convert_subset(ConvertSubset(dataset=str(folder), out=tmp_path / "Dataset003_Small", max_side=32))


@pytest.mark.parametrize("channels", [RGB, ("grey",), ("a", "b")], ids=["rgb", "grey", "two files"])
def test_shrunk_images_and_masks(tmp_path, channels):
    folder = write_source(tmp_path, cases=6, channels=channels, folds=False)
    source = read_dataset(folder)
    deep = folder / "imagesTr" / "case_001_0000.png"
    if channels != RGB:
        Image.fromarray(np.asarray(Image.open(deep)).astype(np.uint16) * 257).save(deep)
    files = {path: path.read_bytes() for path in folder.rglob("*.png")}
    out = tmp_path / "Dataset001_Small"
    convert_subset(ConvertSubset(dataset=str(folder), out=out, max_side=40))
    made = read_dataset(out)
    assert made.json == source.json | {"subset_of": source.name, "max_side": 40}
    again = tmp_path / "Dataset002_Again"
    for max_side, recorded in ((64, 40), (None, 40), (32, 32)):  # what was shrunk once stays so
        shutil.rmtree(again, ignore_errors=True)
        convert_subset(ConvertSubset(dataset=str(out), out=again, max_side=max_side))
        assert read_dataset(again).description.max_side == recorded
    assert [case.label is None for case in made.test_cases][2]
    for before, after in zip(source.training_cases, made.training_cases, strict=True):
        image, mask = made.read_case(after)
        assert image.shape == (len(channels), 1, 20, 40)
        labels = np.asarray(Image.open(before.label))
        for old, new in zip(before.images, after.images, strict=True):
            expected = resize_to(40, np.asarray(Image.open(old)), labels)
            np.testing.assert_array_equal(np.asarray(Image.open(new)), expected[0])
            np.testing.assert_array_equal(mask[0], expected[1])
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == files


def test_bad_input_leaves_nothing(tmp_path):
    source = write_source(tmp_path, cases=6, folds=False)
    for out, options, message in (
        ("Real", {}, "expected a name like Dataset500_Polyps"),
        ("Dataset500_Other", {}, "another data set of number 500"),
        ("Dataset001_Real", {"fraction": 0}, "found --fraction 0, expected above 0"),
        ("Dataset001_Real", {"fraction": 1.5}, "found --fraction 1.5"),
        ("Dataset001_Real", {"max_side": 8}, "found --max-side 8, expected 32"),
        ("Dataset001_Real", {"dataset": "nowhere"}, "found no folder nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            convert_subset(ConvertSubset(**{"dataset": str(source), "out": tmp_path / out, **options}))
    Image.fromarray(np.full((40, 80), 7, np.uint8)).save(source / "labelsTr" / "case_002.png")
    with pytest.raises(UserError, match=r"case_002.png: found label values 7"):
        convert_subset(ConvertSubset(dataset=str(source), out=tmp_path / "Dataset001_Real", max_side=40))
    Image.fromarray(np.zeros((39, 80), np.uint8)).save(source / "labelsTr" / "case_002.png")
    with pytest.raises(UserError, match=r"case_002.png: found size \(39, 80\), expected"):
        convert_subset(ConvertSubset(dataset=str(source), out=tmp_path / "Dataset001_Real", max_side=40))
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_pixels_are_taken_as_stored_like_nnunet_does(tmp_path):
    """An EXIF tag turns a picture for viewers, but not for nnU-Net, whose labels have none."""
    folder = write_source(tmp_path, cases=5, folds=False)
    source = read_dataset(folder)
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = 3
    path = source.training_cases[0].images[0]
    with Image.open(path) as image:
        image.save(path, exif=tag)
    out = tmp_path / "Dataset005_Small"
    convert_subset(ConvertSubset(dataset=str(folder), out=out, max_side=64))
    with Image.open(path) as image, Image.open(out / "imagesTr" / path.name) as small:
        stored = np.asarray(image.convert("RGB").resize(small.size, Image.Resampling.LANCZOS))
        assert np.array_equal(np.asarray(small), stored)


def test_3d_tiff_keeps_its_spacing(tmp_path):
    import tifffile

    folder = tmp_path / "Dataset007_Stacks"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(5):
        values = (np.arange(6 * 40 * 40) % 256).astype(np.uint8).reshape(6, 40, 40)
        tifffile.imwrite(folder / "imagesTr" / f"c{number}_0000.tif", values)
        tifffile.imwrite(folder / "labelsTr" / f"c{number}.tif", (values > 99).astype(np.uint8))
        for part in ("imagesTr", "labelsTr"):
            (folder / part / f"c{number}.json").write_text(json.dumps({"spacing": [3, 0.5, 0.5]}))
    about = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "cell": 1}}
    (folder / "dataset.json").write_text(json.dumps(about | {"numTraining": 5, "file_ending": ".tif"}))
    source = read_dataset(folder)
    assert source.holds_volumes
    out = tmp_path / "Dataset008_Copy"
    convert_subset(ConvertSubset(dataset=str(folder), out=out))
    made = read_dataset(out)
    case = made.training_cases[0]
    for _, properties in (
        made.reader.read_images([str(case.images[0])]),
        made.reader.read_seg(str(case.label)),
    ):
        assert properties["spacing"] == [3, 0.5, 0.5]
    before = dataset_digest(source, [])
    (folder / "labelsTr" / "c3.json").write_text(json.dumps({"spacing": [1, 0.5, 0.5]}))
    assert dataset_digest(source, []) != before
    with pytest.raises(UserError, match=r"found \.tif volumes of 1 channel"):
        convert_subset(ConvertSubset(dataset=str(folder), out=tmp_path / "Dataset009_Small", max_side=32))


def test_only_one_process_writes_a_data_set(tmp_path):
    folder, out = write_source(tmp_path, cases=10), tmp_path / "Dataset005_Half"
    with (
        alone(out),
        pytest.raises(UserError, match="Dataset005_Half: found another process that writes there"),
    ):
        convert_subset(ConvertSubset(dataset=str(folder), out=out))
    convert_subset(ConvertSubset(dataset=str(folder), out=out))
    assert not (tmp_path / ".Dataset005_Half.lock").exists()
