"""One synthetic data set of an experiment, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.raw.folds import Fold


@dataclass(frozen=True)
class Synthesis:
    """One synthetic data set: an arm's LAW model of a fold and seed, and what a round makes with it."""

    arm: str
    fold: Fold
    seed: int
    round: int

    @property
    def label(self) -> str:
        """The arm's name in tables."""
        return self.arm if self.round == 1 else f"{self.arm}-round{self.round}"

    @property
    def model(self) -> str:
        """Name of the LAW model, which all rounds share."""
        return f"{self.arm}_fold_{self.fold}_seed_{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.label}_fold_{self.fold}_seed_{self.seed}"

    @property
    def run(self) -> Path:
        return Path("runs") / self.model

    @property
    def evaluation(self) -> Path:
        return Path("evaluations") / self.name

    @property
    def mined(self) -> Path:
        return Path("mined") / f"{self.name}.json"
