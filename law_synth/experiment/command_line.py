"""Verbs as command lines and back: the tables of a configuration become the flags of stock commands."""

from __future__ import annotations

import contextlib
import difflib
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import tyro

from dataset_conversion.system.errors import UserError

Verb = TypeVar("Verb")


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


def parse(kind: type[Verb], options: Mapping[str, Any], where: str, positional: Sequence[str] = ()) -> Verb:
    """A verb from a table of its options, read as its command line would be. UserError: it is wrong.

    `where` is what the message calls the table.
    """
    known = [field.name for field in fields(kind)]
    for name in options:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known)) or ", ".join(known)
            raise UserError(f"{where}: found {name}, expected an option such as {close}; correct it")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=[*positional, *flags(options, kind)], add_help=False)
    except SystemExit:
        words = " ".join(line.strip("│─ ") for line in told.getvalue().splitlines()[1:3])
        raise UserError(f"{where}: {words}; correct it") from None


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
