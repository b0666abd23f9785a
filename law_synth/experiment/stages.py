"""The stages of an experiment: which stock commands it runs, in which order, on which files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Fold
from law_synth.audit.options import Audit
from law_synth.base.options import InitBase
from law_synth.evaluation.options import Evaluate
from law_synth.experiment.budget import samples
from law_synth.experiment.command_line import command_line
from law_synth.experiment.config import PATHS, REAL, Config, Options
from law_synth.experiment.synthesis import Synthesis
from law_synth.generation.options import Generate
from law_synth.training.options import Train
from nnunet_order.comparing.measurement import Measured
from nnunet_order.comparing.segmentation import (
    REAL_DATASET,
    Segmentation,
    prepare_real,
)
from nnunet_order.stages.experiment_record import ExperimentRecord, SynthesisEntry, recorded_datasets
from nnunet_order.stages.inputs import files_digest
from nnunet_order.stages.stage import Stage, stage_keys

RAW = Path("nnUNet_raw")
FIRST_NUMBER = 101  # of the synthetic data sets


@dataclass(frozen=True)
class ExperimentPlan:
    """A configuration whose folds and device are settled, and its data; `make_plan` makes it."""

    config: Config
    source: RawDataset
    folder: Path
    on: Measured
    iterations: int

    @property
    def device(self) -> str:
        return self.config.device

    @cached_property
    def syntheses(self) -> list[Synthesis]:
        config = self.config
        return [
            Synthesis(arm, fold, seed, round_)
            for round_ in range(1, config.rounds + 1)
            for arm in config.synthetic_arms
            for fold in config.folds
            for seed in config.seeds
        ]

    @cached_property
    def datasets(self) -> dict[Synthesis, str]:
        """Names of the synthetic data sets; one that exists keeps its number when arms come and go."""
        # Also of arms that were removed, whose data are still there.
        there = sorted(path.name for path in (self.folder / RAW).glob("Dataset*"))
        recorded = [Path(dataset).name for dataset in recorded_datasets(self.folder)]
        names = [re.fullmatch(r"Dataset([0-9]{3})_(.+)", name) for name in (*there, *recorded)]
        known = {name[2]: int(name[1]) for name in names if name}
        numbers = {}
        for synthesis in self.syntheses:
            taken = {*known.values(), *numbers.values()}
            free = next(number for number in range(FIRST_NUMBER, 1000) if number not in taken)
            numbers[synthesis] = known.get(synthesis.name, free)
        return {one: f"Dataset{number:03d}_{one.name}" for one, number in numbers.items()}

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, each after those whose files it reads."""
        return tuple(self._stages())

    def _stages(self) -> Iterator[Stage]:
        yield from prepare_real(self.source, self.config.fraction, self.config.max_side)
        if self.config.init_base is not None and self.config.synthetic_arms:
            yield from map(self._base, self.config.folds)
        for segmentation in self.real_segmentations:
            yield from segmentation.stages(("plan",))
        for judge in self.judges:
            if judge not in self.real_segmentations:
                yield judge.stages(("plan",))[0]  # its predictions are of no interest
        for synthesis in self.syntheses:
            yield from self._synthesis(synthesis)
            for segmentation in self._segmentations_of(synthesis):
                yield from segmentation.stages((f"preprocess_{synthesis.name}",))
        last = [f"score_{one.name}" for one in self.segmentations]
        last += [f"{kind}_{one.name}" for one in self.syntheses for kind in ("audit", "evaluate")]
        outputs = ("report.html", "results")
        # What the page shows besides the files of the stages.
        config = self.config
        shown = json.dumps([config.title, config.reference, self.arms, config.segmenters])
        # law-synth report may have written them before, for a look at what there is so far.
        command = ("law-synth report .",)
        yield Stage("report", command, outputs, tuple(last), inputs=shown, replaces_outputs=True)

    @cached_property
    def real_segmentations(self) -> list[Segmentation]:
        """Of the real arm."""
        trainers = self.config.segmenters if REAL in self.config.arms else ()
        return [one for trainer in trainers for one in self._on_real_cases(trainer)]

    @cached_property
    def judges(self) -> list[Segmentation]:
        """Real-only models that judge synthetic cases, one per fold and seed."""
        trainer = self.config.judging_trainer if self.config.synthetic_arms else None
        return self._on_real_cases(trainer) if trainer else []

    @cached_property
    def segmentations(self) -> list[Segmentation]:
        """All trainings that the tables show."""
        synthetic = [one for synthesis in self.syntheses for one in self._segmentations_of(synthesis)]
        return [*self.real_segmentations, *synthetic]

    def _on_real_cases(self, trainer: str) -> list[Segmentation]:
        folds, seeds = self.config.folds, self.config.seeds
        return [
            self._segmentation(REAL, REAL_DATASET, trainer, fold, seed, fold)
            for fold in folds
            for seed in seeds
        ]

    def _segmentations_of(self, synthesis: Synthesis) -> list[Segmentation]:
        # A --with-real data set has one fold, number 0, unless all cases train.
        train_fold = "all" if synthesis.fold == "all" else 0
        dataset = self.datasets[synthesis]
        return [
            self._segmentation(synthesis.label, dataset, trainer, synthesis.fold, synthesis.seed, train_fold)
            for trainer in self.config.segmenters
        ]

    def _segmentation(
        self, arm: str, dataset: str, trainer: str, fold: Fold, seed: int, train_fold: Fold
    ) -> Segmentation:
        options = self.config.trainer_options
        if "iterations_per_epoch=" not in options:  # equal budget: more cases must not mean more training
            options = f"{options} iterations_per_epoch={self.iterations}".strip()
        return Segmentation(arm, dataset, trainer, fold, seed, train_fold, options, self.on, self.device)

    def _base(self, fold: Fold) -> Stage:
        out = Path("bases") / f"fold_{fold}"
        options = self.config.init_base
        if options.get("size"):  # random weights, made anywhere
            command = command_line("law-synth init-base", InitBase(out=out, **options))
        else:
            verb = InitBase(out=out, source=str(RAW / REAL_DATASET), fold=fold, **options)
            command = command_line("law-synth init-base", verb, source="from") + self._device
        return Stage(f"base_fold_{fold}", (command,), (str(out),), ("plan",), resumes=True)

    def _synthesis(self, one: Synthesis) -> Iterator[Stage]:
        """train, (mine,) generate, audit, evaluate and preprocess."""
        after_base = "plan" if self.config.base else f"base_fold_{one.fold}"
        if one.round == 1:
            verb = self._train(one)
            after = ("plan", after_base)
            base = files_digest([Path(self.config.base)]) if self.config.base else ""
            command, out = self._command(verb), str(one.run)
            yield Stage(f"train_{one.model}", (command,), (out,), after, inputs=base, resumes=True)
        dataset = RAW / self.datasets[one]
        judged = self._judged_by(one)
        if one.round > 1:
            verb = (
                f"law-synth mine --dataset {RAW / REAL_DATASET} --fold {one.fold} --segmenter {judged.model}"
            )
            mine = shlex.join([*verb.split(), "--out", str(one.mined)]) + self._device
            yield Stage(f"mine_{one.name}", (mine,), (str(one.mined),), (f"segment_{judged.name}",))
        yield self._generate(one, dataset, judged)
        yield self._audit(one, dataset, judged)
        yield self._evaluate(one, dataset)
        number = dataset.name[7:10]
        preprocess = (
            f"nnunet-order plan {number} --reuse-plans-from {REAL_DATASET}",
            f"nnUNetv2_preprocess -d {number} -c 2d -plans_name nnUNetPlans -np 1",
        )
        if self.config.segmenters:
            files = ("dataset.json", "nnUNetPlans.json", "nnUNetPlans_2d", "gt_segmentations")
            outputs = tuple(f"nnUNet_preprocessed/{dataset.name}/{file}" for file in files)
            yield Stage(f"preprocess_{one.name}", preprocess, outputs, (f"generate_{one.name}",))

    def _train(self, one: Synthesis) -> Train:
        base = self.config.base or f"bases/fold_{one.fold}"
        options = self.config.train_options(one.arm)
        return Train(
            dataset=str(RAW / REAL_DATASET), fold=one.fold, base=base, out=one.run, seed=one.seed, **options
        )

    def _generate(self, one: Synthesis, dataset: Path, judged: Segmentation | None) -> Stage:
        options = {**self.config.generate, **samples(self.config, self.source, one.fold)}
        after = [f"train_{one.model}"]
        if options.get("min_agreement"):
            options["segmenter"] = Path(judged.model)
            after.append(f"segment_{judged.name}")
        if one.round > 1:
            options["hard_cases"] = one.mined
            after.append(f"mine_{one.name}")
        verb = Generate(out=dataset, trained_run=one.run, with_real=True, seed=one.seed, **options)
        outputs = [str(dataset)]
        if one.fold != "all":  # written for nnU-Net, too
            outputs.append(f"nnUNet_preprocessed/{dataset.name}/splits_final.json")
        read = self._user_files(self.config.generate)
        return Stage(
            *(f"generate_{one.name}", (self._command(verb),), tuple(outputs), tuple(after)),
            inputs=read,
            resumes=True,
        )

    def _audit(self, one: Synthesis, dataset: Path, judged: Segmentation | None) -> Stage:
        filtered = judged and (self.config.generate.get("min_agreement") or one.round > 1)
        judges = (Path(judged.model),) if filtered else ()
        out = Path("audits") / f"{one.name}.json"
        verb = Audit(dataset=str(dataset), trained_run=one.run, segmenter=judges, out=out)
        return Stage(f"audit_{one.name}", (self._command(verb),), (str(out),), (f"generate_{one.name}",))

    def _evaluate(self, one: Synthesis, dataset: Path) -> Stage:
        after, judge = [f"generate_{one.name}"], self._real_judge(one)
        verb = Evaluate(dataset=str(dataset), out=one.evaluation, **self.config.evaluate)
        if judge:
            verb = replace(verb, segmenter=Path(judge.model))
            after.append(f"segment_{judge.name}")
        read = self._user_files(self.config.evaluate)
        outputs = (str(one.evaluation),)
        return Stage(f"evaluate_{one.name}", (self._command(verb),), outputs, tuple(after), inputs=read)

    @staticmethod
    def _user_files(options: Options) -> str:
        """Digest of the files that a table names."""
        return files_digest(Path(options[name]) for name in PATHS if options.get(name))

    def _real_judge(self, one: Synthesis) -> Segmentation | None:
        """The real-only model of the same fold and seed."""
        wanted = (one.fold, one.seed)
        return next((judge for judge in self.judges if (judge.fold, judge.seed) == wanted), None)

    def _judged_by(self, one: Synthesis) -> Segmentation | None:
        """Whose agreement decides what is kept: the real-only model, later the last round's own."""
        if one.round == 1:
            return self._real_judge(one)
        last = replace(one, round=one.round - 1)
        trainer = self.config.judging_trainer
        return next(found for found in self._segmentations_of(last) if found.trainer == trainer)

    @property
    def _device(self) -> str:
        return " --device cpu" if self.device == "cpu" else ""

    def _command(self, verb: Train | Generate | Evaluate | Audit) -> str:
        positional = ("dataset",) if isinstance(verb, Evaluate | Audit) else ()
        return command_line(f"law-synth {type(verb).__name__.lower()}", verb, positional) + self._device

    def check(self) -> None:
        """UserError: options that a command of a stage would refuse."""
        for one in self.syntheses:
            self._train(one).check()
        Generate(out=Path("out"), segmenter=Path("judge"), **self.config.generate).check()

    def record(self, command: str, kind: str = "law-synth experiment") -> ExperimentRecord:
        """Content of experiment.json."""
        config = self.config
        return ExperimentRecord(
            kind=kind,
            command=command,
            title=config.title,
            config=json.loads(json.dumps(asdict(config)), parse_constant=lambda _: "inf"),  # JSON has none
            real=str(RAW / REAL_DATASET),
            on=self.on,
            iterations=self.iterations,
            reference=config.reference,
            arms=self.arms,
            trainers=list(config.segmenters),
            folds=list(config.folds),
            seeds=list(config.seeds),
            segmentations=[one.entry() for one in self.segmentations],
            syntheses=[self._entry(one) for one in self.syntheses],
            stages=stage_keys(self.stages),
        )

    @property
    def arms(self) -> list[str]:
        """Arms of all rounds in the order of the tables."""
        config, later = self.config, range(2, self.config.rounds + 1)
        return [*config.arms, *(f"{arm}-round{n}" for n in later for arm in config.synthetic_arms)]

    def _entry(self, one: Synthesis) -> SynthesisEntry:
        return SynthesisEntry(
            name=one.name,
            arm=one.label,
            fold=one.fold,
            seed=one.seed,
            round=one.round,
            run=str(one.run),
            dataset=str(RAW / self.datasets[one]),
            evaluation=str(one.evaluation),
        )
