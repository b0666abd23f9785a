"""The verbs of a command: their options are read at once, their work is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Union

import tyro

from dataset_conversion.system.provenance import require


class Verb(NamedTuple):
    """A row of a command's table."""

    options: type
    """A frozen dataclass, which tyro reads; its module imports nothing heavy."""
    function: str
    """What does the work, as `module:name`; it takes the options."""
    extra: str = ""
    """The extra of law-order that brings `modules`."""
    modules: tuple[str, ...] = ()
    """Optional packages without which the work cannot be imported."""


def as_union(verbs: Mapping[str, Verb]) -> Any:
    """The type of which tyro makes one subcommand for each verb."""
    return Union[  # noqa: UP007 - made of a table
        tuple(Annotated[verb.options, tyro.conf.subcommand(name)] for name, verb in verbs.items())
    ]


def run_verb(verbs: Mapping[str, Verb], program: str, description: str) -> None:
    """Read the command line and do what it asks for.

    UserError: bad options, a missing extra. SystemExit: help was asked for, or tyro refuses the command line.
    """
    kind = tyro.conf.OmitSubcommandPrefixes[as_union(verbs)]
    call(verbs, tyro.cli(kind, prog=program, description=description))


def call(verbs: Mapping[str, Verb], options: Any) -> None:
    """Do the work of the verb that these options are of, after what is wrong with them is told at once."""
    verb = next(verb for verb in verbs.values() if verb.options is type(options))
    options.check()
    require(verb.extra, *verb.modules)
    module, _, name = verb.function.partition(":")
    getattr(importlib.import_module(module), name)(options)
