"""What stands for the predictions that nnU-Net makes at the end of a training, where nobody wants them."""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.system.json_files import write_json

SKIPPED = (
    'No final validation (final_validation="none", the default of fold all, which has trained on all cases). '
    'Give the same command with --val, or set NNUNET_ORDER_OPTIONS="final_validation=full", to have it.'
)


def leave_empty_summary(fold_folder: Path, replace: bool) -> None:
    """Write validation/summary.json without a case: nnUNetv2_export_model_to_zip packs no model without it.

    `replace`: also where there is one, which is of other weights.
    """
    path = fold_folder / "validation" / "summary.json"
    if replace or not path.exists():
        write_json(path, {"foreground_mean": {}, "mean": {}, "metric_per_case": [], "skipped": SKIPPED})
