"""What a stage of an experiment is, and the digest that tells whether it has changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """One or more stock commands that run in the experiment's folder, one after the other."""

    name: str
    """Unique; letters, digits and _ - + ."""
    commands: tuple[str, ...]
    """Shell-quoted, program first."""
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
    resumes: bool = False
    """Whether its commands, given again after a kill, resume from what they have written; otherwise the
    outputs are removed and the stage starts over."""


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
