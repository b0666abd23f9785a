"""The drawn polyp images: deterministic, exact, of the promised sizes, learnable but not trivial."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion.phantom import LARGEST, SMALLEST, ConvertPhantom, convert_phantom, phantom_case
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom_case(0, index, 96) for index in range(150)]


def test_shapes_kinds_and_values(cases):
    for image, mask in cases:
        assert (image.shape, image.dtype) == ((96, 96, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((96, 96), np.uint8)
        assert set(np.unique(mask)) == {0, 1}


def test_sizes_numbers_and_cut_polyps(cases):
    from scipy.ndimage import label

    areas = np.array([mask.mean() for _, mask in cases])
    assert SMALLEST <= areas.min() < 0.02
    assert 0.2 < areas.max() < LARGEST + 0.06
    assert 0.01 < np.median(areas) < 0.1  # log-uniform: half of the images have a small lesion
    numbers = {label(mask)[1] for _, mask in cases}
    assert numbers == {1, 2, 3}
    cut = [mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any() for _, mask in cases]
    assert 0.1 < np.mean(cut) < 0.9


def test_same_seed_same_bytes_other_seed_other_image():
    image, mask = phantom_case(3, 5, 64)
    again, mask_again = phantom_case(3, 5, 64)
    assert image.tobytes() == again.tobytes()
    assert mask.tobytes() == mask_again.tobytes()
    for other in (phantom_case(4, 5, 64), phantom_case(3, 6, 64)):
        assert (image != other[0]).mean() > 0.5


def test_polyps_differ_from_their_surroundings_but_no_threshold_finds_them(cases):
    """Shuffled masks say what chance is; a grey threshold is the trivial segmenter."""
    from scipy.ndimage import binary_dilation

    contrast, threshold_dice = [], []
    for image, mask in cases:
        grey, inside = image.mean(axis=2), mask.astype(bool)
        ring = binary_dilation(inside, iterations=6) & ~binary_dilation(inside, iterations=1)
        colour = np.abs(image[inside].mean(axis=0) - image[ring].mean(axis=0)).max()
        contrast.append(colour / image[ring].std(axis=0).mean())
        threshold_dice.append(best_threshold_dice(grey, inside))
    assert np.median(contrast) > 0.3
    assert np.mean(threshold_dice) < 0.5


def best_threshold_dice(grey: np.ndarray, inside: np.ndarray) -> float:
    """Best Dice that any single grey threshold, bright or dark, reaches on this image."""
    best = 0.0
    for level in np.percentile(grey, range(5, 100, 5)):
        for found in (grey > level, grey < level):
            best = max(best, 2 * (found & inside).sum() / (found.sum() + inside.sum()))
    return best


def folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def test_convert_writes_a_data_set_that_nnunet_accepts(tmp_path, monkeypatch):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    folders = [tmp_path / "a" / "Dataset900_Phantom", tmp_path / "b" / "Dataset900_Phantom"]
    for folder in folders:
        convert_phantom(ConvertPhantom(out=folder, cases=6, test_cases=2, size=64, seed=1))
    verify_dataset_integrity(str(folders[0]), 1)
    assert folder_hash(folders[0]) == folder_hash(folders[1])
    dataset = read_dataset(folders[0])
    assert [case.id for case in dataset.test_cases] == ["phantom_0006", "phantom_0007"]
    image, mask = dataset.read_case(dataset.test_cases[1])
    expected_image, expected_mask = phantom_case(1, 7, 64)
    np.testing.assert_array_equal(image[:, 0], expected_image.transpose(2, 0, 1))
    np.testing.assert_array_equal(mask[0], expected_mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 0}, "found --cases 0, expected 1 or more; change it"),
        ({"test_cases": -1}, "found --test-cases -1, expected 0 or more; change it"),
        ({"size": 8}, "found --size 8, expected 32 or more; change it"),
        ({"seed": -1}, "found --seed -1, expected 0 to 4294967295; change it"),
    ],
)
def test_senseless_options_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert_phantom(ConvertPhantom(out=tmp_path / "Dataset900_Phantom", **options))
    assert list(tmp_path.iterdir()) == []
