"""Trainers by the names that nnUNetv2_train -tr takes, and what an experiment needs to know of them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from dataset_conversion.system.errors import UserError
from nnunet_order.registration import VARIABLE
from nnunet_order.registry import NETWORKS, network_path
from nnunet_order.small_network_trainer import SmallNetworkTrainer
from nnunet_order.trainer_options import trainer_options


def check_trainers(trainers: Iterable[str], options: str, on: str) -> None:
    """UserError: a trainer that nnUNetv2_train does not find, options that our trainers do not know, or
    options that leave out the validation cases although these are measured `on`.
    """
    given = trainer_options(options)
    for trainer in trainers:
        own = getattr(trainer_class(trainer), "final_validation", None)
        if on == "validation" and takes_options(trainer) and given.get("final_validation", own) == "none":
            raise UserError(
                f"found final_validation=none for {trainer}, expected full, because its validation cases are "
                "measured; leave the option out, or measure on test cases"
            )


@cache
def trainer_class(name: str) -> type:
    """The trainer that nnUNetv2_train -tr finds. UserError: none."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it tells each step
            warnings.simplefilter("ignore")
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise UserError(
            f"found no trainer {name}, expected one that nnUNetv2_train -tr finds; correct the name or see "
            "nnunet-order doctor"
        ) from error


def takes_options(trainer: str) -> bool:
    """Whether NNUNET_ORDER_OPTIONS means something to it."""
    return issubclass(trainer_class(trainer), SmallNetworkTrainer)


def short_name(trainer: str) -> str:
    """Its name in tables and pictures: stock ones keep theirs, others lose nnUNetTrainer."""
    short = trainer.removeprefix("nnUNetTrainer")
    return trainer if short[:1] in ("", "_") else short


def family(trainer: str) -> str:
    """Whose network it trains, as legends name it."""
    found = trainer_class(trainer)
    for name, network in NETWORKS.items():
        if getattr(found, "network_class", None) == network_path(name):
            return "published small networks" if network.of_others else "this package"
    return "nnU-Net" if found.__module__.startswith("nnunetv2.") else "other trainers"


def users_files(trainer: str) -> list[Path]:
    """Files in the folders of nnUNet_extTrainer that define a trainer or a class that it is made of.

    Not ours and not nnU-Net's, which change with their versions alone.
    """
    packages = ("builtins", "nnunetv2", "nnunet_order")
    own = [
        one.__name__ for one in trainer_class(trainer).__mro__ if one.__module__.split(".")[0] not in packages
    ]
    if not own:
        return []
    # nnU-Net loads these modules without leaving them where `inspect` would look.
    defined = re.compile(rf"^class ({'|'.join(own)})\b", re.MULTILINE)
    folders = [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return [path for path in files if defined.search(path.read_text(encoding="utf-8", errors="replace"))]
