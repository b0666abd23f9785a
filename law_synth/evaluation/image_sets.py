"""The image sets that an evaluation compares: the synthetic cases, and the real ones they came from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import Fold, fold_cases
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import hash_file
from dataset_conversion.system.json_files import as_json
from law_synth.base.options import SLICES_PER_CASE
from law_synth.judging.segmenter import Segmenter
from law_synth.records.run import RunConfig
from law_synth.records.synthetic import (
    DESCRIPTION,
    MANIFEST,
    SynthesisRecord,
    read_rows,
    read_synthesis,
    source_slice,
)
from law_synth.view.places import Geometry
from law_synth.view.resize import resize_mask
from law_synth.view.slices import Slice, SliceView, view_from, view_of

Size = tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class ImageSet:
    """Images of a raw data set, read one at a time as RGB images and masks of class numbers."""

    name: str
    """`synthetic`, `train` or `held-out`."""
    view: SliceView
    slices: tuple[Slice, ...]
    size: Size | None = None
    """Size that every image and mask is resized to, without crop; None leaves them as stored."""

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def dataset(self) -> RawDataset:
        return self.view.dataset

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.slices]

    @property
    def groups(self) -> list[str]:
        """Patient or sequence of each image; the case itself where none is known."""
        return [self.dataset.groups[one.case] for one in self.slices]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3) and mask of class numbers, uint8 (H, W)."""
        image, mask = self.view.read(self.slices[index])
        if not self._resizes(image.shape[:2]):
            return image, mask
        width_height = self.size[::-1]
        resized = Image.fromarray(image).resize(width_height, Image.Resampling.LANCZOS)
        return np.asarray(resized), resize_mask(mask, self.size)

    def mask(self, index: int, size: Size) -> np.ndarray:
        """Mask of one image at some size, without reading the image."""
        return resize_mask(self.view.read_mask(self.slices[index]), size)

    def geometry(self, index: int) -> Geometry | None:
        """Where the image that `read` gives lies in space; None for pictures."""
        geometry = self.view.geometry(self.slices[index])
        resizes = geometry is not None and self._resizes(geometry.shape)
        return geometry.resized(self.size) if resizes else geometry

    def find(self, segmenter: Segmenter, index: int, image: np.ndarray) -> np.ndarray:
        """Class numbers (H, W) that a segmenter finds in the image of `read`, or in the stored one."""
        if not self._resizes(self.view.stored_size(self.slices[index])):
            return segmenter.find_slice(self.view, self.slices[index])
        return segmenter.find(self.view, image, self.geometry(index))

    @property
    def window(self) -> str:
        """The values that are shown, in the data set's own units: `CT from -82 to 342`; empty for 8 bit."""
        if self.view.window.is_identity:
            return ""
        ranges = zip(self.dataset.channel_names, self.view.window.low, self.view.window.high, strict=True)
        return ", ".join(f"{name} from {low:.4g} to {high:.4g}" for name, low, high in ranges)

    @property
    def seen_as(self) -> list[str]:
        """How files become images, in words; empty for 8-bit pictures, which are shown as they are."""
        if not self.view.is_volumetric:
            return [self.window] * bool(self.window)
        of_volumes = Counter(one.case for one in self.slices)
        slices = (
            f"2D slices with foreground, evenly spaced, at most {max(of_volumes.values())} of a volume "
            f"({self.name}: {len(self)} of {len(of_volumes)} volumes)"
        )
        return [slices] + [self.window] * bool(self.window)

    def batches(self, batch_size: int) -> Iterator[list[np.ndarray]]:
        """All images, in order, `batch_size` at a time."""
        for start in range(0, len(self), batch_size):
            yield [self.read(index)[0] for index in range(start, min(start + batch_size, len(self)))]

    @cached_property
    def content(self) -> str:
        """sha256 over ids, size, how they are seen, and contents of all image and label files."""
        record = json.dumps(as_json(self.view.record))
        digest = hashlib.sha256(f"{self.size} {self.dataset.json['labels']} {record} {self.ids}".encode())
        for case_id in dict.fromkeys(one.case for one in self.slices):
            case = self.dataset.case(case_id)
            for path in (*case.images, case.label):
                digest.update(bytes.fromhex(hash_file(path)))
        return digest.hexdigest()

    def _resizes(self, shape: Size) -> bool:
        return self.size is not None and tuple(shape) != tuple(self.size)


@dataclass(frozen=True)
class ComparedSets:
    """The synthetic cases that are evaluated, and the real sets that they are compared with."""

    synthetic: ImageSet
    sources: tuple[Slice | None, ...]
    """The real image that owns the mask of each synthetic case; None where that is unknown."""
    references: dict[str, ImageSet]
    """`train`: the images that the model saw; `held-out`: those of the fold's validation cases, if any."""
    record: SynthesisRecord | None
    """synthesis.json; None for a folder that law-synth did not write."""

    @property
    def real(self) -> RawDataset:
        return self.references["train"].dataset

    @property
    def fold(self) -> Fold | None:
        """Fold whose training cases the synthetic ones come from; None where that is unknown."""
        return None if self.record is None else self.record.run.fold

    def groups(self, name: str) -> list[str]:
        """Patient or video of each image of a set; a synthetic image counts as one of its mask's."""
        if name != "synthetic":
            return self.references[name].groups
        owners, known = self.real.groups, zip(self.synthetic.groups, self.sources, strict=True)
        return [owners.get(source.case, source.case) if source else group for group, source in known]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(synthetic, train) indices of images that share a mask's source."""
        position = {one: index for index, one in enumerate(self.references["train"].slices)}
        return [(i, position[source]) for i, source in enumerate(self.sources) if source in position]


def read_compared_sets(synthetic: str, real: str | None) -> ComparedSets:
    """Find the data sets and their cases. UserError: no source data set, missing cases."""
    dataset = find_dataset(synthetic)
    record = read_synthesis(dataset.folder) if (dataset.folder / DESCRIPTION).is_file() else None
    run = record and record.run
    source = _source(dataset, record, real)
    kept = _kept_samples(dataset.folder)
    known = {case.id: case for case in dataset.training_cases}
    if missing := [case_id for case_id in kept or {} if case_id not in known]:
        raise UserError(
            f"{dataset.folder}: found no case {missing[0]} ({len(missing)} such), expected it because "
            "synthesis.jsonl lists it; run law-synth generate again"
        )
    ids = _reference_ids(source, run)
    view, real_view = _views(dataset, source, run, ids["train"])
    if kept is None:
        slices = view.slices(known, SLICES_PER_CASE)
    else:
        slices = [Slice(case_id, 0 if view.is_volumetric else None) for case_id in kept]
    if not slices:
        raise UserError(f"{dataset.folder}: found no synthetic case, expected some; generate them first")
    size = common_size(view, slices)
    of_sets = {name: real_view.slices(of_set, SLICES_PER_CASE) for name, of_set in ids.items()}
    if run is not None:
        of_sets["train"] = run.slices_of(ids["train"])
    references = {
        name: ImageSet(name, real_view, tuple(of_set), size) for name, of_set in of_sets.items() if of_set
    }
    sources = tuple(None if kept is None else kept[one.case] for one in slices)
    return ComparedSets(ImageSet("synthetic", view, tuple(slices)), sources, references, record)


def common_size(view: SliceView, slices: Sequence[Slice]) -> Size | None:
    """(H, W) if all images have it, else None. UserError: as `SliceView.stored_size`."""
    sizes = {view.stored_size(one) for one in slices}
    return sizes.pop() if len(sizes) == 1 else None


def _views(
    dataset: RawDataset, source: RawDataset, run: RunConfig | None, train_ids: Sequence[str]
) -> tuple[SliceView, SliceView]:
    """Synthetic and real data set as the run saw the real one, or as they are where no run is known.

    UserError: they know other classes.
    """
    if dataset.regions != source.regions and len(dataset.regions) + len(source.regions) > 2:
        raise UserError(
            f"{dataset.folder}: found labels {dataset.json['labels']}, expected those of the real data set, "
            f"{source.json['labels']}; compare data sets of one task"
        )
    if run is not None:
        return view_from(dataset, run.view), view_from(source, run.view)
    real = view_of(source, train_ids)
    if len(dataset.channel_names) == len(source.channel_names):
        return SliceView(dataset, real.window, real.axis), real
    return view_of(dataset, [case.id for case in dataset.training_cases]), real


def _source(dataset: RawDataset, record: SynthesisRecord | None, real: str | None) -> RawDataset:
    """The real data set: --real, or the one that synthesis.json names, by its folder or by its name."""
    if real is not None:
        return find_dataset(real)
    if record is None:
        raise UserError(
            f"{dataset.folder}: found no synthesis.json that names the real data set, expected --real; "
            "give --real DATASET"
        )
    named, folder = record.source_dataset.name, Path(record.source_dataset.folder)
    return find_dataset(folder if (folder / "dataset.json").is_file() else named)


def _kept_samples(folder: Path) -> dict[str, Slice | None] | None:
    """Case id -> source image of the samples that were kept; None when there is no manifest."""
    if not (folder / MANIFEST).is_file():
        return None
    return {row.case: source_slice(row) for row in read_rows(folder) if row.kept}


def _reference_ids(source: RawDataset, run: RunConfig | None) -> dict[str, list[str]]:
    every_case = [case.id for case in source.training_cases]
    if run is None:
        return {"train": every_case, "held-out": []}
    train = run.seen_cases
    if missing := sorted(set(train) - set(every_case)):
        raise UserError(
            f"{source.folder}: found no case {missing[0]} ({len(missing)} such), expected it because the "
            "model was trained on it; give --real the data set of that training"
        )
    held_out = [] if run.fold == "all" else fold_cases(source, run.fold)[1]
    return {"train": train, "held-out": sorted(set(held_out) - set(train))}
