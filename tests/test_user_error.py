"""A full disk, whoever notices it, is one line; other errors keep their traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from dataset_conversion.raw_writer import write_json
from dataset_conversion.user_error import UserError, check_writable, run_command, writing

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
        f"from dataset_conversion.user_error import run_command; run_command(lambda: print('x\\n' * {lines}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_another_broken_pipe_is_no_readers_fault(capsys):
    def command():
        raise BrokenPipeError(errno.EPIPE, "a worker died")

    with pytest.raises(BrokenPipeError, match="a worker died"):
        run_command(command)
