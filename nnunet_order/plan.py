"""`nnunet-order plan`: ORDER as an architecture of stock nnU-Net, named in a plans file."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from dataset_conversion.user_error import UserError
from nnunet_order.plans import with_network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Write ORDERPlans.json beside a data set's nnUNetPlans.json.

    Stock nnUNetTrainer then trains ORDER, deep supervision included:
    nnUNetv2_train DATASET 2d FOLD -p ORDERPlans. Nothing is preprocessed again.
    """

    dataset: tyro.conf.Positional[str]
    """Data set id (500) or name (Dataset500_Polyps); it must be planned and preprocessed for 2d."""
    source: str = "nnUNetPlans"
    """The plans to start from."""
    batch_size: int = 16
    """Images per training step; the paper's is 16."""
    largest_patch: int = 512
    """Upper bound of a patch side in pixels; the patch is the median image up to that."""
    attention_stages: tuple[int, ...] = (0, 1)
    """Skips with bidirectional attention, counted from the deepest."""

    def run(self) -> None:
        folder = preprocessed_folder(self.dataset)
        source = folder / f"{self.source}.json"
        if not source.is_file():
            raise UserError(
                f"found no {source}; run: nnUNetv2_plan_and_preprocess -d {self.dataset} -c 2d "
                "--verify_dataset_integrity"
            )
        plans = with_network(
            json.loads(source.read_text()),
            "2d",
            "nnunet_order.networks.ORDER",
            {"attention_stages": list(self.attention_stages)},
            batch_size=self.batch_size,
            largest_patch=self.largest_patch,
            sigmoid_head=False,
        )
        plans["plans_name"] = "ORDERPlans"
        plans["configurations"] = {"2d": plans["configurations"]["2d"]}
        target = folder / "ORDERPlans.json"
        temporary = target.with_suffix(".partial")
        temporary.write_text(json.dumps(plans, indent=4) + "\n")
        os.replace(temporary, target)
        settings = plans["configurations"]["2d"]
        logger.info("wrote %s: patch %s, batch %d", target, settings["patch_size"], settings["batch_size"])
        logger.info("train with: nnUNetv2_train %s 2d 0 -p ORDERPlans", self.dataset)


def preprocessed_folder(dataset: str) -> Path:
    """nnUNet_preprocessed/DatasetXXX_NAME. UserError if the variable is unset or there is no such folder."""
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112
    if not root:
        raise UserError(
            "nnUNet_preprocessed is not set; export nnUNet_preprocessed=FOLDER (nnunet-order doctor)"
        )
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdigit() else dataset
    found = sorted(path for path in Path(root).glob(pattern) if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"found {names} for data set {dataset} in nnUNet_preprocessed={root}, expected one folder; run: "
            f"nnUNetv2_plan_and_preprocess -d {dataset} -c 2d --verify_dataset_integrity"
        )
    return found[0]
