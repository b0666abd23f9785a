"""Image files are read as nnU-Net reads them, in the formats that are meant, or refused in one line."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dataset_conversion.folder import ConvertFolder, convert_folder
from dataset_conversion.image_files import FORMATS, images_in, stored_size
from dataset_conversion.images import is_grey, read_binary_mask, read_grey, read_index_mask, read_rgb
from dataset_conversion.notes import Notes
from dataset_conversion.raw.dataset import RawDataset, read_dataset
from dataset_conversion.subset import ConvertSubset, convert_subset
from dataset_conversion.system.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (40, 46), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (40, 46, 3), dtype=np.uint8)
OBJECT = np.zeros((40, 46), np.uint8)
OBJECT[10:20, 12:30] = 1
PALETTE = np.random.default_rng(2).integers(0, 65536, (3, 256), dtype=np.uint16)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 46 40\n%%EndComments\nshowpage\n%%EOF\n"
REMARK = "white-is-zero TIFF (tag 262 is 0) read as stored"


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A file that appears when somebody starts `gs`."""
    programs, started = tmp_path / "bin", tmp_path / "gs was started"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch '{started}'\nexit 1\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return started


@pytest.fixture
def no_waiting():
    """An error instead of a test that hangs."""

    def stop(*_):
        raise TimeoutError("waited for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def as_nnunet_reads(path: Path) -> np.ndarray:
    """(C, H, W)"""
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    return NaturalImage2DIO().read_images([str(path)])[0][:, 0]


def make_folders(root: Path, masks: dict[str, bytes | np.ndarray]) -> None:
    """A colour image for each mask; a mask is the content of a file, or becomes a PNG."""
    for name, mask in masks.items():
        image = root / "images" / f"{Path(name).stem}.png"
        for path in (image, root / "masks" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOUR).save(image)
        if isinstance(mask, bytes):
            (root / "masks" / name).write_bytes(mask)
        else:
            Image.fromarray(mask).save(root / "masks" / name)


def convert(root: Path, **options) -> RawDataset:
    out = root / "Dataset500_Test"
    convert_folder(
        ConvertFolder(**{"images": root / "images", "masks": root / "masks", "out": out} | options)
    )
    return read_dataset(out)


def refused(root: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as error:
        convert(root, **options)
    assert "\n" not in f"{error.value}"
    assert not list(root.glob("*Dataset*"))


def tiff(values: np.ndarray, **options) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, values, **options)
    return content.getvalue()


def tiff_of_4_bits(values: np.ndarray, photometric: int) -> bytes:
    """Not every tifffile can write or read one."""
    pixels = (values[:, ::2] << 4 | values[:, 1::2]).tobytes()
    tags = {256: values.shape[1], 257: len(values), 258: 4, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: len(values), 279: len(pixels)}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def encoded(values: np.ndarray, kind: str, **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize(
    "values", [OBJECT > 0, GREY, GREY.astype(np.uint16) * 257], ids=lambda v: f"{v.dtype}"
)
def test_grey_tiff_has_the_values_that_nnunet_reads(tmp_path, values, photometric, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric=photometric, compression=compression)
    np.testing.assert_array_equal(as_nnunet_reads(path)[0], values)  # what is stored
    for read in (read_grey, read_index_mask):
        np.testing.assert_array_equal(read(path, Notes(), upright=False), values)
    np.testing.assert_array_equal(read_index_mask(path, Notes()), values)


@pytest.mark.parametrize("name", ["palette.tif", "tiles.tif", "byte.png", "bit.png", "bit.bmp"])
def test_other_grey_files_have_the_values_that_nnunet_reads(tmp_path, name):
    path = tmp_path / name
    if name == "palette.tif":
        tifffile.imwrite(path, GREY, photometric="palette", colormap=PALETTE)
    elif name == "tiles.tif":
        tifffile.imwrite(path, GREY, photometric="miniswhite", tile=(16, 16))
    else:
        Image.fromarray(GREY if "byte" in name else OBJECT > 0).save(path)
    expected = as_nnunet_reads(path)[0]
    np.testing.assert_array_equal(read_grey(path, Notes(), upright=False), expected)
    np.testing.assert_array_equal(read_index_mask(path, Notes(), upright=False), expected)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_tiff_is_turned_as_viewers_do_or_not_at_all(tmp_path, caplog, values, orientation, compression):
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.swapaxes(0, 1),
        6: np.rot90(values, -1),
        7: np.rot90(values, 2).swapaxes(0, 1),
        8: np.rot90(values),
    }[orientation]
    path, notes = tmp_path / "a.tif", Notes()
    tifffile.imwrite(path, values, extratags=[(274, 3, 1, orientation, True)], compression=compression)
    read = read_grey if values.ndim == 2 else read_rgb
    np.testing.assert_array_equal(read(path, notes, upright=False), values)
    np.testing.assert_array_equal(as_nnunet_reads(path), np.atleast_3d(values).transpose(2, 0, 1))
    assert stored_size(path) == values.shape[:2]
    notes.report()
    assert not caplog.text
    np.testing.assert_array_equal(read(path, notes), turned)
    notes.report()
    assert ("turned upright" in caplog.text) == (orientation != 1)


def test_tiff_of_fewer_bits_and_of_negative_values(tmp_path):
    path, values = tmp_path / "a.tif", GREY >> 4
    for photometric in (0, 1):
        path.write_bytes(tiff_of_4_bits(values, photometric))
        np.testing.assert_array_equal(read_grey(path, Notes(), upright=False), values)
        np.testing.assert_array_equal(read_grey(path, Notes()), values * 17)
    tifffile.imwrite(path, GREY.view(np.int8))
    with pytest.raises(UserError, match="found negative values"):
        read_grey(path, Notes(), upright=False)


def test_colour_does_not_depend_on_the_rule_for_grey(tmp_path):
    """CMYK: 0 is white by its nature."""
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    cmyk.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif", Notes()), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("kind", ["bool", "ImageJ", "16 bit"])
@pytest.mark.parametrize("labels", [("background=0", "lesion=1"), ("background=0", "a=1", "b=2")])
def test_white_is_zero_masks_are_taken_as_stored_and_said(tmp_path, caplog, kind, labels):
    values = {"bool": OBJECT > 0, "ImageJ": OBJECT * 255, "16 bit": OBJECT.astype(np.uint16)}[kind]
    if len(labels) > 2 and kind == "ImageJ":
        values = OBJECT
    mask = tiff(values, photometric="miniswhite")
    make_folders(tmp_path, {"a.tif": mask, "b.tif": mask, "c.png": OBJECT})
    dataset = convert(tmp_path, labels=labels)
    for case in dataset.training_cases:
        np.testing.assert_array_equal(dataset.read_label(case.label)[0], OBJECT)
    assert REMARK in caplog.text
    assert "viewers show the inverse" in caplog.text
    assert "2 file(s), e.g. masks/" in caplog.text


def test_white_is_zero_photographs_are_taken_as_stored_and_said(tmp_path, caplog):
    make_folders(tmp_path, {"a.png": OBJECT})
    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "images" / "a.tif").write_bytes(tiff(GREY, photometric="miniswhite"))
    dataset = convert(tmp_path)
    np.testing.assert_array_equal(dataset.read_image(dataset.training_cases[0])[0, 0], GREY)
    assert REMARK in caplog.text and "e.g. images/a.tif" in caplog.text


def test_white_is_zero_of_fax_machines_is_refused(tmp_path):
    """There, viewers are right: programs store black, the object, as 1 of a mask shown white on black."""
    mask = encoded(OBJECT > 0, "TIFF", compression="group4", tiffinfo={262: 0})
    make_folders(tmp_path, {"a.tif": mask, "b.png": OBJECT})
    refused(tmp_path, r"a\.tif: found a fax-compressed white-is-zero TIFF.*save it as PNG")
    (tmp_path / "masks" / "a.tif").write_bytes(encoded(OBJECT > 0, "TIFF", compression="group4"))
    dataset = convert(tmp_path)
    np.testing.assert_array_equal(dataset.read_label(dataset.training_cases[0].label)[0], OBJECT)


def test_subset_of_white_is_zero_files_has_their_values(tmp_path):
    folder = tmp_path / "Dataset500_White"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for k in range(5):
        values = np.where(OBJECT > 0, 250, 20 + k).astype(np.uint8)
        tifffile.imwrite(folder / "imagesTr" / f"c{k}_0000.tif", values, photometric="miniswhite")
        tifffile.imwrite(folder / "labelsTr" / f"c{k}.tif", OBJECT > 0)  # white is zero, too
    content = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "lesion": 1}, "numTraining": 5}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".tif"}))
    out = tmp_path / "Dataset501_Small"
    convert_subset(ConvertSubset(dataset=str(folder), out=out, max_side=32))
    small = read_dataset(out)
    image, label = small.read_case(small.training_cases[3])
    assert image[0][label == 1].mean() > 230 > 40 > image[0][label == 0].mean()
    assert label.mean() == pytest.approx(OBJECT.mean(), abs=0.02)


def test_endings_of_other_kinds_are_read_or_named(tmp_path, caplog):
    make_folders(tmp_path, {f"{name}.png": OBJECT * 255 for name in "abcde"})
    images, masks = tmp_path / "images", tmp_path / "masks"
    kinds = {"gif": "GIF", "webp": "WEBP", "jfif": "JPEG", "jpe": "JPEG"}
    for name, (ending, kind) in zip("abcd", kinds.items(), strict=True):
        (images / f"{name}.png").unlink()
        options = {"lossless": True} if kind == "WEBP" else {}
        (images / f"{name}.{ending}").write_bytes(encoded(COLOUR, kind, **options))
    (masks / "a.png").unlink()
    (masks / "a.gif").write_bytes(encoded(OBJECT * 255, "GIF"))
    for name in ("f.heic", "Thumbs.db", ".DS_Store"):
        (images / name).write_bytes(b"")
    (images / "more").mkdir()
    dataset = convert(tmp_path)
    assert [case.id for case in dataset.training_cases] == list("abcde")
    np.testing.assert_array_equal(dataset.read_label(dataset.training_cases[0].label)[0], OBJECT)
    np.testing.assert_array_equal(
        dataset.read_image(dataset.training_cases[1])[:, 0], COLOUR.transpose(2, 0, 1)
    )
    assert "images: 3 left out that do not end in .png" in caplog.text
    assert ": Thumbs.db, f.heic, more/" in caplog.text
    assert caplog.text.count("left out") == 1  # nothing else lies beside the masks


def test_pictures_in_motion_and_lossy_masks_are_refused(tmp_path):
    make_folders(tmp_path, {"a.png": OBJECT, "b.webp": encoded(OBJECT * 255, "WEBP", lossless=True)})
    refused(tmp_path, r"b\.webp: found a WEBP mask, expected a lossless one")
    refused(tmp_path, r"b\.webp: found a WEBP mask", labels=("background=0", "a=1", "b=2"))
    dataset = convert(tmp_path, threshold=127)
    np.testing.assert_array_equal(dataset.read_label(dataset.training_cases[1].label)[0], OBJECT)
    frames = [Image.fromarray(values) for values in (COLOUR, 255 - COLOUR)]
    for kind in ("GIF", "WEBP", "TIFF"):
        path = tmp_path / f"a.{kind.lower()}"
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match="found 2 pages"):
            read_rgb(path, Notes())
    frames[0].save(tmp_path / "stereo.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / "stereo.jpg", Notes()).shape == COLOUR.shape
    with pytest.raises(UserError, match="found a MPO mask"):
        read_index_mask(tmp_path / "stereo.jpg", Notes())


def test_the_levels_of_a_grey_gif_are_its_labels(tmp_path):
    labels = OBJECT.copy()
    labels[25:30] = 2
    (tmp_path / "a.gif").write_bytes(encoded(labels, "GIF"))
    np.testing.assert_array_equal(read_index_mask(tmp_path / "a.gif", Notes()), labels)
    white_first = Image.fromarray(OBJECT).convert("P")
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    white_first.save(tmp_path / "b.gif")
    np.testing.assert_array_equal(read_index_mask(tmp_path / "b.gif", Notes()), (1 - OBJECT) * 255)


def test_only_meant_formats_are_opened(tmp_path, ghostscript):
    make_folders(tmp_path, {"a.png": OBJECT, "b.png": OBJECT})
    dataset = convert(tmp_path)
    case = dataset.training_cases[0]
    for path in (tmp_path / "images" / "a.png", case.images[0], case.label):
        path.write_bytes(EPS)
    unlike = "a.*png: cannot be read as PNG, JPEG, TIFF, BMP, WEBP, GIF, expected"
    for read in (dataset.read_image, lambda case: dataset.read_label(case.label)):
        with pytest.raises(UserError, match=unlike):  # nnU-Net's reader leaves the choice to Pillow
            read(case)
    for read in (is_grey, stored_size):
        with pytest.raises(UserError, match=unlike):
            read(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=unlike):
        convert(tmp_path, out=tmp_path / "Dataset501_Test")
    assert not ghostscript.exists()
    with pytest.raises(Exception, match="gs"):  # so that this test can fail
        as_nnunet_reads(case.label)
    assert ghostscript.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_folders_and_devices_are_refused(tmp_path, no_waiting):
    make_folders(tmp_path, {f"{name}.png": OBJECT for name in "ab"})
    dataset = convert(tmp_path)
    raw = dataset.training_cases[0].images[0]
    for path in (raw, tmp_path / "images" / "a.png"):
        path.unlink()
        os.mkfifo(path)
    pipe = "found a pipe, device or socket, expected a file"
    with pytest.raises(UserError, match=pipe):
        convert(tmp_path, out=tmp_path / "Dataset501_Test")
    with pytest.raises(UserError, match=pipe):
        dataset.read_image(dataset.training_cases[0])
    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "images" / "a.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=pipe):
        is_grey(tmp_path / "images" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="found a folder, expected a file"):
        read_grey(tmp_path / "folder.png", Notes())
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(UserError, match=pipe):
        read_grey(tmp_path / "a.tif", Notes())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (OBJECT.astype(np.uint32) * np.uint32(4294967295), r"-1 \(or 4294967295 without sign\)"),
        (OBJECT.astype(np.int32) * -1, r"-1 \(or"),
        (OBJECT.astype(np.float32) * 4294967296, "4294967296"),
        (OBJECT.astype(np.float32) * 65537, "65537"),
        (np.where(OBJECT, np.nan, 0).astype(np.float32), "nan"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"threshold": 127}, {"labels": ("background=0", "a=1", "b=2")}])
def test_values_that_no_label_can_have_are_refused(tmp_path, values, named, options):
    make_folders(tmp_path, {"a.tif": tiff(values), "b.png": OBJECT})
    refused(tmp_path, rf"a\.tif: found the value {named}", **options, max_side=32)


def test_a_label_of_that_value_is_refused_at_once(tmp_path):
    make_folders(tmp_path, {"a.png": OBJECT})
    refused(tmp_path, "expected consecutive values", labels=("background=0", "lesion=4294967295"))


def test_labels_above_a_byte_keep_their_values(tmp_path):
    labels = np.zeros((40, 46), np.uint16)
    labels[5:35] = np.arange(46) * 6 + 1
    make_folders(tmp_path, {"a.png": labels})
    names = ("background=0", *(f"l{value}={value}" for value in range(1, 301)))
    dataset = convert(tmp_path, labels=names)
    np.testing.assert_array_equal(dataset.read_label(dataset.training_cases[0].label)[0], labels)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    files = {f"{kind}.{kind.lower()}": encoded(COLOUR, kind) for kind in FORMATS if kind != "TIFF"}
    for compression in ("raw", "tiff_deflate", "tiff_lzw"):
        for name, values in (("grey", GREY), ("colour", COLOUR), ("bool", OBJECT > 0)):
            files[f"{name} {compression}.tif"] = encoded(values, "TIFF", compression=compression)
    generator, outcomes = random.Random(0), set()
    for _ in range(150):
        name = generator.choice(sorted(files))
        content = bytearray(files[name])
        for _ in range(generator.choice((1, 2, 5))):
            content[generator.randrange(min(len(content), generator.choice((64, 10**6))))] = (
                generator.randrange(256)
            )
        path = tmp_path / name
        path.write_bytes(content[: generator.choice((len(content), len(content) // 2))])
        for read in (read_rgb, read_index_mask, read_binary_mask):
            try:
                read(path, Notes())
                outcomes.add("read")
            except UserError as error:
                assert name in f"{error}"
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_damaged_tiff_of_a_raw_data_set_is_named(tmp_path):
    """Read by tifffile, whose exceptions are of many kinds."""
    folder = tmp_path / "Dataset500_Tiff"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    path = folder / "imagesTr" / "a_0000.tif"
    content = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "lesion": 1}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".tif"}))
    (folder / "labelsTr" / "a.tif").write_bytes(tiff(OBJECT))
    whole = tiff(GREY, compression="zlib")
    damaged = [whole[:6], whole[:100], whole[:-40], whole[:4] + b"\xff\xff\0\0" + whole[8:], b"", EPS]
    for content in damaged:
        path.write_bytes(content)
        dataset = read_dataset(folder)
        with pytest.raises(UserError, match=r"a_0000\.tif: cannot be read") as error:
            dataset.read_image(dataset.training_cases[0])
        assert "\n" not in f"{error.value}"


def test_what_else_lies_in_a_folder_of_images(tmp_path, caplog):
    (tmp_path / "notes.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        assert images_in(tmp_path) == []  # the caller says that there is none
    assert not caplog.text
    (tmp_path / "A.PNG").write_text("")
    assert images_in(tmp_path) == [tmp_path / "A.PNG"]
    assert "1 left out" in caplog.text and "notes.txt" in caplog.text
