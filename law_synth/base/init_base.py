"""`law-synth init-base`: a small base model without a download, random or trained on a data set."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from dataset_conversion.raw.dataset import find_dataset
from dataset_conversion.raw.folds import leak_free_fold
from dataset_conversion.system.errors import UserError, check_writable, writing
from dataset_conversion.system.json_files import as_json, read_json, write_json
from dataset_conversion.system.lock import hold
from dataset_conversion.system.provenance import package_versions
from dataset_conversion.volumes import evenly_spaced
from law_synth.base.held_back import ENOUGH, hold_back_patients
from law_synth.base.options import InitBase
from law_synth.base.seen import chosen_slices
from law_synth.base.tiny import TINY_SIZE, write_tiny_base
from law_synth.base.train_base import train_base
from law_synth.records.base import CONFIG, FORMAT, BaseConfig, BegunBase, write_base_config
from law_synth.view.resize import resize_image
from law_synth.view.slices import Slice, SliceView, view_of
from nnunet_order.devices import pick_device

logger = logging.getLogger(__name__)

WORK = ".training"  # inside --out until the base is finished: options and checkpoints
OPTIONS = "options.json"
PACKAGES = ("law-order", "torch", "diffusers", "transformers")  # they decide what the weights are


class Sources(NamedTuple):
    """What a base is trained on."""

    view: SliceView
    cases: list[str]
    slices: list[Slice]


def init_base(options: InitBase) -> None:
    """Make the base. UserError: options that contradict each other, an `out` with other content."""
    options.check()
    if is_finished(options.out, options.recorded):
        logger.info("%s is finished already; nothing to do", options.out)
        return
    if options.dry_run:
        announce(options)
        return
    began = time.perf_counter()
    with writing(options.out):
        results = write_tiny(options) if options.size else train(options)
        versions = package_versions(*PACKAGES)
        finish(options.out, BaseConfig(format=FORMAT, options=options.recorded, **results, versions=versions))
    seconds = time.perf_counter() - began
    logger.info("wrote %s in %.0f s; use it with --base %s", options.out, seconds, options.out)


def write_tiny(options: InitBase) -> dict:
    """Write a base of random weights; -> what base_config.json says of it."""
    claim(options.out, options.recorded)
    write_tiny_base(options.out, options.vae_factor, options.seed, options.prediction_type)
    return {"image_size": TINY_SIZE}


def train(options: InitBase) -> dict:
    """Train a base on a data set; -> what base_config.json says of it."""
    device = pick_device(options.device)
    view, seen, slices = sources_of(options)
    dataset = view.dataset
    if view.is_volumetric:
        logger.info("%s holds volumes: training on %d of their 2D slices", options.source, len(slices))
    images = read_images(view, slices, options.image_size)
    judged = hold_back_patients(list(dict.fromkeys(one.case for one in slices)), dataset.groups, options.seed)
    held_back = [index for case in judged for index, one in enumerate(slices) if one.case == case]
    kept = np.setdiff1d(np.arange(len(slices)), held_back)
    if not held_back:
        warn_of_too_few(view, slices)
    shown = evenly_spaced(held_back or kept[:ENOUGH], ENOUGH)
    # Only now: whatever is wrong with the data leaves nothing behind.
    lock = hold(options.out / WORK / "lock", options.out)
    sources = {"train_cases": seen, "dataset_origin": dataset.origin, "view": view.record}
    try:
        claim(options.out, options.recorded, sources)
        results = train_base(options, options.out / WORK, device, images[kept], images[shown])
    finally:
        lock.release()
    return {
        "dataset": dataset.name,
        "dataset_folder": str(dataset.folder.resolve()),
        "fold": options.fold,
        "image_size": options.image_size,
        "guidance_scale": 1.0,  # it ignores prompts: there is nothing to guide
        "held_back_cases": sorted(judged),
        **sources,
        **results,
    }


def sources_of(options: InitBase) -> Sources:
    """The data set as the training sees it. UserError: it cannot be trained on."""
    dataset = find_dataset(options.source)
    seen, _ = leak_free_fold(dataset, options.fold)
    view = view_of(dataset, seen, options.window)
    return Sources(view, seen, chosen_slices(view, seen, options.slices_per_case))


def announce(options: InitBase) -> None:
    """Say what would be done."""
    if options.size:
        logger.info("would write a %s base of random weights into %s", options.size, options.out)
        return
    device, (view, seen, slices) = pick_device(options.device), sources_of(options)
    logger.info(
        "would read %d training cases%s of fold %s of %s at %d px, train an autoencoder for %d and a "
        "UNet for %d steps of %d images on %s, and write %s",
        *(len(seen), f" ({len(slices)} 2D slices of them)" if view.is_volumetric else "", options.fold),
        *(view.dataset.name, options.image_size),
        *(options.vae_steps, options.unet_steps, options.batch_size, device, options.out),
    )


def warn_of_too_few(view: SliceView, slices: list[Slice]) -> None:
    """Say why no case is held back."""
    cases = {one.case for one in slices}
    logger.warning(
        "%d cases of %d patients are too few to hold some back: PSNR is measured on training images",
        *(len(cases), len({view.dataset.groups[case] for case in cases})),
    )


def read_images(view: SliceView, slices: list[Slice], size: int) -> np.ndarray:
    """Images as the autoencoder sees them, uint8 (N, size, size, 3). UserError: as `SliceView.read`."""
    images = np.empty((len(slices), size, size, 3), np.uint8)
    for index, one in enumerate(track(slices, "read images", transient=True)):
        images[index] = resize_image(view.read(one)[0], size)
    return images


def is_finished(out: Path, options: dict) -> bool:
    """Whether `out` holds the finished base of these options.

    UserError: it holds a base of other options, finished or not, or something else.
    """
    for record in (out / CONFIG, out / WORK / OPTIONS):
        if record.is_file():
            begun = read_json(record, BegunBase, "choose another --out or remove the folder")
            _check_same(out, begun.options, options)
            return record.name == CONFIG
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {WORK}):
        raise UserError(f"{out}: found something other than a base, expected nothing; choose another --out")
    check_writable(out)
    return False


def _check_same(out: Path, found: dict, options: dict) -> None:
    for name, value in options.items():
        if found.get(name) != value:
            raise UserError(
                f"{out}: found a base with {name} = {found.get(name)}, expected {value}; choose another "
                "--out or remove the folder"
            )


def claim(out: Path, options: dict, sources: dict | None = None) -> None:
    """Make the folder and record options and sources, so that the same command on the same cases goes on.

    UserError: what lies there was trained on other cases, of which the finished base would say nothing.
    """
    record = {"options": options, "sources": json.loads(json.dumps(as_json(sources)))}  # as it is read back
    path = out / WORK / OPTIONS
    if path.is_file() and read_json(path, dict, "remove the folder") != record:
        raise UserError(
            f"{out}: found a base begun on other training cases or intensities, expected those of now; "
            "restore the data set and its folds, or remove the folder"
        )
    (out / WORK).mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def finish(out: Path, config: BaseConfig) -> None:
    """Write base_config.json, which says that the base is complete, and drop the checkpoints."""
    write_base_config(out, config)
    shutil.rmtree(out / WORK, ignore_errors=True)
