"""NNUNET_ORDER_OPTIONS: hyper-parameters of our trainers for one process, without a subclass."""

from __future__ import annotations

import math
import os

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
MAY_BE_ZERO = ("decoupled_weight_decay", "rotation_probability")  # which turns them off


def trainer_options(recipe: type, text: str | None = None) -> dict[str, int | float | str]:
    """Hyper-parameter -> value from "epochs=5 learning_rate=5e-3"; by default from NNUNET_ORDER_OPTIONS.

    Types are those of the attributes of `recipe`. UserError: not NAME=VALUE, an unknown name, a value of
    another type or not positive.
    """
    text = os.environ.get(OPTIONS_VARIABLE, "") if text is None else text
    return dict(_parse(option, recipe) for option in text.split())


def _parse(text: str, recipe: type) -> tuple[str, int | float | str]:
    name, _, given = text.partition("=")
    if name not in HYPER_PARAMETERS:
        raise UserError(
            f'{OPTIONS_VARIABLE}: found "{text}", expected NAME=VALUE with a name out of '
            f"{', '.join(HYPER_PARAMETERS)}; correct it"
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
