"""Where no terminal shows a bar, the log says how far the work is, and an experiment finds it there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from dataset_conversion.system import terminal as module
from dataset_conversion.system.terminal import pace, progress
from nnunet_order.stages.run import StageRun
from nnunet_order.stages.stage import Stage
from nnunet_order.stages.stage_files import StageFiles


def work(steps: int, total: int) -> None:
    with progress("loss {task.fields[loss]:.2f}") as bar:
        task = bar.add_task("training", total=total, loss=0.0)
        for step in range(steps):
            bar.update(task, advance=1, loss=step / 4)


def test_the_log_says_how_far_it_is(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "EVERY", 0)
    work(4, 4)
    lines = caplog.messages
    assert [line[:13] for line in lines] == [f"training {step} of" for step in (1, 2, 3, 4)]
    assert lines[1].startswith("training 2 of 4 (50 %), ") and lines[1].endswith("loss 0.25")
    assert lines[3] == "training 4 of 4 (100 %), loss 0.75"


def test_between_two_lines_is_time_and_the_end_is_told(caplog):
    caplog.set_level(logging.INFO)
    work(100, 100)
    assert caplog.messages == ["training 100 of 100 (100 %), loss 24.75"]


def test_slow_work_has_a_pace_and_an_end_in_sight(caplog, monkeypatch):
    """A chunk of eight images in 40 seconds, of which no two fall into rich's window of 30 seconds."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "EVERY", 0)
    now = [0.0]
    with progress("{task.fields[pace]}") as bar:
        bar.get_time = lambda: now[0]
        task = bar.add_task("generating", total=32, pace=pace(0, 0))
        for chunk in range(1, 4):
            now[0] += 40
            bar.update(task, completed=8 * chunk, pace=pace(8 * chunk, now[0]))
    assert caplog.messages[0] == "generating 8 of 32 (25 %), 5 s per image"
    assert caplog.messages[2] == "generating 24 of 32 (75 %), 0:00:40 left, 5 s per image"


def test_pace():
    assert pace(0, 10) == pace(0, 0) == "-"
    assert pace(8, 300) == "37.5 s per image" and pace(1, 1234.5) == "1234 s per image"
    assert pace(10, 10) == "1 images/s" and pace(1234, 100) == "12.3 images/s"


def test_a_terminal_has_a_bar_and_other_processes_nothing(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    terminal = Console(file=io.StringIO(), force_terminal=True, force_interactive=True)
    monkeypatch.setattr("rich.progress.get_console", lambda: terminal)
    work(4, 4)
    assert "training" in terminal.file.getvalue()
    monkeypatch.undo()
    with progress(disable=True) as bar:
        bar.update(bar.add_task("training", total=2), advance=2)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("printed", "note"),
    [
        ("INFO     training 120 of 400 (30 %), 0:02:10 left, loss 0.1234", "120 of 400"),
        ("2026-01-01 10:00:00: Epoch 3\n2026-01-01 10:00:09: Current learning rate: 0.01", "epoch 3"),
        ("wrote 880 of 1000 training cases", ""),
    ],
)
def test_an_experiment_shows_how_far_a_stage_is(tmp_path, printed, note):
    files = StageFiles(tmp_path, Stage("a", ("true",), ("a",)), "key")
    files.log.parent.mkdir()
    files.log.write_text(f"\n=== earlier\n9 of 10 (90 %)\n\n=== now command\n{printed}\n")
    assert StageRun(files, {}).note() == note


def test_log_lines_are_whole_in_files():
    """Not folded to 80 columns, so that they can be searched for."""
    path = "/a/long/path" * 20
    code = (
        "import logging; from dataset_conversion.system.errors import run_command; "
        f"run_command(lambda: logging.getLogger('law_synth.x').info('wrote %s', '{path}'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == f"INFO     wrote {path}\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_on_a_terminal_log_and_bars_keep_out_of_each_others_lines(tmp_path):
    code = f"""
from pathlib import Path
from dataset_conversion.system.errors import run_command
from nnunet_order.stages.runner import Pipeline
from nnunet_order.stages.stage import Stage
stages = [Stage(name, (f"sh -c 'sleep 0.5; touch {{name}}'",), (name,)) for name in ("one", "two")]
run_command(lambda: Pipeline(Path({str(tmp_path)!r}), tuple(stages)).run())
"""
    terminal, end = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=end, stderr=end, env=environment)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(terminal, 1 << 16):
            shown += part
    os.close(terminal)
    assert process.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())  # without colours
    lines = re.split(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]", plain)  # at every move of the cursor
    told = [line for line in lines if "INFO" in line]
    assert len(told) == 4 and all(line.startswith("INFO") for line in told), told
    assert any(line.startswith("stages ") for line in lines)
