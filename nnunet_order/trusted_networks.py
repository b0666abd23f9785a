"""Which code a model folder may run: its files name classes, and nnU-Net imports and calls what they name."""

from __future__ import annotations

import contextlib
import io
import os
import pydoc
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_conversion.system.errors import UserError
from nnunet_order import registration

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

TRUST_VARIABLE = "NNUNET_ORDER_TRUSTED_NETWORKS"
NETWORKS = ("dynamic_network_architectures", "nnunet_order.networks")
SIGMOID_HEAD = "nnunet_order.networks.sigmoid_head.SigmoidHead"
LAYERS = (*NETWORKS, "torch.nn")  # of which networks are made: "nonlin": "torch.nn.LeakyReLU"


class UntrustedCode(UserError):
    """A file names code that would run here."""


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """The trainer class that a checkpoint names. UserError: it is not installed, or no trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"found the trainer {name!r}, expected the name of a class; take another checkpoint")
    registration.register()
    found: object = None
    # It prints every folder that it searches, and finds whatever has that name in one of nnU-Net's modules.
    refused = contextlib.suppress(RuntimeError, TypeError, AssertionError)
    with contextlib.redirect_stdout(io.StringIO()), refused:
        found = recursive_find_trainer_class_by_name(name)
    if not isinstance(found, type) or not issubclass(found, nnUNetTrainer):
        raise UserError(
            f"found no trainer {name}, which trained this model; install its package or add its folder to "
            f"{registration.VARIABLE}"
        )
    return found


def check_architecture(architecture: Mapping[str, Any], own: Collection[str] = ()) -> None:
    """UntrustedCode unless everything that an architecture of plans.json names may be imported and called.

    These are the networks of nnU-Net and of this package, the layers of torch.nn, and whatever is in a
    package that NNUNET_ORDER_TRUSTED_NETWORKS lists (separated by spaces). Nothing else is even imported.

    Args:
        architecture: nnU-Net's network_class_name, arch_kwargs and _kw_requires_import.
        own: names that come from installed code, such as the network_class of a trainer.

    Raises:
        UntrustedCode, or UserError where an entry is damaged or names what is not installed.
    """
    trusted = [*os.environ.get(TRUST_VARIABLE, "").split(), *own]
    try:
        options = architecture["arch_kwargs"]
        found = _find(architecture["network_class_name"], NETWORKS, trusted)
        if f"{found.__module__}.{found.__qualname__}" == SIGMOID_HEAD:
            found = _find(options["network"], NETWORKS, trusted)  # it imports this network itself
        if hasattr(found, "check_options"):  # they name networks, too
            found.check_options(options)
        layers = {option: options[option] for option in architecture["_kw_requires_import"]}
        # nnUNetTrainerBN imports it in any case.
        layers["conv_op"] = options.get("conv_op")
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"plans.json: found an architecture that cannot be read ({type(error).__name__}: {error}), "
            "expected nnU-Net's entries; take the file that the training wrote"
        ) from error
    for name in layers.values():
        if name is not None:
            _find(name, LAYERS, trusted)


def _find(name: Any, stock: Collection[str], trusted: Collection[str]) -> Any:
    """What a dotted name stands for. UserError: it cannot be imported, or must not be."""
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"plans.json: found {name!r}, expected the dotted name of a network or layer; take the file that "
            "the training wrote"
        )
    of_user = _is_below(name, trusted)
    if not of_user and not _is_below(name, stock):
        raise _refusal(name, stock)
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        reason = " ".join(str(error.value).split())
        raise UserError(
            f"plans.json: found {name}, whose import ends in {reason!r}; mend its package"
        ) from error
    if found is None and stock is NETWORKS:
        found = _find_moved(name)
    if found is None:
        raise UserError(f"plans.json: found {name}, which is not installed; install its package")
    # Also a module's own imports are attributes: nnunet_order.networks.mk_unet.torch.hub.load is such a name.
    home = str(getattr(found, "__module__", "")).partition(".")[0]
    homes = {package.partition(".")[0] for package in (trusted if of_user else stock)}
    if home not in homes or not (of_user or _is_module(found)):
        raise _refusal(name, stock)
    return found


def _find_moved(name: str) -> Any:
    """As nnU-Net does for a class that is no longer where it was: by its name, in all of its networks."""
    import dynamic_network_architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = Path(dynamic_network_architectures.__path__[0]) / "architectures"
    last = name.rpartition(".")[2]
    return recursive_find_python_class(str(folder), last, "dynamic_network_architectures.architectures")


def _is_below(name: str, packages: Collection[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_module(found: Any) -> bool:
    from torch import nn

    return isinstance(found, type) and issubclass(found, nn.Module)


def _refusal(name: str, stock: Collection[str]) -> UntrustedCode:
    package = name.rpartition(".")[0] or name
    trusted = " ".join([*os.environ.get(TRUST_VARIABLE, "").split(), package])
    return UntrustedCode(
        f"plans.json: found {name}, which would run here, expected a class of {' or '.join(stock)}; if you "
        f'trust its author, export {TRUST_VARIABLE}="{trusted}"'
    )
