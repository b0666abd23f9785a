"""Versions of installed packages, for the records that results leave."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_versions(*names: str) -> dict[str, str | None]:
    """Versions of packages by their names on PyPI; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # optional, or a checkout that is not installed
            versions[name] = None
    return versions
