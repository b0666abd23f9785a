"""Masks to generate from: reading, and augmentations that keep a lesion a lesion."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from dataset_conversion.phantom import phantom_case
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.raw.held_out import group_by_name
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from dataset_conversion.system.errors import UserError
from law_synth.generation.augmentation import augment
from law_synth.generation.mask_files import MaskFolder, read_mask
from law_synth.generation.warps import draw_coordinates, warp
from law_synth.view.classes import Classes
from law_synth.view.mask_sources import MaskSource, case_masks, mask_hash, mask_stem
from law_synth.view.resize import resize_mask
from law_synth.view.slices import Slice, SliceView, view_of

KINDS = ("flip", "affine", "elastic")


def disc(height: int = 60, width: int = 90, y: float = 25, x: float = 50, radius: float = 9) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (np.hypot(rows - y, columns - x) < radius).astype(np.uint8)


def touches(mask: np.ndarray) -> bool:
    return bool(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any())


def ellipse() -> np.ndarray:
    rows, columns = np.mgrid[:60, :90]
    return (((rows - 25) / 14) ** 2 + ((columns - 40) / 6) ** 2 < 1).astype(np.uint8)


MASKS = {
    "disc": disc(),
    "ellipse": ellipse(),
    "cut by the border": disc(x=4),
    "tiny": disc(radius=1.5),
    "almost everything": np.pad(np.ones((56, 86), np.uint8), 2),
    "two": disc(x=20) | disc(x=70, radius=4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKS)
def test_augmentation_keeps_area_border_and_presence(kind, name):
    mask, changed = MASKS[name], 0
    for seed in range(20):
        new = augment(mask, kind, seed, size=32)
        assert new.shape == mask.shape and new.dtype == np.uint8 and set(np.unique(new)) <= {0, 1}
        assert abs(int(new.sum()) - int(mask.sum())) <= 0.1 * mask.sum()
        assert touches(new) == touches(mask)
        assert resize_mask(new, 32).any() == resize_mask(mask, 32).any()
        np.testing.assert_array_equal(new, augment(mask, kind, seed, size=32))
        changed += not np.array_equal(new, mask)
    assert changed >= 10 or name == "almost everything"


def test_augmentations_of_real_shapes_differ_by_seed_and_keep_area():
    for index in range(8):
        mask = phantom_case(0, index, 96)[1]
        for kind in ("affine", "elastic"):
            variants = [augment(mask, kind, seed, 96) for seed in range(6)]
            assert len({mask_hash(variant) for variant in variants}) >= (2 if touches(mask) else 5)
            assert all(abs(int(v.sum()) / int(mask.sum()) - 1) <= 0.1 for v in variants)


def test_affine_moves_and_turns_without_scaling():
    """Second moments: determinant (squared area) kept, main axis turned, centre moved."""
    turned = moved = 0
    for seed in range(20):
        new = augment(ellipse(), "affine", seed, 64)
        before, after = (np.cov(np.argwhere(mask).T) for mask in (ellipse(), new))
        assert np.linalg.det(after) == pytest.approx(np.linalg.det(before), rel=0.2)
        turned += abs(after[0, 1]) > 0.2 * after[0, 0]
        moved += np.abs(np.argwhere(new).mean(0) - np.argwhere(ellipse()).mean(0)).max() > 2
    assert turned >= 8 and moved >= 12


def test_elastic_bends_the_outline_in_place():
    overlaps = []
    for seed in range(10):
        new = augment(ellipse(), "elastic", seed, 64)
        overlaps.append(2 * (new & ellipse()).sum() / (new.sum() + ellipse().sum()))
    assert min(overlaps) > 0.7 and np.mean(overlaps) < 0.97


def test_flips_are_exact_and_a_cut_lesion_is_only_flipped():
    for mask, kind in ((disc(x=20), "flip"), (disc(x=4), "affine")):
        flips = [mask, mask[::-1], mask[:, ::-1], mask[::-1, ::-1]]
        found = {
            next(i for i, flip in enumerate(flips) if np.array_equal(flip, new))
            for new in (augment(mask, kind, seed, 64) for seed in range(20))
        }
        assert found == {0, 1, 2, 3}


def test_a_mask_that_no_draw_can_keep_is_flipped():
    """A comb of single pixels breaks under every warp."""
    comb = np.zeros((40, 40), np.uint8)
    comb[10:30:2, 10:30:2] = 1
    new = augment(comb, "elastic", 3, 40)
    assert any(np.array_equal(new, flip) for flip in (comb, comb[::-1], comb[:, ::-1], comb[::-1, ::-1]))


def test_no_augmentation_and_masks_without_lesion():
    np.testing.assert_array_equal(augment(disc(), "none", 1, 64), disc())
    for kind in KINDS:
        assert not augment(np.zeros((20, 30), np.uint8), kind, 1, 64).any()
        assert augment(np.ones((20, 30), np.uint8), kind, 1, 64).all()


def organ() -> np.ndarray:
    """Two kidneys (1) with a tumour (2) in one, and a vessel (3) beside it."""
    mask = disc(100, 120, 50, 30, 18) | disc(100, 120, 50, 85, 20)
    mask[disc(100, 120, 56, 80, 8) > 0] = 2
    mask[30:70, 58:62] = 3
    return mask


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_warped_as_one(kind):
    """Areas within 10 % each, all there, and what lay inside the organ does so still."""
    changed = 0
    for seed in range(12):
        new = augment(organ(), kind, seed, 48)
        areas, before = (np.bincount(m.ravel(), minlength=4) for m in (new, organ()))
        assert len(areas) == 4 and (np.abs(areas - before) <= 0.1 * before)[1:].all()
        assert set(np.unique(resize_mask(new, 48))) == {0, 1, 2, 3}
        tumour = new == 2
        around = np.zeros_like(tumour)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            around |= np.roll(tumour, step, axis)
        assert set(np.unique(new[around & ~tumour])) == {1}
        np.testing.assert_array_equal(new, augment(organ(), kind, seed, 48))
        changed += not np.array_equal(new, organ())
    assert changed >= 6


def test_warping_classes_is_warping_each_alone_where_they_do_not_meet():
    coordinates = draw_coordinates(organ(), "elastic", np.random.default_rng(3))
    new = warp(organ(), coordinates)
    np.testing.assert_array_equal(new > 0, warp((organ() > 0).astype(np.uint8), coordinates) > 0)
    np.testing.assert_array_equal(new == 3, warp((organ() == 3).astype(np.uint8), coordinates) > 0)


def test_drawing_and_applying_are_apart():
    coordinates = np.indices((60, 90)).astype(float)
    np.testing.assert_array_equal(warp(disc(), coordinates), disc())
    np.testing.assert_array_equal(warp(disc(), coordinates + np.array([[[3]], [[0]]])), disc(y=22))
    drawn = [draw_coordinates(disc(), "elastic", np.random.default_rng(4)) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)


@pytest.fixture
def dataset(tmp_path):
    with RawDatasetWriter(tmp_path / "Dataset500_A", RGB, {"background": 0, "polyp": 1}) as writer:
        for i in range(3):
            writer.add_training_case(f"case_{i}", np.zeros((60, 90, 3), np.uint8), disc(y=20 + i))
    return read_dataset(tmp_path / "Dataset500_A")


@pytest.fixture
def view(dataset) -> SliceView:
    return view_of(dataset, [case.id for case in dataset.training_cases])


def folder_masks(folder, view) -> list[MaskSource]:
    return MaskFolder(view, [Slice("case_0")], 32, 8).sources(folder)


def test_sources_read_cases_and_files(view, tmp_path):
    sources = case_masks(view, [Slice("case_2"), Slice("case_0")])
    assert [(source.name, source.case) for source in sources] == [("case_2", "case_2"), ("case_0", "case_0")]
    np.testing.assert_array_equal(sources[0].read(), disc(y=22))

    folder = tmp_path / "masks"
    folder.mkdir()
    Image.fromarray(disc() * 255).save(folder / "b.png")
    Image.fromarray(disc(y=30)).save(folder / "case_1.png")
    (folder / "notes.txt").write_text("")
    sources = folder_masks(folder, view)
    assert [(source.name, source.case) for source in sources] == [("b.png", None), ("case_1.png", "case_1")]
    np.testing.assert_array_equal(sources[0].read(), disc())
    np.testing.assert_array_equal(sources[1].read(), disc(y=30))
    assert sources[0].sha256 == mask_hash(disc()) and sources[0].locate() is None
    assert sources[0].sha256_at_size == mask_hash(resize_mask(disc(), 32))


def test_unusable_mask_files_are_named(view, tmp_path):
    folder = tmp_path / "masks"
    with pytest.raises(UserError, match="masks: not found"):
        folder_masks(folder, view)
    folder.mkdir()
    with pytest.raises(UserError, match="found no images"):
        folder_masks(folder, view)
    Image.fromarray(disc() * 7).save(folder / "seven.png")
    with pytest.raises(UserError, match=r"seven\.png: found mask values 7, expected 0 and 1, or 0 and 255"):
        folder_masks(folder, view)
    with pytest.raises(UserError, match=r"seven\.png: found mask values 7, expected 0, 1, 5"):
        read_mask(folder / "seven.png", Classes(("a", "b"), (1, 5)))
    Image.fromarray(organ()).save(folder / "three.png")
    numbers = read_mask(folder / "three.png", Classes(("a", "b", "c", "d"), (1, 2, 3, 4)))
    np.testing.assert_array_equal(numbers, organ())
    Image.fromarray(np.array([0, 3, 9], np.uint8)[np.minimum(organ(), 2)]).save(folder / "two.png")
    np.testing.assert_array_equal(
        read_mask(folder / "two.png", Classes(("a", "b"), (3, 9))), np.minimum(organ(), 2)
    )
    Image.fromarray(disc() * 255).save(folder / "blurred.jpg")
    with pytest.raises(UserError, match="JPEG mask"):
        read_mask(folder / "blurred.jpg", view.classes)
    (folder / "broken.png").write_bytes((folder / "two.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"broken\.png: cannot be read"):
        read_mask(folder / "broken.png", view.classes)


def test_masks_of_other_kinds_are_read_or_named(view, tmp_path, caplog):
    """White-is-zero TIFF as stored, which is said; what has another ending is named."""
    folder = tmp_path / "masks"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", disc() > 0)
    tifffile.imwrite(folder / "b.tif", disc() * 255, photometric="miniswhite")
    Image.fromarray(disc() * 255).save(folder / "c.gif")
    (folder / "d.heic").write_bytes(b"")
    sources = folder_masks(folder, view)
    assert [source.name for source in sources] == ["a.tif", "b.tif", "c.gif"]
    for source in sources:
        np.testing.assert_array_equal(source.read(), disc())
    assert "white-is-zero TIFF (tag 262 is 0) read as stored" in caplog.text
    assert "2 file(s), e.g. masks/" in caplog.text
    assert "masks: 1 left out" in caplog.text and "d.heic" in caplog.text
    Image.fromarray(disc() * 255).save(folder / "e.webp")
    with pytest.raises(UserError, match="WEBP mask"):
        folder_masks(folder, view)
    caplog.clear()
    below = tmp_path / "of two readers"
    below.mkdir()
    folder.rename(below / "first")
    (below / "first" / "e.webp").unlink()
    (below / "e.heic").write_bytes(b"")
    assert [source.name for source in folder_masks(below, view)] == [f"first/{s.name}" for s in sources]
    assert "d.heic" in caplog.text and "of two readers: 1 left out" in caplog.text


def test_a_mask_belongs_to_the_longest_name_that_it_begins_with(tmp_path):
    with RawDatasetWriter(tmp_path / "Dataset500_A", RGB, {"background": 0, "polyp": 1}) as writer:
        for name in ("case_1", "case_12", "case_1_b", "scan.7"):
            writer.add_training_case(name, np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8))
    groups = {"case_1": "anna", "case_12": "berta", "scan.7": "case"}
    (tmp_path / "Dataset500_A" / "groups.json").write_text(json.dumps(groups))
    dataset = read_dataset(tmp_path / "Dataset500_A")
    for name, group in {
        "case_1.png": "anna",
        "case_1": "anna",
        "case_1_s0004.png": "anna",
        "case_12-3.nii.gz": "berta",
        "case_123.png": "case",  # the group of that name
        "case_1_b_s1.png": "case_1_b",
        "scan.7.x.png": "case",
        "berta-4.png": "berta",
        "bent/case_12_v1.png": "berta",
        "bent/case_1/v1.png": "anna",
        "case_1/case_12.png": "anna",  # the whole path goes first
        "bert.png": None,
        "xcase_1.png": None,
    }.items():
        assert group_by_name(name, dataset) == group, name
    assert group_by_name("case_1/case_12.png", dataset, held_out={"berta"}) == "berta"
    assert [mask_stem(name) for name in ("a.nii.gz", "b.c.png", "d")] == ["a", "b.c", "d"]


def test_hash_depends_on_pixels_and_size():
    assert mask_hash(disc()) == mask_hash(np.asfortranarray(disc()))
    assert mask_hash(disc()) != mask_hash(disc(y=26))
    assert mask_hash(np.zeros((2, 6), np.uint8)) != mask_hash(np.zeros((3, 4), np.uint8))
