"""`nnunet-order plan`: ORDER as an architecture in a plans file, or one data set's plans for another."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from dataset_conversion.raw.dataset import RawDataset, dataset_folders, find_dataset, nnunet_folder
from dataset_conversion.raw.description import load_json, load_table
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import write_json
from nnunet_order.network_plans import with_network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Write ORDERPlans.json beside a data set's nnUNetPlans.json.

    Stock nnUNetTrainer then trains ORDER, deep supervision included:
    nnUNetv2_train DATASET 2d FOLD -p ORDERPlans. Nothing is preprocessed again.

    With --reuse-plans-from, give DATASET the unchanged plans of another data set instead, so that planning
    never sees its (synthetic) cases: then nnUNetv2_preprocess -d DATASET -c 2d -plans_name nnUNetPlans.
    """

    dataset: tyro.conf.Positional[str]
    """Data set id (500) or name (Dataset500_Polyps); planned and preprocessed for 2d, but not with
    --reuse-plans-from."""
    source: str = "nnUNetPlans"
    """The plans to start from."""
    batch_size: int = 16
    """Images per training step; the paper's is 16."""
    largest_patch: int = 512
    """Upper bound of a patch side in pixels; the patch is the median image up to that."""
    attention_stages: tuple[int, ...] = (0, 1)
    """Skips with bidirectional attention, counted from the deepest."""
    reuse_plans_from: str | None = None
    """Planned data set (id or name) of the same channels and labels whose plans are taken as they are."""

    def run(self) -> None:
        if self.reuse_plans_from is not None:
            self._reuse_plans()
            return
        if not {*self.attention_stages} <= {0, 1, 2, 3}:
            raise UserError(
                f"found --attention-stages {' '.join(map(str, self.attention_stages))}, expected some of "
                "0 1 2 3; correct them"
            )
        folder = preprocessed_folder(self.dataset)
        plans = with_network(
            read_planned(folder, f"{self.source}.json"),
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
        write_json(target, plans)
        settings = plans["configurations"]["2d"]
        logger.info("wrote %s: patch %s, batch %d", target, settings["patch_size"], settings["batch_size"])
        logger.info("train with: nnUNetv2_train %s 2d 0 -p ORDERPlans", self.dataset)

    def _reuse_plans(self) -> None:
        """Write plans, dataset.json and fingerprint; without the last nnUNetv2_train does not start."""
        if self != Plan(self.dataset, self.source, reuse_plans_from=self.reuse_plans_from):
            raise UserError(
                "found options of ORDER's plans with --reuse-plans-from, expected none: the plans are "
                "taken as they are; leave them out"
            )
        source = preprocessed_folder(self.reuse_plans_from)
        target = find_dataset(self.dataset)
        folder = nnunet_folder("nnUNet_preprocessed") / target.name
        plans = plans_for(target, read_planned(source, f"{self.source}.json"))
        check_same_task(target, read_planned(source, "dataset.json"), source)
        path = folder / f"{self.source}.json"
        if path.is_file() and load_json(path) != plans:
            raise UserError(
                f"{path}: found other plans, expected none or those of {source.name}; delete that folder "
                "(and the models trained with it) or choose another data set"
            )
        write_json(folder / "dataset_fingerprint.json", read_planned(source, "dataset_fingerprint.json"))
        write_json(folder / "dataset.json", target.json)
        write_json(path, plans)
        logger.info("wrote %s: the plans of %s", path, source.name)
        number = target.name[7:10]
        logger.info("next: nnUNetv2_preprocess -d %s -c 2d -plans_name %s", number, self.source)


def plans_for(dataset: RawDataset, plans: dict) -> dict:
    """The plans of another data set with the name and the file reader of this one."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    example = str(dataset.training_cases[0].images[0])
    reader = determine_reader_writer_from_dataset_json(dataset.json, example, verbose=False)
    name = dataset.name
    return plans | {"dataset_name": name, "image_reader_writer": reader.__name__}


def check_same_task(dataset: RawDataset, planned: dict, source: Path) -> None:
    """UserError unless channels, labels and the order of regions are those of a planned dataset.json."""
    for key in ("channel_names", "labels", "regions_class_order"):
        # As text, because nnU-Net takes regions in the order of their lines.
        ours, theirs = (json.dumps(content.get(key)) for content in (dataset.json, planned))
        if ours != theirs:
            raise UserError(
                f"{dataset.folder}: found {key} {ours}, expected {theirs} as in "
                f"{source.name}; its plans fit no other"
            )


def read_planned(folder: Path, name: str) -> dict:
    """A JSON file that planning left in `folder` of nnUNet_preprocessed. UserError: it is not there."""
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"found no {path}; run: nnUNetv2_plan_and_preprocess -d {folder.name[7:10]} -c 2d "
            "--verify_dataset_integrity"
        )
    return load_table(path, "what nnU-Net's planning wrote", "plan the data set again")


def preprocessed_folder(dataset: str) -> Path:
    """nnUNet_preprocessed/DatasetXXX_NAME. UserError if the variable is unset or there is no such folder."""
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112
    if not root:
        raise UserError(
            "nnUNet_preprocessed is not set; export nnUNet_preprocessed=FOLDER (nnunet-order doctor)"
        )
    found = dataset_folders(Path(root), dataset)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"found {names} for data set {dataset} in nnUNet_preprocessed={root}, expected one folder; run: "
            f"nnUNetv2_plan_and_preprocess -d {dataset} -c 2d --verify_dataset_integrity"
        )
    return found[0]
