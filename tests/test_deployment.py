"""`export --deploy`: what programs without this package get, run as they would run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_graphs import draw_frame, files_of, metadata_of

from dataset_conversion.system.errors import UserError
from nnunet_order.deployment.deploy import check_deployment, write_deployment
from nnunet_order.onnx_model import OnnxModel
from nnunet_order.options import Export

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

HEADERS = os.environ.get("ONNXRUNTIME_INCLUDE", "")  # onnxruntime's wheel has its library, but no headers


@pytest.fixture(params=[3, 1], ids=["rgb", "grey"])
def deployed(request, tmp_path) -> tuple[Path, np.ndarray, np.ndarray]:
    """The folder, a frame, and its label map."""
    _, frames = files_of(tmp_path, metadata_of(request.param, max_side=80))
    write_deployment(frames, tmp_path / "deployed")
    frame = draw_frame(131, 170, request.param)
    labels = OnnxModel(frames)(frame)
    assert labels.any() and not labels.all()
    return tmp_path / "deployed", frame, labels


def test_python_program(deployed):
    folder, frame, labels = deployed
    Image.fromarray(frame).save(folder / "a.png")
    model = folder / "triton" / "frames" / "1" / "model.onnx"
    command = [sys.executable, "-I", folder / "segment.py", model, folder / "a.png"]
    subprocess.run(command, check=True, cwd=folder)
    assert np.array_equal(np.asarray(Image.open(folder / "a_labels.png")), labels)


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")
@pytest.mark.skipif(not HEADERS, reason="ONNXRUNTIME_INCLUDE does not name the folder of onnxruntime_c_api.h")
def test_c_program(deployed):
    folder, frame, labels = deployed
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    options = ["-std=c++17", "-Wall", "-Werror", "-I", HEADERS, "-L", str(folder), "-l", "onnxruntime"]
    subprocess.run(["g++", "segment.cpp", *options, "-o", "segment"], check=True, cwd=folder)
    Image.fromarray(frame).save(folder / "a.ppm")
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    model = folder / "triton" / "frames" / "1" / "model.onnx"
    command = [folder / "segment", model, "a.ppm", "a.pgm"]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    assert np.array_equal(np.asarray(Image.open(folder / "a.pgm")), labels)
    assert subprocess.run(command[:2], cwd=folder, env=environment, capture_output=True).returncode == 2


def test_triton_repository(tmp_path):
    """Read by Triton's own format in a check by hand; here its words are pinned."""
    labels = {"background": 0, "whole": [1, 2], "core": 300}
    metadata = metadata_of(labels=labels, label_values=[0, 1, 2], regions_class_order=[1, 300])
    _, frames = files_of(tmp_path, metadata)
    write_deployment(frames, tmp_path / "new" / "deployed")
    served = tmp_path / "new" / "deployed" / "triton" / "frames"
    assert (served / "1" / "model.onnx").read_bytes() == frames.read_bytes()
    assert (served / "config.pbtxt").read_text().splitlines() == [
        'name: "frames"',
        'platform: "onnxruntime_onnx"',
        "max_batch_size: 0",
        'input [ { name: "frame" data_type: TYPE_UINT8 dims: [ 1, -1, -1, 3 ] } ]',
        'output [ { name: "labels" data_type: TYPE_UINT16 dims: [ 1, -1, -1 ] } ]',
        'output [ { name: "probabilities" data_type: TYPE_FP32 dims: [ 1, 2, -1, -1 ] } ]',
    ]


def test_what_cannot_be_deployed(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="expected a new or empty folder"):
        check_deployment(tmp_path)
    check_deployment(tmp_path / "new")
    with pytest.raises(UserError, match="expected it alone"):
        Export(tmp_path, tmp_path / "m.onnx", logits_only=True, deploy=tmp_path / "new").check()
