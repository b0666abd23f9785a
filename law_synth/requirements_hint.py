"""One line instead of a traceback when an optional package is missing."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from dataset_conversion.user_error import UserError


def require(extra: str, *modules: str) -> None:
    """Import `modules`. UserError: one of them cannot be imported; names the `extra` that installs it."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise missing(extra, module, error) from error


def missing(extra: str, module: str, error: object) -> UserError:
    """The error for a package that cannot be used."""
    reason = f"{error}".strip().split("\n")[0]
    return UserError(
        f"cannot import {module} ({reason}), expected it installed; run: pip install 'law-order[{extra}]'"
    )


def package_versions(*names: str) -> dict[str, str | None]:
    """Versions of packages by their names on PyPI; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # optional, or a checkout that is not installed
            versions[name] = None
    return versions
