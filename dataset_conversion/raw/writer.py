"""Write nnU-Net raw folders: complete and checked, or not at all."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_conversion.raw.case_lists import write_groups, write_test_sets
from dataset_conversion.raw.dataset import nnunet_folder
from dataset_conversion.raw.description import (
    DESCRIPTION,
    check_label_values,
    check_labels,
    description_bytes,
    label_values,
)
from dataset_conversion.raw.folds import Split, refuse_other_splits, write_splits
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import write_atomically
from dataset_conversion.system.folders import new_folder
from dataset_conversion.system.names import check_case_id, match_key

logger = logging.getLogger(__name__)

RGB = ("R", "G", "B")


class RawDatasetWriter:
    """Write one raw data set; use as a context manager, add cases from any thread.

    Everything goes into `.<name>.partial` beside `out` and takes its final name when the block ends well;
    after an error or kill -9 nothing lies under that name. UserError: see the methods, and `check_out`.
    """

    def __init__(
        self,
        out: Path,
        channel_names: Sequence[str],
        labels: Mapping[str, int | list[int]],
        regions_class_order: list[int] | None = None,
        file_ending: str = ".png",
        unfinished: Callable[[Path], AbstractContextManager[Path]] = new_folder,
        sign: Callable[[Path], None] | None = None,
        max_side: int | None = None,
        **about: str,
    ):
        """`unfinished`: makes `.<name>.partial`; that of `resumable_folder` outlives a kill.

        `sign`: called with that folder once its files are complete, see `finished.Conversion`.

        `max_side`: to which the images have been shrunk; dataset.json records it, because images that a model
        of them is to segment must be shrunk alike.

        `about`: further text fields of dataset.json (description, reference, license, ...).
        """
        self.out = Path(out).resolve()
        self.channel_names, self.labels = list(channel_names), dict(labels)
        self.regions_class_order, self.file_ending = regions_class_order, file_ending
        self.about = about if max_side is None else {"max_side": max_side, **about}
        check_out(self.out)
        check_labels(self.labels, regions_class_order, self.out)
        self._block, self._sign = unfinished(self.out), sign
        self._lock = threading.Lock()
        self._training: set[str] = set()
        self._ids: set[str] = set()  # as `match_key`: file names may not differ by letter case alone
        self._test_sets: dict[str, list[str]] = defaultdict(list)
        self._splits: list[Split] = []
        self._groups: dict[str, str] = {}
        self._has_foreground = False

    def __enter__(self) -> RawDatasetWriter:
        self.folder = self._block.__enter__()
        for name in ("imagesTr", "labelsTr"):
            (self.folder / name).mkdir(exist_ok=True)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._block)
            if error is not None:
                raise error
            self._finish()
            if self._splits:
                write_splits(self.out, self._splits, self.folder)
            if self._sign is not None:
                self._sign(self.folder)
        n_training = len(self._training)
        logger.info("wrote %s: %d training, %d test cases", self.out, n_training, len(self._ids) - n_training)

    def add_training_case(self, case_id: str, image: np.ndarray, label: np.ndarray) -> None:
        """Write image (H, W) or (H, W, C) and label (H, W). UserError: id, size, values, NaN/Inf."""
        self._claim(case_id)
        self._write_image("Tr", case_id, image)
        self._write_label("Tr", case_id, label, image)
        with self._lock:
            self._training.add(case_id)
            self._has_foreground |= bool(np.isin(label, (0, self.labels.get("ignore", 0)), invert=True).any())

    def add_test_case(
        self, case_id: str, image: np.ndarray, label: np.ndarray | None = None, test_set: str | None = None
    ) -> None:
        """Write a case into imagesTs and, with a label, labelsTs; `test_set` groups it in test_sets.json."""
        self._claim(case_id)
        self._write_image("Ts", case_id, image)
        if label is not None:
            self._write_label("Ts", case_id, label, image)
        if test_set is not None:
            with self._lock:
                self._test_sets[test_set].append(case_id)

    def add_written_case(self, case_id: str, is_training: bool, has_foreground: bool) -> None:
        """Count in a case whose checked files are already at `image_path` and `label_path`."""
        self._claim(case_id)
        with self._lock:
            self._training |= {case_id} if is_training else set()
            self._has_foreground |= is_training and has_foreground

    def image_path(self, part: str, case_id: str, channel: int = 0) -> Path:
        """Where the file of a channel belongs; part is Tr or Ts. The folder is made."""
        return self._path(f"images{part}", f"{case_id}_{channel:04d}")

    def label_path(self, part: str, case_id: str) -> Path:
        """Where the label file belongs; part is Tr or Ts. The folder is made."""
        return self._path(f"labels{part}", case_id)

    def set_splits(self, splits: list[Split]) -> None:
        """Give the folds of splits_final.json. UserError when nnU-Net's own folder holds a different file."""
        refuse_other_splits(self.out, splits)
        self._splits = splits

    def set_groups(self, groups: Mapping[str, str]) -> None:
        """Give groups.json: case id -> patient or sequence; a case that is not named is its own group."""
        self._groups = dict(groups)

    def _claim(self, case_id: str) -> None:
        check_case_id(case_id, self.out)
        if not re.fullmatch(r"[\w.+-]+", case_id):
            raise UserError(
                f'found case id "{case_id}", expected letters, digits and _ . + -; rename the file'
            )
        with self._lock:
            if match_key(case_id) in self._ids:
                raise UserError(
                    f"found case id {case_id} twice (letter case does not count), expected unique ids; "
                    "rename or remove one of the two"
                )
            self._ids.add(match_key(case_id))

    def _write_image(self, part: str, case_id: str, image: np.ndarray) -> None:
        channels = 1 if image.ndim == 2 else image.shape[2]
        if channels != len(self.channel_names):
            raise UserError(
                f"case {case_id}: found {channels} channels, expected {self.channel_names}; convert the image"
            )
        if not np.isfinite(image).all():
            raise UserError(
                f"case {case_id}: found NaN or Inf in the image, expected finite values; replace them"
            )
        allowed = ("uint8", "uint16", "float32") if self.file_ending == ".tif" else ("uint8", "uint16")
        if image.dtype.name not in allowed:
            raise UserError(
                f"case {case_id}: found {image.dtype} pixels, expected {' or '.join(allowed)}; convert"
            )
        colour = channels == 3 and image.dtype == np.uint8  # Pillow has no 16-bit or float RGB
        files = [image] if image.ndim == 2 or colour else list(np.moveaxis(image, 2, 0))
        for channel, pixels in enumerate(files):
            self._save(self.image_path(part, case_id, channel), pixels)

    def _write_label(self, part: str, case_id: str, label: np.ndarray, image: np.ndarray) -> None:
        if label.shape != image.shape[:2]:
            raise UserError(
                f"case {case_id}: found a {label.shape[1]} x {label.shape[0]} mask on a {image.shape[1]} x "
                f"{image.shape[0]} image, expected the same size; export the mask at the size of its image"
            )
        check_label_values(label, label_values(self.labels), f"case {case_id}")
        kind = np.uint8 if label.max(initial=0) <= 255 else np.uint16
        self._save(self.label_path(part, case_id), label.astype(kind))

    def _path(self, folder: str, stem: str) -> Path:
        (self.folder / folder).mkdir(exist_ok=True)
        return self.folder / folder / (stem + self.file_ending)

    def _save(self, path: Path, pixels: np.ndarray) -> None:
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)

    def _finish(self) -> None:
        """Check the whole and write the JSON files."""
        if not self._training:
            raise UserError(
                f"{self.out.name}: found no training case, expected at least one; add training images"
            )
        if not self._has_foreground:
            raise UserError(
                f"{self.out.name}: found only background in all {len(self._training)} masks, expected any; "
                "check the masks"
            )
        assert {
            case_id for fold in self._splits for ids in fold.values() for case_id in ids
        } <= self._training
        assert set(map(match_key, self._groups)) <= self._ids
        content = description_bytes(
            self.folder,
            channel_names={str(i): name for i, name in enumerate(self.channel_names)},
            labels=self.labels,
            num_training_cases=len(self._training),
            file_ending=self.file_ending,
            regions_class_order=self.regions_class_order,
            dataset_name=self.out.name,
            **{"license": "that of the source data", "converted_by": "law-order", **self.about},
        )
        write_atomically(self.folder / DESCRIPTION, content)
        if self._test_sets:
            sets = {name: sorted(ids) for name, ids in sorted(self._test_sets.items())}
            write_test_sets(self.folder, sets)
        if self._groups:
            write_groups(self.folder, self._groups)


def check_out(out: Path) -> None:
    """UserError unless `out` is free, named DatasetXXX_NAME or DatasetXXX, and no other has its number."""
    match = re.fullmatch(r"Dataset(\d{3})(_[\w.-]+)?", out.name)
    if not match:
        raise UserError(f"found --out {out.name}, expected a name like Dataset500_Polyps; rename it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: found existing content, expected a new or empty folder; remove it or choose another"
        )
    roots = [nnunet_folder(name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")]
    for root in filter(None, [out.parent, *roots]):
        for other in root.glob(f"Dataset{match[1]}*"):
            if other.name != out.name and other.name[10:11] in ("", "_"):
                raise UserError(
                    f"{other}: found another data set of number {match[1]}; choose a free number for --out"
                )
