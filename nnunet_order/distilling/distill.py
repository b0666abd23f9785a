"""The verb `distill`: labelled and unlabelled images with a teacher's soft labels as a raw data set."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.folder import read_groups
from dataset_conversion.notes import Notes
from dataset_conversion.raw.case_lists import write_groups, write_test_sets
from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.description import DESCRIPTION
from dataset_conversion.raw.finished import Conversion, conversion_of
from dataset_conversion.raw.folds import Fold, leak_free_fold, refuse_other_splits, write_splits
from dataset_conversion.raw.writer import check_out
from dataset_conversion.subset import link_case, source_files
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import write_json
from dataset_conversion.system.names import match_key
from dataset_conversion.system.parallel import in_parallel
from dataset_conversion.system.provenance import package_versions
from dataset_conversion.system.resumable import Journal, resumable_folder
from nnunet_order.devices import pick_device
from nnunet_order.distilling.options import Distill
from nnunet_order.distilling.teacher import Teacher, folds_to_teach, refuse_informed_teacher
from nnunet_order.distilling.unlabelled import (
    HeldOutImages,
    UnlabelledImage,
    find_unlabelled,
    pixel_hash,
    write_unlabelled,
)
from nnunet_order.model_folder import CHECKPOINT
from nnunet_order.soft_labels.files import KEY, soft_label_path, write_soft_label
from nnunet_order.soft_labels.record import DistillationRecord, UnlabelledRecord, write_distillation

logger = logging.getLogger(__name__)

PACKAGES = ("law-order", "nnunetv2", "torch")


@dataclass(frozen=True)
class Facts:
    """What the end of a distillation must know of a case whose files are written."""

    sha256: str | None = None
    """Of an unlabelled image's pixels."""
    left_out: str | None = None
    """The held-out case whose copy it is."""


@dataclass(frozen=True)
class Distillation:
    """A data set in the making."""

    options: Distill
    source: RawDataset
    fold: Fold
    labelled: list[str]
    validation: list[str]
    unlabelled: list[UnlabelledImage]
    held_out: HeldOutImages
    teacher: Teacher

    def write(self, conversion: Conversion) -> None:
        """Write the data set, or what a killed run has left to do."""
        out = self.options.out.resolve()
        with resumable_folder(out, {"conversion": conversion.digest}) as folder:
            for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
                (folder / part).mkdir(exist_ok=True)
            kept = self._write_cases(folder)
            self._write_descriptions(folder, kept)
            conversion.sign(folder)
        number, fold = out.name[7:10], "all" if self.fold == "all" else "0"
        logger.info(
            "wrote %s: %d labelled, %d unlabelled, %d validation and %d test cases",
            *(out, len(self.labelled), len(kept), len(self.validation), len(self.source.test_cases)),
        )
        logger.info(
            "next: nnUNetv2_plan_and_preprocess -d %s -c 2d, then nnUNetv2_train %s 2d %s -tr "
            "nnUNetTrainerLite40K",
            *(number, number, fold),
        )

    def _write_cases(self, folder: Path) -> dict[str, UnlabelledRecord]:
        """Write all files of cases. Returns the unlabelled images that are kept: case id -> record."""
        jobs: dict[str, Case | UnlabelledImage] = {name: self.source.case(name) for name in self.labelled}
        jobs |= {image.case_id: image for image in self.unlabelled}
        # A change of the sources gives another digest, so the parts need no stamps of their own.
        journal = Journal(folder, {name: [] for name in jobs}, Facts)
        if len(journal):
            logger.info("continuing: %d of %d images were finished before", len(journal), len(jobs))
        if self.unlabelled:
            self.held_out.read_pixels()
        notes, one_at_a_time = Notes(), threading.Lock()  # nnU-Net's predictor is not made for threads
        facts: dict[str, Facts] = {}

        def teach(name: str) -> None:
            found = journal.get(name)
            if found is None:
                found = self._write_case(folder, jobs[name], notes, one_at_a_time, journal)
            facts[name] = found

        in_parallel(teach, jobs, "soft labels")
        notes.report()
        for case_id in self.validation:
            link_case(self.source, self.source.case(case_id), "Tr", folder)
        for case in self.source.test_cases:
            link_case(self.source, case, "Ts", folder)
        images = {image.case_id: image for image in self.unlabelled if not facts[image.case_id].left_out}
        if copies := len(self.unlabelled) - len(images):
            logger.info("left out %d unlabelled images that are copies of validation or test cases", copies)
        return {
            name: UnlabelledRecord(image.files[0].name, facts[name].sha256 or "", image.group)
            for name, image in images.items()
        }

    def _write_case(
        self,
        folder: Path,
        case: Case | UnlabelledImage,
        notes: Notes,
        one_at_a_time: threading.Lock,
        journal: Journal[Facts],
    ) -> Facts:
        """Write image, label and soft label, and then the record of these files."""
        ending = self.source.file_ending
        is_labelled = isinstance(case, Case)
        name = case.id if is_labelled else case.case_id
        if is_labelled:
            link_case(self.source, case, "Tr", folder)
            images = [folder / "imagesTr" / f"{name}_{i:04d}{ending}" for i in range(len(case.images))]
        else:
            max_side = self.options.max_side or self.source.description.max_side
            images = write_unlabelled(case, self.source, folder / "imagesTr", max_side, notes)
        image, properties = self.source.read_stored_image(Case(name, tuple(images), None))
        sha256 = None if is_labelled else pixel_hash(image)
        if sha256 and (copied := self.held_out.copied(sha256)):
            return self._leave_out(case, images, copied, journal)
        with one_at_a_time:
            label, probabilities = self.teacher.answer(image, properties["spacing"])
        files = [*images, folder / "labelsTr" / f"{name}{ending}", soft_label_path(folder, name)]
        if not is_labelled:
            self.source.reader.write_seg(label, str(files[-2]), properties)
        write_soft_label(files[-1], probabilities)
        spacings = [folder / part / f"{name}.json" for part in ("imagesTr", "labelsTr")]  # of 3D TIFF
        facts = Facts(sha256)
        journal.add(name, [*files, *(path for path in spacings if path.is_file())], facts)
        return facts

    def _leave_out(
        self, image: UnlabelledImage, files: list[Path], copied: str, journal: Journal[Facts]
    ) -> Facts:
        """Remove the files again. UserError: the options don't allow that."""
        for file in files:
            file.unlink()
        if not self.options.drop_held_out:
            raise UserError(
                f"{image.files[0]}: found the pixels of {copied}, a validation or test case, expected none: "
                "it would leak; remove it or give --drop-held-out"
            )
        facts = Facts(left_out=copied)
        journal.add(image.case_id, [], facts)
        return facts

    def _write_descriptions(self, folder: Path, kept: dict[str, UnlabelledRecord]) -> None:
        """Write dataset.json and the lists beside it."""
        source, training = self.source, [*self.labelled, *kept]
        content = {key: value for key, value in source.json.items() if key != "dataset"}
        content |= {
            "numTraining": len(training) + len(self.validation),
            "subset_of": source.origin,
            KEY: True,
        }
        write_json(folder / DESCRIPTION, content)
        own = [*self.labelled, *self.validation, *(case.id for case in source.test_cases)]
        groups = {case_id: source.groups[case_id] for case_id in own}
        groups |= {case_id: image.group or case_id for case_id, image in kept.items()}
        write_groups(folder, groups)
        if source.test_sets:
            write_test_sets(folder, source.test_sets)
        if self.fold != "all":
            splits = [{"train": sorted(training), "val": self.validation}]
            write_splits(self.options.out.resolve(), splits, folder)
        versions = package_versions(*PACKAGES)
        record = DistillationRecord(
            source.name, source.origin, self.fold, self.teacher.record, kept, versions
        )
        write_distillation(folder, record)


def distill(options: Distill) -> None:
    """Write the data set. UserError: whatever is wrong with options, data or teacher; a leak."""
    options.check()
    out, source = options.out.resolve(), find_dataset(options.dataset)
    fold: Fold = "all" if options.fold == "all" else int(options.fold)
    images = find_unlabelled(options.unlabelled, source)
    conversion = conversion_of(options, sources_of(options, source, images))
    if conversion.is_done():
        return
    check_out(out)
    labelled, validation = leak_free_fold(source, fold)
    device = str(pick_device(options.device))
    teacher_folds = folds_to_teach(options.teacher, options.teacher_folds, source, fold)
    teacher = Teacher(options.teacher, teacher_folds, source, device)
    refuse_informed_teacher(teacher.model, source, labelled)
    groups = read_groups(options.unlabelled_groups) if options.unlabelled_groups is not None else {}
    held_out = HeldOutImages(source, labelled, groups)
    unlabelled = usable(held_out, images, labelled, options.drop_held_out)
    if fold != "all" and not options.drop_held_out:  # which of them are copies is known at the end
        names = [*labelled, *(image.case_id for image in unlabelled)]
        refuse_other_splits(out, [{"train": sorted(names), "val": validation}])
    Distillation(options, source, fold, labelled, validation, unlabelled, held_out, teacher).write(conversion)


def usable(
    held_out: HeldOutImages, images: list[UnlabelledImage], labelled: list[str], drop: bool
) -> list[UnlabelledImage]:
    """The images that may train, with their groups. UserError: a held-out one and not `drop`."""
    known = set(map(match_key, labelled))
    new = [image for image in images if match_key(image.case_id) not in known]
    if len(new) < len(images):
        logger.info("%d unlabelled images are labelled training cases, left out", len(images) - len(new))
    grouped = held_out.with_groups(new)
    reasons = {image.case_id: held_out.reason(image) for image in grouped}
    leaks = [image for image in grouped if reasons[image.case_id]]
    if leaks and not drop:
        raise UserError(
            f"{leaks[0].files[0]}: found an image {reasons[leaks[0].case_id]}, a validation or test case "
            f"({len(leaks)} such), expected none: it would leak; remove them or give --drop-held-out"
        )
    if leaks:
        logger.info("left out %d unlabelled images of validation or test cases", len(leaks))
    return [image for image in grouped if not reasons[image.case_id]]


def sources_of(options: Distill, source: RawDataset, images: list[UnlabelledImage]) -> list[Path]:
    """All files that decide what is written."""
    teacher = [*options.teacher.glob("*.json"), *options.teacher.glob(f"fold_*/{CHECKPOINT}")]
    groups = [options.unlabelled_groups] if options.unlabelled_groups is not None else []
    return [*source_files(source), *teacher, *groups, *(file for image in images for file in image.files)]
