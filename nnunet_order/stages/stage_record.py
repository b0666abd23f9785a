"""stages/NAME.json, which a finished stage leaves, and stages/NAME.begun.json, which stands there until then.

A record names the versions that made it, and a stage's key does not: an upgrade must not throw away days of
training that nobody asked to repeat. The runner warns of such stages instead, and `--again` runs them.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import converted, read_json
from dataset_conversion.system.provenance import package_versions

PACKAGES = ("law-order", "nnunetv2", "torch", "numpy", "diffusers", "transformers")  # compute the results
OURS = "law-order"  # whose every version may mend a fault; of the others only the first two numbers count

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Machine:
    """Where a stage ran."""

    processor: str = "unknown"
    cores: int | None = None
    gpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What a finished stage ran, when, and with what."""

    name: str
    key: str | None
    """See `stage_keys`; None once the stage is to run again."""
    commands: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    inputs: str = ""
    after: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    """Relative to the experiment's folder."""
    started: str = ""
    """ISO 8601, of the last attempt."""
    seconds: float = 0.0
    """What the last attempt took."""
    attempts: int = 1
    versions: dict[str, str | None] = field(default_factory=dict)
    """See `versions`; empty where a record is older than this field."""
    commit: str | None = None
    machine: Machine = field(default_factory=Machine)

    def other_versions(self) -> list[str] | None:
        """What made the stage and is not installed now: ["torch 2.4"]; empty if all is the same.

        None where the record does not name all versions.
        """
        if not all(package in self.versions for package in PACKAGES):
            return None
        different = [
            package
            for package in PACKAGES
            if _decisive(package, self.versions) != _decisive(package, versions())
        ]
        return [f"{package} {self.versions[package] or 'missing'}" for package in different]


@dataclass(frozen=True, kw_only=True)
class BegunStage:
    """A stage that was started and has not finished."""

    name: str = ""
    key: str | None
    outputs: list[str] = field(default_factory=list)
    attempts: int = 1


def read_record(path: Path, kind: type[Kind]) -> Kind | None:
    """The record in a file; None where there is none, or where a power cut left an empty or cut-off one.

    UserError: an object that is no such record, as when somebody has edited it.
    """
    try:
        content = read_json(path, dict[str, Any])
    except UserError:
        return None
    return converted(content, kind, path, "remove that file")


@cache
def versions() -> dict[str, str | None]:
    """Python's version and those of `PACKAGES`."""
    return {"python": platform.python_version(), **package_versions(*PACKAGES)}


def _decisive(package: str, found: Mapping[str, str | None]) -> str | None:
    """The part of a package's version that decides the results."""
    version = found[package]
    return version if version is None or package == OURS else ".".join(version.split(".")[:2])
