"""The image sets that an evaluation compares: the synthetic cases, and the real ones they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_conversion.raw import Case, RawDataset, find_dataset
from dataset_conversion.user_error import UserError
from law_synth.cases import fold_cases, lesion_label, read_rgb_case, resize_mask
from law_synth.hashing import hash_file

Size = tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class ImageSet:
    """Cases of a raw data set, read one at a time as RGB images and lesion masks."""

    name: str
    """`synthetic`, `train` or `held-out`."""
    dataset: RawDataset
    cases: tuple[Case, ...]
    size: Size | None = None
    """Size that every image and mask is resized to without crop; None: as stored."""

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def ids(self) -> list[str]:
        return [case.id for case in self.cases]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3) and mask of 0 and 1, uint8 (H, W)."""
        image, mask = read_rgb_case(self.dataset, self.cases[index])
        if self.size is None or image.shape[:2] == self.size:
            return image, mask
        width_height = self.size[::-1]
        resized = Image.fromarray(image).resize(width_height, Image.Resampling.LANCZOS)
        return np.asarray(resized), resize_mask(mask, self.size)

    def mask(self, index: int, size: Size) -> np.ndarray:
        """Mask of one case at some size, without reading its image."""
        label = self.dataset.read_label(self.cases[index].label)[0]
        return resize_mask((label == lesion_label(self.dataset)).astype(np.uint8), size)

    def batches(self, batch_size: int) -> Iterator[list[np.ndarray]]:
        """All images, in order, so many at a time."""
        for start in range(0, len(self), batch_size):
            yield [self.read(index)[0] for index in range(start, min(start + batch_size, len(self)))]

    @cached_property
    def content(self) -> str:
        """sha256 over ids, size, and contents of all image and label files."""
        digest = hashlib.sha256(f"{self.size} {self.dataset.json['labels']}".encode())
        for case in self.cases:
            digest.update(case.id.encode())
            for path in (*case.images, case.label):
                digest.update(bytes.fromhex(hash_file(path)))
        return digest.hexdigest()


@dataclass(frozen=True)
class Subject:
    """What is evaluated: synthetic cases, and the real sets that they are compared with."""

    synthetic: ImageSet
    sources: tuple[str | None, ...]
    """Per synthetic case, the real case that owns its mask; None where that is unknown."""
    references: dict[str, ImageSet]
    """`train`: the cases that the model saw; `held-out`: the fold's validation cases, where there are any."""
    record: dict
    """synthesis.json; empty for a folder that law-synth did not write."""

    @property
    def real(self) -> RawDataset:
        return self.references["train"].dataset

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(synthetic, train) indices of images that share a mask's source."""
        position = {case_id: index for index, case_id in enumerate(self.references["train"].ids)}
        return [(i, position[source]) for i, source in enumerate(self.sources) if source in position]


def read_subject(synthetic: str, real: str | None) -> Subject:
    """Find the data sets and who belongs where. UserError: no source data set, cases missing, no cases."""
    dataset = find_dataset(synthetic)
    record = _read_json(dataset.folder / "synthesis.json")
    source = _source(dataset, record, real)
    kept = _kept_samples(dataset.folder / "synthesis.jsonl")
    known = {case.id: case for case in dataset.training_cases}
    if missing := [case_id for case_id in kept or {} if case_id not in known]:
        raise UserError(
            f"{dataset.folder}: found no case {missing[0]} ({len(missing)} such), expected it because "
            "synthesis.jsonl lists it; run law-synth generate again"
        )
    cases = tuple(known.values()) if kept is None else tuple(known[case_id] for case_id in kept)
    if not cases:
        raise UserError(f"{dataset.folder}: found no synthetic case, expected some; generate them first")
    size = common_size(cases)
    references = {
        name: ImageSet(name, source, _cases(source, ids), size)
        for name, ids in _reference_ids(source, record.get("run") or {}).items()
        if ids
    }
    sources = tuple(None if kept is None else kept[case.id] for case in cases)
    return Subject(ImageSet("synthetic", dataset, cases), sources, references, record)


def common_size(cases: Sequence[Case]) -> Size | None:
    """(H, W) if all images have it, else None. UserError: as `image_size`."""
    sizes = set(map(image_size, cases))
    return sizes.pop() if len(sizes) == 1 else None


def image_size(case: Case) -> Size:
    """(H, W) of a 2D image, from its header. UserError: unreadable."""
    try:
        with Image.open(case.images[0]) as image:
            return image.size[::-1]
    except OSError as error:
        raise UserError(
            f"{case.images[0]}: cannot be read ({error}), expected an intact image; replace it"
        ) from error


def _source(dataset: RawDataset, record: dict, real: str | None) -> RawDataset:
    """The real data set: `--real`, else the one that synthesis.json names, by folder or else by name."""
    if real is not None:
        return find_dataset(real)
    named = record.get("source_dataset")
    if named is None:
        raise UserError(
            f"{dataset.folder}: found no synthesis.json that names the real data set, expected --real; "
            "give --real DATASET"
        )
    folder = Path(named["folder"])
    return find_dataset(folder if (folder / "dataset.json").is_file() else named["name"])


def _kept_samples(path: Path) -> dict[str, str | None] | None:
    """Case id -> source case of the samples that were kept; None when there is no manifest."""
    if not path.is_file():
        return None
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {line["case"]: line.get("source_case") for line in lines if line["kept"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: malformed ({error}), expected a line of JSON with case and kept for each sample; "
            "run law-synth generate again"
        ) from error


def _reference_ids(source: RawDataset, run: dict) -> dict[str, list[str]]:
    every_case = [case.id for case in source.training_cases]
    if "train_cases" not in run:
        return {"train": every_case, "held-out": []}
    train = sorted({*run["train_cases"], *run.get("monitor_cases", [])})
    if missing := sorted(set(train) - set(every_case)):
        raise UserError(
            f"{source.folder}: found no case {missing[0]} ({len(missing)} such), expected it because the "
            "model was trained on it; give --real the data set of that training"
        )
    held_out = [] if run["fold"] == "all" else fold_cases(source, run["fold"])[1]
    return {"train": train, "held-out": sorted(set(held_out) - set(train))}


def _cases(dataset: RawDataset, ids: Sequence[str]) -> tuple[Case, ...]:
    return tuple(map(dataset.case, ids))


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: malformed ({error}), expected JSON; run law-synth generate again"
        ) from error
