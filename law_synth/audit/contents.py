"""What lies in a synthetic data set: generated files, unchanged real ones, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dataset_conversion.raw.folds import read_folds, splits_files
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import hash_file
from law_synth.audit.audited_data import AuditedData
from law_synth.audit.finding import Finding, NotPossible, changed, leak
from law_synth.audit.options import Audit
from law_synth.generation.augmentation import augment
from law_synth.generation.nested_masks import Nesting
from law_synth.judging.agreement import MEAN, agreement
from law_synth.records.synthetic import FOLDER, SynthesisRow, read_chunks, source_slice
from law_synth.view.mask_sources import mask_hash
from law_synth.view.resize import resize_mask

SAME_AUGMENTED = 0.99  # Dice; another version of SciPy may round a few border pixels differently


def check_manifest(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """synthesis.jsonl has one line per sample, and the lines that the chunks were written with."""
    findings, rows = [], audited.rows
    cases = [row.case for row in rows]
    if len(set(cases)) != len(cases) or len(rows) != audited.options.samples:
        what = f"{len(rows)} lines of {len(set(cases))} cases, not {audited.options.samples}"
        findings.append(changed("synthesis.jsonl", what))
    found = {row.case: row for row in rows}
    recorded = {row.case: row for chunk in read_chunks(audited.dataset.folder) for row in chunk.rows}
    if not recorded:
        raise NotPossible(f"there is no {FOLDER}/ with the chunks' own records")
    for case in sorted({*cases, *recorded}):
        if found.get(case) != recorded.get(case):
            findings.append(changed(case, "its line in synthesis.jsonl is not that of its chunk"))
    return findings, f"{len(rows)} lines, {len(recorded)} samples in the chunks' records"


def check_cases(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """The data set holds the kept samples, with --with-real the fold's real cases, and nothing else."""
    folder, ending, description = audited.dataset.folder, audited.dataset.file_ending, audited.dataset.json
    real = [audited.real.case(case_id) for case_id in sorted(audited.real_ids)]
    cases = [*audited.dataset.training_cases, *real]
    images = {f"{case.id}_{c:04d}{ending}" for case in cases for c in range(len(case.images))}
    ids = {*audited.kept, *audited.real_ids}
    findings = []
    for part, expected in (("imagesTr", images), ("labelsTr", {f"{case}{ending}" for case in ids})):
        found = {path.name for path in (folder / part).glob("*") if not path.name.endswith(".partial")}
        findings += [_foreign(audited, part, name) for name in sorted(found - expected)]
        findings += [
            changed(f"{part}/{name}", "not there", "it was kept") for name in sorted(expected - found)
        ]
    if "dataset" in description:
        findings.append(
            leak("dataset.json", "it lists files of its own", "nnU-Net reads those instead of these")
        )
    if description.get("numTraining") != len(ids):
        what = f"numTraining {description.get('numTraining')}, not {len(ids)}"
        findings.append(changed("dataset.json", what))
    if audited.source is not None:
        keys = ("channel_names", "labels", "regions_class_order", "file_ending")
        different = [key for key in keys if description.get(key) != audited.source.json.get(key)]
        findings += [changed("dataset.json", f"other {key} than the source") for key in different]
    return findings, f"{len(audited.kept)} synthetic and {len(real)} real cases"


def check_labels(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Each label is, pixel for pixel, the mask that its image was generated from, and its source's."""
    findings = []
    for case_id, row in audited.kept.items():
        try:
            mask = audited.view.read_mask(audited.sample(case_id))
        except UserError as error:
            findings.append(changed(case_id, f"{error}"))
            continue
        if mask_hash(resize_mask(mask, audited.run.size)) != row.mask_sha256:
            findings.append(changed(case_id, "its label is not the mask that it was generated from"))
        elif audited.source is not None and not _is_mask_of_source(audited, row, mask):
            findings.append(changed(case_id, f"its label is not the mask of {source_slice(row).id}"))
    if audited.source is None and not findings:
        raise NotPossible(f"all have the recorded sha256, but {audited.no_source}")
    return findings, f"{len(audited.kept)} labels against sha256 and source mask"


def check_images(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Images can be read, are as large as their labels, and hold the bytes that were written."""
    chunks = read_chunks(audited.dataset.folder)
    digests = {name: sha256 for chunk in chunks for name, sha256 in chunk.files.items()}
    findings = []
    for case_id in audited.kept:
        case = audited.dataset.case(case_id)
        try:
            audited.view.read(audited.sample(case_id))
        except UserError as error:
            findings.append(changed(case_id, f"{error}"))
            continue
        for path in (*case.images, case.label):
            name = f"{path.parent.name}/{path.name}"
            if digests and hash_file(path) != digests.get(name):
                findings.append(changed(name, "not the bytes that its chunk's record has"))
    if not digests and not findings:
        raise NotPossible(f"all can be read, but there is no {FOLDER}/ with the sha256 of what was written")
    return findings, f"{len(audited.kept)} images, {len(digests)} recorded files"


def check_real_cases(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Real cases are byte for byte those of the source."""
    findings, folder = [], audited.dataset.folder
    for case in (audited.real.case(case_id) for case_id in sorted(audited.real_ids)):
        ending = audited.real.file_ending
        copies = [folder / "imagesTr" / f"{case.id}_{c:04d}{ending}" for c in range(len(case.images))]
        pairs = zip(
            (*case.images, case.label), (*copies, folder / "labelsTr" / f"{case.id}{ending}"), strict=True
        )
        for original, copy in pairs:
            if copy.is_file() and not copy.samefile(original) and hash_file(copy) != hash_file(original):
                findings.append(
                    changed(
                        f"{copy.parent.name}/{copy.name}",
                        "another file than the source's",
                        _held(audited, case.id),
                    )
                )
    return findings, f"{len(audited.real_ids)} real cases" if audited.options.with_real else "none"


def check_splits(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Every validation case is a real one of the fold, and synthetic cases are used for training only."""
    if not audited.options.with_real:
        return [], "none: no real cases to validate on"
    _, validation = audited.split
    places = splits_files(audited.dataset.folder)
    paths = [path for path in places if path.is_file()]
    findings = [finding for path in paths for finding in _check_splits_file(audited, path)]
    for path in places:
        if validation and path.parent.is_dir() and not path.is_file():
            findings.append(leak(f"{path}", "not there", "nnU-Net would split by chance and mix both kinds"))
    return findings, ", ".join(map(str, paths)) or "none: fold all has no validation cases"


def _check_splits_file(audited: AuditedData, path: Path) -> list[Finding]:
    training, validation = audited.split
    try:
        folds = [(set(fold["train"]), set(fold["val"])) for fold in read_folds(path)]
    except UserError as error:
        return [changed(f"{path}", f"not as written ({error})")]
    findings = []
    for train, val in folds:
        for case in sorted(val & set(audited.kept)):
            findings.append(leak(f"{path}", f"{case} validates", "it is synthetic; validation must be real"))
        for case in sorted(train & set(audited.held_out)):
            findings.append(leak(f"{path}", f"{case} trains", _held(audited, case)))
    expected = [({*training, *audited.kept}, set(validation))] if validation else folds
    if not findings and folds != expected:
        findings.append(changed(f"{path}", "other cases than the fold's and the kept samples"))
    return findings


def _is_mask_of_source(audited: AuditedData, row: SynthesisRow, mask: np.ndarray) -> bool:
    """Whether a label is made from its source's mask; only the sha256 is known of a mask from a folder."""
    source, size = source_slice(row), audited.run.size
    if source is None:
        return True
    nestings = [Nesting(*pair) for pair in audited.options.nesting or ()]
    own = audited.real_view.read_mask(source)
    expected = augment(own, row.mask_augmentation, row.mask_seed, size, nestings)
    if not audited.options.original_size:
        expected = resize_mask(expected, size)
    if expected.shape != mask.shape:
        return False
    if row.mask_augmentation == "none" or not (expected.any() and mask.any()):
        return np.array_equal(expected, mask)
    return agreement(mask, expected, audited.view)[MEAN] >= SAME_AUGMENTED


def _foreign(audited: AuditedData, part: str, name: str) -> Finding:
    """The finding for a file that does not belong to the data set."""
    ending = re.escape(audited.dataset.file_ending)
    case = re.sub(rf"(_\d{{4}})?{ending}$" if part == "imagesTr" else rf"{ending}$", "", name)
    if audited.source is not None and case in audited.held_out:
        return leak(f"{part}/{name}", f"{case} would train", _held(audited, case))
    return changed(f"{part}/{name}", "neither a kept sample nor a real case of the fold")


def _held(audited: AuditedData, case: str) -> str:
    kind = "held out" if case in audited.held_out else "a training case"
    return f"{case} is {kind} in fold {audited.run.fold} of {audited.real.name}"
