"""law_synth's view of a raw data set: slices, windows, classes, and files written back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import RawDataset, read_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.raw.writer import RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json, converted
from law_synth.view.classes import Classes, colours, condition, joined, lesion_classes, one_hot
from law_synth.view.record import ViewRecord
from law_synth.view.slices import Slice, SliceView, view_from, view_of
from law_synth.view.window import MARGIN, Window, find_window, stored_dtype


@pytest.fixture(scope="module")
def view(ct_dataset) -> SliceView:
    dataset = read_dataset(ct_dataset)
    return view_of(dataset, read_splits(dataset)[0]["train"])


@pytest.fixture
def altered(ct_dataset, tmp_path):
    """A copy of the CT data set with other entries in dataset.json."""

    def alter(**entries) -> Path:
        folder = tmp_path / "Dataset961_Altered"
        shutil.copytree(ct_dataset, folder)
        description = json.loads((folder / "dataset.json").read_text()) | entries
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return alter


class TestClasses:
    def test_numbers_and_labels_are_inverse(self):
        classes = Classes(("a", "b"), (2, 7))
        label = np.array([[0, 2], [7, 2]])
        assert classes.numbers(label).tolist() == [[0, 1], [2, 1]]
        assert np.array_equal(classes.labels(classes.numbers(label)), label)

    def test_a_value_is_named_after_the_smallest_region_that_holds_it(self, altered):
        labels = {"background": 0, "kidney and tumour": [1, 2], "tumour": 2}
        dataset = read_dataset(altered(labels=labels, regions_class_order=[1, 2]))
        assert lesion_classes(dataset) == Classes(("kidney and tumour", "tumour"), (1, 2))

    def test_values_of_one_region_are_told_apart(self, altered):
        labels = {"background": 0, "whole": [1, 2]}
        dataset = read_dataset(altered(labels=labels, regions_class_order=[1]))
        assert lesion_classes(dataset).names == ("whole 1", "whole 2")

    def test_one_class_is_three_equal_channels_as_in_the_paper(self):
        mask = np.array([[[0, 1], [1, 0]]], np.uint8)
        expected = torch.from_numpy(mask).float()[:, None].expand(-1, 3, -1, -1)
        assert torch.equal(condition(mask, 1), expected)

    def test_each_of_three_classes_has_a_channel_of_its_own(self):
        mask = np.array([[[0, 1], [2, 3]]], np.uint8)
        assert torch.equal(condition(mask, 3), one_hot(torch.from_numpy(mask), 3))

    def test_colours_differ_up_to_26_classes(self):
        assert len(np.unique(colours(26), axis=0)) == 27
        with pytest.raises(UserError, match="27 classes"):
            colours(27)

    def test_joined(self):
        assert [joined(("a", "b", "c")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]

    @pytest.mark.parametrize(
        ("entries", "found"),
        [
            ({"labels": {"background": 0, "kidney": 1, "tumour": 2, "ignore": 3}}, "ignore label"),
            ({"overwrite_image_reader_writer": "SimpleITKIOWithReorient"}, "WithReorient"),
            ({"channel_names": {"0": "CT", "1": "PET"}}, "2 channels"),
        ],
    )
    def test_what_cannot_be_synthesised_is_refused(self, ct_dataset, entries, found):
        content = read_dataset(ct_dataset).json | entries
        with pytest.raises(UserError, match=found):
            lesion_classes(RawDataset(ct_dataset, content))


class TestWindow:
    def test_ct_is_seen_from_the_foregrounds_percentiles_widened(self, ct_dataset):
        dataset = read_dataset(ct_dataset)
        window = find_window(dataset, ["ct_0", "ct_1"])
        inside = [image[0][label > 0] for image, label in map(dataset.read_case, dataset.training_cases[:2])]
        low, high = np.percentile(np.concatenate(inside), (0.5, 99.5))
        margin = MARGIN * (high - low)
        assert window.low[0] == pytest.approx(low - margin, abs=3)
        assert window.high[0] == pytest.approx(high + margin, abs=3)
        assert window.dtype == "int16"

    def test_a_ct_volume_without_foreground_says_nothing(self, altered):
        """It is mostly air; nnU-Net's fingerprint leaves it out, too."""
        folder = altered()
        expected = find_window(read_dataset(folder), ["ct_0", "ct_1"])
        label = sitk.ReadImage(str(folder / "labelsTr" / "ct_2.nii.gz"))
        sitk.WriteImage(label * 0, str(folder / "labelsTr" / "ct_2.nii.gz"))
        window = find_window(read_dataset(folder), ["ct_0", "ct_1", "ct_2"])
        assert window == expected
        assert find_window(read_dataset(folder), ["ct_2"]).low[0] < -1000  # nothing else to go by

    def test_an_unreadable_first_image_is_one_line(self, altered):
        folder = altered()
        (folder / "imagesTr" / "ct_0_0000.nii.gz").write_bytes(b"")
        with pytest.raises(UserError, match=r"ct_0_0000.nii.gz: cannot be read") as error:
            find_window(read_dataset(folder), ["ct_0", "ct_1"])
        assert "\n" not in str(error.value)

    def test_other_channels_are_seen_from_all_pixels(self, altered):
        dataset = read_dataset(altered(channel_names={"0": "T2"}))
        assert find_window(dataset, ["ct_0"]).low[0] < -1000

    def test_only_the_given_cases_are_looked_at(self, altered):
        folder = altered()
        (folder / "imagesTr" / "ct_5_0000.nii.gz").write_bytes(b"not to be read")
        find_window(read_dataset(folder), ["ct_0"])
        with pytest.raises(UserError, match="cannot be read"):
            find_window(read_dataset(folder), ["ct_0", "ct_5"])

    def test_back_and_forth_costs_half_a_grey_level(self):
        assert not Window((0.0,), (255.0,), "int16").is_identity  # a window like any other
        assert Window((0.0,), (255.0,), "uint8").is_identity
        window = Window((-100.0,), (200.0,), "int16")
        values = np.arange(-100, 201, dtype=np.float32).reshape(1, 1, -1)
        back = window.from_rgb(window.to_rgb(values))
        assert back.dtype == np.int16
        assert np.abs(back - values).max() <= np.ceil(300 / 255 / 2)

    def test_unrounded_images_keep_more_than_256_levels(self):
        window = Window((-1000.0,), (1000.0,), "int16")
        image = np.linspace(0, 255, 1000).reshape(1, -1, 1).repeat(3, axis=2)
        assert len(np.unique(window.from_rgb(image))) == 1000

    def test_8_bit_grey_goes_in_three_times_and_comes_out_as_the_mean(self):
        window = Window((0.0,), (255.0,), "uint8")
        grey = np.arange(256, dtype=np.float32).reshape(1, 1, -1)
        assert np.array_equal(window.to_rgb(grey), grey[0, ..., None].repeat(3, axis=2))
        rgb = np.array([[[10, 20, 33]]], np.uint8)
        assert window.from_rgb(rgb).tolist() == [[[21]]]

    def test_8_bit_rgb_is_left_alone(self):
        window = Window((0.0,) * 3, (255.0,) * 3, "uint8")
        image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
        assert np.array_equal(window.to_rgb(window.from_rgb(image)), image)
        assert np.array_equal(window.from_rgb(image), np.moveaxis(image, -1, 0))

    def test_values_beyond_the_type_are_cut(self):
        assert Window((0.0,), (300.0,), "uint8").from_rgb(np.full((1, 1, 3), 255.0)).tolist() == [[[255]]]

    def test_a_window_without_width_is_refused(self, ct_dataset):
        with pytest.raises(UserError, match="--window"):
            find_window(read_dataset(ct_dataset), ["ct_0"], (5.0, 5.0))


class TestNormalization:
    def test_channels_that_nnunet_scales_by_case(self, ct_dataset, altered):
        """CT has one scale for all; of MR, a slice alone and in its volume get other values."""
        assert view_of(read_dataset(ct_dataset), ["ct_0"]).normalized_by_case == []
        folder = altered(channel_names={"0": "T2"})
        assert view_of(read_dataset(folder), ["ct_0"]).normalized_by_case == ["T2"]


class TestSlices:
    def test_slices_of_volumes_are_those_with_foreground(self, view):
        assert view.slices(["ct_1", "ct_0"])[:5] == [*(Slice("ct_1", i) for i in range(4)), Slice("ct_0", 0)]
        assert [one.index for one in view.slices(["ct_0"], per_case=2)] == [1, 3]
        assert Slice("ct_1", 3).id == "ct_1_s0003"

    def test_a_volume_without_label_gives_all_slices(self, altered):
        folder = altered()
        (folder / "labelsTs" / "ct_6.nii.gz").unlink()
        dataset = read_dataset(folder)
        view = view_of(dataset, ["ct_0"])
        assert [one.index for one in view.slices(["ct_6"])] == [0, 1, 2, 3, 4]
        assert view.read_rgb(Slice("ct_6", 4)).shape == (40, 36, 3)

    def test_a_header_that_itk_refuses_is_read_as_nnunet_reads_it(self, altered):
        """By nibabel, if the first image is refused; the sform is 0.0005 off right angles."""
        import nibabel as nib

        folder = altered()
        expected = view_of(read_dataset(folder), ["ct_0", "ct_1"]).read(Slice("ct_1", 2))
        for path in [*folder.glob("images*/*"), *folder.glob("labels*/*")]:
            old = nib.load(path)
            affine = old.affine.copy()
            affine[1, 0] += 0.0005 * affine[0, 0]
            new = nib.Nifti1Image(np.asarray(old.dataobj), affine)
            new.set_qform(None, 0)
            nib.save(new, path)
        view = view_of(read_dataset(folder), ["ct_0", "ct_1"])
        assert (view.axis, view.window.dtype) == (0, "int16")
        assert [one.index for one in view.slices(["ct_1"])] == [0, 1, 2, 3]
        for seen, there in zip(view.read(Slice("ct_1", 2)), expected, strict=True):
            assert np.array_equal(seen, there)
        geometry = view.geometry(Slice("ct_1", 2))
        assert geometry.spacing == pytest.approx((0.8, 0.7, 4.5))
        assert geometry.origin == pytest.approx((-12.5, 40.0, 7.0 + 2 * 4.5))
        assert geometry.direction == pytest.approx((-1, 0, 0, 0, -1, 0, 0, 0, 1), abs=6e-4)

    def test_slices_lie_along_the_largest_spacing(self, view):
        assert (view.axis, view.is_volumetric) == (0, True)

    def test_image_and_mask_are_those_of_the_slice(self, view):
        image, label = view.dataset.read_case(view.dataset.case("ct_2"))
        seen, mask = view.read(Slice("ct_2", 3))
        assert np.array_equal(seen, view.window.to_rgb(image[:, 3]))
        assert np.array_equal(mask, label[3])
        assert mask.dtype == np.uint8

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_slice_written_back_is_the_slice(self, view, axis, tmp_path):
        """Values, type, spacing, direction and place, whatever the slice axis."""
        import SimpleITK as sitk

        view = SliceView(view.dataset, Window((-2000.0,), (2000.0,), "int16"), axis)
        slice_ = Slice("ct_3", 2)
        pixels = view.read_pixels(slice_)
        image = (np.moveaxis(pixels, 0, -1) + 2000) * (255 / 4000)
        files = view.encode("law_0", image.repeat(3, axis=2), view.read_mask(slice_), view.geometry(slice_))
        assert list(files) == ["imagesTr/law_0_0000.nii.gz", "labelsTr/law_0.nii.gz"]
        whole = sitk.ReadImage(str(view.dataset.case("ct_3").images[0]))
        label = sitk.ReadImage(str(view.dataset.case("ct_3").label))
        cut = [slice(None)] * 3
        cut[2 - axis] = slice(2, 3)
        for content, source in zip(files.values(), (whole, label), strict=True):
            path = tmp_path / "one.nii.gz"
            path.write_bytes(content)
            written, expected = sitk.ReadImage(str(path)), source[tuple(cut)]
            assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(expected))
            assert written.GetPixelID() == expected.GetPixelID()
            for part in ("GetSpacing", "GetOrigin", "GetDirection"):
                assert getattr(written, part)() == pytest.approx(getattr(expected, part)(), abs=1e-4)

    def test_the_same_slice_is_the_same_bytes_later(self, view):
        slice_ = Slice("ct_0", 1)
        image, mask = view.read(slice_)
        first, second = (view.encode("law_0", image, mask, view.geometry(slice_)) for _ in range(2))
        assert first == second

    def test_another_number_of_pixels_keeps_the_extent(self, view):
        geometry = view.geometry(Slice("ct_0", 1))
        small = geometry.resized((20, 12))

        def corner(of):
            """Outer corner of the first pixel."""
            inner = np.array(of.spacing) * (1, 1, 0) / 2
            return np.array(of.origin) - np.array(of.direction).reshape(3, 3) @ inner

        assert np.array(small.spacing) == pytest.approx(np.array(geometry.spacing) * (3, 2, 1))
        assert corner(small) == pytest.approx(corner(geometry))

    def test_as_volume_and_back(self, view):
        for axis in (0, 1, 2):
            turned = SliceView(view.dataset, view.window, axis)
            pixels = view.read_pixels(Slice("ct_0", 0))
            assert turned.as_volume(pixels).shape[1 + axis] == 1
            assert np.array_equal(turned.as_slice(turned.as_volume(pixels)[0]), pixels[0])

    def test_the_record_makes_the_same_view(self, view):
        again = view_from(view.dataset, converted(as_json(view.record), ViewRecord, "record"))
        assert (again.window, again.axis, again.classes) == (view.window, view.axis, view.classes)

    def test_other_classes_than_recorded_are_refused(self, view):
        with pytest.raises(UserError, match="as recorded"):
            view_from(view.dataset, replace(view.record, classes={"kidney": 1}))

    def test_other_channels_than_recorded_are_refused(self, view):
        window = Window((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "int16")
        with pytest.raises(UserError, match="found 1 channels, expected 3 as the window recorded"):
            view_from(view.dataset, replace(view.record, window=window))

    def test_pictures_are_seen_as_they_are(self, tmp_path):
        convert_phantom(ConvertPhantom(out=tmp_path / "Dataset500_P", cases=2, test_cases=0, size=32))
        dataset = read_dataset(tmp_path / "Dataset500_P")
        view = view_of(dataset, [case.id for case in dataset.training_cases])
        slice_ = view.slices([dataset.training_cases[1].id])[0]
        image, mask = view.read(slice_)
        assert (slice_.index, view.geometry(slice_), slice_.id) == (None, None, slice_.case)
        assert np.array_equal(np.moveaxis(image, -1, 0), dataset.read_image(dataset.training_cases[1])[:, 0])
        files = view.encode("law_0", image.astype(np.float32) + 0.2, mask)
        assert list(files) == ["imagesTr/law_0_0000.png", "labelsTr/law_0.png"]
        (tmp_path / "x.png").write_bytes(files["imagesTr/law_0_0000.png"])
        from PIL import Image

        assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), image)

    def test_images_of_more_than_8_bit_among_8_bit_ones_are_refused(self, view):
        identity = SliceView(view.dataset, Window((0.0,), (255.0,), "uint8"), 0)
        with pytest.raises(UserError, match="expected 8 bit"):
            identity.read_rgb(Slice("ct_0", 0))


def test_a_test_case_with_the_id_of_a_training_case_is_refused(tmp_path):
    folder = tmp_path / "Dataset500_Twice"
    image, mask = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), np.uint8)
    with RawDatasetWriter(folder, ("R", "G", "B"), {"background": 0, "polyp": 1}) as writer:
        for number in range(3):
            writer.add_training_case(f"case_{number}", image, mask)
    shutil.copytree(folder / "imagesTr", folder / "imagesTs")
    with pytest.raises(UserError, match=r"found case case_0 \(3 such\) in imagesTr and in imagesTs"):
        view_of(read_dataset(folder), ["case_0"])


def test_the_window_holds_the_values_of_every_file(tmp_path):
    """Of one unsigned volume among signed ones, and of signed TIFF."""
    import tifffile

    for number, kind in enumerate(("uint16", "int16")):
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / "Dataset500_CT" / part).mkdir(parents=True, exist_ok=True)
        values = np.arange(4 * 30 * 30).reshape(4, 30, 30) % 500 - (200 if kind == "int16" else 0)
        name = tmp_path / "Dataset500_CT" / "imagesTr" / f"ct_{number}_0000.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(kind)), name)
        label = sitk.GetImageFromArray((values % 7 == 0).astype(np.uint8))
        sitk.WriteImage(label, tmp_path / "Dataset500_CT" / "labelsTr" / f"ct_{number}.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "numTraining": 2}
    about["file_ending"] = ".nii.gz"
    (tmp_path / "Dataset500_CT" / "dataset.json").write_text(json.dumps(about))
    window = find_window(read_dataset(tmp_path / "Dataset500_CT"), ["ct_0", "ct_1"])
    assert window.dtype == "int32"
    assert window.from_rgb(np.zeros((2, 2, 3), np.uint8)).max() < 0

    path = tmp_path / "signed_0000.tif"
    tifffile.imwrite(path, np.full((30, 30), -100, np.int32))
    assert stored_dtype(Case("signed", (path,), None)) == "int32"
