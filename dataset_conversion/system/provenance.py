"""What runs here: versions of packages, commit, machine; and the optional packages that a verb needs."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dataset_conversion.system.errors import UserError

METRICS = ("torch_fidelity",)  # what the extra `metrics` brings and law-synth evaluate cannot do without


def package_versions(*names: str) -> dict[str, str | None]:
    """Versions of packages by their names on PyPI; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # optional, or a checkout that is not installed
            versions[name] = None
    return versions


@cache
def machine() -> dict:
    """Processor, cores and GPUs, without importing torch."""
    return {"processor": _processor(), "cores": os.cpu_count(), "gpu": _gpus()}


@cache
def git_commit() -> str | None:
    """Commit of the checkout that runs, None for an installed package."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    # An environment may lie inside somebody else's checkout.
    tracked = _output([*git, "ls-files", "--error-unmatch", here.name])
    return _output([*git, "rev-parse", "HEAD"]) if tracked else None


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


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _gpus() -> str | None:
    names = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return ", ".join(names.splitlines()) if names else None


def _output(command: list[str]) -> str | None:
    """What a command prints; None where it fails or does not exist."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
