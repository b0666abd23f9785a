"""The work of `law-synth generate`: whole chunks per process; the last one completes the data set."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from dataset_conversion.folder_lock import leaving_no_empty_parents
from dataset_conversion.user_error import UserError, writing
from law_synth.base.model import load_base, quiet
from law_synth.devices import pick_device
from law_synth.evaluation.image_sets import stored_size
from law_synth.generation.finish import finish_dataset, refuse_splits_in_the_way
from law_synth.generation.manifest import (
    check_generation,
    count_chunks,
    no_ruins,
    open_generation,
    read_chunk,
    write_chunk,
)
from law_synth.generation.plan import GenerationPlan, Prepared, make_plan
from law_synth.generation.quality import QualityFilter, training_thumbnails
from law_synth.generation.sampling import ImageSampler
from law_synth.progress import pace, progress

if TYPE_CHECKING:
    from law_synth.generation.generate import Generate
    from law_synth.slices import Geometry

logger = logging.getLogger(__name__)

WAITING = 4  # chunks that may wait for the disk
SIZE_CHANGE = 0.1  # of a side, between real and synthetic images, that goes without a word


def generate(verb: Generate, part: int, parts: int) -> None:
    """Generate this process's chunks that are not there yet; complete the data set if they are the last."""
    with _processes(verb.device) as (rank, world, device):
        plan = make_plan(verb, device)
        _announce(plan)
        out, description = verb.out, plan.description()
        check_generation(out, description)
        if verb.with_real:
            refuse_splits_in_the_way(plan)
        if verb.dry_run:
            return
        mine = range(part * world + rank, len(plan.chunks), parts * world)
        missing = [chunk for chunk in mine if read_chunk(out, chunk) is None]
        # What does not fit is refused while they load, before anything is written.
        networks = _load_networks(plan) if missing else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(leaving_no_empty_parents(out))
            open_generation(out, description)
            stack.enter_context(no_ruins(out, is_alone=parts * world == 1))
            if networks:
                logger.info("%d of this process's %d chunks are to be generated", len(missing), len(mine))
                _generate_chunks(plan, missing, *networks, show_progress=rank == 0)
            if (done := count_chunks(out)) < len(plan.chunks):
                logger.info(
                    "%d of %d chunks are there; the process that ends last completes", done, len(plan.chunks)
                )
                return
            with writing(out):
                finish_dataset(plan)


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """Rank, number of processes and device under torchrun or accelerate; else 0, 1 and the device."""
    chosen = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1, chosen
        return
    from accelerate import PartialState

    state = PartialState(cpu=chosen.type == "cpu")  # else one process where there is no GPU
    try:
        yield state.process_index, state.num_processes, state.device
    finally:
        state.destroy_process_group()


def _announce(plan: GenerationPlan) -> None:
    run, sampling = plan.run, plan.sampling
    logger.info("model: %s (fold %s, step %s)", run.folder, run.fold, run.config.get("step"))
    if not run.config.get("finished", True):
        logger.warning("%s: the training has not finished", run.folder)
    logger.info(
        "%d images of %d masks of %s, %d chunks; %s, %d steps, guidance %g, %s on %s",
        len(plan.samples),
        len(plan.sources),
        plan.verb.masks or plan.dataset.folder.name,
        len(plan.chunks),
        sampling.sampler,
        sampling.steps,
        sampling.guidance_scale,
        sampling.dtype,
        plan.device,
    )
    if plan.view.is_volumetric:
        cases = len({source.case or source.name for source in plan.sources})
        logger.info(
            "%d one-slice cases from slices of %d volumes; train them with -c 2d", len(plan.samples), cases
        )
    if channels := plan.view.normalized_by_case:
        logger.warning(
            "channels %s: nnU-Net will scale each slice by its own values and a volume by all of its slices, "
            "so the two differ in brightness; convert the slices to cases of their own first",
            ", ".join(channels),
        )
    if plan.verb.with_real and not plan.original_size:
        _compare_sizes(plan)


def _compare_sizes(plan: GenerationPlan) -> None:
    """Say so when the synthetic images are of another size than the real ones beside them."""
    sizes = [stored_size(plan.view, slice_) for slice_ in plan.run.slices]
    size, (height, width) = plan.run.size, np.median(sizes, axis=0)
    if max(abs(height - size) / height, abs(width - size) / width) > SIZE_CHANGE:
        logger.warning(
            "synthetic images of %d x %d will lie beside real ones of %d x %d (median): nnU-Net sees lesions "
            "at two scales; without --original-size False they have the size of their mask's image",
            size,
            size,
            width,
            height,
        )


def _generate_chunks(
    plan: GenerationPlan, chunks: list[int], sampler: ImageSampler, judge: QualityFilter, show_progress: bool
) -> None:
    """Sample and judge chunk after chunk; masks are prepared and files written by threads beside it."""
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


def _load_networks(plan: GenerationPlan) -> tuple[ImageSampler, QualityFilter]:
    """What makes and what judges images.

    UserError: base or weights are not those of law_config.json, a training image cannot be read.
    """
    judge = QualityFilter(
        plan.view,
        training_thumbnails(plan.view, plan.run.slices),
        plan.verb.max_similarity,
        plan.segmenter,
        plan.verb.min_agreement,
    )
    return _load_sampler(plan), judge


def _load_sampler(plan: GenerationPlan) -> ImageSampler:
    run = plan.run
    if not run.is_as_saved:
        raise UserError(
            f"{run.folder}: found other weights than law_config.json says, or another config.json with them, "
            "expected a run at rest; wait until the training has saved, then give the command again"
        )
    base = load_base(run.base_source)  # the sampler moves what it needs
    with quiet():
        controlnet, unet = run.load_student(base, torch.float32)
        return ImageSampler(base, controlnet, unet, plan.sampling, plan.device, plan.view.classes.count)


def _sample(plan: GenerationPlan, sampler: ImageSampler, chunk: int, conditions: np.ndarray) -> np.ndarray:
    """Images of a chunk, float32 (N, S, S, 3); a short chunk is filled with its last sample."""
    seeds = [sample.seed for sample in plan.chunks[chunk]]
    count, size = len(seeds), plan.verb.chunk_size
    fill = [*range(count), *[count - 1] * (size - count)]
    try:
        return sampler(conditions[fill], [seeds[i] for i in fill])[:count]
    except FloatingPointError:
        raise UserError(
            f"found non-finite images in chunk {chunk} with --dtype {plan.sampling.dtype}, expected numbers; "
            "nothing of it was written, try --dtype bf16 or fp32"
        ) from None


def _write(
    pool: ThreadPoolExecutor,
    plan: GenerationPlan,
    judge: QualityFilter,
    chunk: int,
    images: np.ndarray,
    prepared: Prepared,
) -> Future:
    """Judge a chunk's images here, encode and write what is kept in the pool."""
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
    if len(plan.view.window.low) == 1:  # judged as it is written: without its colours
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


def _encode_and_write(plan: GenerationPlan, chunk: int, kept: list[tuple], rows: list[dict]) -> None:
    files = {name: content for case in kept for name, content in plan.view.encode(*case).items()}
    labels = {name: content for name, content in files.items() if name.startswith("labelsTr/")}
    images = {name: content for name, content in files.items() if name not in labels}
    write_chunk(plan.verb.out, chunk, images, labels, rows)
