"""What an audit finds, and what it could not look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["leak", "changed"]  # most severe first


class NotPossible(Exception):
    """A check lacks what it needs; the message says what, and which option gives it."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: Kind
    """`leak`: held-out data may train a model. `changed`: this is not what law-synth generate wrote."""
    where: str
    what: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.what}; {self.meaning}"


@dataclass(frozen=True)
class Check:
    """One check and how it ended."""

    name: str
    result: Literal["passed", "failed", "not possible"]
    detail: str
    """What was looked at, or why that was not possible."""
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        return self.result == "passed"


def leak(where: str, what: str, meaning: str) -> Finding:
    """A finding of the most severe kind."""
    return Finding("leak", where, what, meaning)


def changed(where: str, what: str, meaning: str = "law-synth generate did not write this") -> Finding:
    """Something that is not as it was generated."""
    return Finding("changed", where, what, meaning)
