"""Read and check nnU-Net raw folders: dataset.json, cases, labels, test sets, splits."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.raw.case_lists import GROUPS, listed_groups, listed_test_sets
from dataset_conversion.raw.cases import COLOUR_ENDINGS, Case, check_file, listed_cases, named_cases
from dataset_conversion.raw.description import (
    DESCRIPTION,
    Description,
    check_label_values,
    description_of,
    label_values,
)
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_json
from dataset_conversion.system.names import match_key, refuse_lookalikes


@dataclass(frozen=True)
class RawDataset:
    """A checked nnU-Net raw folder; `read_dataset` makes it."""

    folder: Path
    json: dict
    """The content of dataset.json, as nnU-Net takes it."""

    @cached_property
    def description(self) -> Description:
        """What of it the project reads. UserError: as `description_of`."""
        return description_of(self.json, self.folder / DESCRIPTION)

    @property
    def name(self) -> str:
        """Its folder's, by which nnU-Net knows it."""
        return self.folder.resolve().name

    @property
    def origin(self) -> str:
        """Name of the data set whose cases these are: another one's where `convert subset` took them."""
        return self.description.subset_of or self.name

    @property
    def channel_names(self) -> list[str]:
        """Names in channel order."""
        names = self.description.channel_names
        return [names[str(i)] for i in range(len(names))]

    @property
    def file_ending(self) -> str:
        """Ending of images and labels, with its dot: `.png`, `.nii.gz`."""
        return self.description.file_ending

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """Foreground name -> the label values it consists of; a plain label is a region of one value."""
        return {
            name: tuple(value) if isinstance(value, list) else (value,)
            for name, value in self.description.labels.items()
            if name not in ("background", "ignore")
        }

    @property
    def ignore_label(self) -> int | None:
        """The value of pixels that count nowhere, or None."""
        return self.description.labels.get("ignore")

    @property
    def label_values(self) -> list[int]:
        """Every value that a label file may hold, sorted; the ignore label is one of them."""
        return label_values(self.description.labels)

    @cached_property
    def training_cases(self) -> list[Case]:
        """Cases of imagesTr (or of the `dataset` table of dataset.json), sorted by id; each has a label."""
        if "dataset" in self.json:
            cases = listed_cases(self.folder, self.description.dataset)
        else:
            cases = self._named_cases("Tr")
        for case in cases:
            if case.label is None:
                raise UserError(
                    f"{self.folder}: found no label file of training case {case.id}, "
                    f"expected labelsTr/{case.id}{self.file_ending}; add it or remove the image"
                )
        return cases

    def case(self, case_id: str) -> Case:
        """Training case of this id. UserError: there is none."""
        if case_id not in self._by_id:
            raise UserError(
                f"{self.folder}: found no training case {case_id}, expected it; restore the data set"
            )
        return self._by_id[case_id]

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self.training_cases}

    @cached_property
    def test_cases(self) -> list[Case]:
        """Cases of imagesTs, sorted by id; `label` is None where labelsTs has no file."""
        return self._named_cases("Ts") if (self.folder / "imagesTs").is_dir() else []

    @cached_property
    def test_sets(self) -> dict[str, list[str]]:
        """Test set name -> case ids, from test_sets.json. UserError: as `listed_test_sets`."""
        return listed_test_sets(self.folder, {case.id for case in self.test_cases})

    @cached_property
    def groups(self) -> dict[str, str]:
        """Training or test case id -> its patient or sequence, from groups.json; else the case's own id.

        UserError: as `listed_groups`; groups that are too much alike.
        """
        groups = {case.id: case.id for case in (*self.training_cases, *self.test_cases)}
        if listed := listed_groups(self.folder, groups):
            groups |= listed
            refuse_lookalikes(sorted(set(groups.values())), "groups", self.folder / GROUPS)
        return groups

    @cached_property
    def groups_by_key(self) -> dict[str, str]:
        """`match_key` of each case id and of each group -> group."""
        of_groups = {match_key(group): group for group in self.groups.values()}
        return of_groups | {match_key(case_id): group for case_id, group in self.groups.items()}

    def read_image(self, case: Case) -> np.ndarray:
        """Image as nnU-Net reads it: float32 (C, Z, Y, X), Z = 1 in 2D. UserError: NaN, channels."""
        return self.read_stored_image(case)[0]

    def read_stored_image(self, case: Case) -> tuple[np.ndarray, dict]:
        """As `read_image`, with the properties, such as the spacing, that nnU-Net's reader gives."""
        image, properties = self._read("read_images", case.images)
        if len(image) != len(self.channel_names):
            raise UserError(
                f"{case.images[0]}: found {len(image)} channels, expected {len(self.channel_names)} as in "
                "channel_names of dataset.json; convert the image or correct dataset.json"
            )
        if not np.isfinite(image).all():
            raise UserError(f"{case.images[0]}: found NaN or Inf, expected finite values; replace them")
        return image, properties

    def read_label(self, path: Path) -> np.ndarray:
        """Label as integers (Z, Y, X), Z = 1 for 2D. UserError: unreadable, values outside dataset.json."""
        label = self.read_stored(path)[0][0]
        check_label_values(label, self.label_values, str(path))
        return label.astype(np.int16)

    def read_stored(self, path: Path) -> tuple[np.ndarray, dict]:
        """What nnU-Net's reader gives of one file: (C, Z, Y, X) and its properties. UserError: unreadable."""
        return self._read("read_seg", path)

    def read_case(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, Z, Y, X) and label (Z, Y, X) of a labelled case. UserError: also different sizes."""
        image, label = self.read_image(case), self.read_label(case.label)
        if image.shape[1:] != label.shape:
            raise UserError(
                f"{case.label}: found size {label.shape}, expected the image's {image.shape[1:]} (Z, Y, X); "
                "export image and label at the same size"
            )
        return image, label

    @cached_property
    def reader(self):
        """nnU-Net's reader of this data set's files."""
        from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

        choose = functools.partial(determine_reader_writer_from_dataset_json, self.json, verbose=False)
        if self.file_ending in (".png", ".bmp") or not self.training_cases:
            return choose()()
        # As nnU-Net, by an example: .tif may be 2D or 3D, and SimpleITK refuses sheared .nii.gz.
        check_file(self.training_cases[0].images[0])
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the traceback of each reader that refuses
                return choose(str(self.training_cases[0].images[0]))()
        except RuntimeError:  # all refuse: let reading it say why
            return choose()()

    @cached_property
    def holds_volumes(self) -> bool:
        """Whether its files are volumes, of which nnU-Net's 2d configuration takes the slices."""
        from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

        return self.file_ending not in COLOUR_ENDINGS or isinstance(self.reader, Tiff3DIO)

    def spacing_files(self, case: Case) -> dict[str, Path]:
        """The JSON files beside a case of 3D TIFF, which have no place for spacings: "images", "labels"."""
        if self.file_ending not in (".tif", ".tiff"):
            return {}
        image = case.images[0]
        files = {"images": image.with_name(image.stem[: -len("_0000")] + ".json")}
        if case.label is not None:
            files["labels"] = case.label.with_suffix(".json")
        return {kind: path for kind, path in files.items() if path.is_file()}

    def _named_cases(self, part: str) -> list[Case]:
        return named_cases(self.folder, part, self.file_ending, len(self.channel_names))

    def _read(self, method: str, files: Path | tuple[Path, ...]) -> tuple[np.ndarray, dict]:
        name = files if isinstance(files, Path) else files[0]
        for file in [files] if files is name else files:
            check_file(file)
        try:
            return getattr(self.reader, method)(
                str(files) if files is name else [str(file) for file in files]
            )
        except Exception as error:  # each nnU-Net reader raises its library's own kind
            raise UserError(
                f"{name}: cannot be read ({reason(error)}), expected an intact file; replace it"
            ) from error


def find_dataset(name: str | int | Path) -> RawDataset:
    """Read the data set named by a path, or under $nnUNet_raw by id (`500`) or name (`Dataset500_Polyps`)."""
    text = str(name)
    if (Path(text) / "dataset.json").is_file():
        return read_dataset(Path(text))
    if not Path(text).name:
        raise UserError(f"found the data set {text!r}, expected its id, its full name or its path; give one")
    root = nnunet_folder("nnUNet_raw")
    if root is None:
        raise UserError(
            f"found no folder {name} with a dataset.json and nnUNet_raw is not set, expected one of the two; "
            "export nnUNet_raw=FOLDER or give the path of the data set"
        )
    found = dataset_folders(root, text)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        wanted = f"Dataset{int(text):03d}_*" if text.isdigit() else Path(text).name
        raise UserError(
            f"found {names} for data set {name} in nnUNet_raw={root}, expected exactly one folder {wanted}; "
            "give the id, the full name or the path"
        )
    return read_dataset(found[0])


def dataset_folders(root: Path, name: str) -> list[Path]:
    """Folders of the data set `name` (id or full name) in one of nnU-Net's three, sorted."""
    # nnU-Net does without the name part: Dataset501 is a data set, too.
    number = f"Dataset{int(name):03d}" if name.isdigit() else None
    patterns = (number, f"{number}_*") if number else (Path(name).name or "Dataset",)
    return sorted(path for pattern in patterns for path in Path(root).glob(pattern) if path.is_dir())


def read_dataset(folder: Path) -> RawDataset:
    """Read and check dataset.json and file lists of a raw folder. UserError: what nnU-Net would refuse."""
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{path}: not found, expected an nnU-Net raw data set; check the folder")
    dataset = RawDataset(folder, read_json(path, dict[str, Any], "correct it"))
    found, expected = len(dataset.training_cases), dataset.description.numTraining
    if found != expected:
        raise UserError(
            f"{path}: found {found} training cases, expected numTraining = {expected}; "
            "restore the missing files or correct numTraining"
        )
    return dataset


def nnunet_folder(variable: str) -> Path | None:
    """Value of nnUNet_raw, nnUNet_preprocessed or nnUNet_results; None when it is not set."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def reason(error: Exception) -> str:
    """The line of a reader's message that says what is wrong: ITK's first one names its own source file."""
    lines = f"{error}".strip().split("\n")
    return next(
        (line.removeprefix("ITK ERROR: ") for line in lines if line.startswith("ITK ERROR")), lines[0]
    )
