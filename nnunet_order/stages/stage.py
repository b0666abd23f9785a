"""What a stage of an experiment is, when it counts as done, and the record that it leaves."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from dataset_conversion.system.provenance import package_versions

PACKAGES = ("law-order", "nnunetv2", "torch", "numpy", "diffusers", "transformers")  # compute the results
OURS = "law-order"  # whose every version may mend a fault; of the others only the first two numbers count


@dataclass(frozen=True)
class Stage:
    """One or more stock commands that run in the experiment's folder, one after the other."""

    name: str
    """Unique; letters, digits and _ - + ."""
    commands: tuple[str, ...]
    """Shell-quoted, program first; given again after a kill, a command must go on or fail."""
    outputs: tuple[str, ...]
    """Files or folders below the experiment's that exist when it is done, and that no other stage writes."""
    after: tuple[str, ...] = ()
    """Stages whose outputs it reads."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides the experiment's."""
    inputs: str = ""
    """Digest of what it reads from outside the experiment's folder."""
    places: tuple[str, ...] = ()
    """Words in its commands that say where that lies: data that have moved are the same data."""
    replaces_outputs: bool = False
    """Whether its commands replace earlier outputs themselves, also those that no record explains."""


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """Stage name -> digest of everything that its outputs depend on, through all stages before it."""
    keys: dict[str, str] = {}
    for stage in stages:
        assert re.fullmatch(r"[\w.+-]+", stage.name), stage.name
        assert stage.name not in keys, f"two stages called {stage.name}"
        assert stage.commands and stage.outputs, stage.name
        assert set(stage.after) <= keys.keys(), f"{stage.name} is not behind all of {stage.after}"
        before = {name: keys[name] for name in stage.after}
        commands = list(stage.commands)
        for place in stage.places:
            commands = [command.replace(place, "") for command in commands]
        content = [commands, dict(stage.environment), stage.inputs, before]
        keys[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return keys


@cache
def versions() -> dict[str, str | None]:
    """Python's version and those of `PACKAGES`."""
    return {"python": platform.python_version(), **package_versions(*PACKAGES)}


def other_versions(recorded: object) -> list[str] | None:
    """What made a stage and is not installed now: ["torch 2.4"]; empty if all is the same.

    Args:
        recorded: `versions()` of that time, from a record.

    None where the record names no versions.
    """
    if not isinstance(recorded, dict) or not all(package in recorded for package in PACKAGES):
        return None
    different = [
        package for package in PACKAGES if _decisive(package, recorded) != _decisive(package, versions())
    ]
    return [f"{package} {recorded[package] or 'missing'}" for package in different]


def _decisive(package: str, found: Mapping[str, str | None]) -> str | None:
    """The part of a package's version that decides the results."""
    version = found[package]
    return version if version is None or package == OURS else ".".join(f"{version}".split(".")[:2])
