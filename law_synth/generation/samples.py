"""What to generate: a fixed list of samples, the same for any number of processes."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset_conversion.folder import read_groups
from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.provenance import package_versions
from law_synth.generation.augmentation import augment
from law_synth.generation.mask_files import MaskFolder
from law_synth.generation.nested_masks import Nesting, find_nestings
from law_synth.generation.options import PRESETS, Generate
from law_synth.generation.sampling import Sampling, derived_seed
from law_synth.judging.segmenter import Segmenter, judge_of_fold
from law_synth.leaks import HeldOutMasks, refuse_leaks
from law_synth.records.hard_cases import HardCases, read_hard_cases
from law_synth.records.run import TrainedRun, newest_run, read_run
from law_synth.records.synthetic import Recipe, SourceDataset, SynthesisRecord, SynthesisRow
from law_synth.view.mask_sources import MaskSource, case_masks, mask_hash
from law_synth.view.places import Geometry
from law_synth.view.resize import resize_mask
from law_synth.view.slices import SliceView
from nnunet_order.devices import has_bf16

logger = logging.getLogger(__name__)

NESTING_CASES = 50  # cases in which to find out which class lies inside which


@dataclass(frozen=True)
class Sample:
    """One image to generate, whether or not the quality filter will keep it."""

    index: int
    case: str
    source: MaskSource
    seed: int
    """Seed of its noise."""
    mask_seed: int


class Prepared(NamedTuple):
    """Masks of a chunk's samples."""

    masks: list[np.ndarray]
    """Class numbers uint8 (Y, X), at their own sizes."""
    geometries: list[Geometry | None]
    """Their places in space; None in a 2D data set."""
    conditions: np.ndarray
    """The masks as the model sees them, uint8 (N, S, S)."""


@dataclass(frozen=True)
class GenerationPlan:
    """Everything that decides what a generation writes; `make_plan` makes it."""

    options: Generate
    run: TrainedRun
    dataset: RawDataset
    view: SliceView
    sources: list[MaskSource]
    nestings: list[Nesting]
    """Which class lies in which; empty unless --mask-augment is nested or nested-elastic."""
    hard_cases: HardCases | None
    segmenter: Segmenter | None
    sampling: Sampling
    device: torch.device

    @cached_property
    def samples(self) -> list[Sample]:
        """In the order of their index."""
        seed = self.options.seed
        return [
            Sample(
                index,
                f"{self.prefix}_{index:06d}",
                self.sources[source],
                derived_seed(seed, index, "noise"),
                derived_seed(seed, index, "mask"),
            )
            for index, source in enumerate(self._source_indices())
        ]

    def _source_indices(self) -> list[int]:
        """Index of each sample's mask: each mask in turn, or with --hard-cases the hard ones more often."""
        count = self.options.samples or len(self.sources)
        if self.hard_cases is None:
            return [index % len(self.sources) for index in range(count)]
        cases = [source.case for source in self.sources]
        return self.hard_cases.draw(cases, count, derived_seed(self.options.seed, 0, "hard cases"))

    @cached_property
    def chunks(self) -> list[list[Sample]]:
        """The samples in groups of --chunk-size; the last may be shorter."""
        size = self.options.chunk_size
        return [self.samples[start : start + size] for start in range(0, len(self.samples), size)]

    @property
    def original_size(self) -> bool:
        """Whether images are written at the size of their mask's source.

        By default they are where they will lie beside real images, as those of volumes always may. Otherwise
        a segmenter would see lesions at two scales.
        """
        given = self.options.original_size
        return self.view.is_volumetric or self.options.with_real if given is None else given

    def prepare(self, chunk: int) -> Prepared:
        """Read and vary the masks of a chunk's samples."""
        samples, size = self.chunks[chunk], self.run.size
        masks = [self._vary(sample) for sample in samples]
        geometries = [sample.source.locate() for sample in samples]
        return Prepared(masks, geometries, np.stack([resize_mask(mask, size) for mask in masks]))

    def _vary(self, sample: Sample) -> np.ndarray:
        kind, size = self.options.mask_augment, self.run.size
        return augment(sample.source.read(), kind, sample.mask_seed, size, self.nestings)

    def row(
        self, sample: Sample, chunk: int, mask: np.ndarray, reason: str | None, scores: dict
    ) -> SynthesisRow:
        """Line of synthesis.jsonl for a sample and its mask at model size."""
        return SynthesisRow(
            case=sample.case,
            index=sample.index,
            chunk=chunk,
            kept=reason is None,
            reason=reason,
            seed=sample.seed,
            source_case=sample.source.case,
            source_group=sample.source.group,
            source_slice=sample.source.index,
            source_mask=sample.source.name,
            mask_sha256=mask_hash(mask),
            mask_augmentation=self.options.mask_augment,
            mask_seed=None if self.options.mask_augment == "none" else sample.mask_seed,
            prompt=self.sampling.prompt,
            sampler=self.sampling.sampler,
            steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance_scale,
            model_hash=self.run.hash,
            scores=scores,
        )

    def description(self) -> SynthesisRecord:
        """Content of synthesis.json; a resume compares its recipe, which decides the generated bytes."""
        options = self.options
        recipe = Recipe(
            model=self.run.hash,
            base=self.run.config.base.hash,
            data_set=self.dataset.name,
            masks=self._masks_digest(),
            samples=len(self.samples),
            mask_augment=options.mask_augment,
            with_real=options.with_real,
            original_size=self.original_size,
            **asdict(self.sampling),
            segmenter=self.segmenter and self.segmenter.hash,
            min_agreement=options.min_agreement,
            max_similarity=options.max_similarity,
            chunk_size=options.chunk_size,
            seed=options.seed,
            device=self.device.type,
            nesting=[*map(list, self.nestings)] or None,
            hard_cases=self.hard_cases and self.hard_cases.hash,
        )
        packages = ("law-order", "torch", "diffusers", "transformers", "nnunetv2", "numpy", "pillow")
        versions = package_versions(*packages)
        if self.device.type == "cpu":
            versions["threads"] = str(torch.get_num_threads())  # they decide the order of sums
        folder = str(self.dataset.folder.resolve())
        source = SourceDataset(name=self.dataset.name, origin=self.dataset.origin, folder=folder)
        return SynthesisRecord(recipe, self.run.config, source, versions, self.hard_cases)

    @cached_property
    def prefix(self) -> str:
        """Prefix of the case ids: law, or law2, ... where the data set already has such cases."""
        taken = [case.id.lower() for case in (*self.dataset.training_cases, *self.dataset.test_cases)]
        prefix, number = "law", 1
        while any(case.startswith(f"{prefix}_") for case in taken):
            number += 1
            prefix = f"law{number}"
        return prefix

    def _masks_digest(self) -> str:
        """sha256 of the masks' names, and of the pixels of those from a folder."""
        digest = hashlib.sha256()
        for source in self.sources:
            index = "" if source.index is None else f" {source.index}"
            digest.update(f"{source.name}{index}{source.sha256}\n".encode())
        return digest.hexdigest()


def make_plan(options: Generate, device: torch.device) -> GenerationPlan:
    """Find run, data set, masks and judge. UserError: one of them cannot be used, or something would leak."""
    run = read_run(options.trained_run) if options.trained_run is not None else newest_run()
    recorded = (run.dataset_folder / "dataset.json").is_file()
    dataset = find_dataset(run.dataset_folder if recorded else run.dataset_name)
    view = run.view(dataset)
    judge = judge_of_fold(Path(options.segmenter), device, run.fold, dataset) if options.segmenter else None
    refuse_leaks(run, dataset, judge)
    sources = case_masks(view, run.slices) if options.masks is None else _folder_sources(options, run, view)
    nestings = _nestings(run, view) if options.mask_augment in ("nested", "nested-elastic") else []
    name = dataset.name
    hard_cases = options.hard_cases and read_hard_cases(options.hard_cases, name, run.fold, run.train_cases)
    sampling = _sampling(options, run, device)
    return GenerationPlan(options, run, dataset, view, sources, nestings, hard_cases, judge, sampling, device)


def _sampling(options: Generate, run: TrainedRun, device: torch.device) -> Sampling:
    sampler, steps = PRESETS[options.preset]
    return Sampling(
        options.sampler or sampler,
        options.steps or steps,
        options.guidance_scale or run.config.guidance_scale,
        run.config.prompt if options.prompt is None else options.prompt,
        options.dtype or ("fp32" if device.type == "cpu" else "bf16" if has_bf16(device) else "fp16"),
        options.compile,
    )


def _folder_sources(options: Generate, run: TrainedRun, view: SliceView) -> list[MaskSource]:
    """The masks in --masks, without those of validation and test cases."""
    groups = read_groups(options.mask_groups) if options.mask_groups is not None else {}
    sources = MaskFolder(view, run.slices, run.size, options.slices_per_mask).sources(options.masks)
    kept = HeldOutMasks(run, view, groups).taken_out(sources, options.drop_held_out_masks)
    return with_own_masks(kept, case_masks(view, run.slices))


def with_own_masks(sources: list[MaskSource], of_cases: list[MaskSource]) -> list[MaskSource]:
    """Replace each file that is a copy of its case's own mask by that mask.

    A copy has the name of the case and the pixels and place of its mask. `of_cases`: from `case_masks`.
    """
    own = {(source.case, source.index): source for source in of_cases}
    return [_own_mask(source, own.get((source.case, source.index))) for source in sources]


def _own_mask(source: MaskSource, own: MaskSource | None) -> MaskSource:
    if own is None or mask_hash(own.read()) != source.sha256 or own.locate() != source.locate():
        return source
    return own


def _nestings(run: TrainedRun, view: SliceView) -> list[Nesting]:
    """Which class lies in which, by the masks of training cases. UserError: no class lies in another."""
    from rich.progress import track

    cases = run.train_cases
    chosen = {cases[i] for i in np.linspace(0, len(cases) - 1, min(len(cases), NESTING_CASES)).astype(int)}
    slices = [slice_ for slice_ in run.slices if slice_.case in chosen]
    masks = map(view.read_mask, track(slices, "finding nested classes", transient=True))
    nestings = find_nestings(masks, view.classes.count)
    if not nestings:
        raise UserError(
            f"found --mask-augment nested, expected a class that lies inside another one in the masks of "
            f"{view.dataset.folder.name} ({', '.join(view.classes.names)}); choose flip, affine or elastic"
        )
    for outer, inner in nestings:
        logger.info("%s moves within %s", view.classes.names[inner - 1], view.classes.names[outer - 1])
    return nestings
