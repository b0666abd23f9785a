"""What an experiment compares: the TOML file of `law-synth experiment`."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed
from law_synth.base.options import InitBase
from law_synth.evaluation.options import Evaluate
from law_synth.experiment.command_line import parse
from law_synth.generation.options import Generate
from law_synth.training.options import DEFAULT_BASE, Train
from law_synth.weightings import WEIGHTINGS

REAL = "real"

TRAIN = ("dataset", "fold", "base", "out", "seed", "device", "dry_run")

# Tables of the file, the verb whose options they hold, and the options that the experiment sets itself.
TABLES = {
    "init_base": (InitBase, ("out", "source", "fold", "device", "dry_run")),
    "train": (Train, (*TRAIN, "weighting")),
    "generate": (
        Generate,
        ("out", "trained_run", "with_real", "segmenter", "hard_cases", "shard", "seed", "device", "dry_run"),
    ),
    "evaluate": (Evaluate, ("dataset", "real", "segmenter", "out", "device", "dry_run")),
}

# Options in the tables that name files of the user's.
PATHS = ("masks", "mask_groups", "inception", "clip_pretrained")
NAME = r"[\w+-][\w.+-]*"  # of arms, which become names of files

Options = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """One experiment: arms x segmenters x folds x seeds."""

    dataset: str
    """Real data set: id, name or folder."""
    title: str = "Do synthetic cases help?"
    """Heading of the report."""
    arms: tuple[str, ...] = (REAL, *WEIGHTINGS)
    """real (nothing added), a --weighting of law-synth train, or the name of an [arm.NAME] table."""
    segmenters: tuple[str, ...] = ("nnUNetTrainerORDER", "nnUNetTrainer")
    """nnU-Net trainers that every arm trains; none: images and mask agreement only."""
    folds: tuple[Fold, ...] = ()
    """all trains on every training case and measures on the labelled test cases; 0 to 4 measure on the
    fold's validation cases. Default: all where the test cases are labelled, else every numbered fold."""
    on: Literal["auto", "test", "validation"] = "auto"
    """What the segmenters are measured on, always real cases; auto: see folds."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the LAW models, their noise and the segmenters: arms are compared within a seed."""
    rounds: int = 1
    """Above 1 the loop is closed: the segmenter of a round filters the next round's synthetic cases, and the
    training cases on which it fails lend their masks more often. Needs min_agreement in [generate]."""
    fraction: float = 1.0
    """Share of the training cases that exist at all: 0.1 for a small hospital."""
    max_side: int | None = None
    """Shrink all images to this side first; volumes keep their size."""
    synthetic_per_real: float | None = None
    """Synthetic cases to generate per real training case, as --samples of law-synth generate. Default: 1 for
    volumes, as nnU-Net draws a case first and one of its slices then, whatever their number; for pictures
    what law-synth generate makes, one per mask."""
    trainer_options: str = ""
    """NNUNET_ORDER_OPTIONS of this package's trainers, e.g. "epochs=15 learning_rate=5e-3"."""
    judge: str | None = None
    """Trainer whose real-only model judges synthetic cases; default: the first of the segmenters, if any."""
    base: str | None = None
    """Base model: folder or hub id; default: Stable Diffusion 1.5, or None where an [init_base] table has one
    trained per fold."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where everything runs. Name it on clusters, where the login node has no GPU."""

    arm: tyro.conf.Suppress[dict[str, Options]] = field(default_factory=dict)
    init_base: tyro.conf.Suppress[Options | None] = None
    train: tyro.conf.Suppress[Options] = field(default_factory=dict)
    generate: tyro.conf.Suppress[Options] = field(default_factory=dict)
    evaluate: tyro.conf.Suppress[Options] = field(default_factory=dict)

    def check(self) -> None:
        """UserError: something that no experiment can be made of."""
        for name in ("arms", "segmenters", "folds", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (not values and name in ("arms", "seeds")):
                raise UserError(f"found {name} {list(values)}, expected one or more, each once; correct it")
        for seed in self.seeds:
            check_seed(seed, "the seed")
        self._check_arms()
        if not 0 < self.fraction <= 1:
            raise UserError(f"found fraction {self.fraction}, expected above 0 and up to 1; change it")
        if self.synthetic_per_real is not None and not 0 < self.synthetic_per_real < math.inf:
            raise UserError(
                f"found synthetic_per_real {self.synthetic_per_real}, expected above 0; change it"
            )
        if self.synthetic_per_real is not None and "samples" in self.generate:
            raise UserError(
                "found synthetic_per_real and samples in [generate], expected one of them; drop the other"
            )
        if self.rounds < 1:
            raise UserError(f"found rounds {self.rounds}, expected 1 or more; change it")
        if self.rounds > 1 and not self.generate.get("min_agreement"):
            raise UserError(
                f"found rounds {self.rounds} without min_agreement in [generate], expected the Dice from "
                "which the last round's segmenter keeps a case; give 0.5, for example"
            )
        if self.rounds > 1 and self.judging_trainer not in self.segmenters:
            raise UserError(
                f"found rounds {self.rounds} and the judge {self.judging_trainer}, expected one of the "
                "segmenters, which learn from the last round's cases; change judge"
            )
        if self.generate.get("min_agreement") and not self.judging_trainer:
            raise UserError(
                "found min_agreement in [generate] without segmenters, expected a trainer that judges; "
                "give judge"
            )

    def _check_arms(self) -> None:
        for arm in self.arms:
            if arm not in (REAL, *WEIGHTINGS, *self.arm):
                known = ", ".join((REAL, *WEIGHTINGS, *self.arm))
                raise UserError(f"found the arm {arm}, expected one of {known}; or add a table [arm.{arm}]")
            if not re.fullmatch(NAME, arm) or re.search(r"-round\d+$", arm):
                raise UserError(
                    f"found the arm {arm}, expected letters, digits and . _ + - without -round2 at the end, "
                    "as it becomes a file's name; rename it"
                )
        for name, options in self.arm.items():
            if name not in self.synthetic_arms:
                raise UserError(
                    f"found a table [arm.{name}], expected {name} among arms {list(self.arms)}; add it there "
                    "or remove the table"
                )
            if name not in WEIGHTINGS and "weighting" not in options:
                raise UserError(
                    f"[arm.{name}]: found no weighting, expected one of {', '.join(WEIGHTINGS)}; add it"
                )
        if not self.synthetic_arms and not self.segmenters:
            raise UserError("found neither synthetic arms nor segmenters, expected some of either; add them")

    @property
    def judging_trainer(self) -> str | None:
        """Trainer whose models judge synthetic cases, or None."""
        return self.judge or (self.segmenters[0] if self.segmenters else None)

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return REAL if REAL in self.arms and self.segmenters else self.synthetic_arms[0]

    @property
    def synthetic_arms(self) -> list[str]:
        return [arm for arm in self.arms if arm != REAL]

    def train_options(self, arm: str) -> Options:
        """Options of law-synth train for an arm: [train], then its own; its name may be its weighting."""
        weighting = {"weighting": arm} if arm in WEIGHTINGS else {}
        return {**self.train, **weighting, **self.arm.get(arm, {})}


def read_config(path: Path) -> Config:
    """Read and check a configuration file. UserError or exit code 2: unreadable, unknown or wrong options."""
    return make_config(_read_toml(path), str(path))


def make_config(content: Mapping[str, Any], where: str) -> Config:
    """A checked configuration from the content of a file."""
    tables = {name: content[name] for name in (*TABLES, "arm") if name in content}
    of_arms = tables.get("arm", {})
    for name, table in [*tables.items(), *(of_arms.items() if isinstance(of_arms, Mapping) else [])]:
        if not isinstance(table, Mapping):
            raise UserError(f"{where}: found {name} = {table}, expected a table [{name}]; correct it")
    plain = {name: value for name, value in content.items() if name not in tables}
    for name, (kind, ours) in TABLES.items():
        if name in tables:
            tables[name] = _checked_table(f"{where} [{name}]", kind, tables[name], ours)
    if of_arms:
        tables["arm"] = {
            name: _checked_table(f"{where} [arm.{name}]", Train, options, TRAIN)
            for name, options in of_arms.items()
        }
    config = replace(parse(Config, plain, where), **tables)
    if config.init_base is not None and config.base is not None:
        raise UserError(f"{where}: found base and [init_base], expected one of them; drop the other")
    if config.init_base is None:
        base = config.base or DEFAULT_BASE
        config = replace(config, base=str(Path(base).resolve()) if Path(base).exists() else base)
    config.check()
    return config


def _checked_table(where: str, kind: type, options: Options, ours: tuple[str, ...]) -> Options:
    """The options as the verb reads them, "3e-4" as a number; its files and folders by their full paths.

    Commands run in the experiment's folder.
    """
    for name in ours:
        if name in options:
            raise UserError(f"{where}: found {name}, expected only what the experiment does not set itself")
    required = {"dataset": "1", "out": "out"}
    given = {name: value for name, value in required.items() if name in kind.__dataclass_fields__}
    positional = [given.pop("dataset")] if kind is Evaluate else []
    verb = parse(kind, {**given, **options}, where, positional)
    read = {name: getattr(verb, name) for name in options}
    for name in PATHS:
        if read.get(name) and not Path(read[name]).exists():
            raise UserError(f"{where}: found {name} = {read[name]}, which is not there; correct the path")
    return {name: str(Path(value).resolve()) if name in PATHS else value for name, value in read.items()}


def _read_toml(path: Path) -> dict:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a TOML file; see docs/experiment.md"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: malformed ({error}), expected TOML; correct it") from error
