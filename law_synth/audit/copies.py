"""Is any synthetic image or mask a copy of a held-out one? By pixels, thumbnails and network features.

What is as much like a training case as like a held-out one is explained by the training case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track

from dataset_conversion.user_error import UserError
from law_synth.audit.finding import Finding, NotPossible, leak
from law_synth.evaluation.features import (
    Extractor,
    efficientnet_extractor,
    nearest,
    thumbnails,
    unit_norm,
    with_mirrored,
)
from law_synth.generation.masks import mask_hash
from law_synth.resize import resize_image, resize_mask
from law_synth.slices import Slice, SliceView

if TYPE_CHECKING:
    from law_synth.audit.audit import Audit
    from law_synth.audit.subject import Subject

ROUNDING = 1e-6  # of similarities


def check_masks(subject: Subject, options: Audit) -> tuple[list[Finding], str]:
    """No label equals a held-out mask, mirrored or not, unless it equals a training case's, too.

    Compared at model size; of volumes, all slices with foreground. Masks of one class only say nothing.
    """
    labelled = [case_id for case_id, case in subject.held_out.items() if case.label is not None]
    held_out = _known_masks(subject, "held-out", labelled)
    known = _known_masks(subject, "training", subject.split[0])
    findings = []
    for case_id in subject.kept:
        try:
            mask = resize_mask(subject.view.read_mask(subject.sample(case_id)), subject.run["size"])
        except UserError:  # check_labels says so
            continue
        copied = held_out.get(mask_hash(mask))
        if copied is not None and mask_hash(mask) not in known:
            what = f"its label is the mask of {copied.id}"
            findings.append(leak(case_id, what, f"{copied.case} is held out in fold {subject.run['fold']}"))
    slices = f" of {len(set(held_out.values()))} slices" * subject.view.is_volumetric
    looked_at = f"{len(subject.kept)} labels against {len(labelled)} held-out masks{slices}, mirrored too"
    return findings, looked_at


def _known_masks(subject: Subject, name: str, case_ids: Sequence[str]) -> dict[str, Slice]:
    """Key of `_mask_keys` -> whose mask it is."""
    masks, view = {}, subject.real_view
    for case_id in track(case_ids, f"reading {name} masks", transient=True):
        for slice_ in view.slices([case_id]):
            masks |= dict.fromkeys(_mask_keys(view.read_mask(slice_), subject.run["size"]), slice_)
    return masks


@dataclass(frozen=True)
class Description:
    """What is compared of a set of images; V versions of each, mirrored or not."""

    ids: list[str]
    pixels: list[set[str]]
    """sha256 of each version."""
    thumbnails: np.ndarray  # (N, V, 3072)
    features: np.ndarray  # (N, V, 1280)


class Likeness:
    """The three comparisons of images; they share what they read."""

    def __init__(self, subject: Subject, options: Audit):
        self.subject, self.options = subject, options
        self.no_features = ""

    def check_pixels(self) -> tuple[list[Finding], str]:
        """No synthetic image has the pixels of a held-out one, as stored or as the model would see it."""
        known = set().union(*self._training.pixels)
        held_out = {
            key: case_id
            for case_id, keys in zip(self._held_out.ids, self._held_out.pixels, strict=True)
            for key in keys - known
        }
        synthetic = zip(self._synthetic.ids, self._synthetic.pixels, strict=True)
        copies = [(case_id, held_out[key]) for case_id, keys in synthetic for key in keys & held_out.keys()]
        return [
            self._finding(case_id, "image has the pixels", copy) for case_id, copy in copies
        ], self._looked_at()

    def check_thumbnails(self) -> tuple[list[Finding], str]:
        """Correlation of thumbnails."""
        return self._alike("thumbnails", "thumbnail correlates {:.3f} with that")

    def check_features(self) -> tuple[list[Finding], str]:
        """Cosine of EfficientNet-Lite0 features. NotPossible: the extra metrics is not installed."""
        extractor = self._extractor
        if extractor is None:
            raise NotPossible(self.no_features)
        return self._alike("features", extractor.name + " features have a cosine of {:.3f} with those")

    def _alike(self, kind: str, words: str) -> tuple[list[Finding], str]:
        queries, held_out = getattr(self._synthetic, kind), self._held_out
        if not held_out.ids:
            return [], self._looked_at()
        index, similarity = _most_alike(queries, getattr(held_out, kind)[:, 0])
        explained = np.full(len(similarity), -1.0)
        if self._training.ids:
            explained = _most_alike(queries, getattr(self._training, kind)[:, 0])[1] + ROUNDING
        above = similarity > self.options.max_similarity
        findings = [
            self._finding(self._synthetic.ids[i], words.format(similarity[i]), held_out.ids[index[i]])
            for i in np.flatnonzero(above & (similarity > explained))
        ]
        rest = int(above.sum()) - len(findings)
        note = f"; {rest} more like a training image" if rest else ""
        return findings, f"{self._looked_at()}; highest {similarity.max():.3f}{note}"

    def _finding(self, case_id: str, what: str, copy: str) -> Finding:
        meaning = f"{copy} is held out in fold {self.subject.run['fold']}"
        return leak(case_id, f"its {what} of {copy}", meaning)

    def _looked_at(self) -> str:
        held_out = len(self._held_out.ids)
        return f"{len(self._synthetic.ids)} images against {held_out} held-out ones, mirrored too"

    @cached_property
    def _extractor(self) -> Extractor | None:
        from law_synth.devices import pick_device

        try:
            return efficientnet_extractor(str(pick_device(self.options.device)), self.options.batch_size)
        except UserError as error:
            self.no_features = f"{error}"
            return None

    @cached_property
    def _synthetic(self) -> Description:
        slices = map(self.subject.sample, self.subject.kept)
        readable = [one for one in slices if _is_readable(self.subject.view, one)]
        return self._describe("synthetic", self.subject.view, readable)

    @cached_property
    def _held_out(self) -> Description:
        view = self.subject.real_view
        return self._describe("held-out", view, view.slices(self.subject.held_out))

    @cached_property
    def _training(self) -> Description:
        view = self.subject.real_view
        return self._describe("training", view, view.slices(self.subject.split[0]))

    def _describe(self, name: str, view: SliceView, slices: Sequence[Slice]) -> Description:
        """Describe images: synthetic ones mirrored, real ones also at the size that the model saw."""
        step, synthetic = self.options.batch_size, name == "synthetic"
        ids, pixels, parts = [one.case if synthetic else one.id for one in slices], [], []
        starts = range(0, len(slices), step)
        for start in track(starts, f"comparing {name} images", transient=True):
            images = [view.read_rgb(one) for one in slices[start : start + step]]
            versions = [
                list(map(np.ascontiguousarray, with_mirrored(i))) if synthetic else [i] for i in images
            ]
            if synthetic:
                seen = versions
            else:
                seen = [[image, resize_image(image, self.subject.run["size"])] for image in images]
            pixels += [set(map(mask_hash, of_image)) for of_image in seen]
            flat = [version for of_image in versions for version in of_image]
            vectors = (thumbnails(flat), self._features(flat))
            parts.append([array.reshape(len(images), -1, array.shape[1]) for array in vectors])
        if not ids:
            return Description([], [], np.empty((0, 1, 0)), np.empty((0, 1, 0)))
        return Description(ids, pixels, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _features(self, images: list[np.ndarray]) -> np.ndarray:
        """(N, 1280) of norm 1; (N, 1) of zeros without an extractor."""
        if self._extractor is None:
            return np.zeros((len(images), 1), np.float32)
        return unit_norm(self._extractor.compute(images))


def _most_alike(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and similarity (N,) of the reference (M, D) most like any version of each query (N, V, D)."""
    found = [nearest(queries[:, version], references) for version in range(queries.shape[1])]
    indices, similarities = (np.stack(values) for values in zip(*found, strict=True))  # both (V, N)
    best, columns = similarities.argmax(axis=0), np.arange(indices.shape[1])
    return indices[best, columns], similarities[best, columns]


def _mask_keys(mask: np.ndarray, size: int) -> set[str]:
    """sha256 of a mask at model size, mirrored before or after; none for one of one class only."""
    small = resize_mask(mask, size)
    if np.ptp(small) == 0:
        return set()
    versions = [
        *with_mirrored(small),
        *(resize_mask(np.ascontiguousarray(m), size) for m in with_mirrored(mask)),
    ]
    return {mask_hash(version) for version in versions}


def _is_readable(view: SliceView, slice_: Slice) -> bool:
    """Whether a synthetic image can be read; check_images says where not."""
    try:
        view.read_rgb(slice_)
    except UserError:
        return False
    return True
