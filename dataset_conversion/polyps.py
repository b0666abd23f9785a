"""The five public polyp data sets, and PraNet's collection of them, into one nnU-Net raw data set."""

from __future__ import annotations

import bisect
import functools
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataset_conversion.folder import Pair, case_id, convert_pairs, match_files
from dataset_conversion.images import SIDE, read_binary_mask, read_rgb
from dataset_conversion.raw.finished import conversion_of
from dataset_conversion.raw.folds import grouped_splits
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import read_lines, read_table
from dataset_conversion.system.names import tidy_name
from dataset_conversion.system.options import check_ranges

logger = logging.getLogger(__name__)

SourceName = Literal["kvasir", "clinicdb", "colondb", "cvc300", "etis"]

# Source -> its name as a row of result tables and as a folder of PraNet's TestDataset.
TITLES: dict[SourceName, str] = {
    "kvasir": "Kvasir",
    "clinicdb": "CVC-ClinicDB",
    "colondb": "CVC-ColonDB",
    "cvc300": "CVC-300",
    "etis": "ETIS-LaribPolypDB",
}
ALWAYS_TEST = ("colondb", "cvc300", "etis")  # as in PraNet, and CVC-300 shares videos with CVC-ColonDB

# Folders of images and masks, as released and as commonly repacked.
LAYOUTS = (
    ("images", "masks"),
    ("image", "masks"),
    ("image", "mask"),
    ("images", "mask"),
    ("Original", "Ground Truth"),
    ("PNG/Original", "PNG/Ground Truth"),
    ("TIF/Original", "TIF/Ground Truth"),
    ("ETIS-LaribPolypDB", "Ground Truth"),
)

# First frame of each of ClinicDB's 29 sequences (README of the release); the last frame is 612.
CLINICDB_FIRST_FRAMES = (
    *(1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298),
    *(318, 343, 364, 384, 409, 429, 448, 467, 479, 504, 529, 547, 572, 592),
)
CLINICDB_LAST_FRAME = 612


@dataclass(frozen=True)
class ConvertPolyps:
    """Convert Kvasir-SEG, CVC-ClinicDB, CVC-ColonDB, CVC-300, ETIS-LaribPolypDB or PraNet's collection.

    Kvasir-SEG and CVC-ClinicDB are for training, the others for testing. Each of ClinicDB's video sequences
    stays on one side of a fold.
    """

    out: Path
    """Folder to write; its name has the form DatasetXXX_NAME."""
    kvasir: Path | None = None
    """Folder of Kvasir-SEG. If it has a val.txt (the authors' split into 880 and 120 images), the images that
    val.txt names become test images."""
    clinicdb: Path | None = None
    """Folder of CVC-ClinicDB (CVC-612)."""
    colondb: Path | None = None
    """Folder of CVC-ColonDB, which is always a test set."""
    cvc300: Path | None = None
    """Folder of CVC-300, which is always a test set."""
    etis: Path | None = None
    """Folder of ETIS-LaribPolypDB, which is always a test set."""
    pranet: Path | None = None
    """PraNet's folder with TrainDataset and TestDataset. It holds all five data sets, so give it alone."""
    test_only: tuple[SourceName, ...] = ()
    """Data sets that become test sets although they could be trained on: clinicdb makes CVC-ClinicDB a test
    set that training does not see."""
    max_side: Annotated[int | None, SIDE] = None
    """Images whose longer side has more pixels than this are shrunk to it, together with their masks."""

    @property
    def folders(self) -> dict[SourceName, Path]:
        """The data sets that are given one by one."""
        return {name: getattr(self, name) for name in TITLES if getattr(self, name) is not None}

    def check(self) -> None:
        """UserError: an option that is out of range; no source, or sources beside PraNet's collection."""
        check_ranges(self)
        if not self.folders and self.pranet is None:
            raise UserError("found no source, expected --kvasir, --clinicdb, ... or --pranet; name a folder")
        if self.pranet is not None and (self.folders or self.test_only):
            raise UserError(
                "found --pranet with other sources, expected it alone, as it holds and splits all five; "
                "leave out the others"
            )


def convert_polyps(options: ConvertPolyps) -> None:
    """Convert. UserError: whatever is wrong with options or input; nothing is written then."""
    options.check()
    if options.pranet is not None:
        pairs = pranet_pairs(options.pranet)
    else:
        named = options.folders.items()
        pairs = [pair for name, folder in named for pair in pairs_of(name, folder, options.test_only)]
    if all(pair.is_test for pair in pairs):
        raise UserError(
            "found no training image, expected --kvasir or --clinicdb to train on; give one of them"
        )
    files = [path for pair in pairs for path in (pair.image, pair.mask)]
    conversion = conversion_of(options, files + lists_of(options))
    if conversion.is_done():
        return
    first_frames = read_sequences(options.clinicdb and folder_of("sequences.csv", options.clinicdb))
    groups = split_groups(pairs, first_frames)
    sequences = {pair.case_id: sequence_of(pair.case_id, first_frames) for pair in pairs}
    labels = {"background": 0, "polyp": 1}
    with RawDatasetWriter(
        options.out, RGB, labels, sign=conversion.sign, max_side=options.max_side
    ) as writer:
        writer.set_groups({case_id: name for case_id, name in sequences.items() if name is not None})
        writer.set_splits(grouped_splits(groups))
        # Released masks are JPEG (Kvasir-SEG) or blurred by resizing (PraNet): split at half brightness.
        read_mask = functools.partial(read_binary_mask, threshold=127)
        convert_pairs(writer, pairs, read_rgb, read_mask, options.max_side)


def lists_of(options: ConvertPolyps) -> list[Path]:
    """The lists that lie beside the images."""
    named = {"val.txt": options.kvasir, "train.txt": options.kvasir, "sequences.csv": options.clinicdb}
    paths = [folder_of(name, folder) / name for name, folder in named.items() if folder is not None]
    return [path for path in paths if path.is_file()]


def pairs_of(source: SourceName, folder: Path, test_only: Collection[SourceName]) -> list[Pair]:
    """Cases of one data set. UserError: as `find_layout`, `match_files`, `read_test_list`."""
    files = match_files(*find_layout(folder))
    if source in ALWAYS_TEST or source in test_only:
        test_stems = set(files)
    elif source == "kvasir":
        test_stems = read_test_list(folder_of("val.txt", folder), set(files))
    else:
        test_stems = set()
    return [
        make_pair(source, stem, image, mask, is_test=stem in test_stems)
        for stem, (image, mask) in files.items()
    ]


def make_pair(source: SourceName, stem: str, image: Path, mask: Path, is_test: bool) -> Pair:
    """The case of one image: kvasir_cju0..., clinicdb_001."""
    name = f"{int(stem):03d}" if stem.isdigit() else case_id(stem)
    return Pair(f"{source}_{name}", image, mask, is_test, TITLES[source] if is_test else None)


def find_layout(folder: Path) -> tuple[Path, Path]:
    """Folders of images and of masks in `folder` or one level below. UserError: none, says which names."""
    for root in (folder, *sorted(folder.glob("*/"))):
        for images, masks in LAYOUTS:
            if (root / images).is_dir() and (root / masks).is_dir():
                return root / images, root / masks
    looked_for = ", ".join(f"{images} + {masks}" for images, masks in LAYOUTS)
    raise UserError(
        f"{folder}: found no folders of images and masks, expected one of: {looked_for}; check the path"
    )


def folder_of(name: str, folder: Path) -> Path:
    """Where a list of a data set lies: in `folder` or in the one below that holds the images."""
    above = (root for root in find_layout(folder)[0].parents if root.is_relative_to(folder))
    return next((root for root in above if (root / name).is_file()), folder)


def read_test_list(folder: Path, stems: set[str]) -> set[str]:
    """Kvasir-SEG images named by val.txt (the authors' split), none without that file.

    UserError: a name that is no image, a name that train.txt holds too.
    """
    if not (folder / "val.txt").is_file():
        logger.warning("%s: no val.txt, so all %d Kvasir-SEG images are training images", folder, len(stems))
        return set()
    test, training = _read_names(folder / "val.txt"), _read_names(folder / "train.txt")
    if unknown := sorted((test | training) - stems):
        raise UserError(
            f"{folder}: found {unknown[0]} in train.txt or val.txt but no such image; restore the image"
        )
    if both := sorted(test & training):
        raise UserError(
            f"{folder}: found {both[0]} in train.txt and val.txt, expected one of them; correct the lists"
        )
    if training and (unlisted := sorted(stems - test - training)):
        raise UserError(
            f"{folder}: found {unlisted[0]} in neither train.txt nor val.txt, expected one; add it"
        )
    return test


def pranet_pairs(folder: Path) -> list[Pair]:
    """Cases of PraNet's TrainDataset and TestDataset (github.com/DengPingFan/PraNet)."""
    missing = [name for name in ("TrainDataset", "TestDataset") if not (folder / name).is_dir()]
    if missing:
        raise UserError(
            f"{folder}: found no {' and no '.join(missing)}, expected PraNet's two folders; check the path"
        )
    training = match_files(*find_layout(folder / "TrainDataset"))
    pairs = [
        make_pair("clinicdb" if stem.isdigit() else "kvasir", stem, *files, is_test=False)
        for stem, files in training.items()
    ]
    for source, title in TITLES.items():
        if not (folder / "TestDataset" / title).is_dir():
            logger.warning("%s: no TestDataset/%s, left out", folder, title)
            continue
        files = match_files(*find_layout(folder / "TestDataset" / title))
        pairs += [make_pair(source, stem, *paths, is_test=True) for stem, paths in files.items()]
    return pairs


def read_sequences(folder: Path | None) -> list[int]:
    """First frames of ClinicDB's sequences, from sequences.csv in its folder or as published.

    UserError: as `read_table`; a first frame that is no number.
    """
    path = folder / "sequences.csv" if folder is not None else None
    if path is None or not path.is_file():
        return list(CLINICDB_FIRST_FRAMES)
    found = [row["first"] for row in read_table(path, ("sequence", "first", "last"))]
    if odd := [text for text in found if not re.fullmatch("[0-9]{1,9}", text)]:
        raise UserError(f"{path}: found first frame {odd[0]!r}, expected a number; correct the file")
    if not found:
        raise UserError(f"{path}: found no sequences, expected columns sequence,first,last; correct it")
    return sorted(map(int, found))


def split_groups(pairs: list[Pair], first_frames: list[int]) -> dict[str, str]:
    """Training case -> video sequence; an image of Kvasir-SEG is a group of its own.

    Warns of sequences that a published split has in training and test. UserError: a training image of
    ClinicDB whose name does not tell its frame.
    """
    nameless = [
        pair
        for pair in pairs
        if not pair.is_test
        and pair.case_id.startswith("clinicdb_")
        and not sequence_of(pair.case_id, first_frames)
    ]
    if nameless:
        raise UserError(
            f"{nameless[0].image}: found {len(nameless)} training images of CVC-ClinicDB whose names tell no "
            f"frame, expected numbers up to {CLINICDB_LAST_FRAME} as released, or frames of one video come "
            "to both sides of a fold; restore the names, or give --test-only clinicdb"
        )
    groups = {pair.case_id: sequence_of(pair.case_id, first_frames) or pair.case_id for pair in pairs}
    training = {pair.case_id: groups[pair.case_id] for pair in pairs if not pair.is_test}
    test = [groups[pair.case_id] for pair in pairs if pair.is_test]
    if shared := set(training.values()) & set(test):
        logger.warning(
            "%d test images are of video sequences that the published split trains on too: results on "
            "CVC-ClinicDB are too good; judge on the other test sets",
            sum(group in shared for group in test),
        )
    return training


def sequence_of(case_id: str, first_frames: list[int]) -> str | None:
    """ClinicDB's video sequence of a case, where the frame number tells it."""
    frame = re.fullmatch(r"clinicdb_(\d+)", case_id)
    if frame is None or not first_frames[0] <= int(frame[1]) <= CLINICDB_LAST_FRAME:
        return None
    return f"clinicdb sequence {bisect.bisect_right(first_frames, int(frame[1]))}"


def _read_names(path: Path) -> set[str]:
    """Stems listed in a text file, one a line, with or without a file ending; empty when there is no file."""
    if not path.is_file():
        return set()
    return {tidy_name(Path(line).stem) for line in read_lines(path)}
