"""Hard cases: `law-synth mine`, what `generate --hard-cases` draws, and how the judges are audited."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_conversion.raw.folds import read_splits

pytest.importorskip("diffusers", reason="needs the extra synth")

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from law_synth.audit.audit import audit
from law_synth.audit.options import Audit
from law_synth.cli import main
from law_synth.evaluation.evaluate import evaluate
from law_synth.evaluation.options import Evaluate
from law_synth.generation.generate import generate as run_generate
from law_synth.generation.options import Generate
from law_synth.generation.quality import QualityFilter, training_thumbnails
from law_synth.judging.segmenter import Segmenter, judge_of_fold
from law_synth.leaks import cases_behind_judge, refuse_informed_judge
from law_synth.mining.mine import mine
from law_synth.mining.options import Mine
from law_synth.records.hard_cases import HardCases, read_hard_cases
from law_synth.records.run import read_run
from law_synth.view.slices import view_of
from nnunet_order.metrics import binary_metrics

NAME = "Dataset950_Phantom"


@pytest.fixture(autouse=True)
def environment(trained_run, monkeypatch, tmp_path):
    """nnU-Net's variables, with preprocessed data of each test's own."""
    root = trained_run.parents[3]
    monkeypatch.setenv("nnUNet_raw", str(root / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_results", str(root / "nnUNet_results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def judge(tmp_path):
    """A maker of nnU-Net model folders of random weights: judge(folds, dataset's name, its dataset.json)."""
    polyps = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png", "numTraining": 12}
    polyps |= {"labels": {"background": 0, "polyp": 1}}

    def make(folds: tuple[int, ...], dataset: str = NAME, description: dict = polyps) -> Path:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        arguments = {"n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": [[3, 3]] * 2}
        arguments |= {
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "conv_bias": True,
            "strides": [[1, 1], [2, 2]],
        }
        arguments |= {"n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "nonlin": "torch.nn.ReLU"}
        network = {
            "network_class_name": f"{PlainConvUNet.__module__}.PlainConvUNet",
            "arch_kwargs": arguments,
        }
        network |= {"_kw_requires_import": ["conv_op", "nonlin"]}
        settings = {"data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2}
        settings |= {"patch_size": [64, 64], "spacing": [1.0, 1.0], "architecture": network}
        channels = len(description["channel_names"])
        settings |= {"normalization_schemes": ["ZScoreNormalization"] * channels}
        settings |= {"use_mask_for_norm": [False] * channels}
        for kind in ("data", "seg", "probabilities"):
            settings[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
            resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
            settings[f"resampling_fn_{kind}_kwargs"] = resampling
        plans = {"dataset_name": dataset, "plans_name": "nnUNetPlans", "configurations": {"2d": settings}}
        plans |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
        reader = "NaturalImage2DIO" if description["file_ending"] == ".png" else "SimpleITKIO"
        plans |= {"image_reader_writer": reader, "label_manager": "LabelManager"}
        plans["foreground_intensity_properties_per_channel"] = {str(c): {} for c in range(channels)}
        folder = tmp_path / f"judge_{dataset}" / "nnUNetTrainer__nnUNetPlans__2d"
        folder.mkdir(parents=True)
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(description))
        options = {"conv_op": torch.nn.Conv2d, "nonlin": torch.nn.ReLU}
        for fold in folds:
            torch.manual_seed(fold)
            classes = len(description["labels"])
            weights = PlainConvUNet(channels, num_classes=classes, **{**arguments, **options}).state_dict()
            checkpoint = {"network_weights": weights, "trainer_name": "nnUNetTrainer"}
            checkpoint |= {"init_args": {"configuration": "2d"}, "inference_allowed_mirroring_axes": None}
            (folder / f"fold_{fold}").mkdir()
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
        return folder

    return make


def generate(out: Path, **options) -> list[str]:
    """Generate quickly; -> the source case of each sample."""
    run_generate(Generate(out=out, **{"chunk_size": 4, "steps": 1, **options}))
    return [json.loads(line)["source_case"] for line in (out / "synthesis.jsonl").read_text().splitlines()]


def write_hard_cases(path: Path, dice: dict[str, float], **change) -> Path:
    content = {
        "format": 1,
        "dataset": NAME,
        "fold": 0,
        "segmenter": "s",
        "segmenter_sha256": "0",
        "dice": dice,
    }
    path.write_text(json.dumps(content | change))
    return path


def test_mine_measures_the_training_cases_only(trained_run, judge, tmp_path):
    dataset, folder = read_dataset(read_run(trained_run).dataset_folder), judge((0, 1))
    out = tmp_path / "hard_cases.json"
    mine(Mine(dataset="950", segmenter=folder, out=out, device="cpu"))
    content, split = json.loads(out.read_text()), read_splits(dataset)[0]
    view = view_of(dataset, split["train"])
    model = Segmenter(folder, folds=[0])  # fold 1 has learned from this fold's validation cases
    assert (content["dataset"], content["fold"], content["segmenter_sha256"]) == (NAME, 0, model.hash)
    assert sorted(content["dice"]) == sorted(split["train"])
    for slice_, dice in zip(view.slices(sorted(split["train"])), content["dice"].values(), strict=True):
        image, mask = view.read(slice_)
        expected = binary_metrics(mask > 0, model.find(view, image, None) > 0)["Dice"]
        assert dice == pytest.approx(1 if math.isnan(expected) else expected, abs=1e-6)
    before = out.read_bytes()
    mine(Mine(dataset="950", segmenter=folder, out=out, device="cpu"))
    assert out.read_bytes() == before
    assert read_hard_cases(out, NAME, 0, split["train"]).dice == content["dice"]


def test_volumes_are_mined_by_the_mean_of_slices_and_classes(ct_dataset, judge, tmp_path):
    dataset = read_dataset(ct_dataset)
    folder = judge((0,), ct_dataset.name, dataset.json)
    out, train = tmp_path / "hard_cases.json", read_splits(dataset)[0]["train"]
    mine(Mine(dataset=str(ct_dataset), segmenter=folder, out=out, device="cpu"))
    measured, view, model = json.loads(out.read_text())["dice"], view_of(dataset, train), Segmenter(folder)
    assert sorted(measured) == sorted(train) and len(set(measured.values())) > 1
    for case in train:
        means = []
        for slice_ in view.slices([case]):
            mask, found = view.read_mask(slice_), model.find_slice(view, slice_)
            means.append(np.mean([binary_metrics(mask == c, found == c)["Dice"] for c in (1, 2)]))
        assert len(means) == 4 and measured[case] == pytest.approx(np.mean(means), abs=1e-6)


def test_images_of_several_classes_have_a_score_each(ct_dataset, judge):
    """What a segmenter finds in a real slice against the slice's mask, and against the background."""
    dataset = read_dataset(ct_dataset)
    view = view_of(dataset, read_splits(dataset)[0]["train"])
    model, (slice_, *rest) = Segmenter(judge((0,), ct_dataset.name, dataset.json)), view.slices(["ct_2"])
    references = training_thumbnails(view, rest)
    (image, mask), geometry = view.read(slice_), view.geometry(slice_)
    found = model.find(view, image, geometry)
    reason, scores = QualityFilter(view, references, 1.0, model, 0.0)(image, mask, geometry)
    dice = {name: binary_metrics(mask == c, found == c)["Dice"] for c, name in ((1, "kidney"), (2, "tumour"))}
    assert reason is None and scores["nearest_case"] == "ct_2" and scores["similarity"] > 0.9
    assert {name: scores[f"agreement_{name}"] for name in dice} == pytest.approx(dice, abs=1e-6)
    assert scores["agreement"] == pytest.approx(np.mean(list(dice.values())), abs=1e-6)
    limit = scores["agreement"] + 1e-3
    assert QualityFilter(view, references, 1.0, model, limit)(image, mask, geometry)[0] == "agreement"
    assert QualityFilter(view, references, 0.9, model)(image, mask, geometry)[0] == "near copy"
    flat = np.full((40, 36, 3), 90, np.float32)
    assert QualityFilter(view, references, 1.0)(flat, mask, geometry)[0] == "constant"


def test_mine_refuses_what_would_leak(judge, tmp_path):
    out = tmp_path / "hard_cases.json"
    with pytest.raises(UserError, match=r"judge trained on phantom_.*validation or test case of fold 0"):
        mine(Mine(dataset="950", segmenter=judge((1,)), out=out, device="cpu"))
    with pytest.raises(UserError, match="found --fold 7"):
        mine(Mine(dataset="950", segmenter=tmp_path, fold=7, out=out, device="cpu"))
    assert not out.exists()
    out.write_text('{"thesis": 1}')
    with pytest.raises(UserError, match="found another file, expected none or one of law-synth mine"):
        mine(Mine(dataset="950", segmenter=tmp_path, out=out, device="cpu"))


def test_draws_are_proportional_and_repeatable():
    """Every case comes as often as its share says, rounded up or down, and by its share on average."""
    cases = [f"c{i}" for i in range(7)]
    dice = dict(zip(cases, (1, 0.95, 0.8, 0.5, 0.3, 0, 1), strict=True))
    hard = HardCases(1, NAME, 0, "judge", "", dice)
    weights = np.array([1 - dice[case] + 0.1 for case in cases])
    for count in (3, 7, 40):
        expected = count * weights / weights.sum()
        draws = [hard.draw(cases, count, seed) for seed in range(400)]
        assert draws[0] == hard.draw(cases, count, 0) and draws[0] != draws[1]
        counts = np.array([np.bincount(draw, minlength=len(cases)) for draw in draws])
        assert (counts.sum(1) == count).all() and (np.abs(counts - expected) < 1).all()
        np.testing.assert_allclose(counts.mean(0), expected, atol=0.08)
    perfect = HardCases(1, NAME, 0, "judge", "", dict.fromkeys(cases, 1.0))
    assert perfect.draw(cases, 7, 5) == list(range(7))


def test_generate_draws_hard_masks_more_often(trained_run, tmp_path):
    cases = read_run(trained_run).train_cases
    dice = dict.fromkeys(cases, 0.9) | {cases[3]: 0.1}  # weights 0.2 and 1.0: 5 times as often
    file = write_hard_cases(tmp_path / "hard_cases.json", dice)
    out = tmp_path / "a" / "Dataset951"
    counts = Counter(generate(out, hard_cases=file, samples=13))
    assert counts.pop(cases[3]) == 5 and set(counts) == {*cases} - {cases[3]} and set(counts.values()) == {1}
    record = json.loads((out / "synthesis.json").read_text())
    assert record["hard_cases"]["dice"] == dice and len(record["options"]["hard_cases"]) == 64
    for part in (1, 0):  # processes agree on the list
        generate_part = {"hard_cases": file, "samples": 13, "shard": f"{part}/2", "chunk_size": 4, "steps": 1}
        run_generate(Generate(out=tmp_path / "b" / "Dataset951", **generate_part))
    same = [tmp_path / x / "Dataset951" / "synthesis.jsonl" for x in "ab"]
    assert same[0].read_bytes() == same[1].read_bytes()
    other = write_hard_cases(tmp_path / "other.json", dice | {cases[0]: 0.2})
    with pytest.raises(UserError, match="found a generation with hard-cases"):
        generate(out, hard_cases=other, samples=13)
    with pytest.raises(UserError, match=r"found a generation with hard-cases .* expected None as now"):
        generate(out, samples=13)


def test_hard_cases_that_do_not_fit_are_refused(trained_run, tmp_path):
    run, file = read_run(trained_run), tmp_path / "hard_cases.json"
    dice = dict.fromkeys(run.train_cases, 0.5)
    dataset = read_dataset(run.dataset_folder)
    held_out = [*read_splits(dataset)[0]["val"], dataset.test_cases[0].id]
    for change, line in (
        ({"dice": dice | {held_out[0]: 0.1}}, f"found {held_out[0]} .*it would leak"),
        ({"dice": dice | {held_out[-1]: 0.1}}, f"found {held_out[-1]} .*it would leak"),
        ({"dice": dict(list(dice.items())[1:])}, f"found no Dice of {run.train_cases[0]}"),
        ({"dice": dice | {run.train_cases[0]: 1.5}}, r"found another value at dice\[...\] .*<= 1.0"),
        ({"dataset": "Dataset001_Other"}, f"found fold 0 of Dataset001_Other, expected fold 0 of {NAME}"),
        ({"fold": 1}, "found fold 1 of"),
        ({"format": 2}, "found format 2, expected 1"),
    ):
        with pytest.raises(UserError, match=line):
            generate(tmp_path / "Dataset951", hard_cases=write_hard_cases(file, **({"dice": dice} | change)))
    file.write_text("[]")
    for path, line in (
        (file, "found array"),
        (tmp_path / "none.json", "none.json: not found"),
    ):
        with pytest.raises(UserError, match=line):
            generate(tmp_path / "Dataset951", hard_cases=path)
    with pytest.raises(UserError, match="--hard-cases with --masks"):
        generate(tmp_path / "Dataset951", hard_cases=file, masks=tmp_path)
    assert not (tmp_path / "Dataset951").exists()


def test_a_judge_of_a_synthetic_data_set_is_known(trained_run, judge, tmp_path, monkeypatch):
    """The segmenter of round 1 was trained on the --with-real data set of round 1."""
    run, raw = read_run(trained_run), tmp_path / "nnUNet_raw"
    shutil.copytree(run.dataset_folder, raw / NAME)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    generate(raw / "Dataset951", trained_run=trained_run, with_real=True, samples=2)
    source = read_dataset(run.dataset_folder)
    folder = judge((0,), "Dataset951")
    assert cases_behind_judge(source, Segmenter(folder)) == set(run.train_cases)
    splits = json.loads((raw / "Dataset951" / "splits_final.json").read_text())
    mixed = [{"train": splits[0]["train"] + splits[0]["val"][:1], "val": splits[0]["val"][1:]}]
    (tmp_path / "nnUNet_preprocessed" / "Dataset951" / "splits_final.json").write_text(json.dumps(mixed))
    with pytest.raises(UserError, match=f"judge trained on {splits[0]['val'][0]}"):
        mine(Mine(dataset=NAME, segmenter=folder, out=tmp_path / "h.json", device="cpu"))
    assert cases_behind_judge(source, Segmenter(judge((0,), "Dataset777_Other"))) is None


def test_a_judge_of_a_subset_is_known(trained_run, judge, tmp_path):
    """An experiment trains its segmenters on a copy of the data set under another name."""
    source = read_dataset(read_run(trained_run).dataset_folder)
    splits, name = read_splits(source), "Dataset001_Real"
    subset = [{"train": part["train"][:4], "val": part["val"]} for part in splits]
    (tmp_path / "nnUNet_preprocessed" / name).mkdir(parents=True)
    (tmp_path / "nnUNet_preprocessed" / name / "splits_final.json").write_text(json.dumps(subset))
    folder = judge((0, 1), name)
    assert cases_behind_judge(source, judge_of_fold(folder, "cpu", 0, source)) is None  # not known whose
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"subset_of": source.name}))
    for fold in (0, 1):
        found = judge_of_fold(folder, "cpu", fold, source)
        assert found.folds == [str(fold)] and cases_behind_judge(source, found) == set(subset[fold]["train"])
    with pytest.raises(UserError, match="a judge trained on"):
        refuse_informed_judge(source, 0, Segmenter(folder))


def checks_of(dataset: Path, out: Path, **options) -> dict[str, dict]:
    """Audit; -> the checks by name."""
    try:
        audit(Audit(str(dataset), out=out, device="cpu", **options))
    except SystemExit as stop:
        assert stop.code == 1
    return {check["name"]: check for check in json.loads(out.read_text())["checks"]}


def test_audit_asks_for_the_judges_and_looks_at_them(trained_run, judge, tmp_path):
    run, folder, out = read_run(trained_run), judge((0,)), tmp_path / "audit.json"
    mine(Mine(dataset="950", segmenter=folder, out=tmp_path / "hard.json", device="cpu"))
    data = tmp_path / "Dataset951"
    generate(data, segmenter=folder, hard_cases=tmp_path / "hard.json", samples=4)
    checks = checks_of(data, out)
    assert checks["judge"]["result"] == "not possible" and "give --segmenter" in checks["judge"]["detail"]
    checks = checks_of(data, out, segmenter=(folder,))
    assert {check["result"] for check in checks.values()} == {"passed"}
    val = read_splits(read_dataset(run.dataset_folder))[0]["val"][0]
    record = json.loads((data / "synthesis.json").read_text())
    record["hard_cases"]["dice"][val] = 0.1
    (data / "synthesis.json").write_text(json.dumps(record))
    (folder / "fold_0").rename(folder / "fold_1")  # the same weights, but of a fold that trains on `val`
    checks = checks_of(data, out, segmenter=(folder,))
    assert {name for name, check in checks.items() if check["result"] == "failed"} == {"judge", "hard cases"}
    assert val in {finding["what"].split()[-1] for finding in checks["judge"]["findings"]}


HUB = """
import pathlib
pathlib.Path({mark!r}).touch()
def entry(**options):
    raise SystemExit("ran")
"""


@pytest.mark.parametrize("by", ["network", "layer"])
def test_code_that_a_model_folder_names_is_not_run(trained_run, judge, tmp_path, monkeypatch, by):
    """Of all commands that take a judge: the checkpoint is harmless, plans.json names a function."""
    folder, data, mark = judge((0,)), tmp_path / "Dataset951", tmp_path / "ran"
    mine(Mine(dataset="950", segmenter=folder, out=tmp_path / "hard.json", device="cpu"))
    generate(data, segmenter=folder, samples=4)
    (tmp_path / "hubconf.py").write_text(HUB.format(mark=str(mark)))
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    if by == "network":
        architecture["network_class_name"] = "torch.hub.load"
        hub = {"repo_or_dir": str(tmp_path), "model": "entry", "source": "local"}
        architecture |= {"arch_kwargs": hub, "_kw_requires_import": []}
    else:
        command = {"command": f"touch {mark}"}
        architecture["arch_kwargs"] |= {"nonlin": "os.system", "nonlin_kwargs": command}
    (folder / "plans.json").write_text(json.dumps(plans))
    commands = [
        (mine, Mine(dataset="950", segmenter=folder, out=tmp_path / "again.json", device="cpu")),
        (run_generate, Generate(out=tmp_path / "Dataset952", segmenter=folder, samples=4)),
        (evaluate, Evaluate(str(data), segmenter=folder, device="cpu", dry_run=True)),
        (audit, Audit(str(data), segmenter=(folder,), device="cpu")),
    ]
    for command, options in commands:
        with pytest.raises(
            UserError, match=r"plans\.json: found (torch\.hub\.load|os\.system), which would run"
        ):
            command(options)
    monkeypatch.setattr("sys.argv", ["law-synth", "audit", str(data), "--segmenter", str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and not mark.exists() and not (tmp_path / "again.json").exists()
