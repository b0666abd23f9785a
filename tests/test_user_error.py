"""A full disk, whoever notices it, is one line; other errors keep their traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from dataset_conversion.system.errors import UserError, check_writable, run_command, writing
from dataset_conversion.system.json_files import write_json

NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
QUOTED = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors 0.8


def save_to_stream(path: Path) -> None:
    with path.open("wb") as stream:
        torch.save(torch.zeros(10**6), stream)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 10**5),
        lambda path: Image.fromarray(NOISE).save(path, "PNG"),
        lambda path: torch.save(torch.zeros(10**6), path),
        save_to_stream,
    ],
)
def test_full_disk_is_one_line(tmp_path, write):
    (tmp_path / "file").symlink_to("/dev/full")
    line = f"found no space left for {tmp_path}; free some"
    with pytest.raises(UserError, match=line) as error, writing(tmp_path):
        write(tmp_path / "file")
    assert "\n" not in str(error.value)


def test_safetensors_error_is_one_line(tmp_path):
    """Safetensors replaces a link instead of writing to where it points."""
    with pytest.raises(UserError, match="found no space left"), writing(tmp_path):
        raise SafetensorError(QUOTED)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no"), RuntimeError("mat1 and mat2"), UserError("unexpected pos")]
)
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as found, writing(tmp_path):
        raise error
    assert found.value is error


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    """Before the work, and where that was not asked when it is done."""
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "deep" / "out"
    with pytest.raises(UserError, match=r"file: found a file, expected a folder to write out into"):
        check_writable(below)
    with (
        pytest.raises(UserError, match=r"file/deep: found .Not a directory. while writing out"),
        writing(below),
    ):
        below.parent.mkdir()
    for path in (below, below.parent, tmp_path):
        with pytest.raises(UserError, match=f"while writing {path.name}"):
            write_json(path, {})
    for fine in (tmp_path, tmp_path / "new" / "folder", tmp_path / "file"):
        check_writable(fine)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(UserError, match="found no permission to write, expected it for out"):
        check_writable(tmp_path / "theirs" / "out")


def test_nothing_happens_without_an_error(tmp_path):
    with writing(tmp_path):
        (tmp_path / "a.json").write_text("[1]")
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.mark.parametrize("lines", [1, 10**5])
def test_a_reader_that_has_gone_is_no_traceback(lines):
    """As with `law-synth experiment --list-stages | head`; a line may wait in the buffer until the end."""
    script = (
        "from dataset_conversion.system.errors import run_command; "
        f"run_command(lambda: print('x\\n' * {lines}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.parametrize("how", ["print('x')", "Console().print('x')"])
def test_a_lost_result_is_no_exit_code_of_the_command(how):
    """1 is `audit`'s code for a leak, and what rich exits with where stdout is gone."""
    script = (
        "import sys; from rich.console import Console\n"
        "from dataset_conversion.system.errors import run_command\n"
        f"def command(): {how}; sys.exit(1)\n"
        "run_command(command)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    """What a library or another program prints would be written into it."""
    script = (
        "import sys; from pathlib import Path; from dataset_conversion.system.errors import run_command\n"
        "def command():\n"
        "    with open(sys.argv[1], 'w') as file: file.write(str(file.fileno()))\n"
        "run_command(command)"
    )
    path = tmp_path / "file"
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script, path]
    assert subprocess.run(shell).returncode == 0
    assert int(path.read_text()) > 2


def test_an_error_line_is_one_line_that_colours_nothing(tmp_path):
    script = (
        "from dataset_conversion.system.errors import UserError, run_command\n"
        "def command():\n"
        "    import logging; logging.getLogger('law_synth').info('read %s', 'a\\x1b[2Jb')\n"
        "    raise UserError('a\\nb\\x1b[31m\\u202e\\udcff é')\n"
        "run_command(command)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8")
    lines = ["INFO     read a\\x1b[2Jb", "error: a\\nb\\x1b[31m\\u202e\\udcff é"]
    assert (done.returncode, done.stderr.splitlines()) == (2, lines)


INTERRUPTED = {
    "a library turns it into another error": """
        try:
            press()
        except KeyboardInterrupt:
            raise ImportError("failed to import")""",
    "Python would print and forget it": """
        class Callback:
            def __del__(self):
                press()
        Callback()
        time.sleep(60)""",
    "again while it tidies up": """
        try:
            press()
        finally:
            press()
            time.sleep(60)""",
    "again while threads end": """
        from concurrent.futures import ThreadPoolExecutor
        ThreadPoolExecutor(1).submit(time.sleep, 60)
        threading.Timer(0.5, press).start()
        press()""",
    "in threads": """
        from dataset_conversion.system.parallel import in_parallel
        threading.Timer(0.5, press).start()
        in_parallel(lambda item: time.sleep(0.1), range(2000), "sleep", workers=2)""",
    "while work is handed to threads": """
        from dataset_conversion.system.parallel import in_parallel
        items = (press() if item == 500 else item for item in range(2000))
        in_parallel(lambda item: time.sleep(0.1), items, "sleep", workers=2)""",
    "in processes": """
        from dataset_conversion.system.parallel import in_processes
        threading.Timer(0.5, press).start()
        with in_processes(time.sleep, [0.1] * 2000, 2) as found:
            list(found)""",
}


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("when", INTERRUPTED)
def test_ctrl_c_is_one_line(tmp_path, when):
    """To the whole group of processes, as a terminal sends it."""
    body = INTERRUPTED[when]
    (tmp_path / "command.py").write_text(
        "import os, signal, threading, time\nfrom dataset_conversion.system.errors import run_command\n"
        "def press():\n    os.killpg(0, signal.SIGINT)\n"
        f"def command():{body}\n"
        "if __name__ == '__main__':\n    run_command(command)\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, tmp_path / "command.py"], capture_output=True, text=True, start_new_session=True
    )
    told = [line for line in done.stderr.splitlines() if not line.startswith("sleep ")]  # a bar
    assert (done.returncode, told) == (130, ["interrupted"])
    assert time.monotonic() - begun < 50


def test_another_broken_pipe_is_no_readers_fault(capsys):
    def command():
        raise BrokenPipeError(errno.EPIPE, "a worker died")

    with pytest.raises(BrokenPipeError, match="a worker died"):
        run_command(command)
