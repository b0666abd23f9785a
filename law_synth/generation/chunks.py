"""Chunks of a generation: sampled, judged and written one after the other."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.terminal import pace, progress
from law_synth.base.model import load_base, quiet
from law_synth.base.student import load_student
from law_synth.generation.quality import QualityFilter, training_thumbnails
from law_synth.generation.samples import GenerationPlan, Prepared
from law_synth.generation.sampling import ImageSampler
from law_synth.records.synthetic import SynthesisRow, write_chunk
from law_synth.view.places import Geometry

WAITING = 4  # chunks that may wait for the disk


def generate_chunks(
    plan: GenerationPlan, chunks: list[int], sampler: ImageSampler, judge: QualityFilter, show_progress: bool
) -> None:
    """Sample and judge one chunk after another; threads prepare the masks and write the files meanwhile."""
    total = sum(len(plan.chunks[chunk]) for chunk in chunks)
    bar = progress("{task.fields[pace]}", disable=not show_progress)
    with ThreadPoolExecutor(3) as pool, bar:
        began = time.perf_counter()
        task = bar.add_task("generating", total=total, pace=pace(0, 0))
        prepared, writing = pool.submit(plan.prepare, chunks[0]), []
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            ready = prepared.result()
            if following is not None:
                prepared = pool.submit(plan.prepare, following)
            images = _sample(plan, sampler, chunk, ready.conditions)
            writing.append(_write(pool, plan, judge, chunk, images, ready))
            while len(writing) > WAITING:
                writing.pop(0).result()
            done = bar.tasks[0].completed + len(images)
            bar.update(task, completed=done, pace=pace(done, time.perf_counter() - began))
        for future in writing:
            future.result()


def load_networks(plan: GenerationPlan) -> tuple[ImageSampler, QualityFilter]:
    """The networks that make images, and the filter that judges them.

    UserError: base or weights are not those of law_config.json; a training image cannot be read.
    """
    judge = QualityFilter(
        plan.view,
        training_thumbnails(plan.view, plan.run.slices),
        plan.options.max_similarity,
        plan.segmenter,
        plan.options.min_agreement,
    )
    return _load_sampler(plan), judge


def _load_sampler(plan: GenerationPlan) -> ImageSampler:
    run = plan.run
    if not run.is_as_saved:
        raise UserError(
            f"{run.folder}: found other weights, or another config.json beside them, than law_config.json "
            "records, expected a run that is not being saved; wait until the training has saved, then give "
            "the same command again"
        )
    base = load_base(run.config.base.source)  # the sampler moves what it needs
    with quiet():
        controlnet, unet = load_student(run, base, torch.float32)
        return ImageSampler(base, controlnet, unet, plan.sampling, plan.device, plan.view.classes.count)


def _sample(plan: GenerationPlan, sampler: ImageSampler, chunk: int, conditions: np.ndarray) -> np.ndarray:
    """Images of a chunk, float32 (N, S, S, 3). A short chunk is filled up with copies of its last sample."""
    seeds = [sample.seed for sample in plan.chunks[chunk]]
    count, size = len(seeds), plan.options.chunk_size
    fill = [*range(count), *[count - 1] * (size - count)]
    try:
        return sampler(conditions[fill], [seeds[i] for i in fill])[:count]
    except FloatingPointError:
        raise UserError(
            f"found non-finite images in chunk {chunk} with --dtype {plan.sampling.dtype}, expected finite "
            "ones; nothing of that chunk was written: give --dtype bf16 or fp32"
        ) from None


def _write(
    pool: ThreadPoolExecutor,
    plan: GenerationPlan,
    judge: QualityFilter,
    chunk: int,
    images: np.ndarray,
    prepared: Prepared,
) -> Future:
    """Judge a chunk's images here; let the pool encode and write those that are kept."""
    kept, rows = [], []
    for sample, image, *ready in zip(plan.chunks[chunk], images, *prepared, strict=True):
        stored = _as_stored(plan, image, *ready)
        reason, scores = judge(*stored)
        rows.append(plan.row(sample, chunk, ready[-1], reason, scores))
        if reason is None:
            kept.append((sample.case, *stored))
    return pool.submit(_encode_and_write, plan, chunk, kept, rows)


def _as_stored(
    plan: GenerationPlan,
    image: np.ndarray,
    mask: np.ndarray,
    geometry: Geometry | None,
    condition: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, Geometry | None]:
    """Image (Y, X, 3), mask (Y, X) and place of a sample, at the size in which they are written."""
    if len(plan.view.window.low) == 1:  # it is written without its colours, so it is judged without them
        image = np.ascontiguousarray(np.broadcast_to(image.mean(-1, keepdims=True), image.shape))
    if plan.view.window.dtype == "uint8":  # no finer than what the model sees
        image = np.rint(image).astype(np.uint8)
    if plan.original_size:
        return resize_channels(image, mask.shape), mask, geometry
    return image, condition, geometry and geometry.resized(condition.shape)


def resize_channels(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 or float32 image (Y, X, 3) of values in [0, 255] at another size (Y, X), by Lanczos."""
    channels = [Image.fromarray(channel) for channel in np.moveaxis(image, -1, 0)]
    resized = [np.asarray(c.resize(shape[::-1], Image.Resampling.LANCZOS)) for c in channels]
    return np.stack(resized, axis=-1).clip(0, 255)


def _encode_and_write(plan: GenerationPlan, chunk: int, kept: list[tuple], rows: list[SynthesisRow]) -> None:
    files = {name: content for case in kept for name, content in plan.view.encode(*case).items()}
    labels = {name: content for name, content in files.items() if name.startswith("labelsTr/")}
    images = {name: content for name, content in files.items() if name not in labels}
    write_chunk(plan.options.out, chunk, images, labels, rows)
