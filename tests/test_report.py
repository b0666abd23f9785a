"""The verb `report`: statistics, tables, what is missing, and the page in a real browser."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from law_synth.experiment import statistics
from law_synth.experiment.options import Report
from law_synth.experiment.page import sentences
from law_synth.experiment.page.report import TABLES, report
from law_synth.experiment.page.sentences import MINUS
from law_synth.experiment.results import read_results
from nnunet_order.comparing.scores import CaseScores
from nnunet_order.metrics import FOREGROUND_MEAN, METRICS
from nnunet_order.stages.stage import Stage, stage_keys

ARMS = ("real", "uniform", "law")
SHIFTS = {"real": 6, "uniform": 6, "law": 2}  # pixels by which a prediction misses
TRAINERS = ("nnUNetTrainerORDER", "nnUNetTrainer")
SEEDS = (0, 1)
REAL = "nnUNet_raw/Dataset001_Real"
TRAINED = Stage("train_law", ("touch done",), ("done",), environment={"SEED": "7"})


def segmentation(arm: str, trainer: str, seed: int) -> dict:
    name = f"{arm}_{trainer}_fold_all_seed_{seed}"
    entry = {"name": name, "arm": arm, "trainer": trainer, "fold": "all", "seed": seed, "round": 1}
    return entry | {
        "dataset": "Dataset001_Real",
        "predictions": f"predictions/{name}",
        "scores": f"scores/{name}",
    }


def synthesis(arm: str) -> dict:
    name = f"{arm}_fold_0_seed_0"
    return {"name": name, "arm": arm, "fold": 0, "seed": 0, "round": 1, "run": f"runs/{name}"} | {
        "dataset": f"nnUNet_raw/Dataset{100 + ARMS.index(arm)}_{name}",
        "evaluation": f"evaluations/{name}",
    }


def describe(folder: Path, **changes) -> None:
    content = {
        "format": 1,
        "title": "Phantoms & <two> networks",
        "command": "law-synth experiment phantoms.toml",
        "config": {"dataset": "901"},
        "real": REAL,
        "on": "test",
        "reference": "real",
        "arms": list(ARMS),
        "trainers": list(TRAINERS),
        "folds": ["all"],
        "seeds": list(SEEDS),
        "segmentations": [segmentation(a, t, s) for a in ARMS for t in TRAINERS for s in SEEDS],
        "syntheses": [synthesis(arm) for arm in ARMS[1:]],
        "stages": stage_keys((TRAINED,)),
    }
    (folder / "experiment.json").write_text(json.dumps(content | changes))


def predict_and_score(folder: Path, entry: dict) -> None:
    """Predictions that miss the truth by some pixels, and what `nnunet-order evaluate` writes of them."""
    from nnunet_order import evaluate
    from nnunet_order import evaluation_output as evaluation_report

    predictions, scores = folder / entry["predictions"], folder / entry["scores"]
    for path in (predictions, scores):
        path.mkdir(parents=True)
    generator = np.random.default_rng(entry["seed"] + 10 * TRAINERS.index(entry["trainer"]))
    for path in sorted((folder / REAL / "labelsTs").iterdir()):
        moved = np.roll(np.array(Image.open(path)), SHIFTS[entry["arm"]] + generator.integers(0, 3), 1)
        Image.fromarray(moved).save(predictions / path.name)
    dataset, folders = read_dataset(folder / REAL), {entry["arm"]: predictions}
    truths = evaluate.truth_files(dataset, None)
    found = evaluate.score_folders(dataset, truths, folders, tolerance=2.0)
    evaluation = evaluation_report.Evaluation(dataset, folders, truths, dataset.test_sets, found, [], 2.0, 0)
    evaluation_report.write_csv(scores / "per_case.csv", evaluation_report.per_case_rows(evaluation))


def synthesise(folder: Path, run: Path) -> None:
    """What train, generate and evaluate leave of arm law; arm uniform gets the same, but for delta maps.

    There is no judge: its numbers are put in.
    """
    from law_synth.evaluation import output as report
    from law_synth.evaluation.all_metrics import measure_all
    from law_synth.evaluation.image_sets import read_compared_sets
    from law_synth.evaluation.mask_metrics import JUDGED_COLUMNS
    from law_synth.evaluation.options import Evaluate
    from law_synth.evaluation.per_image import measure_images
    from law_synth.generation.generate import generate
    from law_synth.generation.options import Generate
    from nnunet_order.evaluation_output import write_csv

    law, uniform = synthesis("law"), synthesis("uniform")
    copy, out = folder / law["run"], folder / law["dataset"]
    shutil.copytree(run, copy)
    regions = ("all", "lesion", "background")
    rows = [
        {"step": step} | {f"fixed_noise/{name}": 1 / (step + 9) for name in regions} for step in (0, 10, 20)
    ]
    # The last line is still being written.
    (copy / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2')
    generate(Generate(out=out, trained_run=copy, samples=6, steps=2, device="cpu", max_similarity=1.0))
    options = Evaluate(dataset=str(out), device="cpu", reference="train")
    sets = read_compared_sets(options.dataset, None)
    results = measure_images(options, sets, ("train",))
    judged = dict.fromkeys(JUDGED_COLUMNS, np.linspace(0.2, 0.9, len(sets.synthetic)))
    columns = results.mask_columns | {"synthetic": results.mask_columns["synthetic"] | judged}
    results = dataclasses.replace(results, mask_columns=columns)
    evaluation = folder / law["evaluation"]
    evaluation.mkdir(parents=True)
    write_csv(evaluation / "per_case.csv", report.per_case_rows(results))
    content = report.report_content(results, measure_all(results, 0), dataclasses.asdict(options))
    (evaluation / "evaluation.json").write_text(json.dumps(content, default=str))
    for part in ("run", "dataset", "evaluation"):
        shutil.copytree(folder / law[part], folder / uniform[part])
    (copy / "samples").mkdir()
    for step in (0, 10):
        np.save(copy / "samples" / f"delta_{step:06d}.npy", np.full((1, 8, 8), 0.5 + step / 40))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trained_run) -> Path:
    """An experiment's folder with everything in it, reported on."""
    from nnunet_order.stages.runner import Pipeline

    folder = tmp_path_factory.mktemp("experiment")
    shutil.copytree(
        json.loads((trained_run / "law_config.json").read_text())["dataset"]["folder"], folder / REAL
    )
    test_ids = add_test_cases(folder / REAL, 6)
    (folder / REAL / "test_sets.json").write_text(json.dumps({"odd": test_ids[1::2], "even": test_ids[::2]}))
    describe(folder)
    content = json.loads((folder / "experiment.json").read_text())
    for entry in content["segmentations"]:
        predict_and_score(folder, entry)
    synthesise(folder, trained_run)
    Pipeline(folder, (TRAINED,)).run()
    report(Report(folder))
    return folder


def add_test_cases(dataset: Path, number: int) -> list[str]:
    """More test cases: the training cases, mirrored; -> all ids."""
    for path in sorted((dataset / "labelsTr").iterdir())[:number]:
        pairs = (("labels", path.name), ("images", path.name.replace(".png", "_0000.png")))
        for part, name in pairs:
            mirrored = np.array(Image.open(dataset / f"{part}Tr" / name))[:, ::-1]
            Image.fromarray(mirrored).save(dataset / f"{part}Ts" / f"mirrored_{name}")
    return [case.id for case in read_dataset(dataset).test_cases]


def copy_of(finished: Path, folder: Path) -> Path:
    return Path(shutil.copytree(finished, folder))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def group(
    values: dict[str, np.ndarray], label: str = FOREGROUND_MEAN, scored: dict | None = None
) -> CaseScores:
    """Scores of one trainer and label: arm -> Dice (trainings, cases); by default NaN is not scored."""
    trainings, cases = next(iter(values.values())).shape
    names = ("Dice", "IoU", "HD95", "NSD")
    arrays = {arm: dict.fromkeys(names, array[..., None]) for arm, array in values.items()}
    ids = [f"c{i}" for i in range(cases)]
    scored = scored or {arm: np.isfinite(array) for arm, array in values.items()}
    return CaseScores("T", "S", label, ids, [("all", s) for s in range(trainings)], arrays, scored)


def test_difference_is_paired_and_tested_on_cases_averaged_over_trainings():
    generator = np.random.default_rng(0)
    real = generator.uniform(0.2, 0.9, (3, 40))
    gain = generator.normal(0.03, 0.01, (3, 40))
    found = statistics.differences([group({"real": real, "law": real + gain})], {}, {}, "real")
    one = next(one for one in found if one.metric == "mDice")
    assert one.estimate.value == pytest.approx(gain.mean())
    assert one.estimate.low < gain.mean() < one.estimate.high
    # Unpaired, the spread of the cases would hide it: their standard error alone is 0.03.
    assert one.estimate.high - one.estimate.low < 0.02
    assert one.p_value == pytest.approx(stats.wilcoxon(gain.mean(axis=0)).pvalue)
    assert one.distinguishable
    assert (one.estimate.trainings, one.estimate.cases) == (3, 40)


def test_one_training_gives_an_interval_over_cases_alone():
    real = np.zeros((1, 50))
    gain = np.linspace(-0.1, 0.2, 50)[None]
    one = statistics.differences([group({"real": real, "law": real + gain})], {}, {}, "real")[0]
    half = 1.96 * gain.std() / math.sqrt(50)
    assert one.estimate.low == pytest.approx(gain.mean() - half, abs=0.005)
    assert one.estimate.high == pytest.approx(gain.mean() + half, abs=0.005)


def test_one_training_tells_nothing_however_clear_its_cases():
    real = np.random.default_rng(0).uniform(0.2, 0.5, (2, 50))
    groups = [group({"real": real[:1], "law": real[:1] + 0.1}), group({"real": real, "law": real + 0.1})]
    for scores, told in zip(groups, (False, True), strict=True):
        one = statistics.differences([scores], {}, {}, "real")[0]
        assert one.estimate.low > 0 and one.p_holm < 0.05
        assert one.distinguishable == told
        assert ("better" in sentences.verdict(one)) == told


def test_what_is_missing_in_one_arm_is_left_out_of_its_pairs_only():
    real = np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]])
    law = np.array([[0.2, 0.4, np.nan], [np.nan] * 3])
    groups = [group({"real": real, "law": law})]
    gain = statistics.differences(groups, {}, {}, "real")[0].estimate
    assert gain.value == pytest.approx((0.1 + 0.2) / 2)
    assert (gain.trainings, gain.cases) == (1, 2)
    means = {one.arm: one.estimate for one in statistics.scores(groups, {}, {}) if one.metric == "mDice"}
    assert means["real"].value == pytest.approx(0.3)
    assert means["law"].value == pytest.approx(0.3)


def test_a_false_positive_counts_against_the_arm_that_has_it():
    """Tumours in 12 of 60 cases, found equally well; one arm finds one in each of the others, too."""
    generator = np.random.default_rng(0)
    real = np.where(np.arange(60) < 12, generator.uniform(0.2, 0.9, (2, 60)), np.nan)
    law = np.nan_to_num(real)
    everywhere = dict.fromkeys(("real", "law"), np.ones((2, 60), bool))
    scored = group({"real": real, "law": law}, scored=everywhere)
    means = {one.arm: one.estimate for one in statistics.scores([scored], {}, {}) if one.metric == "mDice"}
    gain = next(one for one in statistics.differences([scored], {}, {}, "real") if one.metric == "mDice")
    assert gain.estimate.value == pytest.approx(means["law"].value - means["real"].value)
    assert gain.estimate.low < gain.estimate.value < gain.estimate.high < 0
    assert means["law"].value == pytest.approx(means["real"].value / 5) and gain.p_holm < 1e-6
    for one in (*means.values(), gain.estimate):
        assert one.low < one.value < one.high


def test_mean_lies_in_its_interval_where_trainings_see_different_cases():
    values = np.random.default_rng(0).uniform(0.6, 0.8, (5, 60))
    values[:, 40:] = np.nan  # nothing there
    values[0, 40:] = 0  # but one training finds something
    found = statistics.estimate(values[..., None], np.arange(60))
    assert found.value == pytest.approx(np.nanmean(values))
    assert found.low < found.value < found.high


def test_slices_of_a_patient_are_not_news():
    """Ten copies of each of 20 patients: interval and test are those of the 20."""
    gain = np.random.default_rng(0).normal(0.03, 0.1, (2, 20))
    once = group({"real": np.zeros((2, 20)), "law": gain})
    often = group({"real": np.zeros((2, 200)), "law": gain.repeat(10, axis=1)})
    patients = {case: f"p{index // 10}" for index, case in enumerate(often.cases)}
    alone, grouped, split = (
        statistics.differences([scored], {}, groups, "real")[0]
        for scored, groups in ((once, {}), (often, patients), (often, {}))
    )
    assert (grouped.estimate.cases, grouped.estimate.groups) == (200, 20)
    assert grouped.estimate.value == pytest.approx(alone.estimate.value)
    assert grouped.p_value == pytest.approx(alone.p_value) and split.p_value < alone.p_value
    of_alone, of_grouped, of_split = (one.estimate.high - one.estimate.low for one in (alone, grouped, split))
    assert of_grouped == pytest.approx(of_alone, rel=0.1) and of_split < 0.8 * of_alone


def test_holm_and_no_difference_at_all():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # by hand
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []
    assert statistics.signed_rank(np.zeros(5)) == 1.0


def test_labels_are_compared_on_their_own_and_corrected_for_the_arms_alone():
    """Beside a label that nothing helps stands one that an arm helps; the correction knows of both arms."""
    generator = np.random.default_rng(0)
    real, noise = generator.uniform(0.2, 0.9, (2, 40)), generator.normal(0, 0.02, (2, 2, 40))
    groups = [
        group({"real": real, "law": real + noise[0], "ratio": real + noise[1]}, "kidney"),
        group({"real": real, "law": real + 0.1 + noise[0], "ratio": real + noise[1]}, "tumour"),
    ]
    found = statistics.differences(groups, {}, {}, "real")
    law = {one.label: one for one in found if (one.arm, one.metric) == ("law", "mDice")}
    assert not law["kidney"].distinguishable and law["tumour"].distinguishable
    assert law["tumour"].p_holm == pytest.approx(2 * law["tumour"].p_value)
    shares = {"tumour": {f"c{i}": 0.001 if i < 10 else 0.5 for i in range(40)}}
    small = [one for one in statistics.scores(groups, shares, {}) if one.stratum == "lesion < 1 %"]
    assert {one.label for one in small} == {"tumour"} and small[0].estimate.cases == 10


def test_strata_by_lesion_size_without_empty_ones():
    shares = {"a": 0.005, "b": 0.01, "c": 0.1, "e": 0.2, "no lesion": 0.0}
    cases = ["a", "b", "c", "d", "no lesion"]
    found = {name: chosen.tolist() for name, chosen in statistics.strata(cases, shares).items()}
    assert found == {
        "all": [True] * 5,
        "lesion < 1 %": [True, False, False, False, False],
        "lesion 1-10 %": [False, True, True, False, False],
    }


def difference(value: float, low: float, high: float, p: float, arm: str = "law") -> statistics.Difference:
    estimate = statistics.Estimate(value, low, high, 3, 100, 100)
    return statistics.Difference("T", "S", FOREGROUND_MEAN, "all", arm, "mDice", estimate, p, p)


def test_sentences_tell_what_the_numbers_say(finished):
    results = read_results(finished)
    unclear, clear = difference(0.012, -0.004, 0.029, 0.2), difference(-0.03, -0.05, -0.01, 0.001, "ratio")
    assert sentences.headline(results, [unclear], [None]) == (
        f"law: +1.2 mDice [{MINUS}0.4, 2.9] over real alone; not distinguishable from no effect."
    )
    assert sentences.headline(results, [clear], [None]).endswith(
        f"[{MINUS}5.0, {MINUS}1.0] over real alone; worse."
    )
    # The interval alone is not enough.
    assert not difference(0.03, 0.01, 0.05, 0.06).distinguishable
    both = sentences.headline(results, [unclear, clear], [None])
    assert both == "Of 2 comparisons with real data alone, 1 is worse and 1 shows no distinguishable effect."
    assert "None of 2" in sentences.headline(results, [unclear, unclear], [None])
    assert sentences.number(-0.04) == "0.0"
    worse = difference(-0.02, -0.05, 0.01, 0.2, "ratio")
    (group,) = sentences.group_sentences(results, [unclear, worse])
    assert [line["arm"] for line in group["lines"]] == ["ratio"]
    assert group["note"] == "This is the largest of 2 differences."
    (group,) = sentences.group_sentences(results, [unclear, clear])
    assert [line["arm"] for line in group["lines"]] == ["ratio"]
    assert group["note"] == "1 other arm shows no distinguishable effect."


def test_tables_hold_what_was_scored(finished):
    rows = read_csv(finished / "results" / "segmentation.csv")
    wanted = {"trainer": TRAINERS[0], "test_set": "odd", "stratum": "all", "arm": "law", "metric": "mDice"}
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    scored = [
        float(case["Dice"])
        for seed in SEEDS
        for case in read_csv(finished / f"scores/law_{TRAINERS[0]}_fold_all_seed_{seed}/per_case.csv")
        if case["test_set"] == "odd"
    ]
    assert float(row["value"]) == pytest.approx(np.mean(scored), abs=1e-6)
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert (row["trainings"], row["cases"]) == ("2", "4")
    gains = read_csv(finished / "results" / "differences.csv")
    law = [row for row in gains if row["arm"] == "law" and row["stratum"] == "all"]
    assert len(law) == 2 * 2 * 2  # trainers, test sets, metrics
    assert all(float(row["difference"]) > 0.02 for row in law)
    assert {row["arm"] for row in gains} == {"uniform", "law"}
    made = read_csv(finished / "results" / "synthesis.csv")
    kept = [row for row in made if row["section"] == "Filter" and row["against"] == "kept"]
    assert [row["value"] for row in kept] == ["6", "6"]
    assert {"FD-EfficientNetLite0", "contrast"} <= {row["measure"] for row in made}


def test_tables_are_the_same_after_a_move_and_hold_no_places(finished, tmp_path, caplog):
    moved = copy_of(finished, tmp_path / "elsewhere")
    with caplog.at_level(logging.INFO):
        report(Report(moved))
    assert str(moved / "report.html") in caplog.text
    for name in TABLES:
        content = (finished / "results" / name).read_bytes()
        assert content == (moved / "results" / name).read_bytes()
        assert b"/" not in content


def test_missing_parts_are_named_and_the_rest_is_shown(finished, tmp_path):
    folder = copy_of(finished, tmp_path / "partial")
    gone = segmentation("law", TRAINERS[0], 1)
    shutil.rmtree(folder / gone["scores"])
    shutil.rmtree(folder / synthesis("uniform")["evaluation"])
    for name in ("segment_x", "report", "train_of_an_arm_that_was_removed"):
        (folder / "stages" / f"{name}.begun.json").write_text("{}")
    describe(folder, stages={"train_law": stage_keys((TRAINED,))["train_law"], "segment_x": "", "report": ""})
    report(Report(folder))
    missing = read_results(folder).missing
    assert missing == [
        "stage segment_x (begun)",
        f"scores of {gone['name']}",
        "evaluation of uniform_fold_0_seed_0",
    ]
    page = (folder / "report.html").read_text()
    assert all(part in page for part in missing) and "Missing parts" in page
    assert "1 of 12 segmentations is not scored yet" in page
    assert "Not there yet" not in (finished / "report.html").read_text()


def test_real_arm_alone_and_no_segmenters_give_pages(finished, tmp_path):
    real = copy_of(finished, tmp_path / "real")
    entries = [segmentation("real", trainer, 0) for trainer in TRAINERS]
    describe(real, arms=["real"], seeds=[0], segmentations=entries, syntheses=[])
    report(Report(real))
    page = (real / "report.html").read_text()
    assert "There is nothing to compare with real data alone yet." in page and 'id="synthesis"' not in page
    assert (real / "results" / "differences.csv").read_text().strip() == ""
    images = copy_of(finished, tmp_path / "images")
    describe(images, arms=list(ARMS[1:]), trainers=[], segmentations=[])
    report(Report(images))
    page = (images / "report.html").read_text()
    assert "This experiment trains no segmenter" in page and 'id="segmentation"' not in page
    assert 'id="generated"' in page
    empty = tmp_path / "empty"
    empty.mkdir()
    describe(empty)
    report(Report(empty))
    assert "No segmenter has been scored yet." in (empty / "report.html").read_text()


def test_validation_pools_the_folds(tmp_path):
    header = "test_set,case,prediction,label,Dice,IoU,HD95,NSD\n"
    entries = []
    for fold in (0, 1):
        for seed in SEEDS:
            entry = segmentation("real", TRAINERS[0], seed) | {
                "fold": fold,
                "scores": f"scores/{fold}_{seed}",
            }
            entries.append(entry)
            (tmp_path / entry["scores"]).mkdir(parents=True)
            rows = f"validation of fold {fold},case{fold},real,a,0.{fold}{seed},0.1,1,1\n"
            rows += f"validation of fold {fold},case{fold},real,b,,,,\n"  # not in this case
            (tmp_path / entry["scores"] / "per_case.csv").write_text(header + rows)
    describe(tmp_path, on="validation", segmentations=entries, syntheses=[])
    found, *labels = read_results(tmp_path).scores
    assert [one.label for one in (found, *labels)] == [FOREGROUND_MEAN, "a", "b"]
    assert (found.test_set, found.cases, found.trainings) == ("validation", ["case0", "case1"], [(0,), (1,)])
    assert found.of_cases("real", "Dice").tolist() == [[0.0, 0.1], [0.01, 0.11]]
    assert np.isnan(labels[1].values["real"]["Dice"]).all()


def test_bad_folders_are_refused_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"no experiment\.json"):
        report(Report(tmp_path))
    describe(tmp_path, format=2)
    with pytest.raises(UserError, match="found format 2, expected format 1"):
        report(Report(tmp_path))
    for changes, message in (
        ({"on": "train"}, "found another value at on"),
        ({"segmentations": [{"name": "x"}]}, r"found no key arm at segmentations\[0\], expected one"),
        ({"arms": "real"}, "found str at arms, expected array"),
        ({"syntheses": None}, "found null at syntheses, expected array"),
        ({"stages": {"a": 3}}, r"found int at stages\[\.\.\.\], expected str"),
        ({"stages": None}, "found a comparison"),
    ):
        describe(tmp_path, **changes)
        with pytest.raises(UserError, match=message) as error:
            read_results(tmp_path)
        assert "\n" not in f"{error.value}"
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(UserError, match="malformed"):
        report(Report(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.json"]


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


def test_page_in_a_browser(finished, browser):
    path = finished / "report.html"
    assert path.stat().st_size < 6e6
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    faults, requests = [], []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.resolve().as_uri())
    assert page.title() == "Phantoms & <two> networks"
    assert page.locator("img").count() > 40
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0 && image.alt)")
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1400, "height": 900})

    table = page.locator("#segmentation table").first
    head = table.locator("thead th", has_text="mDice").first
    arms = table.locator("tbody th")
    assert [text.strip() for text in arms.all_inner_texts()] == list(ARMS)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert arms.first.inner_text().strip() == "law"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert arms.last.inner_text().strip() == "law"

    plot = page.locator("svg[data-arm=law]").first
    first = plot.locator(".points").get_attribute("d").split("h0")[0][1:].split()
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(*(box[k] + float(v) * box["width"] / 100 for k, v in zip("xy", first, strict=True)))
    assert "law" in page.locator(".tip").inner_text()
    assert not faults
    assert all(url.startswith(("file:", "data:")) for url in requests)
    page.close()


def test_scores_of_an_earlier_configuration_are_left_out(finished, tmp_path):
    """While a changed experiment runs again, new scores are not compared with old ones."""
    folder = copy_of(finished, tmp_path / "changed")
    old, judged = segmentation("law", TRAINERS[0], 1)["name"], synthesis("uniform")["name"]
    names = (f"score_{old}", f"evaluate_{judged}")
    for name in names:
        record = {"name": name, "key": "of epochs=15", "started": "2026", "commands": [], "seconds": 1}
        (folder / "stages" / f"{name}.json").write_text(json.dumps(record))
    describe(folder, stages=dict.fromkeys(names, "of epochs=30"))
    results = read_results(folder)
    assert results.missing == [
        f"scores of {old} (there are some of an earlier configuration)",
        f"evaluation of {judged} (there is one of an earlier configuration)",
    ]
    assert not next(one for one in results.syntheses if one.name == judged).evaluation
    of_trainer = next(one for one in results.scores if one.trainer == TRAINERS[0])
    assert of_trainer.scored["law"].any(axis=1).tolist() == [True, False]


def test_a_run_that_has_pictures_and_no_record_yet(finished, tmp_path):
    folder = copy_of(finished, tmp_path / "young")
    for run in (folder / "runs").iterdir():
        if list(run.glob("samples/delta_*.npy")):
            (run / "law_config.json").unlink()
    report(Report(folder))
    assert any(part.startswith("LAW training of") for part in read_results(folder).missing)


def test_nothing_found_in_images_of_nothing_is_no_difference():
    """The reference is rightly empty everywhere: its mean is unknown, and so is any difference."""
    values = {
        "real": {metric: np.full((1, 3, 1), np.nan) for metric in METRICS},
        "law": {metric: np.zeros((1, 3, 1)) for metric in METRICS},
    }
    scored = {arm: np.ones((1, 3), bool) for arm in values}
    one = CaseScores("T", "empty", FOREGROUND_MEAN, ["a", "b", "c"], [("all", 0)], values, scored)
    assert statistics.differences([one], {}, {}, "real") == []
