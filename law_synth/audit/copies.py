"""Is any synthetic image or mask a copy of a held-out one? By pixels, thumbnails and network features.

An image that is as similar to a training case as to a held-out one counts as explained by the training case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.progress import track

from dataset_conversion.system.errors import UserError
from law_synth.audit.audited_data import AuditedData
from law_synth.audit.finding import Finding, NotPossible, leak
from law_synth.audit.options import Audit
from law_synth.judging.feature_cache import cached
from law_synth.judging.features import (
    Extractor,
    efficientnet_extractor,
    extract,
    most_alike,
    thumbnails,
    unit_norm,
    with_mirrored,
)
from law_synth.view.mask_sources import mask_hash
from law_synth.view.resize import resize_image, resize_mask
from law_synth.view.slices import Slice, SliceView
from nnunet_order.devices import pick_device

ROUNDING = 1e-6  # of similarities


def check_masks(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """No label equals a held-out mask, mirrored or not, unless it also equals that of a training case.

    Masks are compared at model size, those of volumes in all slices with foreground. A mask of a single class
    is left out, as many cases may share it.
    """
    labelled = [case_id for case_id, case in audited.held_out.items() if case.label is not None]
    held_out = _known_masks(audited, "held-out", labelled)
    known = _known_masks(audited, "training", audited.split[0])
    findings = []
    for case_id in audited.kept:
        try:
            mask = resize_mask(audited.view.read_mask(audited.sample(case_id)), audited.run.size)
        except UserError:  # check_labels says so
            continue
        copied = held_out.get(mask_hash(mask))
        if copied is not None and mask_hash(mask) not in known:
            what = f"its label is the mask of {copied.id}"
            findings.append(leak(case_id, what, f"{copied.case} is held out in fold {audited.run.fold}"))
    slices = f" of {len(set(held_out.values()))} slices" * audited.view.is_volumetric
    looked_at = f"{len(audited.kept)} labels against {len(labelled)} held-out masks{slices}, mirrored too"
    return findings, looked_at


def _known_masks(audited: AuditedData, name: str, case_ids: Sequence[str]) -> dict[str, Slice]:
    """Key of `_mask_keys` -> whose mask it is."""
    masks, view = {}, audited.real_view
    for case_id in track(case_ids, f"reading {name} masks", transient=True):
        for slice_ in view.slices([case_id]):
            masks |= dict.fromkeys(_mask_keys(view.read_mask(slice_), audited.run.size), slice_)
    return masks


@dataclass(frozen=True)
class DescribedImages:
    """What is compared of a set of N images."""

    name: str
    """`synthetic`, `held-out` or `training`."""
    view: SliceView
    slices: list[Slice]
    pixels: list[list[str]]
    """sha256 of each image as stored, then of a synthetic one mirrored, or of a real one at model size."""
    thumbnails: np.ndarray
    """(4, N, 3072) of synthetic images, mirrored; (1, N, 3072) of real ones."""

    def __len__(self) -> int:
        return len(self.slices)

    def id(self, index: int) -> str:
        one = self.slices[index]
        return one.case if self.name == "synthetic" else one.id


class Likeness:
    """The three comparisons of images; they share what they read."""

    def __init__(self, audited: AuditedData, options: Audit):
        self.audited, self.options = audited, options
        self.no_features = ""

    def check_pixels(self) -> tuple[list[Finding], str]:
        """No synthetic image has the pixels of a held-out one, as stored or as the model would see it."""
        known = set().union(*self._training.pixels)
        held_out = {
            key: index for index, keys in enumerate(self._held_out.pixels) for key in set(keys) - known
        }
        copies = [
            (index, held_out[key])
            for index, keys in enumerate(self._synthetic.pixels)
            for key in set(keys) & held_out.keys()
        ]
        return [
            self._finding(index, "image has the pixels", copy) for index, copy in copies
        ], self._looked_at()

    def check_thumbnails(self) -> tuple[list[Finding], str]:
        """Correlation of thumbnails."""
        return self._alike(lambda of_set: of_set.thumbnails, "thumbnail correlates {:.3f} with that")

    def check_features(self) -> tuple[list[Finding], str]:
        """Cosine of EfficientNet-Lite0 features. NotPossible: the extra metrics is not installed."""
        if self._extractor is None:
            raise NotPossible(self.no_features)
        words = self._extractor.name + " features have a cosine of {:.3f} with those"
        return self._alike(self._features, words)

    def _alike(
        self, vectors_of: Callable[[DescribedImages], np.ndarray], words: str
    ) -> tuple[list[Finding], str]:
        """Copies by the dot product of vectors (V, N, D) of V versions of each image."""
        if not len(self._held_out) or not len(self._synthetic):
            return [], self._looked_at()
        queries = vectors_of(self._synthetic)
        index, similarity = most_alike(queries, vectors_of(self._held_out))
        explained = np.full(len(similarity), -1.0)
        if len(self._training):
            explained = most_alike(queries, vectors_of(self._training))[1] + ROUNDING
        above = similarity > self.options.max_similarity
        findings = [
            self._finding(i, words.format(similarity[i]), index[i])
            for i in np.flatnonzero(above & (similarity > explained))
        ]
        rest = int(above.sum()) - len(findings)
        note = f"; {rest} more like a training image" if rest else ""
        return findings, f"{self._looked_at()}; highest {similarity.max():.3f}{note}"

    def _finding(self, index: int, what: str, held_out: int) -> Finding:
        copy = self._held_out.id(held_out)
        meaning = f"{copy} is held out in fold {self.audited.run.fold}"
        return leak(self._synthetic.id(index), f"its {what} of {copy}", meaning)

    def _looked_at(self) -> str:
        return f"{len(self._synthetic)} images against {len(self._held_out)} held-out ones, mirrored too"

    @cached_property
    def _extractor(self) -> Extractor | None:
        try:
            return efficientnet_extractor(str(pick_device(self.options.device)), self.options.batch_size)
        except UserError as error:
            self.no_features = f"{error}"
            return None

    @cached_property
    def _synthetic(self) -> DescribedImages:
        slices = map(self.audited.sample, self.audited.kept)
        readable = [one for one in slices if _is_readable(self.audited.view, one)]
        return self._describe("synthetic", self.audited.view, readable)

    @cached_property
    def _held_out(self) -> DescribedImages:
        view = self.audited.real_view
        return self._describe("held-out", view, view.slices(self.audited.held_out))

    @cached_property
    def _training(self) -> DescribedImages:
        view = self.audited.real_view
        return self._describe("training", view, view.slices(self.audited.split[0]))

    def _describe(self, name: str, view: SliceView, slices: Sequence[Slice]) -> DescribedImages:
        pixels, small = [], []
        for one in track(slices, f"reading {name} images", transient=True):
            image = view.read_rgb(one)
            versions = with_mirrored(image) if name == "synthetic" else [image]
            seen = versions if name == "synthetic" else [image, resize_image(image, self.audited.run.size)]
            pixels.append(list(map(mask_hash, seen)))
            small.append(thumbnails(versions))
        vectors = np.stack(small, axis=1) if small else np.empty((1, 0, 0))
        return DescribedImages(name, view, list(slices), pixels, vectors)

    def _features(self, images: DescribedImages) -> np.ndarray:
        """(1, N, 1280) of synthetic images; (4, N, 1280) of real ones, mirrored and kept for the next run."""
        extractor, step = self._extractor, self.options.batch_size
        mirror = images.name != "synthetic"

        def compute() -> np.ndarray:
            starts = range(0, len(images), step)
            batches = (
                list(map(images.view.read_rgb, images.slices[start : start + step]))
                for start in track(starts, f"comparing {images.name} images", transient=True)
            )
            return unit_norm(extract(extractor, batches, mirror))

        if not mirror:
            return compute()
        stored = " ".join(keys[0] for keys in images.pixels)
        return cached(hashlib.sha256(f"{extractor.key} mirrored {stored}".encode()).hexdigest(), compute)


def _mask_keys(mask: np.ndarray, size: int) -> set[str]:
    """sha256 of a mask at model size, mirrored before or after resizing; none if it has a single class."""
    small = resize_mask(mask, size)
    if np.ptp(small) == 0:
        return set()
    versions = [
        *with_mirrored(small),
        *(resize_mask(np.ascontiguousarray(m), size) for m in with_mirrored(mask)),
    ]
    return {mask_hash(version) for version in versions}


def _is_readable(view: SliceView, slice_: Slice) -> bool:
    """Whether a synthetic image can be read; check_images reports those that cannot."""
    try:
        view.read_rgb(slice_)
    except UserError:
        return False
    return True
