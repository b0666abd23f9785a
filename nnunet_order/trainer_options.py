"""NNUNET_ORDER_OPTIONS: hyper-parameters of our trainers for one process, without a subclass."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from dataset_conversion.system.errors import UserError

OPTIONS_VARIABLE = "NNUNET_ORDER_OPTIONS"
HYPER_PARAMETERS = {  # of any trainer of ours -> type
    "epochs": int,
    "optimizer_name": str,
    "learning_rate": float,
    "decoder": str,
    "encoder": str,
    "decoupled_weight_decay": float,
    "pretrained": str,
    "pretrained_rate": float,
    "samples_per_step": int,
    "largest_patch": int,
    "augmentation": str,
    "rotation_probability": float,
    "iterations_per_epoch": int,
    "minimum_iterations": int,
    "maximum_validation_iterations": int,
    "checkpoint_every": int,
    "soft_label_weight": float,
    "soft_label_temperature": float,
}
NO_HYPER_PARAMETERS = ("final_validation",)  # they may differ when a training goes on
CHOICES = {"augmentation": ("paper", "nnunet"), "final_validation": ("full", "none")}
# What the optimizer's state, plans.json and the first weights were made with.
FIXED = ("optimizer_name", "samples_per_step", "largest_patch", "pretrained", "decoder", "encoder")
MAY_BE_ZERO = (  # which turns them off
    "decoupled_weight_decay",
    "rotation_probability",
    "pretrained_rate",
    "soft_label_weight",
)
AT_MOST_ONE = ("rotation_probability", "soft_label_weight")


def trainer_options(text: str | None = None) -> dict[str, int | float | str]:
    """Name -> value from "epochs=5 learning_rate=5e-3"; by default from NNUNET_ORDER_OPTIONS.

    Not every trainer has all of them: several may be trained with the same options. UserError: not
    NAME=VALUE, an unknown name, a value of another type or not positive, or none of its `CHOICES`.
    """
    text = os.environ.get(OPTIONS_VARIABLE, "") if text is None else text
    return dict(map(_parse, text.split()))


def check_resumed(begun: Mapping[str, Any], recipe: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """UserError: a training would go on with other hyper-parameters than it began with.

    Those in `given`, which NNUNET_ORDER_OPTIONS names, may change on purpose, but for the `FIXED` ones: a
    shell without the variable must not finish five epochs at 5e-3 as a hundred at 1e-4.
    """
    changed = {name: value for name, value in begun.items() if recipe.get(name, value) != value}
    lost = {name: value for name, value in changed.items() if name in FIXED or name not in given}
    if lost:
        found = " ".join(f"{name}={recipe[name]}" for name in lost)
        expected = " ".join(f"{name}={value}" for name, value in lost.items())
        kept = " ".join(f"{name}={value}" for name, value in given.items() if name not in lost)
        raise UserError(
            f"found {found}, expected {expected} as when this training began; "
            f'export {OPTIONS_VARIABLE}="{" ".join(filter(None, (kept, expected)))}", or train anew'
        )


def check_choice(name: str, value: str) -> str:
    """The value. UserError: it is not one of those that `CHOICES` gives for the name."""
    if value not in CHOICES[name]:
        raise UserError(f"found {name}={value}, expected {' or '.join(CHOICES[name])}; correct it")
    return value


def _parse(text: str) -> tuple[str, int | float | str]:
    name, _, given = text.partition("=")
    if name in CHOICES:
        return name, check_choice(name, given)
    if name not in HYPER_PARAMETERS:
        raise UserError(
            f'{OPTIONS_VARIABLE}: found "{text}", expected NAME=VALUE with a name out of '
            f"{', '.join((*HYPER_PARAMETERS, *NO_HYPER_PARAMETERS))}; correct it"
        )
    kind = HYPER_PARAMETERS[name]
    if kind is str:
        return name, given
    try:
        value = kind(given)
    except ValueError:
        value = math.nan
    too_large = value >= math.inf or (value > 1 and name in AT_MOST_ONE)
    if not value >= 0 or too_large or (value == 0 and name not in MAY_BE_ZERO):
        allowed = (
            "from 0 to 1" if name in AT_MOST_ONE else "of 0 or more" if name in MAY_BE_ZERO else "above 0"
        )
        raise UserError(
            f"{OPTIONS_VARIABLE}: found {name}={given}, expected a {'whole ' * (kind is int)}number "
            f"{allowed}; correct it"
        )
    return name, value
