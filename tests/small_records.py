"""Records as trainings and generations write them, for tests that need no training: say what matters only."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from law_synth.records.base import BaseConfig
from law_synth.records.run import FORMAT, RunConfig, TrainedOn, UsedBase
from law_synth.records.synthetic import Recipe, SourceDataset, SynthesisRecord, SynthesisRow
from law_synth.view.record import ViewRecord
from law_synth.view.window import Window

PICTURES = ViewRecord(Window((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), "uint8"), None, {"lesion": 1})


def small_run(**entries: Any) -> RunConfig:
    """law_config.json of a run on pictures."""
    config = RunConfig(
        format=FORMAT,
        versions={"law-order": None},
        git_commit=None,
        options={},
        processes=1,
        dataset=TrainedOn("Dataset001_Real", "nowhere"),
        fold=0,
        train_cases=["a", "b"],
        monitor_cases=[],
        view=PICTURES,
        slices=None,
        base=UsedBase("nowhere", "b"),
        size=64,
        prompt="a lesion",
        guidance_scale=2.0,
        trains_decoder=True,
        step=10,
        finished=True,
        weights_hash="m",
    )
    return replace(config, **entries)


def small_base(dataset: str, train_cases: list[str], **entries: Any) -> BaseConfig:
    """base_config.json of a base that was trained."""
    config = BaseConfig(
        format=1, options={}, dataset=dataset, fold=0, image_size=64, train_cases=train_cases, versions={}
    )
    return replace(config, **entries)


def small_row(case: str, **entries: Any) -> SynthesisRow:
    """A line of synthesis.jsonl: an image that was kept, of the mask of case `a`."""
    row = SynthesisRow(
        case=case,
        index=0,
        chunk=0,
        kept=True,
        reason=None,
        seed=1,
        source_case="a",
        source_group="a",
        source_slice=None,
        source_mask="a",
        mask_sha256="0",
        mask_augmentation="none",
        mask_seed=None,
        prompt="a lesion",
        sampler="ddim",
        steps=1,
        guidance_scale=2.0,
        model_hash="m",
        scores={"agreement": None, "similarity": 0.5, "nearest_case": "a"},
    )
    return replace(row, **entries)


def small_synthesis(run: RunConfig, source: SourceDataset, **entries: Any) -> SynthesisRecord:
    """synthesis.json of a generation; `entries` are of its recipe or of the record itself."""
    recipe = Recipe(
        model=run.weights_hash,
        base=run.base.hash,
        data_set=source.name,
        masks="0",
        samples=1,
        mask_augment="none",
        with_real=False,
        original_size=True,
        sampler="ddim",
        steps=1,
        guidance_scale=2.0,
        prompt="a lesion",
        dtype="fp32",
        compile=False,
        segmenter=None,
        min_agreement=0.0,
        max_similarity=0.98,
        chunk_size=8,
        seed=0,
        device="cpu",
    )
    names = {field.name for field in fields(Recipe)}
    recipe = replace(recipe, **{name: value for name, value in entries.items() if name in names})
    record = SynthesisRecord(recipe, run, source, versions={})
    return replace(record, **{name: value for name, value in entries.items() if name not in names})
