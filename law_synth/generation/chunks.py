"""The work of `law-synth generate`: whole chunks per process; the last one completes the data set."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dataset_conversion.user_error import UserError
from law_synth.base.model import load_base, quiet
from law_synth.cases import to_channels
from law_synth.generation.finish import finish_dataset
from law_synth.generation.manifest import count_chunks, open_generation, read_chunk, write_chunk
from law_synth.generation.plan import Plan, make_plan
from law_synth.generation.quality import QualityFilter, training_thumbnails
from law_synth.generation.sampling import Sampler
from law_synth.run_folder import weights_hash

if TYPE_CHECKING:
    from law_synth.generation.generate import Generate

logger = logging.getLogger(__name__)

FORMATS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF"}
WAITING = 4  # chunks that may wait for the disk


def generate(verb: Generate, part: int, parts: int) -> None:
    """Generate this process's chunks that are not there yet; complete the data set if they are the last."""
    with _processes(verb.device) as (rank, world, device):
        plan = make_plan(verb, device)
        _announce(plan)
        if verb.dry_run:
            return
        out = verb.out
        open_generation(out, plan.description())
        mine = range(part * world + rank, len(plan.chunks), parts * world)
        missing = [chunk for chunk in mine if read_chunk(out, chunk) is None]
        if missing:
            logger.info("%d of this process's %d chunks are to be generated", len(missing), len(mine))
            _generate_chunks(plan, missing, show_progress=rank == 0)
        if (done := count_chunks(out)) < len(plan.chunks):
            logger.info(
                "%d of %d chunks are there; the process that ends last completes", done, len(plan.chunks)
            )
            return
        finish_dataset(plan)


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """Rank, number of processes and device under torchrun or accelerate; else 0, 1 and the device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"found --device {device}, but no GPU that torch can use; give --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")  # else one process where there is no GPU
        try:
            yield state.process_index, state.num_processes, state.device
        finally:
            state.destroy_process_group()
        return
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"found --device {device}, expected auto, cpu or cuda") from None
    yield 0, 1, chosen


def _announce(plan: Plan) -> None:
    run, sampling = plan.run, plan.sampling
    logger.info("model: %s (fold %s, step %s)", run.folder, run.fold, run.config.get("step"))
    if not run.config.get("finished", True):
        logger.warning("%s: the training has not finished", run.folder)
    logger.info(
        "%d images of %d masks of %s, %d chunks; %s, %d steps, guidance %g, %s on %s",
        *(
            len(plan.samples),
            len(plan.sources),
            plan.verb.masks or plan.dataset.folder.name,
            len(plan.chunks),
        ),
        *(sampling.sampler, sampling.steps, sampling.guidance_scale, sampling.dtype, plan.device),
    )


def _generate_chunks(plan: Plan, chunks: list[int], show_progress: bool) -> None:
    """Sample and judge chunk after chunk; masks are prepared and files written by threads beside it."""
    sampler = _load_sampler(plan)
    judge = QualityFilter(
        training_thumbnails(plan.dataset, plan.run.train_cases),
        plan.verb.max_similarity,
        plan.segmenter,
        plan.verb.min_agreement,
    )
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    rate = TextColumn("{task.fields[rate]:.2f} images/s")
    with ThreadPoolExecutor(3) as pool, Progress(*columns, rate, disable=not show_progress) as progress:
        task = progress.add_task("generating", total=sum(len(plan.chunks[chunk]) for chunk in chunks), rate=0)
        prepared, writing = pool.submit(plan.masks, chunks[0]), []
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            masks, conditions = prepared.result()
            if following is not None:
                prepared = pool.submit(plan.masks, following)
            images = _sample(plan, sampler, chunk, conditions)
            writing.append(_write(pool, plan, judge, chunk, images, masks, conditions))
            while len(writing) > WAITING:
                writing.pop(0).result()
            progress.advance(task, len(images))
            progress.update(task, rate=progress.tasks[0].speed or 0)
        for future in writing:
            future.result()


def _load_sampler(plan: Plan) -> Sampler:
    """UserError: base or weights are not those of law_config.json."""
    run = plan.run
    if weights_hash(run.folder) != run.hash:
        raise UserError(
            f"{run.folder}: found other weights than law_config.json says, expected a run at rest; wait "
            "until the training has saved them, then give the command again"
        )
    base = load_base(run.base_source, plan.device)
    with quiet():
        controlnet, unet = run.load_student(base, torch.float32)
        return Sampler(base, controlnet, unet, plan.sampling, plan.device)


def _sample(plan: Plan, sampler: Sampler, chunk: int, conditions: np.ndarray) -> np.ndarray:
    """Images of a chunk, uint8 (N, S, S, 3); a short chunk is filled with its last sample."""
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
    plan: Plan,
    judge: QualityFilter,
    chunk: int,
    images: np.ndarray,
    masks: list[np.ndarray],
    conditions: np.ndarray,
) -> Future:
    """Judge a chunk's images here, encode and write what is kept in the pool."""
    kept, rows = [], []
    for sample, image, mask, condition in zip(plan.chunks[chunk], images, masks, conditions, strict=True):
        if plan.verb.original_size:
            side = Image.fromarray(image).resize(mask.shape[::-1], Image.Resampling.LANCZOS)
            image, label = np.asarray(side), mask
        else:
            label = condition
        reason, scores = judge(image, label)
        rows.append(plan.row(sample, chunk, condition, reason, scores))
        if reason is None:
            kept.append((sample.case, to_channels(image, plan.dataset), label * np.uint8(plan.lesion)))
    return pool.submit(_encode_and_write, plan, chunk, kept, rows)


def _encode_and_write(
    plan: Plan, chunk: int, kept: list[tuple[str, np.ndarray, np.ndarray]], rows: list[dict]
):
    ending = plan.dataset.file_ending
    images = {f"imagesTr/{case}_0000{ending}": encode(image, ending) for case, image, _ in kept}
    labels = {f"labelsTr/{case}{ending}": encode(label, ending) for case, _, label in kept}
    write_chunk(plan.verb.out, chunk, images, labels, rows)


def encode(pixels: np.ndarray, ending: str) -> bytes:
    """uint8 (Y, X) or (Y, X, 3) as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, FORMATS[ending])
    return buffer.getvalue()
