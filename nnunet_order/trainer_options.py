"""NNUNET_ORDER_OPTIONS: hyper-parameters of our trainers for one process, without a subclass."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from dataset_conversion.user_error import UserError

OPTIONS_VARIABLE = "NNUNET_ORDER_OPTIONS"
HYPER_PARAMETERS = (
    "epochs",
    "optimizer_name",
    "learning_rate",
    "decoupled_weight_decay",
    "samples_per_step",
    "largest_patch",
    "rotation_probability",
    "iterations_per_epoch",
    "minimum_iterations",
    "maximum_validation_iterations",
    "checkpoint_every",
)
# These change nothing about the training, and so may differ when it goes on.
CHOICES = {"final_validation": ("full", "none")}
# What the optimizer's state and plans.json were made with.
FIXED = ("optimizer_name", "samples_per_step", "largest_patch")
MAY_BE_ZERO = ("decoupled_weight_decay", "rotation_probability")  # which turns them off


def trainer_options(recipe: type, text: str | None = None) -> dict[str, int | float | str]:
    """Name -> value from "epochs=5 learning_rate=5e-3"; by default from NNUNET_ORDER_OPTIONS.

    Types are those of the attributes of `recipe`. UserError: not NAME=VALUE, an unknown name, a value of
    another type or not positive, or none of its `CHOICES`.
    """
    text = os.environ.get(OPTIONS_VARIABLE, "") if text is None else text
    return dict(_parse(option, recipe) for option in text.split())


def check_resumed(begun: Mapping[str, Any], recipe: Mapping[str, Any], given: Collection[str]) -> None:
    """UserError: a training would go on with other hyper-parameters than it began with.

    Those in `given`, which NNUNET_ORDER_OPTIONS names, may change on purpose, but for the `FIXED` ones: a
    shell without the variable must not finish five epochs at 5e-3 as a hundred at 1e-4.
    """
    changed = {name: value for name, value in begun.items() if recipe.get(name, value) != value}
    lost = {name: value for name, value in changed.items() if name in FIXED or name not in given}
    if lost:
        found = " ".join(f"{name}={recipe[name]}" for name in lost)
        expected = " ".join(f"{name}={value}" for name, value in lost.items())
        kept = " ".join(f"{name}={recipe[name]}" for name in given if name not in lost)
        raise UserError(
            f"found {found}, expected {expected} as when this training began; "
            f'export {OPTIONS_VARIABLE}="{" ".join(filter(None, (kept, expected)))}", or train anew'
        )


def check_choice(name: str, value: str) -> str:
    """The value. UserError: it is not one of those that `CHOICES` gives for the name."""
    if value not in CHOICES[name]:
        raise UserError(f"found {name}={value}, expected {' or '.join(CHOICES[name])}; correct it")
    return value


def _parse(text: str, recipe: type) -> tuple[str, int | float | str]:
    name, _, given = text.partition("=")
    if name in CHOICES:
        return name, check_choice(name, given)
    if name not in HYPER_PARAMETERS:
        raise UserError(
            f'{OPTIONS_VARIABLE}: found "{text}", expected NAME=VALUE with a name out of '
            f"{', '.join((*HYPER_PARAMETERS, *CHOICES))}; correct it"
        )
    default = getattr(recipe, name)
    if isinstance(default, str):
        return name, given
    kind = float if isinstance(default, float) else int
    try:
        value = kind(given)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf or (value == 0 and name not in MAY_BE_ZERO):
        raise UserError(
            f"{OPTIONS_VARIABLE}: found {name}={given}, expected a {'whole ' * (kind is int)}number "
            f"{'of 0 or more' if name in MAY_BE_ZERO else 'above 0'}; correct it"
        )
    return name, value
