"""A full disk, whoever notices it, is one line; other errors keep their traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from dataset_conversion.user_error import UserError, disk_full

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
    with pytest.raises(UserError, match=line) as error, disk_full(tmp_path):
        write(tmp_path / "file")
    assert "\n" not in str(error.value)


def test_safetensors_error_is_one_line(tmp_path):
    """Safetensors replaces a link instead of writing to where it points."""
    with pytest.raises(UserError, match="found no space left"), disk_full(tmp_path):
        raise SafetensorError(QUOTED)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no"), RuntimeError("mat1 and mat2"), UserError("unexpected pos")]
)
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as found, disk_full(tmp_path):
        raise error
    assert found.value is error


def test_nothing_happens_without_an_error(tmp_path):
    with disk_full(tmp_path):
        (tmp_path / "a.json").write_text("[1]")
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
