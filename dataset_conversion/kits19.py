"""KiTS19: 3D CT of kidneys and their tumours, as volumes or as 2D slices, split by patient."""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataset_conversion.images import SIDE
from dataset_conversion.kits19_case import (
    Kits19Case,
    SliceOptions,
    check_headers,
    convert_slices,
    convert_volume,
)
from dataset_conversion.notes import Notes
from dataset_conversion.planes import PlaneName
from dataset_conversion.raw.finished import Conversion, conversion_of
from dataset_conversion.raw.folds import DEFAULT_FOLDS, default_splits, grouped_splits
from dataset_conversion.raw.writer import RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import Range, check_ranges, check_window, flag
from dataset_conversion.system.parallel import in_parallel
from dataset_conversion.system.resumable import Journal, resumable_folder

logger = logging.getLogger(__name__)

ABDOMEN = (-160.0, 240.0)  # HU: level 40, width 400, the usual soft-tissue window
LABELS = {"background": 0, "kidney": 1, "tumour": 2}
REGIONS = {"background": 0, "kidney and tumour": [1, 2], "tumour": 2}
SLICE_OPTIONS = ("axis", "which", "slices_per_case", "window", "keep_hu", "max_side")
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ConvertKits19:
    """Convert KiTS19 (case_XXXXX with imaging.nii.gz and segmentation.nii.gz) into an nnU-Net raw data set.

    Cases without a segmentation, which are the challenge's test cases, go into imagesTs. Volumes whose axes
    lie in another order than those of most volumes are turned, so that nnU-Net's 2d configuration cuts all of
    them along one plane. One volume is read at a time. A conversion that was killed continues where it
    stopped when the same command is given again.
    """

    source: Path
    """The kits19 repository with its images downloaded, or its data folder."""
    out: Path
    """Folder to write; its name has the form DatasetXXX_NAME."""
    regions: bool = False
    """Write the labels as nnU-Net regions: kidney and tumour together, and tumour."""
    slices: bool = False
    """Write 2D cases instead of volumes. For nnU-Net's 2d configuration this is not needed: it cuts volumes
    into slices itself."""
    axis: PlaneName = "axial"
    """With --slices: the plane of the slices, however the volume lies in its file."""
    which: Literal["foreground", "lesion", "all"] = "foreground"
    """With --slices: which slices to write. foreground takes those with kidney or tumour, lesion those with
    tumour, all takes every slice. Of test cases every slice is written."""
    slices_per_case: Annotated[int | None, Range(1)] = None
    """With --slices: write at most this many slices of each case, evenly spaced among those that --which
    takes. The first and the last are left out, where a lesion is smallest."""
    window: tuple[float, float] | None = None
    """With --slices: lowest and highest HU of the 8-bit PNG. The default is -160 240."""
    keep_hu: bool = False
    """With --slices: write a .nii.gz of one slice, with HU, spacing, direction and origin, instead of a
    windowed PNG."""
    max_side: Annotated[int | None, SIDE] = None
    """With --slices: PNG whose longer side has more pixels than this are shrunk to it."""
    workers: Annotated[int, Range(1)] = 1
    """Number of cases to convert at the same time. Each needs the memory of one to two volumes."""

    def check(self) -> None:
        """UserError: an option that is out of range, or does not fit another one."""
        check_ranges(self)
        check_window(self.window)
        unused = [name for name in SLICE_OPTIONS if getattr(self, name) != getattr(ConvertKits19, name)]
        if unused and not self.slices:
            raise UserError(
                f"found {flag(unused[0])} without --slices, expected both or none; correct the options"
            )
        if self.keep_hu and (self.window is not None or self.max_side is not None):
            raise UserError(
                "found --keep-hu with --window or --max-side, expected those with PNG only; leave one out"
            )


@dataclass(frozen=True)
class Facts:
    """What the end of a conversion must know of a case whose files are written."""

    cases: list[str]
    """Ids of the nnU-Net cases that it has become."""
    has_foreground: bool


def convert_kits19(options: ConvertKits19) -> None:
    """Convert. UserError: whatever is wrong with options or input; finished cases are kept."""
    options.check()
    cases = find_cases(options.source)
    files = [path for case in cases for path in (case.image, case.label) if path]
    conversion = conversion_of(options, files)
    if conversion.is_done():
        return
    notes = Notes()
    orientations = [check_headers(case, options.axis if options.slices else None) for case in cases]
    target = None if options.slices else most_common(orientations)
    with make_writer(options, conversion) as writer:
        # What other cases look like decides in which order this one's axes are written.
        journal = Journal(writer.folder, {case.id: [*case.stamp, target] for case in cases}, Facts)
        if len(journal):
            logger.info("continuing: %d of %d cases were finished before", len(journal), len(cases))
        groups: dict[str, str] = {}

        def convert(case: Kits19Case) -> None:
            facts = journal.get(case.id)
            if facts is None:
                facts = convert_case(case, options, target, writer, notes)
                journal.add(case.id, files_of(case, facts.cases, writer), facts)
            for case_id in facts.cases:
                writer.add_written_case(case_id, case.label is not None, facts.has_foreground)
                groups[case_id] = case.id

        in_parallel(convert, cases, "converting", options.workers)
        writer.set_groups(dict(sorted(groups.items())))
        trained = {case.id for case in cases if case.label is not None}
        patients = {case_id: patient for case_id, patient in groups.items() if patient in trained}
        set_splits(writer, patients, options.slices)
    notes.report()


def make_writer(options: ConvertKits19, conversion: Conversion) -> RawDatasetWriter:
    """Writer of a data set whose parts outlive a kill if they were made under these options."""
    kept = {name: value for name, value in asdict(options).items() if name not in ("out", "workers")}
    kept |= {"source": str(options.source.resolve()), "window": options.window and list(options.window)}
    png = options.slices and not options.keep_hu
    low, high = options.window or ABDOMEN
    return RawDatasetWriter(
        options.out,
        ("grey",) if png else ("CT",),  # nnU-Net clips a channel of this name to its foreground's range
        REGIONS if options.regions else LABELS,
        regions_class_order=[1, 2] if options.regions else None,
        file_ending=".png" if png else ".nii.gz",
        unfinished=functools.partial(resumable_folder, options=kept),
        sign=conversion.sign,
        max_side=options.max_side,
        license="CC BY-NC-SA 4.0",
        reference="Heller et al., arXiv:1904.00445",
        **{"window": f"{low:g} to {high:g} HU"} if png else {},
    )


def convert_case(
    case: Kits19Case, options: ConvertKits19, target: str | None, writer: RawDatasetWriter, notes: Notes
) -> Facts:
    """Write a case as a volume, its axes in the orientation `target`, or as slices."""
    if not options.slices:
        return Facts(*convert_volume(case, writer, target, notes))
    window = None if options.keep_hu else options.window or ABDOMEN
    chosen = SliceOptions(options.axis, options.which, options.slices_per_case, window, options.max_side)
    return Facts(*convert_slices(case, writer, chosen, notes))


def files_of(case: Kits19Case, case_ids: list[str], writer: RawDatasetWriter) -> list[Path]:
    """The files of the nnU-Net cases that a case has become."""
    if case.label is None:
        return [writer.image_path("Ts", case_id) for case_id in case_ids]
    images = [writer.image_path("Tr", case_id) for case_id in case_ids]
    return images + [writer.label_path("Tr", case_id) for case_id in case_ids]


def set_splits(writer: RawDatasetWriter, patients: dict[str, str], are_slices: bool) -> None:
    """Folds by patient; of volumes nnU-Net's default folds, as a volume is one patient's."""
    n_patients = len(set(patients.values()))
    if not are_slices and n_patients >= DEFAULT_FOLDS:
        writer.set_splits(default_splits(sorted(patients)))
    elif are_slices and n_patients > 1:
        writer.set_splits(grouped_splits(patients, folds=min(DEFAULT_FOLDS, n_patients)))
    else:
        logger.warning("%d patient(s): no folds by patient, train with fold all", n_patients)


def most_common(orientations: Iterable[str | None]) -> str | None:
    """The orientation of most volumes, of equals the first; None where no header says how it lies."""
    counted = Counter(one for one in orientations if one is not None)
    return counted.most_common(1)[0][0] if counted else None


def find_cases(source: Path) -> list[Kits19Case]:
    """Cases of `source` or `source`/data, sorted. UserError: none, images that were not downloaded."""
    folders = [
        path
        for root in (source, source / "data")
        for path in sorted(root.glob("case_*"))
        if path.is_dir() and re.fullmatch(r"case_\d+", path.name)
    ]
    if not folders:
        raise UserError(
            f"{source}: found no folder case_XXXXX, expected KiTS19 or its data folder; check the path"
        )
    absent = [folder for folder in folders if not _is_there(folder / "imaging.nii.gz")]
    if absent:
        raise UserError(
            f"{absent[0]}: found no imaging.nii.gz ({len(absent)} of {len(folders)} cases), expected one: a "
            "clone holds labels only; run python3 -m starter_code.get_imaging in the repository"
        )
    cases = []
    for folder in folders:
        label = folder / "segmentation.nii.gz"
        if label.is_file() and not _is_there(label):
            raise UserError(f"{label}: found a Git LFS pointer, expected the file; run git lfs pull")
        cases.append(Kits19Case(folder.name, folder / "imaging.nii.gz", label if label.is_file() else None))
    labelled = [case.id for case in cases if case.label is not None]
    if not labelled:
        raise UserError(f"{source}: found no segmentation.nii.gz, expected training cases; check the path")
    # The challenge's test cases have the highest numbers.
    if lost := [case.id for case in cases if case.label is None and case.id < labelled[-1]]:
        logger.warning(
            "%s: %d case(s) before the last labelled one become test cases without segmentation.nii.gz: %s",
            source,
            len(lost),
            ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else ""),
        )
    return cases


def _is_there(path: Path) -> bool:
    """Whether a file holds data; Git LFS leaves a short text where a file was not downloaded."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) != LFS_POINTER
