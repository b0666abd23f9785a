"""`law-synth generate`: synthetic cases in nnU-Net raw format from a trained mask ControlNet."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from dataset_conversion.system.errors import writing
from dataset_conversion.system.lock import leaving_no_empty_parents
from law_synth.generation.chunks import generate_chunks, load_networks
from law_synth.generation.finish import finish_dataset, refuse_splits_in_the_way
from law_synth.generation.options import Generate
from law_synth.generation.resuming import check_generation, no_ruins, open_generation
from law_synth.generation.samples import GenerationPlan, make_plan
from law_synth.records.synthetic import count_chunks, read_chunk
from nnunet_order.devices import pick_device

logger = logging.getLogger(__name__)

SIZE_CHANGE = 0.1  # of a side: a larger difference of real and synthetic images is warned about


def generate(options: Generate) -> None:
    """Generate this process's missing chunks, and complete the data set once all chunks are there.

    UserError: bad options, a run, data set, mask or judge that cannot be used, something would leak.
    """
    options.check()
    part, parts = options.parsed_shard
    with _processes(options.device) as (rank, world, device):
        plan = make_plan(options, device)
        _announce(plan)
        out, description = options.out, plan.description()
        check_generation(out, description)
        if options.with_real:
            refuse_splits_in_the_way(plan)
        if options.dry_run:
            return
        mine = range(part * world + rank, len(plan.chunks), parts * world)
        missing = [chunk for chunk in mine if read_chunk(out, chunk) is None]
        # Loading refuses what does not fit before anything is written.
        networks = load_networks(plan) if missing else None
        with ExitStack() as stack:
            stack.enter_context(leaving_no_empty_parents(out))
            open_generation(out, description)
            stack.enter_context(no_ruins(out, is_alone=parts * world == 1))
            if networks:
                logger.info("%d of this process's %d chunks are to be generated", len(missing), len(mine))
                generate_chunks(plan, missing, *networks, show_progress=rank == 0)
            if (done := count_chunks(out)) < len(plan.chunks):
                logger.info(
                    "%d of %d chunks are there; the process that finishes last completes the data set",
                    done,
                    len(plan.chunks),
                )
                return
            with writing(out):
                finish_dataset(plan)


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """Rank, number of processes and device under torchrun or accelerate; otherwise 0, 1 and the device."""
    chosen = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1, chosen
        return
    from accelerate import PartialState

    # Without cpu=True there would be one process where there is no GPU.
    state = PartialState(cpu=chosen.type == "cpu")
    try:
        yield state.process_index, state.num_processes, state.device
    finally:
        state.destroy_process_group()


def _announce(plan: GenerationPlan) -> None:
    run, sampling = plan.run, plan.sampling
    logger.info("model: %s (fold %s, step %s)", run.folder, run.fold, run.config.step)
    if not run.config.finished:
        logger.warning("%s: the training has not finished", run.folder)
    logger.info(
        "%d images of %d masks of %s, %d chunks; %s, %d steps, guidance %g, %s on %s",
        len(plan.samples),
        len(plan.sources),
        plan.options.masks or plan.dataset.folder.name,
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
            "%d cases of one slice each, from slices of %d volumes; train them with -c 2d",
            len(plan.samples),
            cases,
        )
    if channels := plan.view.normalized_by_case:
        logger.warning(
            "channels %s: nnU-Net scales a synthetic slice by its own values, but a real volume by all its "
            "slices, so the two differ in brightness; convert the real slices to cases of their own first",
            ", ".join(channels),
        )
    if plan.options.with_real and not plan.original_size:
        _compare_sizes(plan)


def _compare_sizes(plan: GenerationPlan) -> None:
    """Warn when the synthetic images have another size than the real ones beside them."""
    sizes = [plan.view.stored_size(slice_) for slice_ in plan.run.slices]
    size, (height, width) = plan.run.size, np.median(sizes, axis=0)
    if max(abs(height - size) / height, abs(width - size) / width) > SIZE_CHANGE:
        logger.warning(
            "synthetic images of %d x %d will lie beside real ones of %d x %d (median), so nnU-Net sees "
            "lesions at two scales; drop --original-size False to give each the size of its mask's image",
            size,
            size,
            width,
            height,
        )
