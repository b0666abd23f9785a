"""KiTS19: 3D CT of kidneys and their tumours, as volumes or as 2D slices, split by patient."""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dataset_conversion.images import check_max_side
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
from dataset_conversion.system.parallel import in_parallel
from dataset_conversion.system.resumable import Journal, resumable_folder
from dataset_conversion.volumes import check_window

logger = logging.getLogger(__name__)

ABDOMEN = (-160.0, 240.0)  # HU: level 40, width 400, the usual soft-tissue window
LABELS = {"background": 0, "kidney": 1, "tumour": 2}
REGIONS = {"background": 0, "kidney and tumour": [1, 2], "tumour": 2}
SLICE_OPTIONS = ("axis", "which", "slices_per_case", "window", "keep_hu", "max_side")
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ConvertKits19:
    """Convert KiTS19 (case_XXXXX with imaging.nii.gz and segmentation.nii.gz) into an nnU-Net raw data set.

    Cases without a segmentation, the challenge's test cases, go into imagesTs. Volumes whose axes lie unlike
    those of most are turned, for nnU-Net's 2d configuration to cut all along one plane. One volume is read at
    a time; a conversion that was killed goes on when the same command is given again.
    """

    source: Path
    """The kits19 repository with its images downloaded, or its data folder."""
    out: Path
    """Folder to write, named DatasetXXX_NAME."""
    regions: bool = False
    """Labels as regions: kidney and tumour together, and tumour."""
    slices: bool = False
    """Write 2D cases instead of volumes (nnU-Net's 2d configuration slices volumes itself)."""
    axis: PlaneName = "axial"
    """With --slices: the plane, however the volume lies in its file."""
    which: Literal["foreground", "lesion", "all"] = "foreground"
    """With --slices: those with kidney or tumour, with tumour, or all. Of test cases always all."""
    slices_per_case: int | None = None
    """With --slices: no more than so many of each case, evenly spaced among those, not at their ends."""
    window: tuple[float, float] | None = None
    """With --slices: lowest and highest HU of the 8-bit PNG; -160 240 when not given."""
    keep_hu: bool = False
    """With --slices: .nii.gz of one slice with HU, spacing, direction and origin instead of windowed PNG."""
    max_side: int | None = None
    """With --slices: shrink PNG whose longer side exceeds this many pixels."""
    workers: int = 1
    """Cases converted at a time; each needs the memory of one to two volumes."""

    def run(self) -> None:
        """Convert. UserError: whatever is wrong with options or input; finished cases are kept."""
        self._check_options()
        cases = find_cases(self.source)
        conversion = conversion_of(
            self, [path for case in cases for path in (case.image, case.label) if path]
        )
        if conversion.is_done():
            return
        notes = Notes()
        orientations = [check_headers(case, self.axis if self.slices else None) for case in cases]
        target = None if self.slices else most_common(orientations)
        with self._writer(conversion) as writer:
            # What other cases look like decides in which order this one's axes are written.
            journal = Journal(writer.folder, {case.id: [*case.stamp, target] for case in cases})
            if len(journal):
                logger.info("going on: %d of %d cases were finished before", len(journal), len(cases))
            groups: dict[str, str] = {}

            def convert(case: Kits19Case) -> None:
                facts = journal.get(case.id) or self._convert(case, target, writer, journal, notes)
                for case_id in facts["cases"]:
                    writer.add_written_case(case_id, case.label is not None, facts["has_foreground"])
                    groups[case_id] = case.id

            in_parallel(convert, cases, "converting", self.workers)
            writer.set_groups(dict(sorted(groups.items())))
            trained = {case.id for case in cases if case.label is not None}
            self._set_splits(writer, {case_id: g for case_id, g in groups.items() if g in trained})
        notes.report()

    def _writer(self, conversion: Conversion) -> RawDatasetWriter:
        options = {name: value for name, value in asdict(self).items() if name not in ("out", "workers")}
        options |= {"source": str(self.source.resolve()), "window": self.window and list(self.window)}
        png = self.slices and not self.keep_hu
        low, high = self.window or ABDOMEN
        return RawDatasetWriter(
            self.out,
            ("grey",) if png else ("CT",),  # nnU-Net clips a channel of this name to its foreground's range
            REGIONS if self.regions else LABELS,
            regions_class_order=[1, 2] if self.regions else None,
            file_ending=".png" if png else ".nii.gz",
            unfinished=functools.partial(resumable_folder, options=options),
            sign=conversion.sign,
            license="CC BY-NC-SA 4.0",
            reference="Heller et al., arXiv:1904.00445",
            **{"window": f"{low:g} to {high:g} HU"} if png else {},
        )

    def _convert(
        self, case: Kits19Case, target: str | None, writer: RawDatasetWriter, journal: Journal, notes: Notes
    ) -> dict:
        if self.slices:
            window = None if self.keep_hu else self.window or ABDOMEN
            options = SliceOptions(self.axis, self.which, self.slices_per_case, window, self.max_side)
            case_ids, has_foreground = convert_slices(case, writer, options, notes)
        else:
            case_ids, has_foreground = convert_volume(case, writer, target, notes)
        part = "Tr" if case.label is not None else "Ts"
        files = [writer.image_path(part, case_id) for case_id in case_ids]
        if case.label is not None:
            files += [writer.label_path(part, case_id) for case_id in case_ids]
        facts = {"cases": case_ids, "has_foreground": has_foreground}
        journal.add(case.id, files, facts)
        return facts

    def _set_splits(self, writer: RawDatasetWriter, patients: dict[str, str]) -> None:
        """Folds by patient; of volumes those that nnU-Net makes itself, one case being one patient."""
        n_patients = len(set(patients.values()))
        if not self.slices and n_patients >= DEFAULT_FOLDS:
            writer.set_splits(default_splits(sorted(patients)))
        elif self.slices and n_patients > 1:
            writer.set_splits(grouped_splits(patients, folds=min(DEFAULT_FOLDS, n_patients)))
        else:
            logger.warning("%d patient(s): no folds by patient, train with fold all", n_patients)

    def _check_options(self) -> None:
        unused = [name for name in SLICE_OPTIONS if getattr(self, name) != getattr(ConvertKits19, name)]
        if unused and not self.slices:
            option = "--" + unused[0].replace("_", "-")
            raise UserError(f"found {option} without --slices, expected both or none; correct the options")
        if self.keep_hu and (self.window is not None or self.max_side is not None):
            raise UserError(
                "found --keep-hu with --window or --max-side, expected those with PNG only; leave one out"
            )
        check_window(self.window)
        check_max_side(self.max_side)
        for name, value in (("--slices-per-case", self.slices_per_case), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise UserError(f"found {name} {value}, expected 1 or more; correct the option")


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
