"""`law-synth init-base`: a small base model without a download, random or trained on a data set."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from dataset_conversion.raw.description import load_json
from dataset_conversion.raw.folds import Fold
from dataset_conversion.raw.writer import write_json
from dataset_conversion.system.errors import UserError, check_writable, writing
from dataset_conversion.system.json_files import as_json, read_json
from dataset_conversion.system.lock import hold
from dataset_conversion.system.requirements import package_versions, require
from dataset_conversion.system.seeds import check_seed
from dataset_conversion.volumes import check_window, evenly_spaced
from law_synth.base.losses import Flips
from law_synth.base.seen import SLICES_PER_CASE, chosen_slices
from law_synth.records.base import CONFIG, FORMAT, BaseConfig, BegunBase, write_base_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from law_synth.view.slices import Slice, SliceView

logger = logging.getLogger(__name__)

WORK = ".training"  # inside --out until the base is finished: options and checkpoints
OPTIONS = "options.json"
PACKAGES = ("law-order", "torch", "diffusers", "transformers")  # they decide what the weights are
HELD_BACK = 16  # training cases are enough to judge the autoencoder, and so many images at most
NUMBERS = ("slices_per_case", "unet_layers", "vae_steps", "unet_steps", "batch_size", "checkpoint_every")
# Options that --size tiny has, too; options that may change when a training goes on.
COMMON = ("out", "size", "seed", "vae_factor", "prediction_type", "dry_run")
NOT_THE_RESULT = ("out", "device", "checkpoint_every", "dry_run")


@dataclass(frozen=True)
class InitBase:
    """Make a small base model in diffusers layout: of random weights for tests, or trained on a data set.

    `--size tiny` takes seconds. `--from DATASET` trains an autoencoder and then a UNet on the images of one
    fold's training cases, about 10 minutes of one CPU core by default; the same command goes on after a kill.
    The result holds samples.png (held back, reconstructed, sampled) and base_config.json (what it saw).
    """

    out: Path
    """Folder of the base model."""
    size: Literal["tiny"] | None = None
    """Random weights of this size instead of --from."""
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Data set to train on: id (500), name (Dataset500_Polyps) or folder."""
    fold: Fold = 0
    """Train on the training cases of this fold only, so that its validation images stay unseen; or all."""
    slices_per_case: int = SLICES_PER_CASE
    """Of a volume: evenly spaced slices with lesions, at most so many."""
    window: tuple[float, float] | None = None
    """Values shown as black and white; by default 0 255 for 8-bit files, the 0.5 and 99.5 percentile of CT's
    foreground and of other images' pixels, plus a tenth. Trainings on the base take it over."""
    image_size: int = 64
    """Side of the training images in pixels, a multiple of 4 x the VAE factor."""
    vae_factor: Literal[4, 8] = 4
    """Pixels per latent cell along a side."""
    vae_width: int = 16
    """Channels of the autoencoder at full resolution, a multiple of 8."""
    unet_width: int = 48
    """Channels of the UNet's first level, a multiple of 16; the next two have 2 and 3 times as many."""
    unet_layers: int = 1
    """Residual blocks per level of the UNet; Stable Diffusion has 2."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the UNet predicts."""
    vae_steps: int = 400
    """Training steps of the autoencoder."""
    unet_steps: int = 900
    """Training steps of the UNet."""
    batch_size: int = 16
    """Images per step."""
    learning_rate: float = 8e-4
    """Highest learning rate of the UNet; the autoencoder's is 2.5 times as high."""
    flips: Flips = "both"
    """Mirrored images count as images; choose horizontal or none where up and down or sides matter."""
    checkpoint_every: int = 100
    """Steps between checkpoints; a kill loses at most that many."""
    seed: int = 0
    """Of weights, noise and order."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    dry_run: bool = False
    """Check the options, say what would be read and trained, and stop."""

    def run(self) -> None:
        """Make the base. UserError: options that contradict each other, an `out` with other content."""
        self._check()
        require("synth", "diffusers", "transformers")
        options = json.loads(json.dumps(self._options()))  # as they are read back
        if is_finished(self.out, options):
            logger.info("%s is finished already; nothing to do", self.out)
            return
        if self.dry_run:
            self._announce()
            return
        began = time.perf_counter()
        with writing(self.out):
            results = self._write_tiny(options) if self.size else self._train(options)
            versions = package_versions(*PACKAGES)
            finish(self.out, BaseConfig(format=FORMAT, options=options, **results, versions=versions))
        seconds = time.perf_counter() - began
        logger.info("wrote %s in %.0f s; use it with --base %s", self.out, seconds, self.out)

    def _options(self) -> dict:
        return {name: value for name, value in asdict(self).items() if name not in NOT_THE_RESULT}

    def _check(self) -> None:
        if (self.size is None) == (self.source is None):
            found = "neither --size nor --from" if self.size is None else "both --size and --from"
            raise UserError(f"found {found}, expected one of them; give --size tiny or --from DATASET")
        if self.size:
            given = [
                option.name.replace("_", "-")
                for option in fields(self)
                if option.name not in COMMON and getattr(self, option.name) != option.default
            ]
            if given:
                raise UserError(f"found --{given[0]} with --size, expected it with --from only; drop it")
        multiple = 4 * self.vae_factor
        if self.image_size < multiple or self.image_size % multiple:
            raise UserError(
                f"found --image-size {self.image_size}, expected a multiple of {multiple} (4 x --vae-factor)"
            )
        for name, step in (("vae_width", 8), ("unet_width", 16)):
            if (value := getattr(self, name)) < step or value % step:
                option = name.replace("_", "-")
                raise UserError(f"found --{option} {value}, expected a multiple of {step}")
        for name in NUMBERS:
            if (value := getattr(self, name)) < 1:
                raise UserError(f"found --{name.replace('_', '-')} {value}, expected 1 or more")
        check_window(self.window)
        check_seed(self.seed)
        if not 0 < self.learning_rate < 1:
            raise UserError(f"found --learning-rate {self.learning_rate}, expected a number between 0 and 1")

    def _write_tiny(self, options: dict) -> dict:
        from law_synth.base.tiny import TINY_SIZE, write_tiny_base

        claim(self.out, options)
        write_tiny_base(self.out, self.vae_factor, self.seed, self.prediction_type)
        return {"image_size": TINY_SIZE}

    def _train(self, options: dict) -> dict:
        from law_synth.base.train_base import train_base

        device, view, seen, slices = self._sources()
        if view.is_volumetric:
            logger.info("%s holds volumes: training on %d of their 2D slices", self.source, len(slices))
        images = read_images(view, slices, self.image_size)
        cases = list(dict.fromkeys(one.case for one in slices))
        judged = cases_to_hold_back(cases, view.dataset.groups, self.seed)
        held_back = [index for case in judged for index, one in enumerate(slices) if one.case == case]
        kept = np.setdiff1d(np.arange(len(slices)), held_back)
        if not held_back:
            logger.warning(
                "%d cases of %d patients are too few to hold some back: PSNR is of training images",
                *(len(cases), len({view.dataset.groups[case] for case in cases})),
            )
        shown = evenly_spaced(held_back or kept[:HELD_BACK].tolist(), HELD_BACK)
        # Only now: whatever is wrong with the data leaves nothing behind.
        lock = hold(self.out / WORK / "lock", self.out)
        sources = {"train_cases": seen, "dataset_origin": view.dataset.origin, "view": view.record}
        try:
            claim(self.out, options, sources)
            results = train_base(self, self.out / WORK, device, images[kept], images[shown])
        finally:
            lock.release()
        return {
            "dataset": view.dataset.name,
            "dataset_folder": str(view.dataset.folder.resolve()),
            "fold": self.fold,
            "image_size": self.image_size,
            "guidance_scale": 1.0,  # it ignores prompts: there is nothing to guide
            "held_back_cases": sorted(judged),
            **sources,
            **results,
        }

    def _sources(self) -> tuple[torch.device, SliceView, list[str], list[Slice]]:
        """Device, view of the data set, cases and slices to train on."""
        from dataset_conversion.raw.dataset import find_dataset
        from dataset_conversion.raw.folds import leak_free_fold
        from law_synth.devices import pick_device
        from law_synth.view.slices import view_of

        device, dataset = pick_device(self.device), find_dataset(self.source)
        seen, _ = leak_free_fold(dataset, self.fold)
        view = view_of(dataset, seen, self.window)
        return device, view, seen, chosen_slices(view, seen, self.slices_per_case)

    def _announce(self) -> None:
        if self.size:
            logger.info("would write a %s base of random weights into %s", self.size, self.out)
            return
        device, view, seen, slices = self._sources()
        logger.info(
            "would read %d training cases%s of fold %s of %s at %d px, train an autoencoder for %d and a "
            "UNet for %d steps of %d images on %s, and write %s",
            *(len(seen), f" ({len(slices)} 2D slices of them)" if view.is_volumetric else "", self.fold),
            *(view.dataset.name, self.image_size),
            *(self.vae_steps, self.unet_steps, self.batch_size, device, self.out),
        )


def cases_to_hold_back(cases: list[str], groups: Mapping[str, str], seed: int) -> list[str]:
    """At most a fifth of the cases, whole patients or videos, random ones until there are HELD_BACK cases.

    groups: patient or video of each case. None are held back where every patient has more than a fifth.
    """
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(groups[case], []).append(case)
    patients, held_back = list(members.values()), []
    for index in np.random.default_rng(seed).permutation(len(patients)):
        if len(held_back) < HELD_BACK and len(held_back) + len(patients[index]) <= len(cases) // 5:
            held_back += patients[index]
    return held_back


def read_images(view: SliceView, slices: list[Slice], size: int) -> np.ndarray:
    """Images as the autoencoder sees them, uint8 (N, size, size, 3). UserError: as `SliceView.read`."""
    from rich.progress import track

    from law_synth.view.resize import resize_image

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
    if path.is_file() and load_json(path) != record:
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
