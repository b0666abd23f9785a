"""Options of a verb as its command line: what a stage runs can be run by hand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any


def command_line(program: str, verb: Any, positional: Sequence[str] = (), **names: str) -> str:
    """The shell-quoted command that makes `verb`, without the options that are left at their defaults.

    `positional`: fields given without a flag; `names`: field -> flag where they differ (source="from").
    """
    words = program.split()
    words += [str(getattr(verb, name)) for name in positional]
    changed = {
        names.get(field.name, field.name): getattr(verb, field.name)
        for field in fields(verb)
        if field.name not in positional and getattr(verb, field.name) != field.default
    }
    return shlex.join(words + flags(changed, type(verb)))


def flags(options: Mapping[str, Any], kind: type) -> list[str]:
    """{"max_steps": 400, "dice": False, "seeds": [0, 1]} -> --max-steps 400 --no-dice --seeds 0 1.

    A switch of `kind` that may also be None takes its value: --original-size False.
    """
    switches = {field.name for field in fields(kind) if field.type in (bool, "bool")}
    words = []
    for option, value in options.items():
        name = option.replace("_", "-")
        if isinstance(value, bool) and option in switches:
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words
