"""The commands as a user starts them: help, one line for bad input, doctor, demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset_conversion.system.errors import UserError
from nnunet_order.demo import stages as demo_stages
from nnunet_order.doctor import runs_this_python
from nnunet_order.options import Demo

ORDER_VERBS = "convert plan evaluate compare complexity benchmark export predict doctor demo"
LAW_VERBS = "init-base train generate mine evaluate audit experiment report demo"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    program = Path(sys.executable).parent / str(arguments[0])
    return subprocess.run(
        [program, *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_help_names_every_verb():
    for program, verbs in (("nnunet-order", ORDER_VERBS), ("law-synth", LAW_VERBS)):
        text = run(program, "--help").stdout
        assert all(f"• {verb} " in text for verb in verbs.split()), text


def with_streams(redirection: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a command whose streams the shell has redirected, as `>&-` or `>/dev/full`."""
    program = Path(sys.executable).parent / str(arguments[0])
    script = f'"$@" {redirection}'
    return subprocess.run(
        ["sh", "-c", script, "sh", program, *map(str, arguments[1:])], capture_output=True, text=True
    )


HELP = [("nnunet-order", "--help"), ("nnunet-order", "evaluate", "--help"), ("law-synth", "audit", "--help")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_that_nobody_gets(command):
    """A traceback before, and exit code 1, which `audit` has for a leak."""
    for redirection, said in ((">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")):
        done = with_streams(redirection, *command)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: standard output: found '{said}' while writing")
        assert len(done.stderr.splitlines()) == 1
    for redirection in ("2>&-", "2>/dev/full"):
        done = with_streams(redirection, *command)
        assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done
    reader, writer = os.pipe()
    os.close(reader)
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("redirection", [">/dev/full", "2>/dev/full", ">&- 2>&- <&-"])
def test_bad_input_has_its_exit_code_wherever_the_streams_go(redirection):
    options = ("--kvasir", "/no/such/folder", "--out", "/no/such/Dataset1_A")
    done = with_streams(redirection, "nnunet-order", "convert", "polyps", *options)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == ("2>" not in redirection), done


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("imported", ["tyro.", "numpy.", "torch."])
def test_ctrl_c_during_imports_is_one_line(imported):
    """Those of `complexity` take seconds."""
    process = subprocess.Popen(
        [Path(sys.executable).parent / "nnunet-order", "complexity"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},  # Python says what it has imported
    )
    for line in process.stderr:
        if line.rpartition("|")[2].strip().startswith(imported):
            break
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=60)
    assert [line for line in told.splitlines() if not line.startswith("import time:")] == ["interrupted"]
    assert (process.returncode, printed) == (130, "")


def test_names_like_markup_are_shown_as_they_are(tmp_path):
    """`[/b]` crashed the table, `:x:` became a cross."""
    data = tmp_path / "[red]" / "Dataset501_A"
    assert (
        run("nnunet-order", "convert", "phantom", "--out", data, "--cases", 5, "--size", 32).returncode == 0
    )
    description = json.loads((data / "dataset.json").read_text())
    description["labels"] = {"background": 0, "tumour [/b]": 1, ":x: [red]": 2}
    (data / "dataset.json").write_text(json.dumps(description))
    out = tmp_path / "[bold]:x:"
    options = ("--labels", data / "labelsTr", "--out", out, "--processes", 1)
    done = run(
        "nnunet-order", "evaluate", "--dataset", data, "--predictions", f"[/i]={data}/labelsTr", *options
    )
    assert done.returncode == 0, done.stderr
    for name in ("tumour [/b]", ":x: [red]", "[/i]", f"Results in {out}"):
        assert name in done.stdout


def test_law_synths_tables_show_names_as_they_are(tmp_path, capsys, monkeypatch):
    from law_synth.audit.finding import Check, Finding
    from law_synth.audit.verdict import print_report
    from law_synth.evaluation.measurement import Measurement
    from law_synth.evaluation.output import print_tables

    monkeypatch.setenv("COLUMNS", "200")
    name, hostile = "tumour [/b] :x:", "\x1b[31mred\n"
    measures = [
        Measurement("Realism", name, "synthetic", name, 1.0, {"a": 1}, f"of {name}"),
        Measurement("Masks", name, "synthetic", f"{name} {hostile}", 1.0, {"a": 1}, "p", 0.5, 1.5),
    ]
    print_tables(SimpleNamespace(missing={name: hostile}), measures, tmp_path / name)
    subject = SimpleNamespace(dataset=SimpleNamespace(folder=tmp_path / name))
    checks = [Check(name, "failed", f"{name}\\", (Finding("leak", f"case {hostile}", name, name),))]
    print_report(subject, checks, clean=False)
    shown = capsys.readouterr().out
    assert shown.count(name) >= 9 and "\x1b" not in shown and r"\x1b[31mred\n" in shown


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    done = run(
        "nnunet-order",
        "convert",
        "polyps",
        "--kvasir",
        tmp_path / "nothing",
        "--out",
        tmp_path / "Dataset1_A",
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_doctor_is_content_with_a_good_installation(tmp_path):
    folders = {name: str(tmp_path) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run("nnunet-order", "doctor", PATH=path, **folders)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nnUNetTrainerORDER" in done.stdout and "trainers.py" in done.stdout
    assert "nnUNetv2_train DATASET 2d FOLD -tr nnUNetTrainerLite40K" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("#!{here}\n", True),
        ("#!/bin/sh\n'''exec' \"{here}\" \"$0\" \"$@\"\n' '''\n", True),
        ("#!/opt/other environment/bin/python3\n", False),
        ("MZ", False),  # a launcher of Windows, in no folder of this Python's
    ],
)
def test_doctor_knows_which_python_a_command_runs(tmp_path, start, expected):
    """Debian's Python has its scripts in another folder than itself."""
    command = tmp_path / "nnUNetv2_train"
    command.write_text(start.format(here=sys.executable) + "import sys\n")
    assert runs_this_python(command) is expected


def test_doctor_says_what_to_do(tmp_path):
    missing = {
        "nnUNet_raw": str(tmp_path / "gone"),
        "nnUNet_preprocessed": str(tmp_path),
        "nnUNet_results": "",
    }
    done = run("nnunet-order", "doctor", NNUNET_ORDER_NO_AUTOLOAD="1", nnUNet_extTrainer="", **missing)
    assert done.returncode == 2
    words = "".join(done.stdout.split())  # the table wraps lines
    assert f"mkdir-p{tmp_path / 'gone'}".replace("\n", "") in words
    assert "exportnnUNet_results=" in words and "unsetNNUNET_ORDER_NO_AUTOLOAD" in words


def test_demo_trains_the_networks_asked_for(tmp_path):
    stages = {stage.name: stage for stage in demo_stages(Demo(out=tmp_path, networks=("ORDER", "MKUNet")))}
    assert [name for name in stages if name.startswith("train_")] == ["train_ORDER", "train_MKUNet"]
    assert "-tr nnUNetTrainerMKUNet_5epochs " in stages["train_MKUNet"].commands[0]
    with pytest.raises(UserError, match="found --networks ORDER ORDER, expected each once"):
        Demo(networks=("ORDER", "ORDER")).check()


@pytest.mark.slow
def test_demo_runs_to_its_table_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "demo"
    small = ("--networks", "Lite40K", "--cases", 10, "--test-cases", 3, "--size", 64)
    done = run("nnunet-order", "demo", "--out", out, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "evaluation" / "summary.json").read_text())["rows"]
    assert {row["prediction"] for row in rows} == {"Lite40K"}
    assert (out / "evaluation" / "examples.png").stat().st_size > 10_000
    again = run("nnunet-order", "demo", "--out", out, *small)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nnUNetv2_" not in again.stdout  # nothing was left to do
    (out / "stages" / "draw.json").unlink()
    other = run("nnunet-order", "demo", "--out", out, *small)
    assert other.returncode == 2 and "no record of stage draw" in other.stderr


def test_torchrun_leaves_our_options_alone():
    """It takes an option that begins one of its own, such as --run for --run-path, although it is ours."""
    from dataclasses import fields

    from torch.distributed.run import get_args_parser

    from law_synth.generation.options import Generate
    from law_synth.training.options import Train

    its = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    ours = {f"--{field.name.replace('_', '-')}" for verb in (Train, Generate) for field in fields(verb)}
    assert not [(mine, flag) for mine in ours for flag in its if flag.startswith(mine)]
