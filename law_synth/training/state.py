"""Saving a training: the state that a resume needs, and the run folder that generation reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from dataset_conversion.raw_writer import write_json
from dataset_conversion.user_error import UserError
from law_synth.objective import TrainingObjective
from law_synth.run_folder import CONFIG, weights_hash

STATE = Path(".training") / "state.pt"
LOG = "log.jsonl"


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def save_state(folder: Path, step: int, objective: TrainingObjective, **others) -> None:
    """Write step, trained weights and the state dicts of `others` (optimizer, EMA, scaler) in one rename."""
    state = {name: other.state_dict() for name, other in others.items() if other is not None}
    state |= {"step": step, "weights": {name: p.detach() for name, p in trainable(objective).items()}}
    partial = (folder / STATE).with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, partial)
    os.replace(partial, folder / STATE)


def load_state(folder: Path, objective: TrainingObjective, device: torch.device, **others) -> int:
    """Restore what `save_state` wrote; the step to go on from, 0 when there is no state."""
    if not (folder / STATE).is_file():
        return 0
    state = torch.load(folder / STATE, map_location=device, weights_only=True)
    with torch.no_grad():
        for name, parameter in trainable(objective).items():
            parameter.copy_(state["weights"][name])
    for name, other in others.items():
        if other is not None:
            other.load_state_dict(state[name])
    return state["step"]


def export(folder: Path, objective: TrainingObjective, config: dict) -> None:
    """Write controlnet/, unet/ when its decoder is trained, weighter/ and, last, law_config.json.

    Each part takes its name by a rename. After a kill in between, the next save of the resumed run mends it.
    """
    networks = objective.networks
    _replace(folder / "controlnet", networks.controlnet.save_pretrained)
    if config["trains_decoder"]:
        _replace(folder / "unet", networks.unet.save_pretrained)
    if objective.weighter is not None:
        _replace(folder / "weighter", lambda path: _save_weighter(path, objective))
    write_json(folder / CONFIG, config | {"weights_hash": weights_hash(folder)})


def check_same_options(folder: Path, config: dict) -> None:
    """UserError when `folder` holds another training, or something else, than `config` describes."""
    path = folder / ".training" / "config.json"
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder}: found existing content, expected a new folder or a run; remove it or choose "
                "another --out"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, config)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(config))  # tuples and paths as JSON has them
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{folder}: found a run with {key} = {_short(before.get(key))}, expected "
                f"{_short(now.get(key))} as asked; give the same options or another --out"
            )


def truncate_log(folder: Path, step: int) -> None:
    """Drop the log's lines after `step`: a killed run had gone on after its last save."""
    path = folder / LOG
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
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
