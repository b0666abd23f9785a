"""What an experiment compares: the TOML file of `law-synth experiment`."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import converted
from dataset_conversion.system.names import refuse_lookalikes
from dataset_conversion.system.options import Range, check_ranges, check_seed
from law_synth.base.options import InitBase
from law_synth.evaluation.options import Evaluate
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

REMEDY = "correct it"

Options = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """One experiment: arms x segmenters x folds x seeds."""

    dataset: str
    """The id, name or folder of the real data set."""
    title: str = "Do synthetic cases help?"
    """The heading of the report."""
    arms: tuple[str, ...] = (REAL, *WEIGHTINGS)
    """real (nothing added), a --weighting of law-synth train, or the name of an [arm.NAME] table."""
    segmenters: tuple[str, ...] = ("nnUNetTrainerORDER", "nnUNetTrainer")
    """The nnU-Net trainers that every arm trains. With none, only images and mask agreement are measured."""
    folds: tuple[Fold, ...] = ()
    """all trains on every training case and measures on the labelled test cases; 0 to 4 measure on the
    fold's validation cases. The default is all if the test cases are labelled, else every numbered fold."""
    on: Literal["auto", "test", "validation"] = "auto"
    """The real cases that the segmenters are measured on; with auto, the folds decide."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The seeds of the LAW models, their noise and the segmenters. Arms are compared within a seed."""
    rounds: Annotated[int, Range(1)] = 1
    """Above 1, the segmenter of a round filters the next round's synthetic cases, and the training cases on
    which it fails lend their masks more often. Needs min_agreement in [generate]."""
    fraction: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Use only this share of the training cases: 0.1 for a small hospital."""
    max_side: int | None = None
    """Shrink all images to this side first. Volumes keep their size."""
    synthetic_per_real: Annotated[float | None, Range(0, above=True)] = None
    """Generate this many synthetic cases per real training case. The default is 1 for volumes, because
    nnU-Net draws a case first and one of its slices then. For pictures it is one case per mask, as law-synth
    generate makes them."""
    trainer_options: str = ""
    """NNUNET_ORDER_OPTIONS of this package's trainers, such as "epochs=15 learning_rate=5e-3"."""
    judge: str | None = None
    """The trainer whose real-only model judges synthetic cases; by default the first of the segmenters."""
    base: str | None = None
    """The base model: a folder or hub id. The default is Stable Diffusion 1.5, or None where an [init_base]
    table has one trained per fold."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where everything runs."""

    arm: dict[str, Options] = field(default_factory=dict)
    init_base: Options | None = None
    train: Options = field(default_factory=dict)
    generate: Options = field(default_factory=dict)
    evaluate: Options = field(default_factory=dict)

    def check(self) -> None:
        """UserError: something that no experiment can be made of."""
        for name in ("arms", "segmenters", "folds", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (not values and name in ("arms", "seeds")):
                raise UserError(f"found {name} {list(values)}, expected one or more, each once; correct it")
        for seed in self.seeds:
            check_seed(seed, "the seed")
        check_ranges(self, str)
        self._check_arms()
        self._check_synthetic_number()
        self._check_rounds()

    def _check_synthetic_number(self) -> None:
        if self.synthetic_per_real == math.inf:
            raise UserError("found synthetic_per_real inf, expected a finite number above 0; change it")
        if self.synthetic_per_real is not None and "samples" in self.generate:
            raise UserError(
                "found synthetic_per_real and samples in [generate], expected one of them; drop the other"
            )

    def _check_rounds(self) -> None:
        filtered = self.generate.get("min_agreement")
        if self.rounds > 1 and not filtered:
            raise UserError(
                f"found rounds {self.rounds} without min_agreement in [generate], expected the Dice from "
                "which the last round's segmenter keeps a case; give 0.5, for example"
            )
        if self.rounds > 1 and self.judging_trainer not in self.segmenters:
            raise UserError(
                f"found rounds {self.rounds} and the judge {self.judging_trainer}, expected one of the "
                "segmenters, which learn from the last round's cases; change judge"
            )
        if filtered and not self.judging_trainer:
            raise UserError(
                "found min_agreement in [generate] without segmenters, expected a trainer that judges; "
                "give judge"
            )

    def _check_arms(self) -> None:
        if not self.synthetic_arms and not self.segmenters:
            raise UserError("found neither synthetic arms nor segmenters, expected some of either; add them")
        for arm in self.arms:
            self._check_arm(arm)
        refuse_lookalikes(self.arms, "arms", "the configuration")
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

    def _check_arm(self, arm: str) -> None:
        if arm not in (known := (REAL, *WEIGHTINGS, *self.arm)):
            raise UserError(
                f"found the arm {arm}, expected one of {', '.join(known)}; or add a table [arm.{arm}]"
            )
        if not re.fullmatch(NAME, arm) or re.search(r"-round\d+$", arm):
            raise UserError(
                f"found the arm {arm}, expected letters, digits and . _ + - without -round2 at the end, "
                "as it becomes a file's name; rename it"
            )

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
    """Read and check a configuration file. UserError: unreadable, unknown or wrong options."""
    return make_config(_read_toml(path), str(path))


def make_config(content: Mapping[str, Any], where: str) -> Config:
    """A checked configuration from the content of a file. UserError: unknown or wrong options."""
    _refuse_unknown(content, [one.name for one in fields(Config)], where)
    number = {"dataset": str(content["dataset"])} if isinstance(content.get("dataset"), int) else {}
    config = converted({**content, **number}, Config, where, REMEDY, quoted_numbers=True)
    tables = {
        name: _checked_table(f"{where} [{name}]", kind, getattr(config, name), ours)
        for name, (kind, ours) in TABLES.items()
        if getattr(config, name) is not None
    }
    arms = {
        name: _checked_table(f"{where} [arm.{name}]", Train, options, TRAIN)
        for name, options in config.arm.items()
    }
    config = replace(config, arm=arms, **tables)
    if config.init_base is not None and config.base is not None:
        raise UserError(f"{where}: found base and [init_base], expected one of them; drop the other")
    if config.init_base is None:
        base = config.base or DEFAULT_BASE
        config = replace(config, base=str(Path(base).resolve()) if Path(base).exists() else base)
    config.check()
    return config


def _checked_table(where: str, kind: type, options: Options, ours: tuple[str, ...]) -> Options:
    """The options with the types of the verb's, "3e-4" as a number; files and folders by their full paths.

    Commands run in the experiment's folder.
    """
    for name in ours:
        if name in options:
            raise UserError(
                f"{where}: found {name}, expected only what the experiment does not set itself; drop it"
            )
    types = get_type_hints(kind)
    _refuse_unknown(options, list(types), where)
    table = make_dataclass("Table", [(name, str if name in PATHS else types[name]) for name in options])
    read = vars(converted(options, table, where, REMEDY, quoted_numbers=True))
    for name in PATHS:
        if name in read and not Path(read[name]).exists():
            raise UserError(f"{where}: found {name} = {read[name]}, which is not there; correct the path")
    return {name: str(Path(value).resolve()) if name in PATHS else value for name, value in read.items()}


def _refuse_unknown(options: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in options:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known)) or ", ".join(known)
            raise UserError(f"{where}: found {name}, expected an option such as {close}; {REMEDY}")


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
