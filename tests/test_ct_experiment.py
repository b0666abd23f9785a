"""The experiment and its report on volumes with several classes: plan, tables, pictures, the page."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_records import small_row, small_run

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from law_synth.experiment import tables
from law_synth.experiment.config import make_config
from law_synth.experiment.experiment import experiment
from law_synth.experiment.make_plan import make_plan
from law_synth.experiment.options import Experiment, Report
from law_synth.experiment.page.display import display_note, display_of
from law_synth.experiment.page.report import report
from law_synth.experiment.presets import preset_content
from law_synth.experiment.results import read_results
from law_synth.records.run import write_config
from law_synth.records.synthetic import write_rows
from law_synth.view.slices import view_of
from nnunet_order.comparing.comparison import Comparison
from nnunet_order.comparing.options import Compare
from nnunet_order.evaluation_output import write_csv
from nnunet_order.metrics import FOREGROUND_MEAN, METRICS
from nnunet_order.stages.experiment_record import begin
from nnunet_order.stages.inputs import dataset_digest
from nnunet_order.stages.options import Execution
from nnunet_order.stages.stage import stage_keys

ARMS = ("real", "uniform", "law")
TRAINER = "nnUNetTrainerORDER"
SEEDS = (0, 1)
REAL = "nnUNet_raw/Dataset001_Real"
SHIFTS = {"real": 2, "uniform": 2, "law": 1}  # pixels by which a prediction misses


def segmentation(arm: str, seed: int) -> dict:
    name = f"{arm}_{TRAINER}_fold_all_seed_{seed}"
    entry = {"name": name, "arm": arm, "trainer": TRAINER, "fold": "all", "seed": seed}
    return entry | {
        "dataset": "Dataset001_Real",
        "predictions": f"predictions/{name}",
        "scores": f"scores/{name}",
    }


def synthesis(arm: str) -> dict:
    name = f"{arm}_fold_all_seed_0"
    return {"name": name, "arm": arm, "fold": "all", "seed": 0, "round": 1, "run": f"runs/{name}"} | {
        "dataset": f"nnUNet_raw/Dataset{100 + ARMS.index(arm)}_{name}",
        "evaluation": f"evaluations/{name}",
    }


def predict_and_score(folder: Path, entry: dict) -> None:
    """Predictions that miss the truth, and the columns that `nnunet-order evaluate` writes of them."""
    import SimpleITK as sitk

    from nnunet_order.metrics import label_metrics

    predictions, rows = folder / entry["predictions"], []
    predictions.mkdir(parents=True)
    dataset = read_dataset(folder / REAL)
    for case in dataset.test_cases:
        truth = dataset.read_label(case.label)
        found = np.roll(truth, SHIFTS[entry["arm"]] + entry["seed"], axis=2)
        image = sitk.GetImageFromArray(found.astype(np.uint8))
        image.CopyInformation(sitk.ReadImage(str(case.label)))
        sitk.WriteImage(image, str(predictions / case.label.name))
        scores = label_metrics(truth, found, dataset.regions)
        head = {"test_set": "CT", "case": case.id, "prediction": entry["arm"]}
        rows += [
            head | {"label": label} | {metric: values[metric] for metric in METRICS}
            for label, values in scores.items()
        ]
    (folder / entry["scores"]).mkdir(parents=True)
    write_csv(folder / entry["scores"] / "per_case.csv", rows)


def synthesise(folder: Path, entry: dict, view, slices) -> None:
    """Real slices as synthetic cases, and what train, generate and evaluate would leave of them."""
    run, out, evaluation = (folder / entry[part] for part in ("run", "dataset", "evaluation"))
    for path in (run / "samples", out / "imagesTr", out / "labelsTr", evaluation):
        path.mkdir(parents=True)
    train = [case.id for case in view.dataset.training_cases]
    indices = {case: [one.index for one in slices if one.case == case] for case in train}
    config = small_run(train_cases=train[2:], monitor_cases=train[:2], view=view.record, slices=indices)
    write_config(run, config)
    regions = ("all", "lesion", "background", "lesion_kidney", "lesion_tumour")
    log = [{"step": step} | {f"fixed_noise/{name}": 1 / (9 + step) for name in regions} for step in (0, 10)]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    for step in (0, 10):
        np.save(run / "samples" / f"delta_{step:06d}.npy", np.full((4, 8, 8), 0.5 + step / 40))
    manifest, cases = [], []
    for number, one in enumerate(slices):
        name, mask = f"law_{number:06d}", view.read_mask(one)
        for path, content in view.encode(name, view.read_rgb(one), mask, view.geometry(one)).items():
            (out / path).write_bytes(content)
        source = {"source_case": one.case, "source_slice": one.index, "source_mask": one.case}
        manifest.append(small_row(name, **source, mask_sha256=one.id))
        row = {"case": name, "lesion_ratio": (mask > 0).mean(), "dice": 0.6, "dice_shuffled": 0.2}
        for value, region in ((1, "kidney"), (2, "tumour")):
            row |= {f"lesion_ratio_{region}": (mask == value).mean(), f"dice_{region}": 0.9 - 0.3 * value}
        cases.append(row)
    write_rows(out / "synthesis.jsonl", manifest)
    (out / "dataset.json").write_text(json.dumps(view.dataset.json | {"numTraining": len(slices)}))
    write_csv(evaluation / "per_case.csv", cases)
    measures = [
        {"section": "Masks", "name": name, "images": "synthetic", "against": "own mask", "value": value}
        | {"low": None, "high": None, "n": {"synthetic": len(slices)}, "protocol": "by hand"}
        for name, value in (("mDice", 0.45), ("mDice kidney", 0.6), ("mDice tumour", 0.3))
    ]
    (evaluation / "evaluation.json").write_text(json.dumps({"measures": measures}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ct_dataset) -> Path:
    """An experiment's folder, as if everything in it had run."""
    folder = tmp_path_factory.mktemp("ct_experiment")
    shutil.copytree(ct_dataset, folder / REAL)
    entries = [segmentation(arm, seed) for arm in ARMS for seed in SEEDS]
    content = {
        "format": 1,
        "title": "CT",
        "real": REAL,
        "on": "test",
        "reference": "real",
        "arms": list(ARMS),
        "trainers": [TRAINER],
        "folds": ["all"],
        "seeds": list(SEEDS),
        "segmentations": entries,
        "syntheses": [synthesis(arm) for arm in ARMS[1:]],
        "stages": {},
    }
    (folder / "experiment.json").write_text(json.dumps(content))
    for entry in entries:
        predict_and_score(folder, entry)
    dataset = read_dataset(folder / REAL)
    train = [case.id for case in dataset.training_cases]
    view = view_of(dataset, train)
    for entry in content["syntheses"]:
        synthesise(folder, entry, view, view.slices(train, 2))
    report(Report(folder))
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_the_mean_and_every_label(finished):
    rows = [row for row in read_csv(finished / "results" / "segmentation.csv") if row["stratum"] == "all"]
    law = {row["label"]: row for row in rows if (row["arm"], row["metric"]) == ("law", "mDice")}
    assert law.keys() == {FOREGROUND_MEAN, "kidney", "tumour"}
    # Both test volumes are of one patient: nothing is known of others.
    assert {(row["cases"], row["groups"], row["low"]) for row in law.values()} == {("2", "1", "")}
    for label in ("kidney", "tumour"):
        scored = [
            float(row["Dice"])
            for seed in SEEDS
            for row in read_csv(finished / segmentation("law", seed)["scores"] / "per_case.csv")
            if row["label"] == label
        ]
        assert float(law[label]["value"]) == pytest.approx(np.mean(scored), abs=1e-6)
    assert float(law[FOREGROUND_MEAN]["value"]) == pytest.approx(
        (float(law["kidney"]["value"]) + float(law["tumour"]["value"])) / 2, abs=1e-6
    )
    gains = read_csv(finished / "results" / "differences.csv")
    assert {(row["label"], row["arm"]) for row in gains} == {(one, arm) for one in law for arm in ARMS[1:]}
    made = read_csv(finished / "results" / "synthesis.csv")
    assert {"mDice", "mDice kidney", "mDice tumour"} <= {row["measure"] for row in made}


def test_sentences_name_the_labels_behind_a_mean(finished):
    page = (finished / "report.html").read_text()
    gain = next(
        row
        for row in read_csv(finished / "results" / "differences.csv")
        if (row["label"], row["arm"], row["metric"], row["stratum"]) == ("tumour", "law", "mDice", "all")
    )
    assert f"tumour +{100 * float(gain['difference']):.1f} [" in page


def test_the_share_of_synthetic_cases_in_a_batch_is_told(finished, caplog):
    """12 synthetic slices beside 6 volumes: nnU-Net draws cases, so that two thirds are synthetic."""
    shares = tables.synthetic_shares(read_results(finished))
    assert [(one["arm"], one["real"], one["synthetic"]) for one in shares] == [
        ("uniform", 6, 12),
        ("law", 6, 12),
    ]
    assert shares[0]["share"] == pytest.approx(2 / 3)
    with caplog.at_level(logging.INFO):
        report(Report(finished))
    assert "6 real and 12 synthetic cases, 67 % of a batch is synthetic" in caplog.text
    page = (finished / "report.html").read_text()
    assert "67 %" in page and "counts as much as a whole real volume" in page


def test_volumes_are_shown_where_the_rarest_label_is_largest(finished, tmp_path):
    import SimpleITK as sitk

    results = read_results(finished)
    display = display_of(results)
    assert set(display.colours) == {"kidney", "tumour"} and display.axis == 0
    low, high = results.syntheses[0].config.view.window.low[0], display.window[1]
    assert display.window[0] == low and f"{high:.0f} (white)" in display_note(results, display)
    case = results.real_cases["ct_0"]
    label = np.ones((5, 40, 36), np.uint8)  # kidney everywhere
    label[0, :2], label[3, :4, :5] = 2, 2
    label[0, :2, 5:] = 1
    path = tmp_path / "label.nii.gz"
    image = sitk.GetImageFromArray(label)
    image.CopyInformation(sitk.ReadImage(str(case.label)))
    sitk.WriteImage(image, str(path))
    plane = display.plane(results.real, type(case)(case.id, case.images, path))
    assert plane.index == 3 and plane.truth["tumour"].sum() == 20
    assert plane.aspect == pytest.approx(0.7 / 0.8)
    stored = results.real.read_image(case)[0, 3]
    assert plane.image == pytest.approx(np.clip((stored - low) / (high - low), 0, 1))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


def test_page_switches_between_labels(finished, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    faults = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((finished / "report.html").resolve().as_uri())
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    buttons = page.locator(".labels button")
    assert buttons.all_inner_texts() == ["mean over the labels", "kidney", "tumour"]
    shown = page.locator("#segmentation h3:visible")
    assert shown.all_inner_texts() == [f"{TRAINER} on CT · mean over the labels"]
    buttons.last.click()
    assert shown.all_inner_texts() == [f"{TRAINER} on CT · tumour"]
    assert buttons.last.get_attribute("aria-pressed") == "true"
    assert page.locator("#cases svg[data-arm=law]:visible").count() == 1
    assert page.locator("#differences h4:visible").all_inner_texts() == [
        "mean over the labels",
        "kidney",
        "tumour",
    ]
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not faults
    page.close()


def content(dataset: Path, **changes) -> dict:
    return {"dataset": str(dataset), "arms": ["real", "law"], "seeds": [0], "device": "cpu"} | changes


def stages_of(dataset: Path, folder: Path, **changes) -> dict:
    plan = make_plan(make_config(content(dataset, **changes), "ct.toml"), folder)
    return {stage.name: " && ".join(stage.commands) for stage in plan.stages}


def test_plan_of_volumes(ct_dataset, tmp_path, caplog):
    """One synthetic slice per volume, unless the user wants more; volumes keep their size, which is said."""
    with caplog.at_level(logging.INFO):
        stages = stages_of(ct_dataset, tmp_path, max_side=64, init_base={}, folds=[0])
    assert "max_side 64 is left out" in caplog.text and "--max-side" not in stages["real"]
    assert "--samples 4" in stages["generate_law_fold_0_seed_0"]  # of four volumes
    assert "-c 2d" in stages["plan"] and "-c 2d" in stages["preprocess_law_fold_0_seed_0"]
    assert f" 2d 0 -tr {TRAINER}" in stages[f"segment_law_{TRAINER}_fold_0_seed_0"]
    more = stages_of(ct_dataset, tmp_path, synthetic_per_real=2.5, folds=[0])
    assert "--samples 10" in more["generate_law_fold_0_seed_0"]
    given = stages_of(ct_dataset, tmp_path, generate={"samples": 7}, folds=[0])
    assert "--samples 7" in given["generate_law_fold_0_seed_0"]


def test_what_is_printed_for_scripts_has_no_notes_in_it(ct_dataset, tmp_path):
    """That volumes keep their size is said on stderr: stdout is what a cluster's loop reads."""
    (tmp_path / "ct.toml").write_text(f'dataset = "{ct_dataset}"\ndevice = "cpu"\nmax_side = 64\n')
    command = [Path(sys.executable).parent / "law-synth", "experiment", "ct.toml", "--list-stages"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(len(line.split("\t")) == 3 for line in done.stdout.splitlines())
    assert "is left out" in " ".join(done.stderr.split())


def test_changed_files_of_the_users_run_their_stages_again(ct_dataset, tmp_path):
    def keys() -> dict[str, str]:
        options = {"base": str(tmp_path / "base"), "generate": {"masks": str(tmp_path / "masks")}}
        plan = make_plan(make_config(content(ct_dataset, folds=[0], **options), "ct.toml"), tmp_path / "out")
        return stage_keys(plan.stages)

    for name in ("base/unet/weights.safetensors", "masks/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(bytes(9))
    before = keys()
    (tmp_path / "masks" / "b.png").write_bytes(b"new")
    masks = keys()
    (tmp_path / "base" / "unet" / "weights.safetensors").write_bytes(bytes(8) + b"1")
    base = keys()
    train, generate = "train_law_fold_0_seed_0", "generate_law_fold_0_seed_0"
    assert masks[train] == before[train] and masks[generate] != before[generate]
    assert base[train] != before[train] and base["plan"] == before["plan"]


def test_presets_of_the_paper_plan_on_volumes(ct_dataset, tmp_path):
    for scale in ("cpu", "paper"):
        preset = preset_content("paper-table2", scale, str(ct_dataset))
        plan = make_plan(make_config(preset | {"device": "cpu"}, "preset"), tmp_path)
        assert any(stage.name.startswith("train_law") for stage in plan.stages)
    copy = Path(shutil.copytree(ct_dataset, tmp_path / ct_dataset.name))
    shutil.rmtree(copy / "labelsTs")  # as KiTS19
    plan = make_plan(make_config(preset_content("paper-table2", "cpu", str(copy)), "preset"), tmp_path)
    assert plan.config.folds == (0, 1, 2) and plan.on == "validation"


def test_epochs_are_those_of_the_real_slices(ct_dataset, tmp_path):
    """Not of the cases, which a synthetic slice is, too."""
    from nnunet_order.schedule import one_pass
    from nnunet_order.small_network_trainer import SmallNetworkTrainer as Recipe

    config = make_config(content(ct_dataset), "ct.toml")
    plan = make_plan(config, tmp_path)
    wanted = max(Recipe.minimum_iterations, one_pass(6, 5, Recipe.samples_per_step))
    assert plan.iterations == wanted
    trainings = [stage for stage in plan.stages if stage.name.startswith(f"segment_real_{TRAINER}")]
    trainings += [stage for stage in plan.stages if stage.name.startswith(f"segment_law_{TRAINER}")]
    options = {stage.environment["NNUNET_ORDER_OPTIONS"] for stage in trainings}
    assert len(trainings) == 2 and options == {f"iterations_per_epoch={wanted}"}
    changes = {"trainer_options": "samples_per_step=2 minimum_iterations=1"}
    assert make_plan(make_config(content(ct_dataset, **changes), "x"), tmp_path).iterations == one_pass(
        6, 5, 2
    )


def test_a_patient_on_both_sides_is_refused(ct_dataset, tmp_path, caplog):
    copy = Path(shutil.copytree(ct_dataset, tmp_path / ct_dataset.name))
    groups = json.loads((copy / "groups.json").read_text())
    (copy / "groups.json").write_text(json.dumps(groups | {"ct_1": "patient_9", "ct_2": "patient_9"}))
    with pytest.raises(
        UserError, match=r"validation case ct_1 \(1 such\) and training cases of its group"
    ) as error:
        stages_of(copy, tmp_path / "out", folds=[0])
    assert "\n" not in str(error.value)
    options = Compare(str(copy), tmp_path / "out", trainers=(TRAINER,), folds=("0",))
    with pytest.raises(UserError, match="its group patient_9"):
        Comparison(options, read_dataset(copy)).pipeline()
    # Published test sets share sequences with training cases: said, not refused.
    (copy / "groups.json").write_text(json.dumps(groups | {"ct_7": "patient_0"}))
    assert stages_of(copy, tmp_path / "out", folds=["all"])
    assert "group patient_0 (1 such) is in training and test cases" in caplog.text


def test_dry_run_and_list_of_a_ct_experiment(ct_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ct.toml"
    path.write_text(f'dataset = "{ct_dataset}"\narms = ["real", "law"]\ndevice = "cpu"\nseeds = [0]\n')
    experiment(Experiment(config=path, execution=Execution(dry_run=True)))
    assert "law-synth generate" in capsys.readouterr().out
    experiment(Experiment(config=path, execution=Execution(list_stages=True)))
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:2] == ["real", "plan"] and names[-1] == "report"
    assert not (tmp_path / "ct").exists()


def test_digest_of_compressed_volumes_sees_content(ct_dataset, tmp_path):
    copy = Path(shutil.copytree(ct_dataset, tmp_path / ct_dataset.name))
    before = dataset_digest(read_dataset(copy), [])
    path = next((copy / "imagesTr").iterdir())
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[len(content) // 2] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    assert dataset_digest(read_dataset(copy), []) != before


def test_auto_is_the_device_with_which_the_experiment_was_begun(ct_dataset, tmp_path):
    """As when its stages are listed on a login node without a GPU."""

    def plan(device: str):
        config = make_config(content(ct_dataset, folds=[0], device=device), "ct.toml")
        return make_plan(config, tmp_path / "out")

    begun = plan("cuda")
    begin(tmp_path / "out", begun.record("law-synth experiment ct.toml"))
    again = plan("auto")
    assert again.device == "cuda" and stage_keys(again.stages) == stage_keys(begun.stages)
    assert plan("cpu").device == "cpu"


def test_what_the_page_shows_makes_a_new_page(ct_dataset, tmp_path):
    def keys(**changes) -> dict[str, str]:
        given = content(ct_dataset, folds=[0], arms=["uniform", "law"]) | changes
        plan = make_plan(make_config(given, "ct.toml"), tmp_path / "out")
        begin(tmp_path / "out", plan.record("law-synth experiment ct.toml"))  # data sets keep their numbers
        return stage_keys(plan.stages)

    before = keys()
    for changes in ({"arms": ["law", "uniform"]}, {"title": "Another"}):
        after = keys(**changes)
        assert {name for name in before if before[name] != after[name]} == {"report"}
