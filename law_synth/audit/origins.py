"""Where synthetic cases come from: masks, model, base, judge. None of them may know a held-out case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataset_conversion.raw.dataset import RawDataset, nnunet_folder
from dataset_conversion.raw.held_out import group_by_name, held_out_groups
from dataset_conversion.system.errors import UserError
from law_synth.audit.audited_data import AuditedData
from law_synth.audit.finding import Finding, NotPossible, changed, leak
from law_synth.audit.options import Audit
from law_synth.base.files import PARTS, cached_model, hash_base, is_unfinished
from law_synth.judging.segmenter import Segmenter, judge_of_fold
from law_synth.leaks import cases_behind_base, cases_behind_judge
from law_synth.records.base import read_base_config
from law_synth.records.run import (
    CONFIG,
    TrainedRun,
    configurations_hash,
    read_run,
    weights_hash,
)
from law_synth.records.synthetic import SynthesisRow, source_slice
from law_synth.view.mask_sources import mask_stem

COMPARED = ("fold", "train_cases", "monitor_cases", "view", "slices", "size", "base")  # of a run and its copy


def check_sources(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Every sample's mask belongs to a training case, by the current splits and by the run's own list.

    A mask from a folder belongs to no patient or sequence of a held-out case, as far as its name tells.
    """
    held_out = {} if audited.source is None else held_out_groups(audited.source, set(audited.split[0]))
    findings = []
    for row in audited.rows:
        own = row.source_case
        name = own or mask_stem(row.source_mask)
        group = None if own or audited.source is None else _group_of_mask(row, held_out, audited.source)
        if audited.source is not None and name in audited.held_out:
            findings.append(leak(row.case, f"its mask is that of {name}", _what(audited, name)))
        elif group in held_out:
            what = f"its mask {row.source_mask} is of {group}, as {held_out[group]} is"
            findings.append(leak(row.case, what, _what(audited, held_out[group])))
        elif own is not None and (own not in audited.recorded or own not in _training(audited)):
            meaning = "it is no training case of the run's fold, so its images may be held out"
            findings.append(leak(row.case, f"its mask is that of {own}", meaning))
        elif not _is_slice_of_run(audited, row):
            what = f"its mask is slice {row.source_slice} of {own}"
            findings.append(changed(row.case, what, "the run has not seen that slice"))
    if audited.source is None and not findings:
        raise NotPossible(f"all are training cases as the run lists them, but {audited.no_source}")
    elsewhere = sum(row.source_case is None for row in audited.rows)
    extra = f", {elsewhere} of them from elsewhere" if elsewhere else ""
    return findings, f"{len(audited.rows)} masks{extra}; training cases of fold {audited.run.fold}"


def _group_of_mask(row: SynthesisRow, held_out: Mapping[str, str], source: RawDataset) -> str | None:
    """Patient of a mask from a folder: as recorded (such as from --mask-groups), or as its name tells."""
    return (
        row.source_group if row.source_group in held_out else group_by_name(row.source_mask, source, held_out)
    )


def check_training_cases(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """The run saw the training cases of its fold as the splits are now, and no group is on both sides."""
    now, groups = set(audited.split[0]), audited.real.groups
    findings = [
        leak("synthesis.json", f"the model was trained on {case}", _what(audited, case))
        for case in sorted(audited.recorded & set(audited.held_out))
    ]
    trained = {groups[case] for case in now}
    for case in audited.split[1]:
        if groups[case] in trained:
            what = f"{case} validates, and others of its group {groups[case]} train"
            findings.append(leak("splits", what, "the model has seen that patient or sequence"))
    if odd := sorted((audited.recorded - set(audited.held_out)) ^ now):
        what = f"the run's training cases differ from the fold's in {odd[0]} ({len(odd)} such)"
        findings.append(changed("splits", what, "source or splits have changed since the training"))
    name = audited.real.name
    return findings, f"{len(now)} training and {len(audited.held_out)} held-out cases of {name}"


def check_run(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """The weights that generated are there, are those recorded, and their run says the same of its cases."""
    run = _find_run(audited, options)
    findings = []
    if weights_hash(run.folder) != audited.options.model:
        findings.append(
            changed(
                f"{run.folder}", "other weights than those that generated", "it is not known what they saw"
            )
        )
    if audited.run.configurations_hash not in (None, configurations_hash(run.folder)):
        what = "another config.json beside the weights than when they generated"
        findings.append(changed(f"{run.folder}", what, "the same weights make another network"))
    for name in COMPARED:
        if getattr(run.config, name) != getattr(audited.run, name):
            findings.append(
                changed(f"{run.folder}", f"another {name} than in synthesis.json", "one of the two is wrong")
            )
    if run.dataset_name != audited.record.source_dataset.name:
        findings.append(changed(f"{run.folder}", f"trained on {run.dataset_name}", "another data set"))
    if audited.source is not None:
        findings += [
            leak(f"{run.folder}", f"trained on {case}", _what(audited, case))
            for case in sorted(set(run.train_cases) & set(audited.held_out) - audited.recorded)
        ]
    others = [row.case for row in audited.rows if row.model_hash != audited.options.model]
    findings += [
        changed(case, "its row names another model", "what that one saw is not known") for case in others
    ]
    return findings, f"{run.folder}"


def check_base(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """The base model is the one recorded, and by its own record saw none of the held-out cases."""
    recorded = audited.run.base
    folder = Path(options.base) if options.base else _find_base(recorded.source)
    if is_unfinished(folder):
        raise NotPossible(f"{folder} is what an interrupted init-base left, which does not tell its cases")
    findings = []
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise NotPossible(f"{folder} is no complete base: it has no {missing[0]}/; give --base")
    if hash_base(folder) != recorded.hash:
        findings.append(changed(f"{folder}", "another base than the run's", "it is not known what it saw"))
    origin = audited.record.source_dataset.known_origin
    config, seen = read_base_config(folder), cases_behind_base(f"{folder}", origin)
    if seen is None:
        raise NotPossible(f"it was trained on {config.dataset}, another data set, which may hold copies")
    if not seen:
        kind = "random weights" if config else "no base of law-synth: trained by its publisher"
        return findings, f"{recorded.source}: {kind}"
    held_out = seen & set(audited.held_out)
    findings += [leak(f"{folder}", f"trained on {case}", _what(audited, case)) for case in sorted(held_out)]
    return findings, f"{recorded.source}: {len(seen)} cases of fold {config.fold}"


def check_judges(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Each segmenter that chose images or masks is the recorded one, and saw no validation or test case."""
    hard = audited.record.hard_cases
    wanted = {audited.options.segmenter, hard and hard.segmenter_sha256} - {None}
    if not wanted:
        return [], "none: no segmenter chose anything"
    judges = {
        judge.hash: judge
        for folder in options.segmenter
        for judge in [judge_of_fold(folder, "cpu", audited.run.fold, audited.real)]
    }
    if missing := sorted(wanted - judges.keys()):
        raise NotPossible(f"give --segmenter, the model folder whose sha256 is {missing[0][:12]}...")
    findings, held_out = [], set(audited.held_out)
    for judge in (judges[digest] for digest in sorted(wanted)):
        seen = cases_behind_judge(audited.real, judge)
        if seen is None and held_out:
            raise NotPossible(f"what {judge.name} learned of {judge.train_dataset} is not known here")
        shared = sorted(held_out & (seen or set()))
        findings += [leak(f"{judge.folder}", f"trained on {case}", _what(audited, case)) for case in shared]
    return findings, ", ".join(_describe(judges[digest]) for digest in sorted(wanted))


def check_hard_cases(audited: AuditedData, options: Audit) -> tuple[list[Finding], str]:
    """Only the Dice of training cases decided how often masks were used."""
    hard = audited.record.hard_cases
    if hard is None:
        return [], "none: every mask is used equally often"
    findings = [
        leak("synthesis.json", f"masks were chosen by the Dice of {case}", _what(audited, case))
        for case in sorted(set(hard.dice) & set(audited.held_out))
    ]
    return findings, f"Dice of {len(hard.dice)} training cases"


def _is_slice_of_run(audited: AuditedData, row: SynthesisRow) -> bool:
    """Whether the run has seen the slice that a mask belongs to; True for a mask from a folder."""
    source = source_slice(row)
    return source is None or source in audited.run.slices_of([source.case])


def _training(audited: AuditedData) -> set[str]:
    """Training cases by the splits as they are now, or by the run's list where the source is gone."""
    return audited.recorded if audited.source is None else set(audited.split[0])


def _what(audited: AuditedData, case: str) -> str:
    """What a held-out case is."""
    if case in audited.split[1]:
        kind = f"a validation case of fold {audited.run.fold}"
    else:
        kind = "a test case, or a case outside the fold,"
    return f"that is {kind} of {audited.real.name}"


def _describe(judge: Segmenter) -> str:
    return f"{judge.name} ({judge.train_dataset})"


def _find_run(audited: AuditedData, options: Audit) -> TrainedRun:
    """The run folder by --trained-run, or by its weights. NotPossible: it is nowhere."""
    if options.trained_run is not None:
        return read_run(options.trained_run)
    results = nnunet_folder("nnUNet_results")
    paths = [] if results is None else sorted((results / "law_synth").glob(f"*/*/{CONFIG}"))
    for path in paths:
        try:
            run = read_run(path.parent)
        except UserError:  # not yet trained, or damaged: not this one
            continue
        if run.hash == audited.options.model:
            return run
    raise NotPossible("no run with these weights under $nnUNet_results/law_synth; give --trained-run")


def _find_base(source: str) -> Path:
    """Folder of the base, or the cached one of a hub id; never downloads. NotPossible: neither is there."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return cached_model(source)
    except (ImportError, OSError, ValueError):  # not installed, not cached, no hub id
        raise NotPossible(f"{source} is neither a folder nor in the hub's cache; give --base") from None
