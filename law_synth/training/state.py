"""Saving a training: the state that a resume needs, and the run folder that generation reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dataset_conversion.system.errors import UserError, check_writable, writing
from dataset_conversion.system.json_files import read_json, write_json
from law_synth.objective import TrainingObjective
from law_synth.records.run import CONFIG, RunSettings, read_config, weights_hash, write_config
from nnunet_order.torch_file import load_torch

WORK = ".training"  # of a run folder: what only the training itself reads
STATE = Path(WORK) / "state.pt"
CONTENT = Path(WORK) / "config.json"
LOG = "log.jsonl"


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def save_state(folder: Path, step: int, objective: TrainingObjective, **others) -> None:
    """Write step, trained weights and the state dicts of `others` (optimizer, EMA, scaler) in one rename."""
    state = {name: other.state_dict() for name, other in others.items() if other is not None}
    state |= {"step": step, "weights": {name: p.detach() for name, p in trainable(objective).items()}}
    partial = (folder / STATE).with_suffix(".partial")
    with writing(folder):
        torch.save(state, partial)
        os.replace(partial, folder / STATE)


def load_state(folder: Path, objective: TrainingObjective, **others) -> int:
    """Restore what `save_state` wrote; the step to go on from, 0 when there is no state."""
    if not (folder / STATE).is_file():
        return 0
    # Mapped, not read: every process of a machine would hold the 20 GB of the paper's preset otherwise.
    mapped = os.name == "posix"  # elsewhere a mapped file cannot be replaced by the next save
    path = folder / STATE
    remedy = "restore it, or start again in another --out"
    state = load_torch(path, "the state of a training", remedy, ("step", "weights"), mmap=mapped)
    with torch.no_grad():
        for name, parameter in trainable(objective).items():
            parameter.copy_(state["weights"][name])
    for name, other in others.items():
        if other is not None and name in state:  # the scaler is missing where fp16 is new to the run
            if isinstance(other, torch.optim.Optimizer):  # a run may go on elsewhere or in another precision
                for saved, group in zip(state[name]["param_groups"], other.param_groups, strict=True):
                    saved["fused"] = group["fused"]
            other.load_state_dict(state[name])
    return state["step"]


def export(
    folder: Path, objective: TrainingObjective, config: RunSettings, step: int, finished: bool
) -> None:
    """Write controlnet/, unet/ when its decoder is trained, weighter/ and, last, law_config.json.

    Each part takes its name by a rename. After a kill in between, the next save of the resumed run mends it.
    """
    networks = objective.networks
    with writing(folder):
        _replace(folder / "controlnet", networks.controlnet.save_pretrained)
        if config.trains_decoder:
            _replace(folder / "unet", networks.unet.save_pretrained)
        if objective.weighter is not None:
            _replace(folder / "weighter", lambda path: _save_weighter(path, objective))
        write_config(folder, config.saved(folder, step, finished))


def is_exported(folder: Path, step: int) -> bool:
    """Whether the run folder holds the whole export of `step`, its last; a kill may have come in between."""
    if not (folder / CONFIG).is_file():
        return False
    config = read_config(folder)
    return (config.finished, config.step, config.weights_hash) == (True, step, weights_hash(folder))


def check_same_options(folder: Path, content: dict) -> None:
    """UserError when `folder` holds another training, or something else, than `content` describes."""
    path = folder / CONTENT
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder or nothing; choose another --out")
    check_writable(folder)
    if not path.is_file():
        others = (
            [found for found in folder.iterdir() if found.name != path.parent.name] if folder.exists() else []
        )
        if others:
            raise UserError(
                f"{folder}: found existing content ({others[0].name}), expected a new folder or a run; "
                "remove it or choose another --out"
            )
        return
    before = read_json(path, dict[str, Any], "choose another --out")
    now = json.loads(json.dumps(content))  # tuples as JSON has them
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{folder}: found a run with {key} = {_short(before.get(key))}, expected "
                f"{_short(now.get(key))} as asked; give the same options or another --out"
            )


def claim(folder: Path, content: dict) -> None:
    """Make `folder` the run folder of the training that `content` describes."""
    path = folder / CONTENT
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def truncate_log(folder: Path, step: int) -> None:
    """Drop the log's lines after `step` (all at 0): a killed run had gone on after its last save."""
    path = folder / LOG
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if step else []
            whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: malformed ({error}), expected a line of JSON for each logged step; remove it to go "
                "on without"
            ) from None
        partial = path.with_suffix(".partial")
        partial.write_text("".join(whole), encoding="utf-8")
        os.replace(partial, path)


def _replace(path: Path, write) -> None:
    """Let `write(folder)` fill a new folder, then put it in the place of `path`."""
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _save_weighter(path: Path, objective: TrainingObjective) -> None:
    path.mkdir()
    save_file(objective.weighter.state_dict(), path / "weighter.safetensors")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
