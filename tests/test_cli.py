"""The commands as a user starts them: help, one line for bad input, doctor, demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_order.doctor import runs_this_python

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


@pytest.mark.slow
def test_demo_runs_to_its_table_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "demo"
    small = ("--cases", 10, "--test-cases", 3, "--size", 64)
    done = run("nnunet-order", "demo", "--out", out, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "evaluation" / "summary.json").read_text())["rows"]
    assert {row["prediction"] for row in rows} == {"ORDER", "MK-UNet"}
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

    from law_synth.generation.generate import Generate
    from law_synth.training.train import Train

    its = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    ours = {f"--{field.name.replace('_', '-')}" for verb in (Train, Generate) for field in fields(verb)}
    assert not [(mine, flag) for mine in ours for flag in its if flag.startswith(mine)]
