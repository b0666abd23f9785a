"""`nnunet-order plan`: ORDER as an architecture in a plans file, or one data set's plans for another."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from dataset_conversion.raw.dataset import RawDataset, dataset_folders, find_dataset, nnunet_folder
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_lenient_json, write_json
from nnunet_order.network_plans import with_network
from nnunet_order.options import Plan
from nnunet_order.registry import NETWORKS, network_path

logger = logging.getLogger(__name__)


def plan(options: Plan) -> None:
    """Write the plans. UserError: bad options, no such data set, one that is not planned."""
    options.check()
    if options.reuse_plans_from is not None:
        reuse_plans(options)
    else:
        write_order_plans(options)


def write_order_plans(options: Plan) -> None:
    """ORDERPlans.json beside the data set's own plans."""
    folder = preprocessed_folder(options.dataset)
    plans = with_network(
        read_planned(folder, f"{options.source}.json"),
        "2d",
        network_path("ORDER"),
        {"attention_stages": list(options.attention_stages)},
        strides=NETWORKS["ORDER"].strides,
        batch_size=options.batch_size,
        largest_patch=options.largest_patch,
        sigmoid_head=False,
    )
    plans["plans_name"] = "ORDERPlans"
    plans["configurations"] = {"2d": plans["configurations"]["2d"]}
    target = folder / "ORDERPlans.json"
    write_json(target, plans)
    settings = plans["configurations"]["2d"]
    logger.info("wrote %s: patch %s, batch %d", target, settings["patch_size"], settings["batch_size"])
    logger.info("train with: nnUNetv2_train %s 2d 0 -p ORDERPlans", options.dataset)


def reuse_plans(options: Plan) -> None:
    """Write another data set's plans, and dataset.json and fingerprint, which nnUNetv2_train needs."""
    source = preprocessed_folder(options.reuse_plans_from)
    target = find_dataset(options.dataset)
    folder = nnunet_folder("nnUNet_preprocessed") / target.name
    plans = plans_for(target, read_planned(source, f"{options.source}.json"))
    check_same_task(target, read_planned(source, "dataset.json"), source)
    path = folder / f"{options.source}.json"
    if path.is_file() and read_lenient_json(path, dict, "correct the file") != plans:
        raise UserError(
            f"{path}: found other plans, expected none or those of {source.name}; delete that folder "
            "(and the models trained with it) or choose another data set"
        )
    write_json(folder / "dataset_fingerprint.json", read_planned(source, "dataset_fingerprint.json"))
    write_json(folder / "dataset.json", target.json)
    write_json(path, plans)
    logger.info("wrote %s: the plans of %s", path, source.name)
    number = target.name[7:10]
    logger.info("next: nnUNetv2_preprocess -d %s -c 2d -plans_name %s", number, options.source)


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
                f"{dataset.folder}: found {key} {ours}, expected {theirs} as in {source.name}; choose plans "
                "of the same task"
            )


def read_planned(folder: Path, name: str) -> dict:
    """A JSON file that planning left in `folder` of nnUNet_preprocessed. UserError: it is not there."""
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"found no {path}, expected it from nnU-Net's planning; run: nnUNetv2_plan_and_preprocess "
            f"-d {folder.name[7:10]} -c 2d --verify_dataset_integrity"
        )
    return read_lenient_json(path, dict[str, Any], "plan the data set again")


def preprocessed_folder(dataset: str) -> Path:
    """nnUNet_preprocessed/DatasetXXX_NAME. UserError if the variable is unset or there is no such folder."""
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112
    if not root:
        raise UserError(
            "found no variable nnUNet_preprocessed, expected nnU-Net's folder of preprocessed data; run: "
            "export nnUNet_preprocessed=FOLDER (nnunet-order doctor checks it)"
        )
    found = dataset_folders(Path(root), dataset)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"found {names} for data set {dataset} in nnUNet_preprocessed={root}, expected one folder; run: "
            f"nnUNetv2_plan_and_preprocess -d {dataset} -c 2d --verify_dataset_integrity"
        )
    return found[0]
