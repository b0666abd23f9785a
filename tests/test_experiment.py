"""`law-synth experiment` with the real commands: from end to end, killed, changed, by hand.

One experiment runs whole; its real arm is also what `nnunet-order compare` would run.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from law_synth.base.init_base import init_base
from law_synth.base.options import InitBase
from law_synth.experiment.config import read_config
from law_synth.experiment.experiment import experiment
from law_synth.experiment.make_plan import make_plan
from law_synth.experiment.options import Experiment
from nnunet_order.comparing.compare import compare
from nnunet_order.comparing.comparison import Comparison
from nnunet_order.comparing.latency import LATENCY
from nnunet_order.comparing.options import Compare
from nnunet_order.comparing.table import CHART, TABLE, table_rows
from nnunet_order.evaluation_output import write_csv
from nnunet_order.stages.options import Execution

pytestmark = pytest.mark.slow

ORDER, MK_UNET = "nnUNetTrainerORDER", "nnUNetTrainerMKUNet"

CONFIG = """
dataset = "Dataset940_Phantom"
arms = ["real", "law"]
segmenters = ["nnUNetTrainerORDER"]
seeds = [3]
trainer_options = "epochs=1 iterations_per_epoch=2 samples_per_step=2"
device = "cpu"
[init_base]
size = "tiny"
[train]
preset = "light"
size = 32
max_steps = 4
save_every = 1
batch_size = 2
gradient_accumulation = 1
sample_every = 2
[generate]
steps = 2
max_similarity = 1.0
"""


class Folder:
    """A place with data and a configuration, and the real command in it."""

    def __init__(self, root: Path, config: str = CONFIG):
        self.root, self.out = root, root / "small"
        (root / "small.toml").write_text(config)

    @classmethod
    def drawn(cls, root: Path) -> Folder:
        """With a data set in it."""
        convert_phantom(ConvertPhantom(out=root / "Dataset940_Phantom", cases=12, test_cases=4, size=64))
        return cls(root)

    def copied(self, root: Path, change: tuple[str, str] = ("", "")) -> Folder:
        """The same experiment elsewhere, on the same data set, with `change` in its configuration."""
        shutil.copytree(self.out, root / "small", symlinks=True)
        return Folder(root, CONFIG.replace("Dataset940", str(self.root / "Dataset940")).replace(*change))

    def forget(self, name: str) -> None:
        """As if a stage had never run."""
        record = self.out / "stages" / f"{name}.json"
        for output in json.loads(record.read_text())["outputs"]:
            path = self.out / output
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        record.unlink()

    def start(self, *options: str) -> subprocess.Popen:
        program = str(Path(sys.executable).parent / "law-synth")
        return subprocess.Popen(
            [program, "experiment", "small.toml", "--jobs", "2", *options],
            cwd=self.root,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str, code: int = 0) -> str:
        process = self.start(*options)
        output, log = process.communicate()
        assert process.returncode == code, output[-5000:] + log[-5000:]
        return output

    def records(self) -> dict[str, dict]:
        files = [path for path in (self.out / "stages").glob("*.json") if ".begun" not in path.name]
        return {path.stem: json.loads(path.read_text()) for path in files}

    def tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.out / "results").glob("*.csv"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Folder:
    folder = Folder.drawn(tmp_path_factory.mktemp("experiment"))
    folder.run()
    return folder


def test_a_base_of_the_users_own_passes_the_audit(finished, tmp_path):
    """It knows the cases under the data set's name; the experiment trains on its copy under another one."""
    source, base = finished.root / "Dataset940_Phantom", tmp_path / "base"
    small = {"image_size": 32, "vae_width": 8, "unet_width": 16, "vae_steps": 1, "unet_steps": 1}
    init_base(InitBase(out=base, source=str(source), fold="all", batch_size=4, device="cpu", **small))
    arms = 'arms = ["law"]\nsegmenters = []\ndevice = "cpu"\n[train]\n'
    config = f'dataset = "{source}"\nbase = "{base}"\n{arms}' + CONFIG.partition("[train]")[2]
    folder = Folder(tmp_path, config)
    folder.run()
    audit = json.loads((folder.out / "audits" / "law_fold_all_seed_0.json").read_text())
    assert {check["name"]: check["result"] for check in audit["checks"]}["base model"] == "passed"

    def refused(message: str, option: str = "", **of_base) -> None:
        (tmp_path / "other.toml").write_text(option + config)
        content = json.loads((base / "base_config.json").read_text()) | of_base
        (base / "base_config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            make_plan(read_config(tmp_path / "other.toml"), tmp_path / "other")

    seen = r"found a base trained on \w+ \(\d+ such\), expected only training cases "
    refused(seen + "of the share 0.5 of fold all", "fraction = 0.5\n")
    refused(seen + "of fold 0", "folds = [0]\n")
    other = "found a base made from Dataset777_Other, expected one made from Dataset940_Phantom"
    refused(other, dataset="Dataset777_Other", dataset_origin="Dataset777_Other")


def test_every_arm_is_measured(finished):
    record = json.loads((finished.out / "experiment.json").read_text())
    assert [one["arm"] for one in record["segmentations"]] == ["real", "law"]
    for one in record["segmentations"]:
        assert (finished.out / one["scores"] / "per_case.csv").is_file()
    (synthesis,) = record["syntheses"]
    assert (finished.out / synthesis["evaluation"] / "evaluation.json").is_file()
    assert finished.tables().keys() >= {"segmentation.csv", "differences.csv", "synthesis.csv"}
    rows = csv.DictReader((finished.out / "results" / "segmentation.csv").open())
    assert {row["test_set"] for row in rows} == {"Dataset940_Phantom"}  # not the copy's name
    page = (finished.out / "report.html").read_text()
    assert "law: " in page and "mDice" in page  # a sentence about the arm


def test_arms_share_plans_budget_and_seed(finished):
    """Planning never sees synthetic cases, and more cases are not more training."""
    preprocessed = finished.out / "nnUNet_preprocessed"
    plans = {
        path.parent.name: json.loads(path.read_text()) | {"dataset_name": ""}
        for path in preprocessed.glob("*/nnUNetPlans.json")
    }
    real, synthetic = sorted(plans)
    assert plans[real] == plans[synthetic]
    cases = {name: len(list((preprocessed / name / "gt_segmentations").iterdir())) for name in plans}
    assert cases[synthetic] == 2 * cases[real] == 24
    trainings = [one for name, one in finished.records().items() if name.startswith("segment_")]
    assert len(trainings) == 2
    assert len({json.dumps(one["environment"], sort_keys=True) for one in trainings}) == 1
    assert trainings[0]["environment"]["NNUNET_ORDER_SEED"] == "3"


def test_a_finished_experiment_runs_nothing(finished):
    before = finished.records()
    finished.run()
    assert finished.records() == before
    states = {line.split("\t")[1] for line in finished.run("--list-stages").splitlines()}
    assert states == {"done"}


def test_killed_at_any_moment_it_ends_in_the_same_tables(finished, tmp_path):
    """kill -9 of the experiment three times; the tables are the uninterrupted run's byte for byte.

    What the real arm has done is kept; the stages of the other one are of all kinds, too.
    """
    killed = finished.copied(tmp_path)
    undone = {name for name in killed.records() if "real" not in name and name != "plan"}
    assert {name.split("_")[0] for name in undone} == {
        *("base", "train", "generate", "audit", "evaluate", "preprocess"),
        *("segment", "predict", "score", "report"),
    }
    for name in undone:
        killed.forget(name)
    generator = random.Random(0)
    for _ in range(3):
        process = killed.start()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(8, 25))
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed.run()
    assert killed.tables() == finished.tables()


def test_a_changed_arm_runs_again_and_the_others_do_not(finished, tmp_path):
    """The stages that would run are those of the changed arm; nothing is run here."""
    moved = finished.copied(tmp_path, ("max_steps = 4", "max_steps = 5"))
    lines = [line.split("\t") for line in moved.run("--list-stages").splitlines()]
    undone = {name for name, state, _ in lines if state != "done"}
    assert "train_law_fold_all_seed_3" in undone and "report" in undone
    assert all("law" in name or name == "report" for name in undone), undone


def test_an_arm_does_not_take_the_number_of_one_that_was_removed(finished, tmp_path):
    """Its data set is still there."""
    fewer = finished.copied(tmp_path, ('"law"]', '"ratio"]'))
    record = fewer.out / "experiment.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"syntheses": []}))
    script = fewer.run("--dry-run")
    assert "Dataset102_ratio_fold_all_seed_3" in script and "Dataset101" not in script
    config = fewer.root / "small.toml"
    config.write_text(config.read_text().replace('"ratio"]', '"law"]'))
    assert "Dataset101_law_fold_all_seed_3" in fewer.run("--dry-run")  # and its stages are still done
    assert {line.split("\t")[1] for line in fewer.run("--list-stages").splitlines()} == {"done"}


def test_one_stage_alone_waits_for_those_before_it(tmp_path, monkeypatch, capsys):
    folder = Folder.drawn(tmp_path)
    monkeypatch.chdir(tmp_path)

    def verb(out: str | None = None, **execution) -> Experiment:
        return Experiment(Path("small.toml"), out=out and Path(out), execution=Execution(**execution))

    with pytest.raises(UserError, match="expected all stages before plan"):
        experiment(verb(stage="plan"))
    folder.run("--stage", "real")
    assert (folder.out / "nnUNet_raw" / "Dataset001_Real" / "dataset.json").is_file()
    with pytest.raises(UserError, match="found other content"):
        experiment(verb(out="."))
    experiment(verb(dry_run=True))
    script = capsys.readouterr().out
    assert "nnUNetv2_train" in script and "law-synth generate" in script


def test_the_real_arm_is_a_comparison(finished, tmp_path, capsys):
    """`nnunet-order compare` of the same trainer is the same stages: all are done, it prints their table.

    A second trainer's scores are drawn to pair with it.
    """
    copy = finished.copied(tmp_path)
    record = copy.out / "experiment.json"
    record.write_text(record.read_text().replace("law-synth experiment", "nnunet-order compare", 1))
    before = copy.records()
    options = Compare(
        str(finished.root / "Dataset940_Phantom"),
        copy.out,
        trainers=(ORDER,),
        seeds=(3,),
        trainer_options="epochs=1 iterations_per_epoch=2 samples_per_step=2",
        device="cpu",
        execution=Execution(jobs=2),
    )
    compare(options)
    assert copy.records() == before
    shown = capsys.readouterr().out
    assert "ORDER" in shown and "42.5 K" in shown
    (row,) = csv.DictReader((copy.out / TABLE).open())
    assert row["cases"] == "4" and row["runs"] == "1" and row["parameters"] == "42457"
    assert float(row["gflops_256px"]) == pytest.approx(0.54, abs=0.01)
    name = f"real_{ORDER}_fold_all_seed_3"
    summary = json.loads((copy.out / "scores" / name / "summary.json").read_text())["rows"][0]
    assert float(row["mDice"]) == pytest.approx(summary["mDice"], abs=1e-6)
    record = json.loads((copy.out / "experiment.json").read_text())
    assert record["config"]["device"] == "cpu" and record["segmentations"][0]["name"] == name

    timed = replace(options, latency=True)
    compare(timed)
    once = (copy.out / LATENCY).read_bytes()
    (row,) = csv.DictReader((copy.out / TABLE).open())
    assert 0 < float(row["latency_ms_low"]) <= float(row["latency_ms"]) <= float(row["latency_ms_high"])
    assert "ms: an image of 256 px" in capsys.readouterr().out and (copy.out / CHART).is_file()
    compare(timed)
    assert (copy.out / LATENCY).read_bytes() == once

    plan = Comparison(replace(options, trainers=(ORDER, MK_UNET)), read_dataset(Path(options.dataset)))
    ours, other = plan.segmentations
    shutil.copytree(copy.out / ours.model, copy.out / other.model)
    rows = list(csv.DictReader((copy.out / ours.scores / "per_case.csv").open()))
    (copy.out / other.scores).mkdir()
    better = [row | {"Dice": float(row["Dice"]) + 0.25} for row in rows]
    write_csv(copy.out / other.scores / "per_case.csv", better)
    assert plan.paper == {ORDER: None, MK_UNET: None}
    plan.paper[MK_UNET] = (75.3, 71.2)
    second = table_rows(copy.out, plan)[1]
    assert second["paper_mDice"] == pytest.approx(0.753)
    assert [second[f"delta_mDice{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.25] * 3)


def test_time_is_not_in_the_tables(finished):
    """Else killed and uninterrupted runs could not agree."""
    assert time.strftime("%Y-%m").encode() not in b"".join(finished.tables().values())
