"""The folder of `export --deploy`: a model repository of the Triton Inference Server and two programs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from dataset_conversion.system.errors import UserError, check_writable
from dataset_conversion.system.files import link_or_copy
from dataset_conversion.system.folders import new_folder

PROGRAMS = ("segment.py", "segment.cpp")
TRITON_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(uint16)": "TYPE_UINT16", "tensor(float)": "TYPE_FP32"}


def check_deployment(folder: Path) -> None:
    """UserError unless `folder` is new or empty, and can be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"found --deploy {folder}, expected a new or empty folder; give another name")
    check_writable(folder)


def write_deployment(model: Path, folder: Path) -> None:
    """Write `folder` for an exported file of frames, whose name the served model gets."""
    import onnxruntime

    folder.parent.mkdir(parents=True, exist_ok=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with new_folder(folder) as partial:
        served = partial / "triton" / model.stem
        (served / "1").mkdir(parents=True)
        link_or_copy(model, served / "1" / "model.onnx")
        (served / "config.pbtxt").write_text(triton_configuration(model.stem, session))
        for name in PROGRAMS:
            (partial / name).write_bytes((files(__package__) / name).read_bytes())


def triton_configuration(name: str, session) -> str:
    """config.pbtxt of a model whose first axis is that of one frame."""
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', "max_batch_size: 0"]
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            sides = ", ".join(str(side) if isinstance(side, int) else "-1" for side in value.shape)
            content = f'name: "{value.name}" data_type: {TRITON_TYPES[value.type]} dims: [ {sides} ]'
            lines.append(f"{kind} [ {{ {content} }} ]")
    return "\n".join(lines) + "\n"
