"""The drawn CT volumes: deterministic, of plausible densities, with tumours that grow from kidneys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_dilation, label

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.phantom_ct import phantom_ct_case
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError

Cases = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def cases() -> Cases:
    return [phantom_ct_case(0, index, 64, 12) for index in range(40)]


def test_shapes_types_and_geometry(cases):
    spacings = np.array([np.abs(affine.diagonal()[:3]) for *_, affine in cases])
    for image, mask, affine in cases:
        assert (image.shape, image.dtype) == ((64, 64, 12), np.int16)
        assert (mask.shape, mask.dtype) == ((64, 64, 12), np.uint8)
        assert affine[0, 0] < 0 and affine[1, 1] < 0 < affine[2, 2]  # left, posterior, superior
    assert (spacings[:, 0] == spacings[:, 1]).all() and len(np.unique(spacings[:, 0])) == 40
    assert 0.6 <= spacings[:, 0].min() < 0.7 and 0.8 < spacings[:, 0].max() <= 0.9
    assert 3 <= spacings[:, 2].min() < 3.5 and 4.5 < spacings[:, 2].max() <= 5
    assert len({tuple(affine[:3, 3]) for *_, affine in cases}) == 40


def test_densities_of_an_abdomen(cases):
    for image, mask, _ in cases:
        assert (image < -900).mean() > 0.3  # air around the body
        assert image.min() >= -1024 and image.max() > 300  # bone
        assert 0 < np.median(image[mask == 1]) < 260
        assert -120 < np.median(image[16:48, 16:48]) < 150  # fat and organs
    contrast = [np.median(image[mask == 1]) for image, mask, _ in cases]
    assert np.ptp(contrast) > 80  # phases of contrast medium


def test_tumours_grow_from_kidneys_and_vary(cases):
    sizes = []
    for _, mask, _ in cases:
        assert (mask == 1).sum() > 200
        parts, number = label(mask == 2)
        assert number <= 3  # two tumours, of which a kidney may cut one
        for part in range(1, number + 1):
            grown = binary_dilation(parts == part)
            assert (mask[grown] == 1).any()
        sizes.append((mask == 2).sum() / (mask > 0).sum())
    sizes = np.array(sizes)
    assert 0.08 < (sizes == 0).mean() < 0.35
    assert np.quantile(sizes[sizes > 0], 0.15) < 0.08 and sizes.max() > 0.25


def test_no_window_of_densities_is_the_kidney_or_the_tumour(cases):
    """Spleen, liver, vessels and bowel share the densities: a trivial segmenter fails."""
    scores = {1: [], 2: []}
    for image, mask, _ in cases:
        for value in (1, 2):
            inside = mask == value
            if inside.any():
                low, high = np.quantile(image[inside], (0.1, 0.9))
                found = (image >= low) & (image <= high)
                scores[value].append(2 * (found & inside).sum() / (found.sum() + inside.sum()))
    assert np.mean(scores[1]) < 0.6
    assert np.mean(scores[2]) < 0.35


def test_tumours_differ_from_the_kidney_around_them(cases):
    difference = [
        abs(np.median(image[mask == 2]) - np.median(image[mask == 1])) / image[mask == 1].std()
        for image, mask, _ in cases
        if (mask == 2).any()
    ]
    assert np.median(difference) > 0.7


def test_noise_is_correlated(cases):
    correlations = []
    for image, _, _ in cases:
        air = image[:, :2].astype(float)  # in front of the patient
        correlations.append(np.corrcoef(air[1:].ravel(), air[:-1].ravel())[0, 1])
    assert np.median(correlations) > 0.25


@pytest.mark.parametrize(("size", "slices"), [(32, 4), (48, 30)])
def test_other_sizes(size, slices):
    for index in range(8):
        image, mask, _ = phantom_ct_case(5, index, size, slices)
        assert image.shape == mask.shape == (size, size, slices)
        assert (mask == 1).any()


def test_same_seed_same_bytes_other_seed_other_volume():
    first, again = phantom_ct_case(3, 5, 48, 8), phantom_ct_case(3, 5, 48, 8)
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    for other in (phantom_ct_case(4, 5, 48, 8), phantom_ct_case(3, 6, 48, 8)):
        assert (first[0] != other[0]).mean() > 0.5


def test_convert_writes_the_same_volumes_that_nnunet_reads(tmp_path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    folders = [tmp_path / name / "Dataset900_CT" for name in ("a", "b")]
    for folder in folders:
        convert_phantom(
            ConvertPhantom(out=folder, kind="ct", cases=3, test_cases=1, size=48, slices=8, seed=2)
        )
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.nii.gz"))
    assert len(files) == 8
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    dataset = read_dataset(folders[0])
    assert dataset.channel_names == ["CT"]
    assert dataset.regions == {"kidney": (1,), "tumour": (2,)}
    image, mask, affine = phantom_ct_case(2, 3, 48, 8)
    values, read_label = dataset.read_case(dataset.test_cases[0])
    np.testing.assert_array_equal(values[0], image.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_label, mask.transpose(2, 1, 0))
    header = sitk.ReadImage(str(dataset.test_cases[0].images[0]))
    assert header.GetPixelID() == sitk.sitkInt16
    assert header.GetDirection() == pytest.approx(np.eye(3).ravel())
    assert header.GetOrigin() == pytest.approx(np.array([-1, -1, 1]) * affine[:3, 3], abs=1e-4)
    for case in dataset.training_cases:
        assert check_cases([str(case.images[0])], str(case.label), 1, SimpleITKIO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ct", "slices": 3}, "found --slices 3, expected 4 or more; change it"),
        ({"kind": "ct", "size": 16}, "found --size 16, expected 32 or more; change it"),
        ({"kind": "ct", "cases": 0}, "found --cases 0, expected 1 or more; change it"),
        ({"slices": 8}, "found --slices with endoscopy images, expected --kind ct"),
    ],
)
def test_senseless_options_are_refused(tmp_path: Path, options, message):
    with pytest.raises(UserError, match=message):
        convert_phantom(ConvertPhantom(out=tmp_path / "Dataset900_CT", **options))
    assert list(tmp_path.iterdir()) == []
