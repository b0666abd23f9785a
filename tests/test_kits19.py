"""KiTS19's layout into nnU-Net raw folders: volumes as they are, and slices that always lie the same way."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image

from dataset_conversion.kits19 import ConvertKits19, convert_kits19
from dataset_conversion.raw.dataset import RawDataset, read_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
KITS = "IPL"  # KiTS19's own order of axes: slices first
SHAPE = (40, 36, 12)  # columns, rows, slices


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and label uint8 of axes left, posterior, superior; kidney in slices 2-8, tumour in 4-6."""
    rng = np.random.default_rng(seed)
    image = rng.integers(-200, 300, shape).astype(np.int16)
    image[:4] = -1000
    label = np.zeros(shape, np.uint8)
    label[5:20, 8:16, 2:9] = 1
    label[8:12, 10:14, 4:7] = 2
    return image, label


def save(path: Path, values: np.ndarray, codes: str = KITS, spacing=(0.78, 0.78, 3.0), **header) -> None:
    """Store axes (left, posterior, superior) in the order and directions of `codes`, at an odd origin."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (171.3, 160.2, -812.7)
    image = nib.Nifti1Image(values, affine)
    image = image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes)))
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def save_case(root: Path, number: int, codes: str = KITS, labelled: bool = True, **options) -> Path:
    folder = root / f"case_{number:05d}"
    image, label = scan(number)
    save(folder / "imaging.nii.gz", image, codes, **options)
    if labelled:
        save(folder / "segmentation.nii.gz", label, codes, **options)
    return folder


def convert(root: Path, name: str = "Dataset019_KiTS", source: Path | None = None, **options) -> RawDataset:
    convert_kits19(ConvertKits19(source=source or root / "kits19", out=root / name, **options))
    return read_dataset(root / name)


def refused(root: Path, message: str, **options) -> None:
    """The conversion raises a one-line UserError and leaves nothing."""
    with pytest.raises(UserError, match=message) as error:
        convert(root, **options)
    assert "\n" not in str(error.value)
    assert not list(root.glob("*Dataset*"))


def test_plain_volumes_are_linked_and_nnunet_accepts_them(tmp_path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    for number in range(6):
        save_case(tmp_path / "kits19" / "data", number, spacing=(0.7 + number / 50,) * 2 + (2.5,))
    save_case(tmp_path / "kits19" / "data", 210, labelled=False)
    dataset = convert(tmp_path)
    for case in dataset.training_cases:
        assert check_cases([str(case.images[0])], str(case.label), 1, SimpleITKIO)
    assert dataset.channel_names == ["CT"]
    assert dataset.json["labels"] == {"background": 0, "kidney": 1, "tumour": 2}
    assert [case.id for case in dataset.training_cases] == [f"case_{i:05d}" for i in range(6)]
    assert [(case.id, case.label) for case in dataset.test_cases] == [("case_00210", None)]
    for case in (*dataset.training_cases, *dataset.test_cases):
        source = tmp_path / "kits19" / "data" / case.id
        assert os.path.samefile(case.images[0], source / "imaging.nii.gz")
        assert case.label is None or os.path.samefile(case.label, source / "segmentation.nii.gz")
    splits = read_splits(dataset)
    assert json.loads((dataset.folder / "splits_final.json").read_text()) == splits
    (dataset.folder / "splits_final.json").unlink()
    assert read_splits(dataset) == splits  # nnU-Net's own
    assert not list(tmp_path.glob(".*"))


def points(path: Path) -> dict[tuple, float]:
    """Place in the patient (mm, rounded) -> value, of the tumour and of other voxels here and there."""
    volume = nib.load(path)
    values = np.asarray(volume.dataobj)
    rng = np.random.default_rng(0)
    indices = np.concatenate([np.argwhere(values == 2), rng.integers(0, values.shape, (300, 3))])
    places = np.round(indices @ volume.affine[:3, :3].T + volume.affine[:3, 3], 2)
    return {tuple(place): values[tuple(index)] for place, index in zip(places, indices, strict=True)}


def value_at(path: Path, place: tuple) -> float:
    volume = nib.load(path)
    index = np.rint(np.linalg.inv(volume.affine) @ (*place, 1))[:3].astype(int)
    assert np.all(index >= 0), "outside"
    return np.asarray(volume.dataobj)[tuple(index)]


def test_volumes_are_turned_into_the_orientation_of_most(tmp_path, caplog):
    """So that nnU-Net's 2d cuts every patient along the same plane; every voxel keeps place and value."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    source = tmp_path / "kits19"
    for number, codes in enumerate(["RAS", KITS, "LPS", "PIR", KITS, "IPR", KITS]):
        save_case(source, number, codes)
    save_case(source, 210, "RAS", labelled=False)
    rewrite(source / "case_00002" / "imaging.nii.gz", dtype=np.uint16)  # with values that int16 has not
    rewrite(source / "case_00003" / "imaging.nii.gz", dtype=">f8")
    rewrite(source / "case_00003" / "segmentation.nii.gz", dtype=np.float32)
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path)
    turned = ["case_00000", "case_00002", "case_00003", "case_00005", "case_00210"]
    for case in (*dataset.training_cases, *dataset.test_cases):
        image, label = (source / case.id / f"{name}.nii.gz" for name in ("imaging", "segmentation"))
        assert os.path.samefile(case.images[0], image) == (case.id not in turned)
        for old, new in [(image, case.images[0])] + [(label, case.label)] * (case.label is not None):
            volume = nib.load(new)
            assert "".join(nib.aff2axcodes(volume.affine)) == KITS
            assert volume.shape == (12, 36, 40)
            assert all(value_at(new, place) == value for place, value in points(old).items())
        if case.label is not None:
            assert check_cases([str(case.images[0])], str(case.label), 1, SimpleITKIO)
    types = [nib.load(case.images[0]).get_data_dtype().str for case in dataset.training_cases]
    assert types == ["<i2", "<i2", "<u2", "<f8", "<i2", "<i2", "<i2"]  # plain files keep their type
    assert "axes brought into the order IPL of most volumes, for nnU-Net's 2d: 5 file(s)" in caplog.text


def test_finished_cases_are_turned_again_when_others_decide_otherwise(tmp_path):
    for number, codes in enumerate([KITS, KITS, "RAS", KITS]):
        save_case(tmp_path / "kits19", number, codes)
    damaged = tmp_path / "kits19" / "case_00003" / "imaging.nii.gz"
    cut(damaged)
    with pytest.raises(UserError, match="cannot be read"):
        convert(tmp_path)
    finished = tmp_path / ".Dataset019_KiTS.partial" / "imagesTr" / "case_00002_0000.nii.gz"
    assert "".join(nib.aff2axcodes(nib.load(finished).affine)) == KITS
    for number in (3, 4):
        save_case(tmp_path / "kits19", number, "RAS")
    dataset = convert(tmp_path)
    for case in dataset.training_cases:
        for path in (case.images[0], case.label):
            assert "".join(nib.aff2axcodes(nib.load(path).affine)) == "RAS"
    whole = convert(tmp_path / "again", source=tmp_path / "kits19")
    assert contents(dataset.folder / "imagesTr") == contents(whole.folder / "imagesTr")
    assert contents(dataset.folder / "labelsTr") == contents(whole.folder / "labelsTr")


def test_headers_silent_on_orientation_stay_so(tmp_path, caplog):
    for number in range(3):
        folder = save_case(tmp_path / "kits19", number, "RAS" if number == 2 else KITS)
    for name in ("imaging", "segmentation"):
        patch(folder / f"{name}.nii.gz", "sform_code", 0)
        patch(folder / f"{name}.nii.gz", "qform_code", 0)
    patch(folder / "imaging.nii.gz", "scl_slope", 2)  # so that it is written anew
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path)
    header = nib.load(dataset.training_cases[2].images[0]).header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    image, label = (
        sitk.ReadImage(str(path))
        for path in (*dataset.training_cases[2].images, folder / "segmentation.nii.gz")
    )
    assert image.GetSpacing() == label.GetSpacing() == pytest.approx((0.78, 0.78, 3))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, 2.0 * scan(2)[0][::-1, ::-1])
    assert "header does not say how the patient lies: axes may differ from other volumes': 1" in caplog.text


def sheared(path: Path, cosine: float, qform: bool = False) -> None:
    """Turn the first axis of a volume towards the second by so much, in the sform only."""
    old = nib.load(path)
    affine = old.affine.copy()
    affine[:3, 0] += cosine * affine[:3, 1] * old.header.get_zooms()[0] / old.header.get_zooms()[1]
    new = nib.Nifti1Image(np.asarray(old.dataobj), affine)
    new.set_sform(affine, 1)
    new.set_qform(*((old.affine, 1) if qform else (None, 0)))
    nib.save(new, path)


def no_quaternion(path: Path) -> None:
    """A qform beside the sform that is no rotation: ITK passes over it, nibabel raises."""
    for field, value in (("quatern_b", 0.8), ("quatern_c", 0.7), ("quatern_d", 0.2), ("qform_code", 1)):
        patch(path, field, value)


def half_a_turn(path: Path) -> None:
    """A qform alone whose quaternion's first number is 0.0004: ITK takes it for 0 and turns the volume."""
    patch(path, "sform_code", 0)
    for field, value in (("quatern_b", 0), ("quatern_c", 0), ("quatern_d", 1 - 6e-8), ("qform_code", 1)):
        patch(path, field, value)


ITK_TRAPS = {
    "sform": lambda path: sheared(path, 5e-4),
    "at ITK's limit": lambda path: sheared(path, 1.05e-4),
    "sform beside a qform": lambda path: sheared(path, 9e-4, qform=True),
    "quaternion beside an sform": no_quaternion,
    "rounded quaternion": half_a_turn,
}


@pytest.mark.parametrize("names", [("imaging", "segmentation"), ("imaging",), ("segmentation",)])
@pytest.mark.parametrize("trap", ITK_TRAPS)
def test_every_reader_sees_converted_volumes_at_one_place(tmp_path, trap, names):
    """Where nibabel sees the source's image, but for the rounding of its axes to right angles."""
    source, codes = tmp_path / "kits19", "LPS" if trap == "rounded quaternion" else KITS
    for number in range(2):
        save_case(source, number, codes)
    for name in names:
        ITK_TRAPS[trap](source / "case_00001" / f"{name}.nii.gz")
    expected = corners(source / "case_00001" / "imaging.nii.gz")
    dataset = convert(tmp_path)
    for case in dataset.training_cases:
        for path in (case.images[0], case.label):
            np.testing.assert_allclose(corners(path, itk_affine(path)), corners(path), atol=0.005)
            if case.id == "case_00001":
                np.testing.assert_allclose(corners(path), expected, atol=0.03)
        image, label = dataset.read_case(case)
        in_file = scan(int(case.id[-1]))
        turn = (lambda array: array.T) if codes == "LPS" else kits_array
        np.testing.assert_array_equal(image[0], turn(in_file[0]))
        np.testing.assert_array_equal(label, turn(in_file[1]))


def itk_affine(path: Path) -> np.ndarray:
    """As nibabel's, of what SimpleITK reads."""
    read, affine = sitk.ReadImage(str(path)), np.eye(4)
    affine[:3, :3] = np.reshape(read.GetDirection(), (3, 3)) * read.GetSpacing()
    affine[:3, 3] = read.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


def corners(path: Path, affine: np.ndarray | None = None) -> np.ndarray:
    """Places of the outermost voxels, by nibabel's affine or another (4, 4)."""
    volume = nib.load(path)
    affine = volume.affine if affine is None else affine
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape) - 1)
    return ends @ affine[:3, :3].T + affine[:3, 3]


def test_nearly_right_angles_in_slices_of_hu(tmp_path):
    """Their headers are clean, too, and hold the values of the volume."""
    folder = save_case(tmp_path / "kits19", 0, "LPS")
    for name in ("imaging", "segmentation"):
        sheared(folder / f"{name}.nii.gz", 5e-4)
    dataset = convert(tmp_path, slices=True, keep_hu=True)
    for case in dataset.training_cases:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(case.images[0])))
        np.testing.assert_array_equal(image[0], scan(0)[0][:, :, int(case.id[-4:])].T)
        np.testing.assert_allclose(
            corners(case.images[0], itk_affine(case.images[0])), corners(case.label), atol=1e-3
        )


@pytest.mark.parametrize("axis", ["axial", "coronal"])
def test_slices_of_a_scan_stored_with_an_offset(tmp_path, caplog, axis):
    """HU + 1024, as 16-bit exports often are: every slice would be white in the window of HU."""
    for number in range(2):
        save_case(tmp_path / "kits19", number, "LPS")
    image = scan(1)[0]
    image[:4] = 0
    image = (image + 1024).astype(np.uint16)
    save(tmp_path / "kits19" / "case_00001" / "imaging.nii.gz", image, "LPS")
    first = 2 if axis == "axial" else 8
    shown = image[:, :, first] if axis == "axial" else image[:, first]
    with pytest.raises(UserError) as error:
        convert(tmp_path, slices=True, axis=axis)
    assert str(error.value).endswith(
        f"case_00001/imaging.nii.gz: found values from {shown.min()} to {shown.max()} in slice {first}, "
        "which is labelled and becomes a single grey in the window -160 to 240, expected HU; subtract what "
        "was added to them (often 1024) or give another --window"
    )
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path, slices=True, axis=axis, window=(-160, 2000))
    assert "no value below 0, so perhaps not in HU: 1 file(s), e.g. case_00001/imaging.nii.gz" in caplog.text
    picture = pixels(dataset.case(f"case_00001_s{first:04d}").images[0])
    expected = shown.T if axis == "axial" else shown[:, ::-1].T
    assert np.abs(picture - grey(expected.astype(float), -160, 2000)).max() <= 1


def test_only_slices_with_foreground_must_have_contrast(tmp_path):
    """A slice of nothing but air is a fair example of nothing; a labelled one in HU is a damaged scan."""
    folder = save_case(tmp_path / "kits19", 0, "LPS")
    image, _ = scan(0)
    image[:, :, 0] = -1000
    save(folder / "imaging.nii.gz", image, "LPS")
    dataset = convert(tmp_path, "Dataset020_A", slices=True, which="all")
    assert not pixels(dataset.case("case_00000_s0000").images[0]).any()
    image[:, :, 5] = 0
    save(folder / "imaging.nii.gz", image, "LPS")
    refused(
        tmp_path / "hu",
        "from 0 to 0 in slice 5, which is labelled",
        source=tmp_path / "kits19",
        slices=True,
        keep_hu=True,
    )


@pytest.mark.parametrize("window", [(-np.inf, np.inf), (0, np.inf), (np.nan, 1), (5, 5), (-1e308, 1e308)])
def test_a_window_is_a_finite_range(tmp_path, window):
    save_case(tmp_path / "kits19", 0)
    refused(tmp_path, "found --window .*, expected two numbers, LOW below HIGH", slices=True, window=window)


def test_labels_that_scaling_puts_beside_their_numbers(tmp_path):
    """nibabel stores a float label with a scan's header as scaled int16: 1 becomes 1.00001526."""
    folder = save_case(tmp_path / "kits19", 0)
    scan_file, file = nib.load(folder / "imaging.nii.gz"), folder / "segmentation.nii.gz"
    label = nib.load(file).get_fdata().astype(np.float32)
    nib.save(nib.Nifti1Image(label, scan_file.affine, scan_file.header), file)
    stored = nib.load(file).get_fdata()
    assert (stored != np.rint(stored)).any()
    dataset = convert(tmp_path)
    np.testing.assert_array_equal(nib.load(dataset.training_cases[0].label).get_fdata(), label)
    dataset = convert(tmp_path, "Dataset020_S", slices=True, which="lesion")
    indices = [int(case.id[-2:]) for case in dataset.training_cases]
    assert indices == [5, 6, 7]  # of the file, whose axis runs down
    assert dataset.read_label(dataset.training_cases[0].label).max() == 2


def test_a_case_that_lost_its_segmentation_is_named(tmp_path, caplog):
    for number in (0, 1, 2, 210):
        save_case(tmp_path / "kits19", number, labelled=number in (0, 2))
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path)
    assert [case.id for case in dataset.test_cases] == ["case_00001", "case_00210"]
    assert "1 case(s) before the last labelled one become test cases" in caplog.text
    assert caplog.text.count("case_00001") == 1
    assert "case_00210" not in caplog.text


def test_regions(tmp_path):
    save_case(tmp_path / "kits19", 0)
    dataset = convert(tmp_path, regions=True)
    assert dataset.regions == {"kidney and tumour": (1, 2), "tumour": (2,)}
    assert dataset.json["regions_class_order"] == [1, 2]


def rewrite(path: Path, shape: tuple | None = None, dtype=None, affine=None) -> None:
    """Store a volume again as another type, shape or at another place."""
    old = nib.load(path)
    values = np.asarray(old.dataobj).astype(dtype or old.get_data_dtype())
    new = nib.Nifti1Image(values.reshape(shape or values.shape), old.affine if affine is None else affine)
    nib.save(new, path)


def patch(path: Path, field: str, value) -> None:
    """Change a field of the header and nothing else."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(content, nib.Nifti1Header.template_dtype, 1)
    header[field] = value
    path.write_bytes(gzip.compress(bytes(content)))


def traps(folder: Path) -> None:
    """Cases 1 to 7: what is odd but clear."""
    image, label = ("imaging.nii.gz", "segmentation.nii.gz")
    shape = nib.load(folder / "case_00001" / image).shape
    rewrite(folder / "case_00001" / image, shape=(*shape, 1))
    rewrite(folder / "case_00001" / label, shape=(*shape, 1, 1), dtype=np.float64)
    patch(folder / "case_00002" / image, "scl_slope", 2)
    patch(folder / "case_00002" / image, "scl_inter", -24)
    patch(folder / "case_00003" / image, "scl_slope", 0.5)
    shifted = nib.load(folder / "case_00004" / image).affine
    shifted[:3, 3] += 0.05
    rewrite(folder / "case_00004" / label, affine=shifted)
    patch(folder / "case_00005" / image, "pixdim", np.ones(8))  # sform keeps the truth
    patch(folder / "case_00005" / label, "pixdim", np.ones(8))
    rewrite(folder / "case_00006" / image, dtype=">f4")
    patch(folder / "case_00007" / label, "sform_code", 0)  # and no qform: says nothing about its place


def test_odd_headers_are_read_and_written_plainly(tmp_path, caplog):
    for number in range(8):
        save_case(tmp_path / "kits19", number)
    traps(tmp_path / "kits19")
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path)
    for number, case in enumerate(dataset.training_cases):
        image, label = scan(number)
        expected = {2: image * 2.0 - 24, 3: image * 0.5}.get(number, image)
        values, read_label = dataset.read_case(case)
        np.testing.assert_array_equal(values[0], kits_array(expected))
        np.testing.assert_array_equal(read_label, kits_array(label))
        pair = [sitk.ReadImage(str(path)) for path in (case.images[0], case.label)]
        for volume in pair:
            assert volume.GetSpacing() == pytest.approx((3.0, 0.78, 0.78), abs=1e-5)
            assert volume.GetDirection() == pytest.approx((0, 0, 1, 0, 1, 0, -1, 0, 0), abs=1e-5)
        assert pair[0].GetOrigin() == pytest.approx(pair[1].GetOrigin(), abs=1e-4)
    types = [nib.load(case.images[0]).get_data_dtype() for case in dataset.training_cases]
    assert types == [np.int16] * 3 + [np.float32] + [np.int16] * 2 + [np.float32, np.int16]
    names = [nib.load(case.label).get_data_dtype().name for case in dataset.training_cases]
    assert names == ["uint8"] * 8
    assert "sform, qform, pixdim or unit disagree" in caplog.text
    assert "further axes of length 1 dropped: 2 file(s), e.g. case_00001/" in caplog.text
    assert "label written anew as uint8 with the image's geometry: 4 file(s)" in caplog.text


def kits_array(values: np.ndarray) -> np.ndarray:
    """Axes (left, posterior, superior) -> what SimpleITK reads from KiTS19's order of axes."""
    return values[:, :, ::-1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_value(path: Path, value, dtype=None) -> None:
    old = nib.load(path)
    values = np.asarray(old.dataobj).astype(dtype or old.get_data_dtype())
    values[3, 20, 20] = value
    nib.save(nib.Nifti1Image(values, old.affine), path)


def as_colour(path: Path) -> None:
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), path)


def moved(path: Path, millimetres: float) -> None:
    affine = nib.load(path).affine
    affine[2, 3] += millimetres
    rewrite(path, affine=affine)


BAD_FILES = {
    "imaging": [
        (cut, "imaging.nii.gz: cannot be read"),
        (lambda path: path.write_bytes(b"not gzip"), "imaging.nii.gz: cannot be read"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "get_imaging"),
        (Path.unlink, r"no imaging.nii.gz \(1 of 2 cases\).*python3 -m starter_code.get_imaging"),
        (lambda path: with_value(path, np.nan, np.float32), r"found NaN or Inf in \[:, :, 20\]"),
        (as_colour, "found colour voxels"),
        (lambda path: rewrite(path, dtype=np.complex64), "found complex voxels"),
        (lambda path: rewrite(path, shape=(6, 36, 40, 2)), r"shape \(6, 36, 40, 2\), expected 3D"),
        (
            lambda path: rewrite(path, shape=(6, 72, 40)),
            r"found size \(12, 36, 40\), expected the image's \(6",
        ),
        (lambda path: patch(path, "srow_x", (0, 0.5, -0.78, 0)), "found sheared axes"),
    ],
    "segmentation": [
        (cut, "segmentation.nii.gz: cannot be read"),
        (lambda path: with_value(path, 3), "found values from 0 to 3, expected 0 background, 1 kidney"),
        (lambda path: with_value(path, -1, np.int16), "found values from -1 to 2"),
        (lambda path: with_value(path, 0.5, np.float32), "found fractional values from 0 to 2"),
        (lambda path: moved(path, 3), "found it lying 3 mm off its image"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    ],
}


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize(
    ("name", "spoil", "message"), [(name, *case) for name, cases in BAD_FILES.items() for case in cases]
)
def test_bad_files_are_one_line(tmp_path, name, spoil, message, slices):
    for number in range(2):
        save_case(tmp_path / "kits19", number)
    spoil(tmp_path / "kits19" / "case_00000" / f"{name}.nii.gz")
    refused(tmp_path, message, slices=slices)


def test_options_are_checked(tmp_path):
    refused(tmp_path, "found no folder case_XXXXX")
    save_case(tmp_path / "kits19", 0, labelled=False)
    refused(tmp_path, "found no segmentation.nii.gz")
    save_case(tmp_path / "kits19", 1)
    refused(tmp_path, "found --which without --slices", which="all")
    refused(tmp_path, "found --window without --slices", window=(-10, 10))
    refused(tmp_path, "found --slices-per-case without --slices", slices_per_case=2)
    refused(tmp_path, "found --keep-hu with --window", slices=True, keep_hu=True, window=(0, 10))
    refused(tmp_path, "found --window 10 -10, expected two numbers, LOW", slices=True, window=(10, -10))
    refused(tmp_path, "found --slices-per-case 0", slices=True, slices_per_case=0)
    refused(tmp_path, "found --workers 0", workers=0)
    refused(tmp_path, "found --max-side 5", slices=True, max_side=5)
    patch(tmp_path / "kits19" / "case_00001" / "imaging.nii.gz", "sform_code", 0)
    refused(tmp_path, "found neither sform nor qform", slices=True)


def grey(hu: np.ndarray, low: float = -160, high: float = 240) -> np.ndarray:
    return np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


@pytest.mark.parametrize("codes", [KITS, "LPS", "RAS", "SAR", "PIR", "ILA"])
def test_axial_slices_lie_the_same_way_whatever_the_file(tmp_path, codes):
    """Rows from anterior to posterior, columns from the patient's right to the left."""
    for number in range(2):
        save_case(tmp_path / "kits19", number, codes)
    dataset = convert(tmp_path, slices=True)
    assert dataset.channel_names == ["grey"] and dataset.file_ending == ".png"
    assert dataset.json["window"] == "-160 to 240 HU"
    upwards = "S" in codes
    for number in range(2):
        image, label = scan(number)
        for z in range(2, 9):
            case = dataset.case(f"case_{number:05d}_s{z if upwards else 11 - z:04d}")
            assert np.abs(pixels(case.images[0]) - grey(image[:, :, z].T)).max() <= 1
            np.testing.assert_array_equal(pixels(case.label), label[:, :, z].T)
    assert len(dataset.training_cases) == 2 * 7
    assert set(dataset.groups.values()) == {"case_00000", "case_00001"}
    assert dataset.groups["case_00001_s0005"] == "case_00001"


@pytest.mark.parametrize("codes", [KITS, "RAS"])
def test_coronal_and_sagittal_slices_have_the_head_up(tmp_path, codes, caplog):
    save_case(tmp_path / "kits19", 0, codes)
    image, label = scan(0)
    with caplog.at_level(logging.WARNING):
        for axis, name in (("coronal", "Dataset020_C"), ("sagittal", "Dataset021_S")):
            dataset = convert(tmp_path, name, slices=True, axis=axis, which="all")
            assert len(dataset.training_cases) == image.shape[axis == "coronal"]
            index = 9
            if axis == "coronal":
                number = index if codes == KITS else 35 - index
                hu, mask = image[:, index, ::-1].T, label[:, index, ::-1].T
            else:
                number = index if codes == KITS else 39 - index
                hu, mask = image[index, :, ::-1].T, label[index, :, ::-1].T
            case = dataset.case(f"case_00000_s{number:04d}")
            assert np.abs(pixels(case.images[0]) - grey(hu)).max() <= 1
            np.testing.assert_array_equal(pixels(case.label), mask)
    assert "pixels are not square" in caplog.text
    assert "1 patient(s): no folds by patient" in caplog.text


def test_which_slices_window_and_size(tmp_path):
    for number in range(6):
        save_case(tmp_path / "kits19", number, "LPS")
    save_case(tmp_path / "kits19", 7, "LPS", labelled=False)
    empty = tmp_path / "kits19" / "case_00006"
    image, label = scan(6)
    save(empty / "imaging.nii.gz", image, "LPS")
    save(empty / "segmentation.nii.gz", label * 0, "LPS")

    def slices(dataset, number):
        cases = (*dataset.training_cases, *dataset.test_cases)
        return [int(case.id[-4:]) for case in cases if case.id.startswith(f"case_{number:05d}")]

    dataset = convert(tmp_path, "Dataset020_L", slices=True, which="lesion", window=(-1000, 500), max_side=32)
    assert [slices(dataset, i) for i in (0, 5, 6)] == [[4, 5, 6], [4, 5, 6], []]
    assert slices(dataset, 7) == list(range(12))
    assert pixels(dataset.training_cases[0].images[0]).shape == (29, 32)
    assert dataset.description.max_side == 32
    assert set(np.unique(pixels(dataset.training_cases[0].label))) == {0, 1, 2}

    dataset = convert(tmp_path, "Dataset021_F", slices=True, slices_per_case=3, window=(-1000, 500))
    assert [slices(dataset, i) for i in (0, 6, 7)] == [[3, 5, 7], [], [2, 6, 10]]
    case = dataset.case("case_00002_s0005")
    assert np.abs(pixels(case.images[0]) - grey(scan(2)[0][:, :, 5].T, -1000, 500)).max() <= 1
    assert all(case.label is None for case in dataset.test_cases)
    splits = read_splits(dataset)
    assert len(splits) == 5
    for fold in splits:
        train, val = ({dataset.groups[case_id] for case_id in fold[side]} for side in ("train", "val"))
        assert train and val and not train & val

    dataset = convert(tmp_path, "Dataset022_A", slices=True, which="all", slices_per_case=4, workers=3)
    assert [slices(dataset, i) for i in (0, 6)] == [[1, 4, 7, 10]] * 2


@pytest.mark.parametrize("codes", [KITS, "RAS"])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_in_hu_keep_their_place_in_the_patient(tmp_path, codes, axis):
    """Every pixel's point in space holds the same value in the slice and in the volume."""
    save_case(tmp_path / "kits19", 0, codes)
    dataset = convert(tmp_path, slices=True, keep_hu=True, axis=axis)
    assert dataset.channel_names == ["CT"] and dataset.file_ending == ".nii.gz"
    volume = sitk.ReadImage(str(tmp_path / "kits19" / "case_00000" / "imaging.nii.gz"))
    assert len(dataset.training_cases) == {"axial": 7, "coronal": 8, "sagittal": 15}[axis]
    for case in dataset.training_cases[::3]:
        image = sitk.ReadImage(str(case.images[0]))
        assert image.GetSize()[2] == 1 and image.GetPixelID() == sitk.sitkInt16
        assert np.linalg.det(np.array(image.GetDirection()).reshape(3, 3)) == pytest.approx(1)
        columns, rows = np.array(image.GetDirection()).reshape(3, 3).T[:2]
        turned = {"axial": ((1, 0, 0), (0, 1, 0)), "coronal": ((1, 0, 0), (0, 0, -1))}
        expected = turned.get(axis, ((0, 1, 0), (0, 0, -1)))  # ITK's axes point left, posterior, superior
        np.testing.assert_allclose((columns, rows), expected, atol=1e-6)
        for index in ((0, 0, 0), (7, 3, 0), (image.GetSize()[0] - 1, image.GetSize()[1] - 1, 0)):
            point = image.TransformIndexToPhysicalPoint(index)
            assert image[index] == volume[volume.TransformPhysicalPointToIndex(point)]
        label = sitk.ReadImage(str(case.label))
        assert label.GetOrigin() == pytest.approx(image.GetOrigin())
        assert (image.GetSize(), image.GetDirection()) == (label.GetSize(), label.GetDirection())
    assert dataset.read_case(dataset.training_cases[0])[0].shape[1] == 1


CONVERT = """
import sys
from pathlib import Path
from dataset_conversion.kits19 import ConvertKits19, convert_kits19
for source in sys.argv[2:]:
    out = Path(source) / "out" / "Dataset019_KiTS"
    convert_kits19(ConvertKits19(source=Path(source), out=out, slices=sys.argv[1] == "slices"))
    peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print("PEAK", int(peak[0].split()[1]) * 1024)
"""


def command(kind: str, *sources: Path) -> list[str]:
    return [sys.executable, "-c", CONVERT, kind, *map(str, sources)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["slices", "volumes"])
def test_a_killed_conversion_goes_on(tmp_path, kind):
    for number in range(6):
        save_case(tmp_path / "kits19", number)
        big = scan(number, (192, 192, 24))
        for name, values in zip(("imaging", "segmentation"), big, strict=True):
            values = values.astype(np.float64) if name == "segmentation" else values  # is written anew
            save(tmp_path / "kits19" / f"case_{number:05d}" / f"{name}.nii.gz", values)
    out = tmp_path / "kits19" / "out" / "Dataset019_KiTS"
    partial = out.parent / f".{out.name}.partial"
    process = subprocess.Popen(
        command(kind, tmp_path / "kits19"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not list(partial.glob(".journal/*.json")):
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    finished = json.loads((partial / ".journal" / "case_00000.json").read_text())["files"]
    assert not (partial / ".journal" / "case_00005.json").exists()
    (partial / "imagesTr" / "half.nii.gz").write_bytes(b"half")
    changed = tmp_path / "kits19" / "case_00003" / "segmentation.nii.gz"
    os.utime(changed, (0, 0))
    written = {name: (partial / name).stat() for name in finished}

    whole = tmp_path / out.name
    for target in (out, whole):
        convert_kits19(ConvertKits19(source=tmp_path / "kits19", out=target, slices=kind == "slices"))
    for name, before in written.items():
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("slices", [False, True])
def test_killed_after_its_rename_it_says_that_it_is_done(tmp_path, caplog, slices):
    for number in range(2):
        save_case(tmp_path / "kits19", number)
    folder = convert(tmp_path, slices=slices).folder
    files = contents(folder)
    (folder / ".journal").mkdir()  # what is removed last
    (folder / ".journal" / "options").write_text("{}")
    (tmp_path / f".{folder.name}.lock").touch()
    with caplog.at_level(logging.INFO):
        convert(tmp_path, slices=slices, workers=2)
    assert "is finished already" in caplog.text and contents(folder) == files
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "kits19"]
    with pytest.raises(UserError, match="found existing content"):
        convert(tmp_path, slices=slices, regions=True)


def test_an_error_keeps_finished_cases_and_other_options_start_anew(tmp_path):
    for number in range(3):
        save_case(tmp_path / "kits19", number)
    last = tmp_path / "kits19" / "case_00002" / "imaging.nii.gz"
    content = last.read_bytes()
    cut(last)
    with pytest.raises(UserError, match="cannot be read"):
        convert(tmp_path, slices=True)
    journal = tmp_path / ".Dataset019_KiTS.partial" / ".journal"
    assert sorted(path.stem for path in journal.glob("*.json")) == ["case_00000", "case_00001"]
    last.write_bytes(content)
    dataset = convert(tmp_path, slices=True, window=(-1000, 1000))
    assert (
        np.abs(
            pixels(dataset.case("case_00000_s0005").images[0]) - grey(scan(0)[0][:, :, 6].T, -1e3, 1e3)
        ).max()
        <= 1
    )
    assert not journal.exists()


@pytest.mark.parametrize("kind", ["slices", "volumes", "turned"])
def test_memory_is_a_few_times_one_volume_however_many_cases(tmp_path, kind):
    """The peak of one process that converts a small case, four of them, and one of six times the size.

    Turned: they have other axes than most cases.
    """
    sources = [tmp_path / name for name in ("first", "small", "many", "large")]
    for source, depth, cases in zip(sources, (40, 40, 40, 240), (2, 1, 4, 1), strict=True):
        image, label = np.zeros((2, 256, 256, depth), np.int16)
        label[5:20, 8:16] = 1  # foreground in every slice
        image[5:10] = 100
        for number in range(cases):
            codes = "RAS" if kind == "turned" else KITS
            save(source / f"case_{number:05d}" / "imaging.nii.gz", image, codes)
            save(source / f"case_{number:05d}" / "segmentation.nii.gz", label, codes)
        for number in range(90, 95 if kind == "turned" else 90):
            save_case(source, number)
    done = subprocess.run(command(kind, *sources), check=True, capture_output=True, text=True)
    _, small, many, large = (int(text.split()[0]) for text in done.stdout.split("PEAK ")[1:])
    slice_bytes = 256 * 256 * 2
    assert many - small < 20 * slice_bytes
    assert large - small < 1.6 * 200 * slice_bytes


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_real_slices_and_masks_come_back(tmp_path):
    """Volumes built of the real pictures, in KiTS19's own order of axes, and converted to slices again."""
    stems: dict[str, list[Path]] = {}
    for path in sorted((SHARED / "kits19_slices" / "masks").glob("*.png")):
        if Image.open(path).size == (512, 512):
            stems.setdefault(path.stem[:10], []).append(path)
    chosen = {case: paths[:3] for case, paths in list(stems.items())[:3]}
    for case, paths in chosen.items():
        masks = np.stack([np.asarray(Image.open(path)) for path in paths])  # (slice, row, column): I, P, L
        images = np.stack([pixels(path.parents[1] / "images" / path.name) for path in paths])
        affine = np.array([[0, 0, -0.9, 0], [0, -0.9, 0, 0], [-3, 0, 0, 0], [0, 0, 0, 1.0]])
        folder = tmp_path / "kits19" / "data" / case
        folder.mkdir(parents=True)
        hu = (images / 255 * 400 - 160).astype(np.float32)
        nib.save(nib.Nifti1Image(hu, affine), folder / "imaging.nii.gz")
        nib.save(nib.Nifti1Image(masks, affine), folder / "segmentation.nii.gz")
    dataset = convert(tmp_path, slices=True)
    assert len(dataset.training_cases) == sum(map(len, chosen.values()))
    for case, paths in chosen.items():
        for number, path in enumerate(paths):
            made = dataset.case(f"{case}_s{number:04d}")
            np.testing.assert_array_equal(pixels(made.label), pixels(path))
            np.testing.assert_array_equal(
                pixels(made.images[0]), pixels(path.parents[1] / "images" / path.name)
            )


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_real_masks_of_every_patient_as_volumes(tmp_path):
    """One volume of each of 12 patients, of his real label slices."""
    stems: dict[str, list[Path]] = {}
    for path in sorted((SHARED / "kits19_masks" / "masks").glob("*.png")):
        stems.setdefault(path.stem[:10], []).append(path)
    for case, paths in list(stems.items())[:12]:
        label = np.stack([np.asarray(Image.open(path)) for path in paths[:3]])
        affine = np.array([[0, 0, -0.9, 0], [0, -0.9, 0, 0], [-3, 0, 0, 0], [0, 0, 0, 1.0]])
        folder = tmp_path / "kits19" / case
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(label.astype(np.int16) * 60 - 20, affine), folder / "imaging.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "segmentation.nii.gz")
    dataset = convert(tmp_path, regions=True)
    assert len(dataset.training_cases) == 12
    for case in dataset.training_cases:
        image, label = dataset.read_case(case)
        np.testing.assert_array_equal(image[0], label * 60 - 20)
        assert set(np.unique(label)) == {0, 1, 2}
