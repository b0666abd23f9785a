"""`law-synth experiment` with the real commands: from end to end, killed, changed, by hand."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset_conversion.phantom import ConvertPhantom

pytestmark = pytest.mark.slow

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

    def __init__(self, root: Path):
        self.root, self.out = root, root / "small"
        ConvertPhantom(out=root / "Dataset940_Phantom", cases=12, test_cases=4, size=64).run()
        (root / "small.toml").write_text(CONFIG)

    def start(self, *options: str) -> subprocess.Popen:
        program = str(Path(sys.executable).parent / "law-synth")
        return subprocess.Popen(
            [program, "experiment", "small.toml", "--jobs", "2", *options],
            cwd=self.root,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str, code: int = 0) -> str:
        process = self.start(*options)
        output, _ = process.communicate()
        assert process.returncode == code, output[-5000:]
        return output

    def records(self) -> dict[str, dict]:
        files = [path for path in (self.out / "stages").glob("*.json") if ".begun" not in path.name]
        return {path.stem: json.loads(path.read_text()) for path in files}

    def tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.out / "results").glob("*.csv"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("experiment"))
    folder.run()
    return folder


def test_every_arm_is_measured(finished):
    record = json.loads((finished.out / "experiment.json").read_text())
    assert [one["arm"] for one in record["segmentations"]] == ["real", "law"]
    for one in record["segmentations"]:
        assert (finished.out / one["scores"] / "per_case.csv").is_file()
    (synthesis,) = record["syntheses"]
    assert (finished.out / synthesis["evaluation"] / "evaluation.json").is_file()
    assert finished.tables().keys() >= {"segmentation.csv", "differences.csv", "synthesis.csv"}
    assert "law" in (finished.out / "report.html").read_text()


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
    """kill -9 of the experiment three times; the tables are the uninterrupted run's byte for byte."""
    killed = Folder(tmp_path)
    generator = random.Random(0)
    for _ in range(3):
        process = killed.start()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(10, 40))
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed.run()
    assert killed.tables() == finished.tables()


def test_a_changed_arm_runs_again_and_the_others_do_not(finished, tmp_path):
    """The stages that would run are those of the changed arm; nothing is run here."""
    shutil.copytree(finished.root, tmp_path / "copy", symlinks=True)
    moved = Folder.__new__(Folder)
    moved.root, moved.out = tmp_path / "copy", tmp_path / "copy" / "small"
    changed = CONFIG.replace("max_steps = 4", "max_steps = 5")
    (moved.root / "small.toml").write_text(changed.replace("Dataset940", str(finished.root / "Dataset940")))
    lines = [line.split("\t") for line in moved.run("--list-stages").splitlines()]
    undone = {name for name, state, _ in lines if state != "done"}
    assert "train_law_fold_all_seed_3" in undone and "report" in undone
    assert all("law" in name or name == "report" for name in undone), undone


def test_one_stage_alone_waits_for_those_before_it(tmp_path):
    folder = Folder(tmp_path)
    assert "expected all stages before plan" in folder.run("--stage", "plan", code=2).replace("\n", " ")
    folder.run("--stage", "real")
    assert (folder.out / "nnUNet_raw" / "Dataset001_Real" / "dataset.json").is_file()
    assert "found other content" in folder.run("--out", ".", code=2).replace("\n", " ")
    script = folder.run("--dry-run")
    assert "nnUNetv2_train" in script and "law-synth generate" in script


def test_time_is_not_in_the_tables(finished):
    """Else killed and uninterrupted runs could not agree."""
    assert time.strftime("%Y-%m").encode() not in b"".join(finished.tables().values())
