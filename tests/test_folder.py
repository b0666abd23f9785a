"""Image and mask folders of every usual kind into nnU-Net raw format."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from dataset_conversion.folder import ConvertFolder, convert_folder
from dataset_conversion.raw.dataset import RawDataset, read_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.errors import UserError


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def picture(seed: int = 0) -> np.ndarray:
    """Smooth RGB image (40, 60, 3), so that JPEG and resizing change it little."""
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, (x + y + seed) * 2], axis=2).astype(np.uint8)


def square(value: int = 1) -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 20:50] = value
    return mask


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def make_folders(root: Path, names: tuple[str, ...] = ("a", "b", "c"), mask_name: str = "{}.png") -> None:
    for seed, name in enumerate(names):
        save(root / "images" / f"{name}.png", picture(seed))
        save(root / "masks" / mask_name.format(name), square(255))


def convert(root: Path, **options) -> RawDataset:
    options = {"images": root / "images", "masks": root / "masks", "out": root / "Dataset500_Test"} | options
    convert_folder(ConvertFolder(**options))
    return read_dataset(options["out"])


def refused(root: Path, message: str, **options) -> None:
    """The conversion raises a one-line UserError and writes nothing."""
    with pytest.raises(UserError, match=message) as error:
        convert(root, **options)
    assert "\n" not in str(error.value)
    assert not list(root.glob("*Dataset*"))


def first_case(dataset: RawDataset) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, C) and label (H, W)."""
    image, label = dataset.read_case(dataset.training_cases[0])
    return image[:, 0].transpose(1, 2, 0), label[0]


@pytest.mark.parametrize("mask_name", ["{}.png", "{}_mask.png", "{}_segmentation.tif", "{}-annotated.bmp"])
def test_masks_match_by_stem_or_common_suffix(tmp_path, mask_name):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    make_folders(tmp_path, ("1", "10", "100"), mask_name)
    dataset = convert(tmp_path)
    image, label = first_case(dataset)
    np.testing.assert_array_equal(image, picture(0))
    np.testing.assert_array_equal(label, square())
    assert [case.id for case in dataset.training_cases] == ["1", "10", "100"]
    assert not (dataset.folder / "splits_final.json").exists()
    if mask_name == "{}.png":
        verify_dataset_integrity(str(dataset.folder), 1)


def test_unmatched_files_are_named(tmp_path, caplog):
    make_folders(tmp_path)
    save(tmp_path / "masks" / "extra.png", square(255))
    with caplog.at_level(logging.WARNING):
        convert(tmp_path)
    assert "1 mask(s) without image left out: extra" in caplog.text
    save(tmp_path / "images" / "lonely.png", picture())
    with pytest.raises(UserError, match=r"found no mask for 1 of 4 images \(lonely\)"):
        convert(tmp_path, out=tmp_path / "Dataset501_Test")


def test_zero_one_masks_and_grey_edges(tmp_path, caplog):
    make_folders(tmp_path)
    save(tmp_path / "masks" / "a.png", square(1))
    blurred = square(255)
    blurred[9, 20:50], blurred[20, 20:50] = 100, 200
    save(tmp_path / "masks" / "b.png", blurred)
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path)
    labels = [dataset.read_label(case.label)[0] for case in dataset.training_cases]
    np.testing.assert_array_equal(labels[0], square())
    np.testing.assert_array_equal(labels[1], blurred > 127)
    assert "neither black nor white: 1 file(s), 60 pixels, e.g. masks/b.png" in caplog.text


def test_black_and_white_masks_of_any_depth_survive_a_threshold(tmp_path, caplog):
    """A threshold for some masks must not empty those whose white is 1."""
    make_folders(tmp_path, ("bits", "ones", "palette", "deep", "empty"))
    masks = tmp_path / "masks"
    Image.fromarray(square(255)).convert("1").save(masks / "bits.png")
    save(masks / "ones.png", square(1))
    indexed = Image.fromarray(square(1)).convert("P")
    indexed.putpalette([0, 0, 0, 128, 0, 0])
    indexed.save(masks / "palette.png")
    save(masks / "deep.png", square(1).astype(np.uint16) * 65535)
    save(masks / "empty.png", square(0))
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path, threshold=127)
    for case in dataset.training_cases:
        np.testing.assert_array_equal(dataset.read_label(case.label)[0], square(case.id != "empty"))
    assert "masks without foreground: 1 file(s), e.g. masks/empty.png" in caplog.text
    assert "neither black nor white" not in caplog.text
    save(masks / "deep.png", square(1).astype(np.uint16) * 4095)
    with pytest.raises(
        UserError, match=r"deep\.png: found values up to 4095, expected 0/1, 0/255 or 0/65535"
    ):
        convert(tmp_path, threshold=127, out=tmp_path / "Dataset501_Test")


def test_masks_whose_lesion_lies_in_alpha_or_one_channel_are_refused(tmp_path):
    make_folders(tmp_path)
    bad = tmp_path / "masks" / "b.png"
    save(bad, np.dstack([np.full((40, 60, 3), 255, np.uint8), square(255)]))
    refused(tmp_path, "b.png: found transparent pixels")
    save(bad, np.dstack([square(1), square(0), square(0)]))  # class numbers in the red channel
    refused(tmp_path, "b.png: found a coloured mask")
    for name in ("a", "c"):
        save(tmp_path / "masks" / f"{name}.png", square(1))
    refused(tmp_path, "b.png: found a coloured mask", labels=("background=0", "polyp=1", "fold=2"))
    save(bad, np.dstack([*[square(255)] * 3, np.full((40, 60), 255, np.uint8)]))
    np.testing.assert_array_equal(first_case(convert(tmp_path))[1], square())


def test_a_second_mask_of_an_image_is_not_lost(tmp_path):
    make_folders(tmp_path, mask_name="{}_mask.png")
    save(tmp_path / "masks" / "b_mask_1.png", square(255))
    refused(tmp_path, r"found 1 further masks of images that have one \(b_mask_1\)")


def test_labels_beyond_a_byte_are_refused_at_any_size(tmp_path):
    make_folders(tmp_path, ("b",))
    save(tmp_path / "masks" / "b.png", square(1).astype(np.uint16) * 257)
    for max_side in (None, 36):
        refused(tmp_path, "257", labels=("background=0", "polyp=1", "fold=2"), max_side=max_side)


def test_index_masks_with_labels(tmp_path):
    mask = square(1)
    mask[15:30, 40:] = 2
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.png", picture())
    save(tmp_path / "masks" / "a.png", mask)
    indexed = Image.fromarray(mask).convert("P")
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    indexed.save(tmp_path / "masks" / "b.png")
    refused(tmp_path, "found values up to 2, expected 0/1 or 0/255")
    dataset = convert(tmp_path, labels=("background=0", "kidney=1", "tumour=2"))
    for case in dataset.training_cases:
        np.testing.assert_array_equal(dataset.read_label(case.label)[0], mask)
    assert dataset.regions == {"kidney": (1,), "tumour": (2,)}


def test_label_options_are_checked(tmp_path):
    make_folders(tmp_path)
    refused(tmp_path, 'found label "polyp"', labels=("background=0", "polyp"))
    refused(tmp_path, "background 0", labels=("polyp=1", "fold=2"))
    refused(tmp_path, "consecutive", labels=("background=0", "polyp=1", "fold=3"))
    refused(tmp_path, r"values 255, expected only \[0, 1, 2\]", labels=("background=0", "polyp=1", "fold=2"))
    refused(tmp_path, "--threshold 300", threshold=300)
    refused(tmp_path, "--max-side 5", max_side=5)


def test_jpeg_masks_need_a_threshold(tmp_path):
    make_folders(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / "masks" / f"{name}.png").unlink()
        save(tmp_path / "masks" / f"{name}.jpg", square(255), quality=60)
    refused(tmp_path, "a.jpg: found a JPEG mask.*--threshold 127")
    refused(tmp_path, "found a JPEG mask", labels=("background=0", "polyp=1", "fold=2"))
    _, label = first_case(convert(tmp_path, threshold=127))
    np.testing.assert_array_equal(label, square())


def test_max_side_shrinks_both_and_never_enlarges(tmp_path):
    make_folders(tmp_path)
    save(tmp_path / "images" / "b.png", picture()[:20, :30])
    save(tmp_path / "masks" / "b.png", square(255)[:20, :30])
    dataset = convert(tmp_path, max_side=36)
    image, label = first_case(dataset)
    assert image.shape == (24, 36, 3)
    assert label.shape == (24, 36)
    assert set(np.unique(label)) == {0, 1}
    assert abs(label.mean() - square().mean()) < 0.02
    assert np.abs(image[12, 18] - picture()[20, 30]).max() < 8
    assert dataset.read_image(dataset.training_cases[1]).shape == (3, 1, 20, 30)
    assert dataset.description.max_side == dataset.json["max_side"] == 36


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: show rotated by 90 degrees
    save(tmp_path / "images" / "a.jpg", np.rot90(picture(), 1), exif=exif, quality=95)
    save(tmp_path / "masks" / "a.png", square(255))
    image, label = first_case(convert(tmp_path))
    assert image.shape == (40, 60, 3)
    assert np.abs(image - picture()).max() < 30
    np.testing.assert_array_equal(label, square())
    save(tmp_path / "masks" / "a.png", np.rot90(square(255)))
    refused_out = tmp_path / "Dataset501_Test"
    with pytest.raises(UserError, match=r"expected 60 x 40 as its image; .* turned alike \(EXIF tag\)"):
        convert(tmp_path, out=refused_out)
    assert not refused_out.exists()


def test_harmless_kinds_are_converted_and_said_once(tmp_path, caplog):
    make_folders(tmp_path, ("rgb",))
    folder = tmp_path / "images"
    rgba = np.dstack([picture(), np.full((40, 60), 255, np.uint8)])
    for name in ("rgba1", "rgba2"):
        save(folder / f"{name}.png", rgba)
    save(folder / "grey.png", picture()[..., 0])
    Image.fromarray(picture()).convert("P").save(folder / "palette.png")
    Image.fromarray(picture()).convert("CMYK").save(folder / "cmyk.jpg")
    for path in folder.iterdir():
        save(tmp_path / "masks" / f"{path.stem}.png", square(255))
    with caplog.at_level(logging.WARNING):
        dataset = convert(tmp_path)
    images = {case.id: dataset.read_image(case)[:, 0] for case in dataset.training_cases}
    assert len(images) == 6
    np.testing.assert_array_equal(images["rgba1"], picture().transpose(2, 0, 1))
    np.testing.assert_array_equal(images["grey"], np.stack([picture()[..., 0]] * 3))
    assert caplog.text.count("alpha") == 1
    assert "2 file(s)" in caplog.text
    for kind in ("grey", "palette", "CMYK"):
        assert f"{kind} image converted to RGB: 1 file(s)" in caplog.text


def test_kinds_that_would_lose_something_are_refused(tmp_path):
    make_folders(tmp_path)
    bad = tmp_path / "images" / "b.png"
    save(bad, np.dstack([picture(), square(255)]))
    refused(tmp_path, "b.png: found transparent pixels")
    save(bad, picture()[..., 0].astype(np.uint16) * 200)
    refused(tmp_path, "b.png: found 16-bit grey image, expected 8 bit")
    Image.fromarray(picture()).save(bad)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    refused(tmp_path, "b.png: cannot be read")
    bad.write_text("not an image")
    refused(tmp_path, "b.png: cannot be read")
    save(bad, picture()[:30])
    refused(tmp_path, "b.png: found 60 x 40 px, expected 60 x 30")
    save(bad, picture())
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[10:20, 20:30, 0] = 255
    save(tmp_path / "masks" / "b.png", colours)
    refused(tmp_path, "b.png: found a coloured mask")


def test_grey_folder_becomes_one_channel(tmp_path):
    deep = picture()[..., 0].astype(np.uint16) * 200
    save(tmp_path / "images" / "a.png", deep)
    save(tmp_path / "images" / "b.png", picture()[..., 0])
    for name in ("a", "b"):
        save(tmp_path / "masks" / f"{name}.png", square(255))
    dataset = convert(tmp_path)
    assert dataset.channel_names == ["grey"]
    np.testing.assert_array_equal(first_case(dataset)[0][..., 0], deep)


def test_test_folder_with_and_without_masks(tmp_path):
    make_folders(tmp_path)
    make_folders(tmp_path / "test", ("a", "z"))
    dataset = convert(
        tmp_path, test_images=tmp_path / "test" / "images", test_masks=tmp_path / "test" / "masks"
    )
    assert [case.id for case in dataset.test_cases] == ["test_a", "test_z"]  # "a" is a training case
    assert all(case.label is not None for case in dataset.test_cases)
    dataset = convert(tmp_path, test_images=tmp_path / "test" / "images", out=tmp_path / "Dataset501_NoMasks")
    assert [case.label for case in dataset.test_cases] == [None, None]


def test_groups_give_splits(tmp_path):
    names = tuple(f"p{i}" for i in range(12))
    make_folders(tmp_path, names)
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"p{i},patient{i // 2}\n" for i in range(12)))
    dataset = convert(tmp_path, groups=table)
    assert dataset.groups == {f"p{i}": f"patient{i // 2}" for i in range(12)}
    splits = json.loads((dataset.folder / "splits_final.json").read_text())
    assert len(splits) == 5
    for split in splits:
        assert not {int(c[1:]) // 2 for c in split["train"]} & {int(c[1:]) // 2 for c in split["val"]}


@pytest.mark.parametrize("typed", ["{} ", "\t{}", "{}\u00a0", "\ufeff{}", '"{}  "'])
def test_a_group_typed_in_two_ways_is_one_group(tmp_path, typed):
    """Also images whose names another system has written in the other Unicode form."""
    names = tuple(f"é{i}" for i in range(12))
    make_folders(tmp_path, tuple(unicodedata.normalize("NFD", name) for name in names))
    groups = [f"Zoë {i // 2}" for i in range(12)]
    rows = [f"{unicodedata.normalize('NFC', n)},{g}" for n, g in zip(names[::2], groups[::2], strict=True)]
    rows += [f"{n.upper()},{typed.format(g)}" for n, g in zip(names[1::2], groups[1::2], strict=True)]
    table = tmp_path / "groups.csv"
    table.write_text("\n".join(["case, group ", *rows]), encoding="utf-8")
    dataset = convert(tmp_path, groups=table)
    assert dataset.groups == dict(zip(names, groups, strict=True))
    for split in read_splits(dataset):
        sides = [{dataset.groups[case_id] for case_id in split[side]} for side in ("train", "val")]
        assert sides[1] and not sides[0] & sides[1]


def test_groups_and_cases_that_letter_case_alone_tells_apart_are_refused(tmp_path):
    make_folders(tmp_path, tuple("abcdef"))
    table = tmp_path / "groups.csv"
    rows = [f"{name},patient {name}" for name in "bcdef"]
    table.write_text("\n".join(["case,group", *rows, "a,Patient  B"]))
    refused(tmp_path, "found the groups 'patient b' and 'Patient  B'", groups=table)
    table.write_text("\n".join(["case,group", *rows, "a,patient a", "A,patient a"]))
    refused(tmp_path, "found the cases 'a' and 'A'", groups=table)
    save(tmp_path / "images" / "A.png", picture())
    save(tmp_path / "masks" / "A.png", square(255))
    refused(tmp_path, "found case id . twice .letter case does not count")


def test_masks_are_found_in_the_other_unicode_form(tmp_path):
    make_folders(tmp_path, ("a", unicodedata.normalize("NFC", "é")))
    (tmp_path / "masks" / "é.png").rename(tmp_path / "masks" / unicodedata.normalize("NFD", "é.png"))
    assert [case.id for case in convert(tmp_path).training_cases] == ["a", "é"]
    save(tmp_path / "images" / unicodedata.normalize("NFD", "é.png"), picture())
    with pytest.raises(UserError, match="expected one; remove the other"):
        convert(tmp_path, out=tmp_path / "new" / "Dataset501_Test")
    assert not (tmp_path / "new").exists()


def test_the_same_command_says_that_it_is_done(tmp_path, caplog):
    """A kill may come just after the last rename, and leave a lock."""
    caplog.set_level(logging.INFO)
    make_folders(tmp_path, tuple("abcdef"))
    folder = convert(tmp_path).folder
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    lock = tmp_path / f".{folder.name}.lock"
    lock.touch()
    caplog.clear()
    convert(tmp_path)
    assert "is finished already" in caplog.text and "wrote" not in caplog.text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == made and not lock.exists()

    def other(**options) -> None:
        with pytest.raises(UserError, match="found existing content"):
            convert(tmp_path, **options)

    other(max_side=32)
    label = folder / "labelsTr" / "a.png"
    content = label.read_bytes()
    label.unlink()
    other()
    label.write_bytes(content)
    convert(tmp_path)
    (folder / "imagesTr" / "mine.png").touch()
    other()
    (folder / "imagesTr" / "mine.png").unlink()
    (folder / ".conversion.json").write_text("[]")
    other()


def test_other_sources_are_another_command(tmp_path):
    make_folders(tmp_path, tuple("abcdef"))
    convert(tmp_path)
    save(tmp_path / "masks" / "a.png", square(0))
    with pytest.raises(UserError, match="found existing content"):
        convert(tmp_path)


def test_a_refusal_leaves_no_new_folder(tmp_path):
    make_folders(tmp_path, ("a", "b"))
    out = tmp_path / "new" / "er" / "Dataset500_Test"
    save(tmp_path / "masks" / "a.png", square(0))
    save(tmp_path / "masks" / "b.png", square(0))
    with pytest.raises(UserError, match="found only background"):
        convert(tmp_path, out=out)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="found only background"):
        convert(tmp_path, out=out)
    assert list((tmp_path / "new").iterdir()) == []
    save(tmp_path / "masks" / "b.png", square(255))
    assert len(convert(tmp_path, out=out).training_cases) == 2


def test_groups_of_test_images_are_kept(tmp_path, caplog):
    make_folders(tmp_path, tuple("abcde"))
    make_folders(tmp_path / "test", ("y", "z"))
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"{name},patient {name}\n" for name in "abcdey"))
    dataset = convert(tmp_path, groups=table, test_images=tmp_path / "test" / "images")
    assert dataset.groups == {name: f"patient {name}" for name in "abcdey"} | {"z": "z"}
    assert "name no image" not in caplog.text
    table.write_text(table.read_text() + "zz,patient a\n")  # meant z: would be a leak
    convert(tmp_path, groups=table, test_images=tmp_path / "test" / "images", out=tmp_path / "Dataset501")
    assert "groups.csv: 1 row(s) name no image, left out: zz" in caplog.text


def test_groups_of_test_images_with_names_of_training_images(tmp_path):
    make_folders(tmp_path, tuple("abcde"))
    make_folders(tmp_path / "test", ("a", "b"))
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"{name},{name}\n" for name in (*"abcde", "test_a")))
    dataset = convert(tmp_path, groups=table, test_images=tmp_path / "test" / "images")
    assert dataset.groups == {name: name for name in (*"abcde", "test_a", "test_b")}
    table.write_text(table.read_text() + "test_b,c\n")
    with pytest.raises(UserError, match="found group c in training and test"):
        convert(
            tmp_path,
            groups=table,
            test_images=tmp_path / "test" / "images",
            out=tmp_path / "Dataset501_Test",
        )


def test_bad_groups_are_refused(tmp_path):
    make_folders(tmp_path)
    table = tmp_path / "groups.csv"
    refused(tmp_path, "groups.csv: cannot be read", groups=table)
    table.write_text("case,patient\na,1\n")
    refused(tmp_path, "expected columns case,group", groups=table)
    table.write_text("case,group\na,1\nb,2\n")
    refused(tmp_path, "found no group for c", groups=table)
    table.write_text("case,group\na,1\nb,2\nc,3\nz,3\n")
    make_folders(tmp_path / "test", ("z",))
    refused(
        tmp_path, "found group 3 in training and test", groups=table, test_images=tmp_path / "test" / "images"
    )


def test_folders_are_checked(tmp_path):
    make_folders(tmp_path)
    refused(tmp_path, "nowhere: not found", images=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "empty: found no image", images=tmp_path / "empty")
    save(tmp_path / "images" / "a.jpg", picture())
    refused(tmp_path, "found a.jpg and a.png, expected one")
    (tmp_path / "images" / "a.jpg").unlink()
    refused(tmp_path, "--test-masks without --test-images", test_masks=tmp_path)
    refused(tmp_path, "found images and masks in one folder", masks=tmp_path / "masks" / ".." / "images")
