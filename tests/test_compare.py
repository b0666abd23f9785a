"""`nnunet-order compare`: stages and tables; test_experiment.py has a comparison that has really run."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import write_json
from nnunet_order.bootstrap import interval, resampled_means
from nnunet_order.comparing.compare import compare
from nnunet_order.comparing.comparison import Comparison
from nnunet_order.comparing.latency import LATENCY, read_latencies
from nnunet_order.comparing.options import PRESETS, SCALES, Compare
from nnunet_order.comparing.scores import CaseScores, read_scores
from nnunet_order.comparing.segmentation import Segmentation, prepare_real
from nnunet_order.comparing.size_chart import draw_sizes
from nnunet_order.comparing.table import score_rows
from nnunet_order.comparing.trainer_lookup import family
from nnunet_order.evaluation import summarise
from nnunet_order.evaluation_output import write_csv
from nnunet_order.metrics import FOREGROUND_MEAN, METRICS
from nnunet_order.pictures import METHOD_COLOURS
from nnunet_order.stages.experiment_record import ExperimentRecord, begin
from nnunet_order.stages.inputs import dataset_digest
from nnunet_order.stages.options import Execution
from nnunet_order.stages.stage import stage_keys

ORDER, MK_UNET = "nnUNetTrainerORDER", "nnUNetTrainerMKUNet"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """12 training and 3 labelled test images of 32 px."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset901_Phantom"
    convert_phantom(ConvertPhantom(out=folder, cases=12, test_cases=3, size=32))
    return folder


@pytest.fixture
def options(phantoms, tmp_path) -> Compare:
    return Compare(str(phantoms), tmp_path / "out", trainers=(ORDER,), seeds=(0,), device="cpu")


def comparison(options: Compare) -> Comparison:
    return Comparison(options, read_dataset(Path(options.dataset)))


def interval_of(values: np.ndarray, groups: list | None = None) -> tuple[float, float]:
    """Of the mean of (seeds, cases)."""
    return interval(resampled_means(values[..., None], groups=groups))


def test_interval_over_seeds_and_cases():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(4, 60)) + generator.normal(size=(4, 1)) + generator.normal(size=60)
    low, high = interval_of(values)
    draws = [
        values[generator.integers(4, size=4)][:, generator.integers(60, size=60)].mean()
        for _ in range(10_000)
    ]
    assert (low, high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.05)
    assert low < values.mean() < high
    assert interval_of(values) == (low, high)
    one_seed = interval_of(values[:1])
    assert one_seed[1] - one_seed[0] < high - low
    assert np.isnan(interval_of(values[:, :1])).all()


def test_interval_leaves_nan_out():
    values = np.array([[0.2, 0.4, np.nan, 0.6], [0.3, np.nan, np.nan, 0.5]])
    without = interval_of(values)
    assert 0.2 <= without[0] < 0.45 < without[1] <= 0.6
    assert np.isnan(interval_of(np.full((2, 3), np.nan))).all()


def test_stages_and_commands(options):
    verb = replace(options, preset="paper-table3", trainers=(), seeds=(0, 1), scale="cpu")
    plan = comparison(verb)
    stages = {stage.name: stage for stage in plan.pipeline().stages}
    assert len(stages) == 2 + 5 * 2 * 3
    assert next(iter(plan.paper)) == "nnUNetTrainer_5epochs"  # the stock one reads no options
    name = f"real_{ORDER}_fold_all_seed_1"
    segment, predict, score = (stages[f"{step}_{name}"] for step in ("segment", "predict", "score"))
    assert segment.commands == (f"nnUNetv2_train Dataset001_Real 2d all -tr {ORDER} -device cpu --c",)
    assert segment.environment == {
        "nnUNet_results": "nnUNet_results/seed_1",
        "nnUNet_compile": "f",
        "nnUNet_def_n_proc": "1",
        "NNUNET_ORDER_SEED": "1",
        "NNUNET_ORDER_OPTIONS": "epochs=15 learning_rate=5e-3",
        "nnUNet_n_proc_DA": "0",
    }
    assert segment.after == ("plan",) and predict.after == (segment.name,) and score.after == (predict.name,)
    assert "--max-side 64" in stages["real"].commands[0]
    words = shlex.split(score.commands[0])
    assert f"real=predictions/{name}" in words and words[-2:] == ["--out", f"scores/{name}"]
    entries = plan.record().segmentations
    assert entries[-1].name == name and entries[-1].scores == f"scores/{name}"


def test_scales_change_sizes_and_steps_only(options):
    shapes = set()
    for scale in ("cpu", "gpu", "paper"):
        verb = replace(options, preset="paper-table5", trainers=(), scale=scale)
        stages = comparison(verb).pipeline().stages
        shapes.add(tuple((stage.name, stage.after, stage.outputs) for stage in stages))
        train = next(stage for stage in stages if stage.name.startswith("segment_"))
        changes = train.environment["NNUNET_ORDER_OPTIONS"]
        assert changes == ("" if scale == "paper" else SCALES[scale].options)
    assert len(shapes) == 1


def test_latency_is_measured_when_all_else_is_done(options):
    without = comparison(options).pipeline().stages
    assert [stage.name for stage in comparison(replace(options, latency=True)).pipeline().stages[:-1]] == [
        stage.name for stage in without
    ]
    verb = replace(options, preset="sizes", trainers=(), scale="cpu", seeds=(2, 1))
    *others, latency = comparison(verb).pipeline().stages
    assert latency.name == "latency" and latency.after == tuple(stage.name for stage in others)
    words = shlex.split(latency.commands[0])
    models = words[words.index("--models") + 1 : words.index("--size")]
    folder = "nnUNet_results/seed_2/Dataset001_Real/{}__nnUNetPlans__2d"
    assert models == [folder.format(trainer) for trainer in comparison(verb).paper]
    assert models[0] == folder.format(ORDER) and models[-1] == folder.format("nnUNetTrainer_5epochs")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "found no key rows"), ('{"rows": []}', "found no times of model")],
)
def test_a_damaged_latency_json_is_one_line(tmp_path, content, message):
    (tmp_path / LATENCY).write_text(content)
    with pytest.raises(UserError, match=f"{LATENCY}: {message}"):
        read_latencies(tmp_path, {ORDER: "model"})


def test_chart_of_sizes(tmp_path):
    """A panel per quantity and test set, and the colour of every family in each; means may be unknown."""
    trainers = (ORDER, MK_UNET, "nnUNetTrainer_5epochs", "nnUNetTrainerLite40K")
    families = {trainer: family(trainer) for trainer in trainers}
    assert [*families.values()] == ["this package", "published small networks", "nnU-Net", "this package"]
    rows = [
        {"test_set": test_set, "label": label, "trainer": trainer, "parameters": 30_000 * 4**place}
        | {"mDice": 0.4 + place / 10, "mDice_low": 0.3, "mDice_high": np.nan}
        | {"latency_ms": 10.0 + place, "latency_ms_low": 9.0, "latency_ms_high": 20.0}
        for test_set in ("A", "B")
        for label in (FOREGROUND_MEAN, "tumour")
        for place, trainer in enumerate(trainers)
    ]
    rows[3]["mDice"] = rows[3]["mDice_low"] = np.nan
    draw_sizes(rows, families, tmp_path / "both.png")
    names = ("parameters", "latency_ms", "latency_ms_low", "latency_ms_high")
    sizes_only = [{key: value for key, value in row.items() if key not in names[1:]} for row in rows]
    draw_sizes(sizes_only, families, tmp_path / "sizes.png")
    both, sizes = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("both", "sizes")
    )
    assert both.shape[1] > 1.7 * sizes.shape[1] and both.shape[0] == sizes.shape[0]
    quarters = [part for half in np.array_split(both[:-60], 2) for part in np.array_split(half, 2, axis=1)]
    for part in (*quarters, sizes):
        for colour in METHOD_COLOURS[:3]:
            assert (part == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum() > 50


def test_presets_name_trainers_that_exist():
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs as stock

    from nnunet_order import trainers

    for preset in PRESETS.values():
        assert all(hasattr(trainers, name) for name in preset)
    assert all(hasattr(stock, scale.stock) for scale in SCALES.values())


def test_numbered_folds_are_measured_on_their_validation_cases(options):
    plan = comparison(replace(options, folds=("0", "3")))
    assert plan.on == "validation" and plan.folds == (0, 3)
    names = [stage.name for stage in plan.pipeline().stages]
    assert not any(name.startswith("predict_") for name in names)
    score = plan.pipeline().stages[-1].commands[0]
    assert score.endswith("--fold 3") and f"{ORDER}__nnUNetPlans__2d/fold_3/validation" in score
    tested = comparison(replace(options, folds=("0",), on="test"))
    assert any(stage.name.startswith("predict_") for stage in tested.pipeline().stages)


@pytest.mark.parametrize(
    "change",
    [
        {"trainers": ()},
        {"preset": "paper-table3"},
        {"trainers": (ORDER, ORDER)},
        {"seeds": (0, 0)},
        {"seeds": ()},
        {"folds": ("5",)},
        {"folds": ("first",)},
        {"on": "validation"},
        {"folds": ("0",), "trainer_options": "final_validation=none"},
        {"fraction": 0.0},
        {"seeds": (-1,)},
        {"trainers": ("nnUNetTrainerODRER",)},
        {"trainers": ("nnUNetTrainer", "nnUNetTrainer_5epochs"), "scale": "cpu"},
        {"trainer_options": "epoch=3"},
        {"execution": Execution(dry_run=True, jobs=0)},
    ],
)
def test_bad_options_write_nothing(options, change):
    with pytest.raises(UserError) as error:
        compare(replace(options, **{"execution": Execution(dry_run=True), **change}))
    assert "\n" not in str(error.value) and not options.out.exists()


@pytest.mark.parametrize(
    ("stage", "message"), [("nothing", "found --stage nothing"), ("plan", "found real not")]
)
def test_a_stage_that_cannot_run_writes_nothing(options, stage, message):
    with pytest.raises(UserError, match=message):
        compare(replace(options, execution=Execution(stage=stage)))
    assert not options.out.exists()


def test_dry_run_and_list_write_nothing(options, capsys):
    compare(replace(options, execution=Execution(dry_run=True)))
    assert f"nnUNetv2_train Dataset001_Real 2d all -tr {ORDER}" in capsys.readouterr().out
    compare(replace(options, execution=Execution(list_stages=True)))
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    name = f"real_{ORDER}_fold_all_seed_0"
    assert names == ["real", "plan", f"segment_{name}", f"predict_{name}", f"score_{name}"]
    assert not options.out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "law-synth experiment", "syntheses": [1]}, "found an experiment of law-synth experiment"),
        ({"format": 1}, "found an experiment of an unknown kind"),
        (None, "found other content"),
    ],
)
def test_a_folder_with_something_else_is_left_alone(options, content, message):
    options.out.mkdir()
    path = options.out / ("notes.json" if content is None else "experiment.json")
    write_json(path, content or {})
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        compare(options)
    assert path.read_bytes() == before and [*options.out.iterdir()] == [path]


def test_auto_is_the_device_with_which_the_folder_was_begun(options, monkeypatch):
    """Else a login node without a GPU would change every command."""
    begun = comparison(replace(options, device="mps"))
    begin(options.out, begun.record())
    again = comparison(replace(options, device="auto"))
    assert again.device == "mps" and again.pipeline().keys == begun.pipeline().keys
    assert again.record().config["device"] == "mps"
    assert comparison(options).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert comparison(replace(options, device="auto", out=options.out / "new")).device == "cuda"


def test_gpus_are_not_for_a_comparison_on_the_cpu(options):
    with pytest.raises(UserError, match="found --gpus 0 and device cpu"):
        compare(replace(options, execution=Execution(gpus=(0,), dry_run=True)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "found null, expected object"),
        ("[]", "found array, expected object"),
        ('{"kind": ', "malformed"),
        ('{"config": 3}', "found int at config, expected object"),
        ('{"config": {"device": null}}', "found null at config.device, expected str"),
        ('{"config": {"device": ["cpu"]}}', "found array at config.device, expected str"),
        ('{"kind": 3}', "found int at kind, expected str"),
    ],
)
def test_a_damaged_experiment_json_is_one_line(options, content, message):
    options.out.mkdir()
    path = options.out / "experiment.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        compare(replace(options, device="auto"))
    assert f"{error.value}".startswith(f"{path}: {message}") and "\n" not in f"{error.value}"
    assert path.read_text() == content


def test_a_changed_image_changes_the_digest(phantoms, tmp_path):
    copy = tmp_path / phantoms.name
    shutil.copytree(phantoms, copy)
    before = dataset_digest(read_dataset(phantoms), [])
    assert dataset_digest(read_dataset(copy), []) == before
    images = sorted((copy / "imagesTr").iterdir())
    first, second = images[0].read_bytes(), images[1].read_bytes()
    images[0].write_bytes(second)
    images[1].write_bytes(first)
    assert dataset_digest(read_dataset(copy), []) != before


def test_the_users_own_folds_come_along(phantoms, tmp_path, monkeypatch):
    """Those that nnU-Net would use; others are another experiment, its default written out is not."""
    source = read_dataset(phantoms)
    alone = prepare_real(source, 1.0, None)[0]
    place = tmp_path / phantoms.name / "splits_final.json"
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    write_json(place, read_splits(source)[::-1])
    real = prepare_real(source, 1.0, None)[0]
    assert f"--splits {place}" in real.commands[0] and "--splits" not in alone.commands[0]
    write_json(place, read_splits(source)[1:])
    fewer = prepare_real(source, 1.0, None)[0]
    monkeypatch.delenv("nnUNet_preprocessed")
    write_json(place, read_splits(source))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    default = prepare_real(source, 1.0, None)[0]
    keys = [stage_keys([one])["real"] for one in (alone, default, real, fewer)]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_a_data_set_that_has_moved_is_the_same(options, phantoms, tmp_path):
    moved = shutil.copytree(phantoms, tmp_path / "elsewhere" / phantoms.name)
    keys = [comparison(replace(options, dataset=str(folder))).pipeline().keys for folder in (phantoms, moved)]
    assert keys[0] == keys[1]


def record_of(runs: list[Segmentation]) -> ExperimentRecord:
    """What an experiment with these trainings records."""
    return ExperimentRecord(
        title="",
        real="nnUNet_raw/Dataset001_Real",
        on=runs[0].on,
        reference="real",
        arms=["real"],
        trainers=list(dict.fromkeys(one.trainer for one in runs)),
        folds=sorted({one.fold for one in runs}),
        seeds=sorted({one.seed for one in runs}),
        segmentations=[one.entry() for one in runs],
        syntheses=[],
    )


def write_scores(out: Path, one: Segmentation, test_set: str, dice: list[float]) -> None:
    folder = out / one.scores
    folder.mkdir(parents=True)
    names = {"test_set": test_set, "prediction": "real", "label": "polyp"}
    scores = [{"Dice": d, "IoU": d / (2 - d), "HD95": 1.0, "NSD": d} for d in dice]
    rows = [names | {"case": f"{one.fold}_{i}"} | values for i, values in enumerate(scores)]
    write_csv(folder / "per_case.csv", rows)


def test_rows_per_label_with_intervals_over_patients():
    """Ten slices of each of 20 patients; the paper's numbers are of the mean over the labels."""
    generator, cases = np.random.default_rng(0), [f"c{index:03d}" for index in range(200)]
    dice = np.repeat(generator.uniform(0.3, 0.6, (2, 20)), 10, axis=1)  # (seeds, cases)
    gain = np.repeat(generator.normal(0.1, 0.05, (2, 20)), 10, axis=1)
    seen = {"real": np.ones((2, 200), bool)}
    scores = [
        CaseScores(
            *(trainer, "T", label, cases, [(0,), (1,)]),
            *({"real": {"Dice": values[..., None], "IoU": values[..., None] / 2}}, seen),
        )
        for label in (FOREGROUND_MEAN, "kidney", "tumour")
        for trainer, values in ((ORDER, dice), (MK_UNET, dice + gain * (label == "tumour")))
    ]
    patients = {case: f"p{index // 10}" for index, case in enumerate(cases)}
    paper = {ORDER: (81.3, 81.7), MK_UNET: None}
    rows = {(row["label"], row["trainer"]): row for row in score_rows(scores, paper, patients)}
    assert [label for label, trainer in rows if trainer == ORDER] == [FOREGROUND_MEAN, "kidney", "tumour"]
    assert [row["paper_mDice"] for row in rows.values()] == [0.813] + 5 * [None]
    row = rows["tumour", MK_UNET]
    assert (row["cases"], row["groups"], row["runs"]) == (200, 20, 2)
    assert row["delta_mDice"] == pytest.approx(gain.mean(), abs=1e-6)
    of_patients = interval_of(gain, list(patients.values()))
    assert (row["delta_mDice_low"], row["delta_mDice_high"]) == pytest.approx(of_patients, abs=1e-6)
    of_slices = interval_of(gain)
    assert np.ptp(of_patients) > 1.3 * np.ptp(of_slices)
    assert rows["kidney", MK_UNET]["delta_mDice"] == 0 and "delta_mDice" not in rows["kidney", ORDER]


def test_means_and_differences_are_those_of_evaluate(tmp_path):
    """Two of ten volumes have a tumour, and one network finds one in each of the other eight."""
    kidney = np.full(10, 0.9)
    none, everywhere = np.array([0.2, 0.2, *8 * [np.nan]]), np.array([0.3, 0.3, *8 * [0.0]])
    found = {ORDER: np.stack([kidney, none], 1), MK_UNET: np.stack([kidney, everywhere], 1)}
    runs = [
        Segmentation("real", "Dataset001_Real", trainer, "all", 0, "all", "", "test", "cpu")
        for trainer in found
    ]
    for one in runs:
        (tmp_path / one.scores).mkdir(parents=True)
        rows = [
            {"test_set": "T", "case": f"c{case}", "prediction": "real", "label": label}
            | dict.fromkeys(METRICS, "" if np.isnan(dice) else dice)
            for case, of_case in enumerate(found[one.trainer])
            for label, dice in zip(("kidney", "tumour"), of_case, strict=True)
        ]
        write_csv(tmp_path / one.scores / "per_case.csv", rows)
    groups = {f"c{case}": f"c{case}" for case in range(10)}
    scores = read_scores(tmp_path, record_of(runs), missing=[])
    rows = score_rows(scores, dict.fromkeys(found), groups)
    values = {trainer: np.repeat(dice[..., None], len(METRICS), 2) for trainer, dice in found.items()}
    expected = summarise(values, groups, {"T": list(groups)}, ["kidney", "tumour"], seed=0)
    assert [row["trainer"] for row in rows] == [row["prediction"] for row in expected]
    columns = [f"{name}{end}" for name in ("mDice", "delta_mDice") for end in ("", "_low", "_high")]
    for row, of_evaluate in zip(rows, expected, strict=True):
        assert row["label"] == of_evaluate["label"]
        for column in columns:
            assert row.get(column) == pytest.approx(of_evaluate.get(column), abs=1e-6, nan_ok=True)
    tumour = rows[-1]
    assert tumour["delta_mDice"] == pytest.approx(0.06 - 0.2)
    assert tumour["delta_mDice_high"] < 0


def test_validation_cases_of_all_folds_are_pooled_per_seed(tmp_path):
    runs = [
        Segmentation("real", "Dataset001_Real", ORDER, fold, seed, fold, "", "validation", "cpu")
        for fold in (0, 1)
        for seed in (0, 1)
    ]
    for one in runs:
        write_scores(
            tmp_path, one, f"validation of fold {one.fold}", [0.1 * (one.seed + 1), 0.5 + one.fold / 4]
        )
    (scores,) = read_scores(tmp_path, record_of(runs), missing=[])
    assert (scores.test_set, scores.trainings) == ("validation", [(0,), (1,)])
    assert scores.cases == ["0_0", "0_1", "1_0", "1_1"]
    expected = np.array([[0.1, 0.5, 0.1, 0.75], [0.2, 0.5, 0.2, 0.75]])
    assert scores.values["real"]["Dice"][..., 0] == pytest.approx(expected)
