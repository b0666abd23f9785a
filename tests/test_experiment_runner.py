"""Stages run once, resume after kills, and rerun when what they depend on changes; all on real processes."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataset_conversion.system.errors import UserError
from nnunet_order.comparing.segmentation import Segmentation
from nnunet_order.registration import VARIABLE
from nnunet_order.stages.experiment_record import claim_folder
from nnunet_order.stages.inputs import files_digest
from nnunet_order.stages.options import Execution
from nnunet_order.stages.run import find_program
from nnunet_order.stages.runner import Pipeline, make_workers
from nnunet_order.stages.stage import Stage, stage_keys
from nnunet_order.stages.stage_record import versions


def append(name: str, text: str) -> str:
    """A command that shows in its file how often it ran."""
    return f"sh -c 'echo {text} >> {name}'"


def chain(first: str = "one") -> tuple[Stage, ...]:
    """a -> b, and c on its own."""
    return (
        Stage("a", (append("a.txt", first),), ("a.txt",)),
        Stage("b", ("sh -c 'cat a.txt >> b/copy.txt; echo b >> runs_b'",), ("b",), ("a",)),
        Stage("c", (append("c.txt", "c"), "sh -c 'echo c >> runs_c'"), ("c.txt",)),
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "out"


def with_folder_b(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    a, b, c = stages
    return a, replace(b, commands=("mkdir -p b", *b.commands)), c


def lines(path: Path) -> list[str]:
    return path.read_text().split()


def states(pipeline: Pipeline) -> dict[str, str]:
    return {stage.name: pipeline.state(stage) for stage in pipeline.stages}


def test_finished_stages_are_skipped(folder, caplog):
    caplog.set_level(logging.INFO)
    pipeline = Pipeline(folder, with_folder_b(chain()))
    assert states(pipeline) == {"a": "ready", "b": "waiting", "c": "ready"}
    pipeline.run()
    assert set(states(pipeline).values()) == {"done"}
    assert re.fullmatch(r"\w took \d+ s; 3 of 3 stages are done", caplog.messages[-1])
    caplog.clear()
    Pipeline(folder, with_folder_b(chain())).run()
    assert not caplog.messages
    assert lines(folder / "a.txt") == ["one"] and lines(folder / "runs_b") == ["b"]
    record = json.loads((folder / "stages" / "b.json").read_text())
    assert record["after"] == ["a"] and record["attempts"] == 1 and record["versions"]["nnunetv2"]
    assert record["machine"]["cores"] == os.cpu_count() and record["started"].endswith("+00:00")
    log = (folder / "logs" / "c.txt").read_text()
    assert append("c.txt", "c") in log and "runs_c" in log


def test_a_changed_command_reruns_it_and_what_follows_alone(folder):
    Pipeline(folder, with_folder_b(chain())).run()
    changed = Pipeline(folder, with_folder_b(chain("two")))
    assert states(changed) == {"a": "ready", "b": "waiting", "c": "done"}
    changed.run()
    assert lines(folder / "a.txt") == ["two"]  # the old output was removed, not appended to
    assert lines(folder / "b" / "copy.txt") == ["two"]
    assert lines(folder / "runs_b") == ["b", "b"] and lines(folder / "runs_c") == ["c"]


@pytest.mark.parametrize("change", [{"inputs": "another data set"}, {"environment": {"SEED": "1"}}])
def test_changed_inputs_or_variables_rerun_too(folder, change):
    stage = Stage("a", ("sh -c 'echo x$SEED >> a.txt; echo a >> runs'",), ("a.txt",))
    Pipeline(folder, (stage,)).run()
    Pipeline(folder, (replace(stage, **change),)).run()
    assert lines(folder / "runs") == ["a", "a"] and len(lines(folder / "a.txt")) == 1


def test_the_users_own_trainers_are_found_from_the_experiments_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", f"mine{os.pathsep}/others")
    Pipeline(folder, (Stage("a", ("sh -c 'echo $nnUNet_extTrainer > a.txt'",), ("a.txt",)),)).run()
    assert lines(folder / "a.txt") == [f"{tmp_path / 'mine'}{os.pathsep}/others"]


def test_missing_outputs_are_made_again(folder):
    pipeline = Pipeline(folder, with_folder_b(chain()))
    pipeline.run()
    (folder / "c.txt").unlink()
    assert states(pipeline)["c"] == "ready"
    pipeline.run()
    assert lines(folder / "c.txt") == ["c"] and lines(folder / "runs_b") == ["b"]


def made_by(folder: Path, stage: str, **others: str | None) -> None:
    """Let a stage's record name other versions than those that are installed."""
    path = folder / "stages" / f"{stage}.json"
    record = json.loads(path.read_text())
    record["versions"] |= {name.replace("_", "-"): version for name, version in others.items()}
    path.write_text(json.dumps(record))


def test_stages_of_other_versions_are_kept_and_told_in_one_line(folder, caplog):
    pipeline = Pipeline(folder, with_folder_b(chain()))
    pipeline.run()
    assert "other versions" not in caplog.text
    now = versions()
    made_by(folder, "a", law_order="0.0.9", torch="1.13.1")
    made_by(folder, "b", torch="1.13.1")
    made_by(folder, "c", nnunetv2=".".join(now["nnunetv2"].split(".")[:2]) + ".99", python="3.1")  # no change
    pipeline.run()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(
        "kept 2 of 3 stages that other versions finished (law-order 0.0.9, torch 1.13.1; now "
        f"law-order {now['law-order']}, torch {now['torch']}): "
    )
    assert line.endswith("give --again to rerun these stages and all that follow them")
    assert lines(folder / "a.txt") == ["one"] and lines(folder / "runs_b") == ["b"]


def test_a_record_without_versions_is_read_and_told(folder, caplog):
    pipeline = Pipeline(folder, with_folder_b(chain()))
    pipeline.run()
    path = folder / "stages" / "c.json"
    record = json.loads(path.read_text())
    del record["versions"]
    path.write_text(json.dumps(record))
    pipeline.run()
    now = versions()["law-order"]
    line = f"kept 1 of 3 stages that other versions finished (unknown versions; now law-order {now})"
    assert line in caplog.text
    assert lines(folder / "runs_c") == ["c"]
    pipeline.run(again=True)
    assert lines(folder / "runs_c") == ["c", "c"] and lines(folder / "c.txt") == ["c"]
    assert lines(folder / "a.txt") == ["one"] and lines(folder / "runs_b") == ["b"]
    caplog.clear()
    pipeline.run()
    assert "other versions" not in caplog.text


def test_again_runs_stages_of_other_versions_and_what_follows_them(folder):
    """b is of the installed versions, but was made from what a had left."""
    pipeline = Pipeline(folder, with_folder_b(chain()))
    pipeline.run()
    made_by(folder, "a", law_order="0.0.9")
    pipeline.run(again=True)
    assert lines(folder / "a.txt") == ["one"]  # from scratch: else it would have two lines
    assert lines(folder / "b" / "copy.txt") == ["one"]
    assert lines(folder / "runs_b") == ["b", "b"] and lines(folder / "runs_c") == ["c"]
    pipeline.run(again=True)
    assert lines(folder / "runs_b") == ["b", "b"]


def test_a_kill_amid_again_keeps_nothing_that_is_made_from_older_results(folder, monkeypatch):
    pipeline = Pipeline(folder, with_folder_b(chain()))
    pipeline.run()
    made_by(folder, "a", law_order="0.0.9")
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(again=True)
    assert states(pipeline) == {"a": "ready", "b": "waiting", "c": "done"}
    pipeline.run()
    assert lines(folder / "runs_b") == ["b", "b"]


def test_one_stage_may_run_again_and_warns_of_those_before_it(folder, caplog):
    pipeline = Pipeline(folder, with_folder_b(chain()))
    pipeline.run()
    made_by(folder, "a", law_order="0.0.9")
    pipeline.run_stage("b")
    assert "kept 1 of 3 stages that other versions finished (law-order 0.0.9" in caplog.text
    pipeline.run_stage("a", again=True)
    assert lines(folder / "runs_b") == ["b"] and pipeline.state(pipeline.stages[1]) == "ready"
    pipeline.run_stage("b", again=True)
    assert lines(folder / "runs_b") == ["b", "b"]


def test_again_is_for_runs():
    for execution in (Execution(again=True, dry_run=True), Execution(again=True, list_stages=True)):
        with pytest.raises(UserError, match="found --again without a run"):
            execution.check()


@pytest.mark.parametrize("content", ["", "null", "[]", '{"key": ', "7"])
def test_a_damaged_record_is_none(folder, content):
    """The stage is not done; what lies there is nobody's."""
    pipeline = Pipeline(folder, with_folder_b(chain()))
    pipeline.run()
    (folder / "stages" / "c.json").write_text(content)
    assert states(pipeline)["c"] == "ready"
    pipeline.run()
    assert lines(folder / "runs_c") == ["c", "c"] and lines(folder / "c.txt") == ["c"]


@pytest.mark.parametrize("record", ["a.json", "a.begun.json"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 3}, "found int at key, expected str or null"),
        ({"key": ["a"]}, "found array at key, expected str or null"),
        ({"outputs": None}, "found null at outputs, expected array"),
        ({"outputs": "a.txt"}, "found str at outputs, expected array"),
        ({"attempts": "two"}, "found str at attempts, expected int"),
    ],
)
def test_a_record_that_somebody_has_edited_is_one_line(folder, record, change, message):
    stage = Stage("a", (append("a.txt", "one"),), ("a.txt",))
    Pipeline(folder, (stage,)).run()
    path = folder / "stages" / record
    path.write_text(json.dumps(json.loads((folder / "stages" / "a.json").read_text()) | change))
    if record == "a.begun.json":
        (folder / "stages" / "a.json").unlink()
    with pytest.raises(UserError) as error:
        states(Pipeline(folder, (stage,)))
    assert f"{error.value}" == f"{path}: {message}; remove that file"


@pytest.mark.parametrize("content", ["", "null", "[]", '{"key": '])
def test_a_damaged_record_of_a_begun_stage_is_none(folder, content):
    stage = Stage("a", (append("a.txt", "new"),), ("a.txt",), resumes=True)
    leave_begun(folder, stage)
    (folder / "stages" / "a.begun.json").write_text(content)
    (folder / "a.txt").write_text("old")
    Pipeline(folder, (stage,)).run()
    assert lines(folder / "a.txt") == ["new"]


def test_renamed_outputs_do_not_stay_behind(folder):
    Pipeline(folder, (Stage("a", ("touch old.txt",), ("old.txt",)),)).run()
    Pipeline(folder, (Stage("a", ("touch new.txt",), ("new.txt",)),)).run()
    assert (folder / "new.txt").exists() and not (folder / "old.txt").exists()


@pytest.mark.parametrize("output", ["../kept", "", ".", "/", "b/../../kept", 3, None])
def test_a_record_that_names_what_lies_elsewhere_removes_nothing(folder, output):
    """No assert guards it: PYTHONOPTIMIZE would take that away."""
    stage = Stage("a", (append("a.txt", "one"),), ("a.txt",))
    Pipeline(folder, (stage,)).run()
    kept = folder.parent / "kept"
    kept.mkdir()
    record = folder / "stages" / "a.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"outputs": ["a.txt", output]}))
    with pytest.raises(UserError, match=r"stages/a.json: found .*; remove that file"):
        Pipeline(folder, (replace(stage, inputs="other"),)).run()
    assert kept.is_dir() and lines(folder / "a.txt") == ["one"]
    record.unlink()
    (folder / "a.txt").unlink()
    Pipeline(folder, (stage,)).run()


def test_what_no_record_explains_is_left_alone(folder):
    folder.mkdir()
    (folder / "a.txt").write_text("the user's own")
    with pytest.raises(UserError, match="no record of stage a"):
        Pipeline(folder, (Stage("a", ("touch a.txt",), ("a.txt",)),)).run()
    assert (folder / "a.txt").read_text() == "the user's own"


def test_what_a_stage_replaces_itself_may_be_there(folder):
    folder.mkdir()
    (folder / "a.txt").write_text("an earlier look")
    Pipeline(folder, (Stage("a", ("sh -c 'echo a > a.txt'",), ("a.txt",), replaces_outputs=True),)).run()
    assert lines(folder / "a.txt") == ["a"]


def test_a_kill_in_the_first_record_is_no_other_content(folder):
    folder.mkdir()
    (folder / ".experiment.json.0123.partial").write_text("{")
    claim_folder(folder, "a test")
    (folder / "experiment.json").unlink()
    (folder / "mine.txt").touch()
    with pytest.raises(UserError, match="found other content"):
        claim_folder(folder, "a test")


RUNNER = """
import sys
from pathlib import Path
from nnunet_order.stages.runner import Pipeline
from nnunet_order.stages.stage import Stage
Pipeline(Path(sys.argv[1]), (Stage("a", (sys.argv[2],), ("a.txt",), resumes=True),)).run()
"""


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes(marker: str) -> list[int]:
    """Pids of the living processes that have `marker` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            alive = (path.parent / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux alone")
def test_kill_9_takes_the_whole_family_along_and_a_restart_goes_on(folder):
    grandchild = f"{folder.parent}/grandchild"
    # First call: a grandchild that outlives its parent, unless the group is killed. Second: ends at once.
    command = (
        f"sh -c 'echo line >> a.txt; test $(wc -l < a.txt) -ge 2 && exit; "
        f'sh -c "while true; do sleep 1; done; : {grandchild}" & wait\''
    )
    arguments = [sys.executable, "-c", RUNNER, folder, command]
    runner = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    wait_for(lambda: (folder / "a.txt").exists() and len(processes(grandchild)) >= 2)
    runner.kill()
    runner.wait()
    wait_for(lambda: not processes(grandchild))
    begun = json.loads((folder / "stages" / "a.begun.json").read_text())
    assert begun["attempts"] == 1 and not (folder / "stages" / "a.json").exists()
    stage = Stage("a", (command,), ("a.txt",), resumes=True)
    assert begun["key"] == stage_keys([stage])["a"]
    pipeline = Pipeline(folder, (stage,))
    assert states(pipeline) == {"a": "begun"}
    pipeline.run()
    assert lines(folder / "a.txt") == ["line", "line"]  # it went on with the file of the first call
    assert json.loads((folder / "stages" / "a.json").read_text())["attempts"] == 2


def leave_begun(folder: Path, stage: Stage) -> None:
    """The record that a killed experiment leaves."""
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    begun = {"key": stage_keys([stage])[stage.name], "attempts": 1}
    (folder / "stages" / f"{stage.name}.begun.json").write_text(json.dumps(begun))


def test_a_stage_that_does_not_resume_starts_over(folder):
    """Its command would fail on the part of a file that a kill has left."""
    stage = Stage(
        "a", ("sh -c 'echo run >> runs; test ! -e a.txt || exit 3; echo whole > a.txt'",), ("a.txt",)
    )
    leave_begun(folder, stage)
    (folder / "a.txt").write_text("trunc")
    Pipeline(folder, (stage,)).run()
    assert lines(folder / "a.txt") == ["whole"] and lines(folder / "runs") == ["run"]
    assert json.loads((folder / "stages" / "a.json").read_text())["attempts"] == 2


def test_a_resumed_stage_that_fails_keeps_its_outputs(folder):
    """The GPU is busy when an experiment resumes: the checkpoints of days must not go."""
    command = "sh -c 'echo run >> runs; test -e free || exit 3; cat a/old > a/done'"
    stage = Stage("a", (command,), ("a", "a/done"), resumes=True)
    leave_begun(folder, stage)
    (folder / "a").mkdir()
    (folder / "a" / "old").write_text("90 epochs")
    for _ in range(2):
        with pytest.raises(UserError, match=r"exit code 3: .*; if it cannot resume from .*/a, remove that"):
            Pipeline(folder, (stage,)).run()
        assert (folder / "a" / "old").read_text() == "90 epochs" and not (folder / "a" / "done").exists()
    assert len(lines(folder / "runs")) == 2
    (folder / "free").touch()
    Pipeline(folder, (stage,)).run()
    assert (folder / "a" / "done").read_text() == "90 epochs" and len(lines(folder / "runs")) == 3
    assert sorted(path.name for path in (folder / "stages").iterdir()) == ["a.json", "a.lock"]


def test_a_stage_starts_over_when_its_outputs_are_removed(folder):
    """As the message of one that cannot resume advises."""
    stage = Stage("a", ("sh -c 'test ! -e a || exit 3; mkdir a'",), ("a",), resumes=True)
    leave_begun(folder, stage)
    (folder / "a").mkdir()
    with pytest.raises(UserError, match="remove that to start over"):
        Pipeline(folder, (stage,)).run()
    (folder / "a").rmdir()
    Pipeline(folder, (stage,)).run()
    assert states(Pipeline(folder, (stage,))) == {"a": "done"}


@pytest.mark.parametrize("kept", [0, 2, 1000, -1])
def test_a_checkpoint_that_a_kill_cut_off_is_removed_before_the_stage_resumes(folder, kept):
    """Stock nnU-Net overwrites checkpoints in place; --c then takes the one before."""
    stage = Stage("a", ("sh -c 'ls a > a/seen'",), ("a", "a/seen"), resumes=True)
    leave_begun(folder, stage)
    (folder / "a").mkdir()
    torch.save({"weights": torch.zeros(1000)}, folder / "a" / "checkpoint_best.pth")
    torch.save({"weights": torch.zeros(9)}, folder / "a" / "old.pth", _use_new_zipfile_serialization=False)
    whole = (folder / "a" / "checkpoint_best.pth").read_bytes()
    (folder / "a" / "checkpoint_latest.pth").write_bytes(whole[:kept])
    Pipeline(folder, (stage,)).run()
    assert lines(folder / "a" / "seen") == ["checkpoint_best.pth", "old.pth", "seen"]
    assert (folder / "a" / "checkpoint_best.pth").read_bytes() == whole


def test_data_that_have_moved_are_the_same_data(folder):
    stages = [
        Stage("a", (f"sh -c 'echo a >> runs; touch a.txt' {place}",), ("a.txt",), inputs="x", places=(place,))
        for place in ("/old/place", "/new/place")
    ]
    for stage in stages:
        Pipeline(folder, (stage,)).run()
    assert lines(folder / "runs") == ["a"]


def test_a_begun_stage_that_changed_starts_from_scratch(folder):
    stage = Stage("a", (append("a.txt", "new"),), ("a.txt",))
    leave_begun(folder, replace(stage, inputs="other"))
    (folder / "a.txt").write_text("old ")
    Pipeline(folder, (stage,)).run()
    assert lines(folder / "a.txt") == ["new"]


def test_a_stage_of_several_commands_starts_over_with_the_first(folder):
    stage = Stage("a", (append("a.txt", "first"), append("a.txt", "second")), ("a.txt",))
    leave_begun(folder, stage)
    (folder / "a.txt").write_text("first\n")
    Pipeline(folder, (stage,)).run()
    assert lines(folder / "a.txt") == ["first", "second"]


def test_a_failure_is_one_line_exit_code_2_and_ends_the_others(folder):
    script = f"""
from dataset_conversion.system.errors import run_command
from pathlib import Path
from nnunet_order.stages.runner import Pipeline
from nnunet_order.stages.stage import Stage
slow = Stage("slow", ("sleep 321",), ("slow.txt",))
bad = Stage("bad", ("python -c 'raise SystemExit(int(chr(120)))'",), ("bad.txt",))
run_command(lambda: Pipeline(Path({str(folder)!r}), (slow, bad)).run([{{}}, {{}}]))
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and time.monotonic() - start < 60
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: stage bad ended with exit code 1: ValueError: invalid literal")
    assert str(folder / "logs" / "bad.txt") in done.stderr
    assert "Traceback" in (folder / "logs" / "bad.txt").read_text()
    assert not processes("sleep\0" + "321")


def test_a_command_that_leaves_nothing_fails(folder):
    with pytest.raises(UserError, match=r"left no a\.txt"):
        Pipeline(folder, (Stage("a", ("true",), ("a.txt",)),)).run()


def test_unknown_programs_are_a_user_error(folder):
    with pytest.raises(UserError, match="found no program no-such-program"):
        Pipeline(folder, (Stage("a", ("no-such-program",), ("a",)),)).run()
    assert Path(find_program("python")).parent == Path(sys.executable).parent


def test_workers_overlap_and_respect_after(folder):
    # x and y wait for each other's file: only side by side do both end.
    meet = "sh -c 'touch {0}; while test ! -e {1}; do sleep 0.05; done; echo $WORKER > {0}.done'"
    stages = (
        Stage("x", (meet.format("x", "y"),), ("x.done",)),
        Stage("y", (meet.format("y", "x"),), ("y.done",)),
        Stage("z", ("sh -c 'cat x.done y.done > z.txt'",), ("z.txt",), ("x", "y")),
    )
    Pipeline(folder, stages).run([{"WORKER": "first"}, {"WORKER": "second"}])
    assert sorted(lines(folder / "z.txt")) == ["first", "second"]


def test_only_one_process_runs_a_stage(folder):
    arguments = [sys.executable, "-c", RUNNER, folder, "sh -c 'echo a >> a.txt; sleep 1'"]
    both = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert lines(folder / "a.txt") == ["a"]


def test_a_command_that_outlives_its_guard_keeps_the_stage(folder, caplog):
    """As after a kill -9 of guard and runner: the restart waits for the command, which holds the lock."""
    command = "sh -c 'sleep 2; echo a >> a.txt'"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, folder, command], stdout=subprocess.DEVNULL)
    wait_for(lambda: (folder / "stages" / "a.begun.json").exists() and len(processes("sleep\x002\0")) == 1)
    guard = [pid for pid in processes("guard.py") if str(runner.pid) in cmdline(pid)]
    os.kill(runner.pid, signal.SIGSTOP)  # so that it cannot act on the guard's end
    for pid in (*guard, runner.pid):
        os.kill(pid, signal.SIGKILL)
    runner.wait()
    with caplog.at_level("INFO"):
        Pipeline(folder, (Stage("a", (command,), ("a.txt",), resumes=True),)).run()
    assert "a: another process runs it; waiting" in caplog.messages
    assert lines(folder / "a.txt") == ["a", "a"]  # one after the other


def cmdline(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_single_stages_wait_for_those_before(folder):
    pipeline = Pipeline(folder, with_folder_b(chain()))
    with pytest.raises(UserError, match="found a not done"):
        pipeline.run_stage("b")
    with pytest.raises(UserError, match="found --stage nothing"):
        pipeline.run_stage("nothing")
    pipeline.run_stage("a")
    pipeline.run_stage("b", {"WORKER": "1"})
    assert states(pipeline) == {"a": "done", "b": "done", "c": "ready"}


def test_the_list_of_stages_is_made_for_scripts(folder, capsys):
    Pipeline(folder, with_folder_b(chain())).list_stages()
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows == [["a", "ready", ""], ["b", "waiting", "a"], ["c", "ready", ""]]
    assert not folder.exists()


def test_the_script_does_what_the_experiment_does(folder, tmp_path):
    stages = (
        Stage("a", ("sh -c 'echo $SEED $nnUNet_raw > a.txt'",), ("a.txt",), (), {"SEED": "it's 1"}),
        Stage(
            "b",
            ("python -c 'print(open(chr(97) + chr(46) + \"txt\").read())'", "cp a.txt b.txt"),
            ("b.txt",),
            ("a",),
        ),
    )
    Pipeline(folder, stages).run()
    expected = (folder / "b.txt").read_text()
    assert expected == "it's 1 nnUNet_raw\n"
    # Printed, for another folder; and as it lies in the folder, after a move.
    script = Pipeline(tmp_path / "by hand", stages).script()
    subprocess.run(["sh"], input=script, text=True, check=True, capture_output=True)
    assert (tmp_path / "by hand" / "b.txt").read_text() == expected
    moved = tmp_path / "moved"
    folder.rename(moved)
    for name in ("a.txt", "b.txt"):
        (moved / name).unlink()
    subprocess.run(["sh", moved / "commands.sh"], cwd="/", check=True, capture_output=True)
    assert (moved / "b.txt").read_text() == expected


def test_a_moved_folder_is_still_done(folder, tmp_path):
    Pipeline(folder, chain()[:1]).run()
    folder.rename(tmp_path / "moved")
    assert states(Pipeline(tmp_path / "moved", chain()[:1])) == {"a": "done"}


def test_the_users_own_nnunet_folders_do_not_count(folder, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/somewhere/else")
    monkeypatch.setenv("MINE", "kept")
    Pipeline(folder, (Stage("a", ("sh -c 'echo $nnUNet_raw $MINE > a.txt'",), ("a.txt",)),)).run()
    assert lines(folder / "a.txt") == ["nnUNet_raw", "kept"]


def test_impossible_stages_are_our_own_mistake(folder):
    a, b = Stage("a", ("true",), ("a",), ("b",)), Stage("b", ("true",), ("b",), ("a",))
    for stages in ((a, b), (replace(a, after=()), replace(a, after=())), (replace(a, name="a b", after=()),)):
        with pytest.raises(AssertionError):
            Pipeline(folder, stages)


def test_workers(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert make_workers(1, ()) == [{"OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "passive"}]
    assert [one["OMP_NUM_THREADS"] for one in make_workers(2 * cores, ())] == ["1"] * (2 * cores)
    assert make_workers(1, (0, 2)) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "2"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [one["OMP_NUM_THREADS"] for one in make_workers(2, ())] == ["3"] * 2
    for jobs, gpus in ((0, ()), (2, (0,)), (1, (0, 0)), (1, (-1,))):
        with pytest.raises(UserError):
            Execution(jobs, gpus).check()


OWN = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerOfMyOwn(nnUNetTrainer):
    rate = 1e-2
"""


def test_an_edited_trainer_of_the_users_own_is_trained_again(tmp_path, monkeypatch):
    from nnunet_order.comparing import trainer_lookup

    def key(trainer: str, options: str = "epochs=3") -> str:
        trainer_lookup.trainer_class.cache_clear()
        one = Segmentation("real", "Dataset001_Real", trainer, 0, 0, 0, options, "validation", "cpu")
        return stage_keys((Stage("plan", ("true",), ("p",)), *one.stages(("plan",))))[f"segment_{one.name}"]

    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "of_my_own.py"
    file.write_text(OWN)
    monkeypatch.setenv(VARIABLE, os.pathsep.join([os.environ.get(VARIABLE, ""), str(file.parent)]).strip(":"))
    before = key("nnUNetTrainerOfMyOwn")
    assert key("nnUNetTrainerOfMyOwn") == before
    file.write_text(OWN.replace("1e-2", "1e-3"))
    assert key("nnUNetTrainerOfMyOwn") != before
    # Options are for this package's trainers: others need no new training when they change.
    assert key("nnUNetTrainerOfMyOwn", "epochs=4") == key("nnUNetTrainerOfMyOwn")
    assert key("nnUNetTrainer_5epochs", "epochs=4") == key("nnUNetTrainer_5epochs")
    assert key("nnUNetTrainerORDER", "epochs=4") != key("nnUNetTrainerORDER")


def test_the_script_finds_the_users_own_trainers(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "own")
    assert f"export {VARIABLE}={tmp_path / 'own'}\n" in Pipeline(folder, chain()).script()


def test_gpus_are_not_for_the_cpu():
    Execution(gpus=(0,)).check_device("cuda")
    Execution().check_device("cpu")
    with pytest.raises(UserError, match="found --gpus 0 1 and device cpu"):
        Execution(gpus=(0, 1)).check_device("cpu")


def test_a_file_system_without_locks_is_one_line(folder, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"a\.lock: cannot be locked"):
        Pipeline(folder, chain()).run()


def test_a_weight_changed_in_the_middle_of_a_large_file_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1 << 18))
    before = files_digest([path])
    content = bytearray(1 << 18)
    content[1000] = 1
    path.write_bytes(content)
    assert files_digest([path]) != before
