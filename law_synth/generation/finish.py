"""Complete a generated data set once all its chunks are there: real cases, splits, manifest, dataset.json."""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from pathlib import Path

from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import nnunet_folder
from dataset_conversion.raw.folds import fold_cases, read_folds, refuse_other_splits, splits_files
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import link_or_copy, write_atomically
from dataset_conversion.system.json_files import write_json
from law_synth.generation.resuming import remove_leftovers
from law_synth.generation.samples import GenerationPlan
from law_synth.records.synthetic import FOLDER, MANIFEST, read_chunk, write_rows

logger = logging.getLogger(__name__)


def finish_dataset(plan: GenerationPlan) -> None:
    """Write what is still missing, dataset.json last. Any number of processes may do so, any number of times.

    UserError: nothing was kept, or nnU-Net's folder holds other splits.
    """
    out = plan.options.out
    rows = []
    for chunk in range(len(plan.chunks)):
        rows_of_chunk = read_chunk(out, chunk)
        if rows_of_chunk is None:
            logger.warning("chunk %d is damaged; run the shard that made it again", chunk)
            return
        rows += rows_of_chunk
    kept = sorted(row.case for row in rows if row.kept)
    dropped = Counter(row.reason for row in rows if not row.kept)
    counts = ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items())) or "none"
    if not kept:
        agreements = [row.scores["agreement"] for row in rows if row.scores["agreement"] is not None]
        best = f"; the best agreement was {max(agreements):.3f}" if agreements else ""
        raise UserError(
            f"{out}: found no image to keep, dropped all {len(rows)} ({counts}){best}, expected some; train "
            "longer, or lower --min-agreement or raise --max-similarity with another --out"
        )
    remove_leftovers(out, plan.prefix, set(kept))
    write_rows(out / MANIFEST, rows)
    real = _add_real_cases(plan, kept) if plan.options.with_real else []
    _write_groups(plan, kept, real)
    _write_dataset_json(plan, len(kept) + len(real))
    logger.info("wrote %s: kept %d of %d images (dropped: %s)", out, len(kept), len(rows), counts)
    _say_next_commands(plan)


def refuse_splits_in_the_way(plan: GenerationPlan) -> None:
    """UserError when nnU-Net's folder holds other splits than `finish_dataset` may write for these cases."""
    training, validation = fold_cases(plan.dataset, plan.run.fold)
    made = re.compile(re.escape(plan.prefix) + r"_\d+")
    for path in splits_files(plan.options.out) if validation else ():
        folds = read_folds(path) if path.is_file() else []
        real = [({case for case in fold["train"] if not made.fullmatch(case)}, fold["val"]) for fold in folds]
        if folds and real != [(set(training), validation)]:
            raise UserError(
                f"{path}: found other splits than fold {plan.run.fold} of {plan.dataset.folder.name} and "
                "synthetic training cases, expected those or none; delete that file (and the models "
                "trained with it) or choose another --out"
            )


def _add_real_cases(plan: GenerationPlan, kept: list[str]) -> list[str]:
    """Link the fold's real cases into the data set and write its one fold; -> their ids."""
    out = plan.options.out
    training, validation = fold_cases(plan.dataset, plan.run.fold)
    if validation:
        splits = [{"train": sorted(training + kept), "val": validation}]
        refuse_other_splits(out, splits)
        for path in splits_files(out):
            write_json(path, splits)
            logger.info("wrote %s: fold 0 is fold %s of %s", path, plan.run.fold, plan.dataset.folder.name)
    wanted = set(training + validation)
    for case in plan.dataset.training_cases:
        if case.id in wanted:
            _link_case(case, out, plan.dataset.file_ending)
    return sorted(wanted)


def _write_groups(plan: GenerationPlan, kept: list[str], real: list[str]) -> None:
    """Write groups.json: a synthetic case belongs to the patient or video of its mask."""
    of_mask = {sample.case: sample.source.group for sample in plan.samples}
    groups = {case_id: of_mask[case_id] for case_id in kept}
    groups |= {case_id: plan.dataset.groups[case_id] for case_id in real}
    write_json(plan.options.out / "groups.json", groups)


def _link_case(case: Case, out: Path, ending: str) -> None:
    for channel, image in enumerate(case.images):
        link_or_copy(image, out / "imagesTr" / f"{case.id}_{channel:04d}{ending}")
    link_or_copy(case.label, out / "labelsTr" / f"{case.id}{ending}")


def _write_dataset_json(plan: GenerationPlan, cases: int) -> None:
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    out, source = plan.options.out, plan.dataset.json
    names = ("overwrite_image_reader_writer", "reference", "regions_class_order", "max_side")
    optional = {name: source[name] for name in names if name in source}
    with tempfile.TemporaryDirectory(dir=out / FOLDER) as folder:
        generate_dataset_json(
            folder,
            channel_names=source["channel_names"],
            labels=dict(source["labels"]),  # nnU-Net changes it
            num_training_cases=cases,
            file_ending=plan.dataset.file_ending,
            dataset_name=out.resolve().name,
            license=source.get("licence", "that of the source data"),  # nnU-Net writes it with a c
            converted_by="law-order",
            description=f"synthetic cases from masks of {plan.dataset.name}",
            **optional,
        )
        write_atomically(out / "dataset.json", (Path(folder) / "dataset.json").read_bytes())


def _say_next_commands(plan: GenerationPlan) -> None:
    fold, number = plan.run.fold, plan.options.out.resolve().name[7:10]
    source = plan.dataset.name
    if not plan.options.with_real:
        logger.info(
            "without --with-real, nnU-Net will split the synthetic cases and validate on some of them"
        )
    elif fold == "all":
        logger.info(
            "fold all has no validation cases: train with fold all; folds 0 to 4 would mix both kinds"
        )
    train_fold = 0 if plan.options.with_real and fold != "all" else "all"
    logger.info("next: nnUNetv2_plan_and_preprocess -d %s -c 2d --verify_dataset_integrity", number)
    logger.info("then: nnUNetv2_train %s 2d %s -tr nnUNetTrainerORDER", number, train_fold)
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    if preprocessed and (preprocessed / source / "nnUNetPlans.json").is_file():
        logger.info(
            "or with the plans of %s: nnUNetv2_plan_and_preprocess -d %s -c 2d --no_pp; "
            "nnUNetv2_move_plans_between_datasets -s %s -t %s -sp nnUNetPlans -tp RealPlans; "
            "nnUNetv2_preprocess -d %s -c 2d -plans_name RealPlans; "
            "nnUNetv2_train %s 2d %s -tr nnUNetTrainerORDER -p RealPlans",
            *(source, number, source[7:10], number, number, number, train_fold),
        )
