"""`law-synth generate` on CT volumes of two classes: one-slice cases in the data set's units and places."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from dataset_conversion.system.json_files import as_json

pytest.importorskip("diffusers", reason="needs the extra synth")

from dataset_conversion.raw.dataset import RawDataset, read_dataset
from dataset_conversion.system.errors import UserError
from law_synth.generation.chunks import resize_channels
from law_synth.generation.generate import generate as run_generate
from law_synth.generation.mask_files import MaskFolder
from law_synth.generation.nested_masks import filled_organ
from law_synth.generation.options import Generate
from law_synth.generation.samples import make_plan
from law_synth.records.run import TrainedRun, read_run
from law_synth.view.mask_sources import mask_hash
from law_synth.view.resize import resize_mask
from law_synth.view.slices import Slice, SliceView, view_of

VAL, TRAIN = ["ct_0", "ct_1"], ["ct_2", "ct_3", "ct_4", "ct_5"]  # fold 0 of `ct_dataset`


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """nnU-Net's variables: nothing of another test."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    for name in ("nnUNet_raw", "nnUNet_results", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def ct_run(source: Path, dataset: RawDataset, folder: Path, **entries) -> Path:
    """A run on fold 0 of a data set with the weights of another run; of each volume it saw two slices."""
    shutil.copytree(source, folder)
    view = view_of(dataset, TRAIN)
    config = {
        "dataset": {"name": dataset.folder.name, "folder": str(dataset.folder)},
        "train_cases": TRAIN[1:],
        "monitor_cases": TRAIN[:1],
        "view": as_json(view.record),
        "slices": {case: [s.index for s in view.slices([case], 2)] for case in TRAIN},
    }
    path = folder / "law_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config | entries))
    return folder


@pytest.fixture(scope="module")
def run(trained_run, ct_dataset, tmp_path_factory) -> Path:
    return ct_run(trained_run, read_dataset(ct_dataset), tmp_path_factory.mktemp("ct_run") / "run")


@pytest.fixture(scope="module")
def view(ct_dataset) -> SliceView:
    return view_of(read_dataset(ct_dataset), TRAIN)


def generate(out: Path, run: Path, **options) -> Path:
    run_generate(
        Generate(out=out, trained_run=run, **{"chunk_size": 4, "steps": 1, "device": "cpu", **options})
    )
    return out


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "synthesis.jsonl").read_text().splitlines()]


def hashes(out: Path) -> dict[str, str]:
    files = [p for p in out.rglob("*") if p.is_file() and ".generation" not in p.parts]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def mixed(run, tmp_path_factory) -> Path:
    """Synthetic and real cases in one data set."""
    root = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(root / "nnUNet_preprocessed"))
        return generate(root / "nnUNet_raw" / "Dataset962", run, with_real=True)


def test_synthetic_cases_lie_where_their_slices_do(mixed, view, run):
    """Type, spacing, direction and place are the source slice's, labels its mask, values in the window."""
    made = read_dataset(mixed)
    assert [row["source_case"] for row in rows(mixed)] == [case for case in TRAIN for _ in range(2)]
    assert len(made.training_cases) == 8 + 6
    for row in rows(mixed):
        source = sitk.ReadImage(str(view.dataset.case(row["source_case"]).images[0]))
        index = row["source_slice"]
        expected = source[:, :, index : index + 1]
        truth = view.read_mask(Slice(row["source_case"], index))
        for path in (made.case(row["case"]).images[0], made.case(row["case"]).label):
            image = sitk.ReadImage(str(path))
            assert image.GetSize() == expected.GetSize() == (36, 40, 1)
            assert image.GetSpacing() == pytest.approx(expected.GetSpacing())
            assert image.GetOrigin() == pytest.approx(expected.GetOrigin(), abs=1e-5)
            assert image.GetDirection() == pytest.approx(expected.GetDirection())
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0], truth)
        image = sitk.ReadImage(str(made.case(row["case"]).images[0]))
        assert image.GetPixelID() == source.GetPixelID() == sitk.sitkInt16
        values = sitk.GetArrayFromImage(image)
        assert view.window.low[0] - 1 <= values.min() < values.max() <= view.window.high[0] + 1
        assert row["mask_sha256"] == mask_hash(resize_mask(truth, 64)) and row["source_mask"] in TRAIN
        patient = view.dataset.groups[row["source_case"]]
        assert row["source_group"] == made.groups[row["case"]] == patient != row["source_case"]
    (split,) = json.loads((mixed / "splits_final.json").read_text())
    assert split["val"] == VAL and set(TRAIN) < set(split["train"]) and len(split["train"]) == 12
    for case in view.dataset.training_cases:
        assert made.case(case.id).images[0].samefile(case.images[0])
        if case.id in TRAIN + VAL:
            assert made.groups[case.id] == view.dataset.groups[case.id]


def test_any_number_of_processes_writes_the_same_volumes(mixed, run, tmp_path):
    for part in (1, 0):
        out = generate(tmp_path / "nnUNet_raw" / "Dataset962", run, with_real=True, shard=f"{part}/2")
    assert hashes(out) == hashes(mixed)


def test_real_slices_survive_the_way_through_the_model_s_eyes(view, run, tmp_path):
    """Read, shown to the model, written back and read by nnU-Net: statistics stay to the 8-bit step."""
    step = (view.window.high[0] - view.window.low[0]) / 255
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    for slice_ in view.slices(TRAIN, 2):
        image, mask = view.read(slice_)
        for name, content in view.encode(slice_.id, image, mask, view.geometry(slice_)).items():
            (tmp_path / name).write_bytes(content)
    description = view.dataset.json | {"numTraining": 8}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    written = read_dataset(tmp_path)
    for slice_ in view.slices(TRAIN, 2):
        after, label = written.read_case(written.case(slice_.id))
        before, mask = view.read_pixels(slice_)[0], view.read_mask(slice_)
        np.testing.assert_array_equal(label[0], mask)
        before = before.clip(view.window.low[0], view.window.high[0])
        assert np.abs(after[0, 0] - before).max() <= step / 2 + 0.5  # int16 rounds once more
        for region in (mask == 0, mask == 1, mask == 2):
            found, expected = after[0, 0][region], before[region]
            assert found.mean() == pytest.approx(expected.mean(), abs=step / 2 + 0.5)
            assert found.std() == pytest.approx(expected.std(), abs=step)
            found, expected = (np.percentile(v, (0.5, 5, 50, 95, 99.5)) for v in (found, expected))
            assert np.abs(found - expected).max() <= step / 2 + 0.5


def test_nnunet_verifies_and_takes_the_fingerprint(mixed):
    """The real command reads real volumes and synthetic slices together."""
    root = mixed.parents[1]
    folders = {f"nnUNet_{name}": str(root / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")}
    program = Path(sys.executable).parent / "nnUNetv2_extract_fingerprint"
    subprocess.run(
        [program, "-d", "962", "--verify_dataset_integrity", "-np", "1"],
        env={**os.environ, **folders, "nnUNet_def_n_proc": "1"},
        check=True,
    )
    path = root / "nnUNet_preprocessed" / "Dataset962" / "dataset_fingerprint.json"
    fingerprint = json.loads(path.read_text())
    assert len(fingerprint["spacings"]) == 14
    intensities = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    assert 0 < intensities["percentile_00_5"] < intensities["mean"] < intensities["percentile_99_5"] < 250


def test_what_is_said_and_the_model_s_own_size(run, view, tmp_path, caplog):
    caplog.set_level("INFO")
    options = {"with_real": True, "original_size": False, "samples": 2}
    out = generate(tmp_path / "Dataset962", run, **options)
    assert "2 cases of one slice each, from slices of 4 volumes; train them with -c 2d" in caplog.text
    assert "synthetic images of 64 x 64 will lie beside real ones of 36 x 40 (median)" in caplog.text
    for row in rows(out):
        image = sitk.ReadImage(str(out / "imagesTr" / f"{row['case']}_0000.nii.gz"))
        geometry = view.geometry(Slice(row["source_case"], row["source_slice"]))
        assert image.GetSize() == (64, 64, 1) and image.GetSpacing()[2] == geometry.spacing[2]
        extent = np.array(image.GetSize()) * image.GetSpacing()
        assert extent[:2] == pytest.approx([36 * 0.8, 40 * 0.7])


def test_images_are_finer_than_256_levels(trained_run, ct_dataset, tmp_path):
    """What the model decodes arrives unrounded in the file; sizes change without wrapping round."""
    wide = as_json(view_of(read_dataset(ct_dataset), TRAIN, (-20_000, 20_000)).record)
    run = ct_run(trained_run, read_dataset(ct_dataset), tmp_path / "run", view=wide)
    out = generate(tmp_path / "Dataset962", run, samples=1, original_size=False)
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "imagesTr" / "law_000000_0000.nii.gz")))
    assert len(np.unique(image)) > 300
    step = np.zeros((20, 20, 3), np.float32)
    step[:, 10:] = 255
    larger = resize_channels(step, (37, 41))
    assert larger.shape == (37, 41, 3) and larger.dtype == np.float32
    assert larger.min() == 0 and larger.max() == 255 and larger[0, 0, 0] < 1 and larger[0, -1, 0] > 254


def test_tumours_move_within_their_kidneys(run, view, tmp_path, caplog):
    caplog.set_level("INFO")
    out = generate(tmp_path / "Dataset962", run, mask_augment="nested", samples=4)
    assert "tumour moves within kidney" in caplog.text
    options = json.loads((out / "synthesis.json").read_text())["options"]
    assert options["nesting"] == [[1, 2]] and options["original_size"] is True
    for row in rows(out):
        source = view.read_mask(Slice(row["source_case"], row["source_slice"]))
        (made,) = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "labelsTr" / f"{row['case']}.nii.gz")))
        assert not np.array_equal(made, source) and ((made == 2) <= filled_organ(source, 1, 2)).all()


def test_nested_needs_a_class_within_another(trained_run, tmp_path):
    with pytest.raises(UserError, match=r"expected a class that lies inside another one .*\(polyp\)"):
        generate(tmp_path / "Dataset962", trained_run, mask_augment="nested")


def test_regions_and_readers_stay_in_dataset_json(trained_run, ct_dataset, tmp_path):
    source = tmp_path / "Dataset961_Regions"
    shutil.copytree(ct_dataset, source)
    entries = {"labels": {"background": 0, "kidney and tumour": [1, 2], "tumour": 2}}
    entries |= {"regions_class_order": [1, 2], "overwrite_image_reader_writer": "SimpleITKIO"}
    description = json.loads((source / "dataset.json").read_text()) | entries
    (source / "dataset.json").write_text(json.dumps(description))
    run = ct_run(trained_run, read_dataset(source), tmp_path / "run")
    out = generate(tmp_path / "Dataset962", run, samples=2)
    made = read_dataset(out)
    keys = (*entries, "channel_names", "file_ending")
    assert {key: made.json[key] for key in keys} == {key: description[key] for key in keys}
    assert set(np.unique(made.read_label(made.training_cases[0].label))) == {0, 1, 2}


def test_channels_that_nnunet_scales_by_case_are_warned_of(trained_run, ct_dataset, tmp_path, caplog):
    source = tmp_path / "Dataset961_MR"
    shutil.copytree(ct_dataset, source)
    description = json.loads((source / "dataset.json").read_text()) | {"channel_names": {"0": "T2"}}
    (source / "dataset.json").write_text(json.dumps(description))
    for dataset in (source, ct_dataset):
        caplog.clear()
        run = ct_run(trained_run, read_dataset(dataset), tmp_path / f"run_{dataset.name}")
        generate(tmp_path / "Dataset962", run, samples=2, dry_run=True)
        assert ("channels T2: nnU-Net scales a synthetic slice" in caplog.text) == (dataset is source)


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask).save(path)


def layout(seed: int, size: int = 80) -> np.ndarray:
    """A label map of nobody: a kidney with a tumour."""
    y, x = np.mgrid[:size, :size]
    mask = (np.hypot(y - 40, x - 30 - seed) < 16).astype(np.uint8)
    mask[np.hypot(y - 44, x - 30 - seed) < 7] = 2
    return mask


def test_masks_without_images(run, view, tmp_path, caplog):
    """Pictures get the extent of training slices in turn; of volumes, slices are taken in their place."""
    folder = tmp_path / "masks"
    for seed in range(2):
        save_mask(folder / f"mask_{seed}.png", layout(seed))
    volume = sitk.GetImageFromArray(np.stack([layout(seed, 60) * (seed > 0) for seed in range(7)]))
    volume.SetSpacing((0.5, 0.5, 3))
    volume.SetOrigin((1, 2, 3))  # of another orientation than the data set's
    sitk.WriteImage(volume, str(folder / "other.nii.gz"))
    options = {"masks": folder, "slices_per_mask": 3}
    out = generate(tmp_path / "Dataset962", run, **options)
    assert "5 of 5 masks are named after no case or group of Dataset960_CT" in caplog.text
    assert [(row["source_case"], row["source_mask"], row["source_slice"]) for row in rows(out)] == [
        *((None, f"mask_{seed}.png", None) for seed in range(2)),
        *((None, "other.nii.gz", index) for index in (2, 4, 6)),
    ]
    groups = ["mask_0", "mask_1", "other", "other", "other"]
    assert [read_dataset(out).groups[row["case"]] for row in rows(out)] == groups
    images = [sitk.ReadImage(str(out / "labelsTr" / f"{row['case']}.nii.gz")) for row in rows(out)]
    for number, (image, slice_) in enumerate(zip(images[:2], read_run(run).slices, strict=False)):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0], layout(number))
        geometry = view.geometry(slice_)
        assert image.GetSpacing() == pytest.approx(geometry.resized((80, 80)).spacing)
        assert np.array(image.GetSpacing())[:2] * 80 == pytest.approx([36 * 0.8, 40 * 0.7])
    for image, index in zip(images[2:], (2, 4, 6), strict=True):
        assert image.GetSpacing() == (0.5, 0.5, 3)
        assert image.GetDirection() == sitk.ReadImage(str(view.dataset.case("ct_2").label)).GetDirection()
        # Each pixel lies where it lay in the file.
        original = volume[:, :, index : index + 1]
        back = sitk.Resample(image, original, sitk.Transform(), sitk.sitkNearestNeighbor)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(original))
    save_mask(folder / "mask_0.png", layout(5))
    with pytest.raises(UserError, match="found a generation with masks"):
        generate(out, run, **options)


def test_a_copy_of_a_cases_volume_is_its_own_mask_where_it_lies_in_the_same_place(run, view, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    trained = read_run(run)
    own, moved = TRAIN[:2]
    shutil.copy(view.dataset.case(own).label, folder)
    volume = sitk.ReadImage(str(view.dataset.case(moved).label))
    volume.SetSpacing([2 * size for size in volume.GetSpacing()])
    sitk.WriteImage(volume, str(folder / f"{moved}.nii.gz"))
    verb = Generate(out=tmp_path / "Dataset962", trained_run=run, masks=folder, slices_per_mask=5)
    plan = make_plan(verb, torch.device("cpu"))
    found = {(one.name, one.index) for one in plan.sources if one.case == own}
    seen = {one.index for one in trained.slices if one.case == own}  # of the others it has no image
    assert {index for name, index in found if name == own} == seen
    assert {index for name, index in found if name == f"{own}.nii.gz"} == {0, 1, 2, 3} - seen
    assert {one.name for one in plan.sources if one.case == moved} == {f"{moved}.nii.gz"}


def refused(run: Path, folder: Path, line: str, **options) -> None:
    with pytest.raises(UserError, match=f"{line}.*it would leak"):
        generate(folder.parent / "Dataset962", run, masks=folder, dry_run=True, **options)


def test_masks_of_held_out_patients_are_refused(run, view, tmp_path, caplog):
    """By case, by patient, by pixels, and by a table; or left out."""
    caplog.set_level("INFO")
    folder, table = tmp_path / "masks", tmp_path / "groups.csv"
    save_mask(folder / "patient_1_s3.png", layout(0))  # a training patient
    for name, line in (
        ("ct_1.png", "of a case outside the training cases of fold 0"),
        ("ct_1_s0012.png", "of patient_0, whose case ct_1 is a validation or test case"),
        ("patient_3-scan.png", "of patient_3, whose case ct_7"),
        ("CT_1.png", "of a case outside the training cases of fold 0"),
        ("ct_1 .png", "of a case outside the training cases of fold 0"),
        ("Patient_3 -scan.png", "of patient_3, whose case ct_7"),
    ):
        save_mask(folder / name, layout(1))
        refused(run, folder, rf"found the mask {name} {line}.*\(1 such\)")
        (folder / name).unlink()
    for case in (VAL[0], "ct_6"):
        save_mask(folder / "z.png", view.read_mask(Slice(case, 2)))
        refused(run, folder, f"found the mask z.png equal to that of {case}")
    save_mask(folder / "z.png", layout(2))
    typed = (("z", "patient_0"), ("z.png", "ct_7"), ("z ", "patient_0 "), ("Z.PNG", "PATIENT_3"))
    for name, group in typed:
        table.write_text(f"case,group\n{name},{group}\n")
        refused(
            run,
            folder,
            f"found the mask z.png of patient_{0 if name.strip() == 'z' else 3}",
            mask_groups=table,
        )
    caplog.clear()
    options = {"masks": folder, "mask_groups": table, "drop_held_out_masks": True, "dry_run": True}
    generate(tmp_path / "Dataset962", run, **options)
    assert "left out 1 of 2 masks" in caplog.text and "1 images of 1 masks" in caplog.text
    assert "named after no case" not in caplog.text
    with pytest.raises(UserError, match="--drop-held-out-masks without --masks"):
        generate(tmp_path / "Dataset962", run, drop_held_out_masks=True)


def test_masks_may_lie_in_a_folder_of_each_patient(run, tmp_path, caplog):
    """As KiTS19 publishes them: case_00042/segmentation.nii.gz."""
    folder = tmp_path / "masks"
    for name in ("ct_2/segmentation.nii.gz", "ct_3/segmentation.nii"):
        (folder / name).parent.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([layout(2)] * 2)), str(folder / name))
    generate(tmp_path / "Dataset962", run, masks=folder, dry_run=True)
    assert "named after no case" not in caplog.text
    (folder / "ct_1").mkdir()
    shutil.copy(folder / "ct_2" / "segmentation.nii.gz", folder / "ct_1")
    refused(run, folder, r"found the mask ct_1/segmentation.nii.gz of patient_0.*\(2 such\)")


def test_a_fold_with_a_patient_on_both_sides_is_refused(trained_run, ct_dataset, tmp_path):
    source = tmp_path / "Dataset961_Shared"
    shutil.copytree(ct_dataset, source)
    groups = json.loads((source / "groups.json").read_text()) | {"ct_1": "patient_2"}
    (source / "groups.json").write_text(json.dumps(groups))
    run = ct_run(trained_run, read_dataset(source), tmp_path / "run")
    with pytest.raises(UserError, match=r"ct_1 \(1 such\).*its group patient_2, expected each group"):
        generate(tmp_path / "Dataset962", run)


def test_a_folder_of_many_masks_is_read_once_before_the_work(run, view, tmp_path):
    """The masks and their hashes; a file that changes afterwards is read again only when its turn comes."""
    folder = tmp_path / "masks"
    for seed in range(4):
        save_mask(folder / f"{seed}.png", layout(seed))
    trained: TrainedRun = read_run(run)
    sources = MaskFolder(view, trained.slices, 64, 8).sources(folder)
    shutil.rmtree(folder)
    assert [source.sha256 for source in sources] == [mask_hash(layout(seed)) for seed in range(4)]
    assert sources[1].sha256_at_size == mask_hash(resize_mask(layout(1), 64))
