"""The verbs of `nnunet-order`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from dataset_conversion.folder import ConvertFolder
from dataset_conversion.kits19 import ConvertKits19
from dataset_conversion.phantom import ConvertPhantom
from dataset_conversion.polyps import ConvertPolyps
from dataset_conversion.subset import ConvertSubset
from dataset_conversion.system.verbs import Verb, as_union, call, run_verb
from nnunet_order.comparing.options import Compare
from nnunet_order.distilling.options import Distill
from nnunet_order.options import Benchmark, Complexity, Demo, Doctor, Evaluate, Export, Plan, Predict
from nnunet_order.registry import RECOMMENDED, trainer_of

CONVERSIONS = {
    "polyps": Verb(ConvertPolyps, "dataset_conversion.polyps:convert_polyps"),
    "kits19": Verb(ConvertKits19, "dataset_conversion.kits19:convert_kits19"),
    "folder": Verb(ConvertFolder, "dataset_conversion.folder:convert_folder"),
    "phantom": Verb(ConvertPhantom, "dataset_conversion.phantom:convert_phantom"),
    "subset": Verb(ConvertSubset, "dataset_conversion.subset:convert_subset"),
}
Conversion = as_union(CONVERSIONS)


@dataclass(frozen=True)
class Convert:
    """Turn public data, images and masks, phantoms or a share of a data set into an nnU-Net raw folder."""

    kind: tyro.conf.OmitSubcommandPrefixes[Conversion]

    def check(self) -> None:
        """The kind's own options are checked with it."""


def convert(options: Convert) -> None:
    """Convert what its kind asks for."""
    call(CONVERSIONS, options.kind)


VERBS = {
    "convert": Verb(Convert, "nnunet_order.verbs:convert"),
    "plan": Verb(Plan, "nnunet_order.plan:plan"),
    "evaluate": Verb(Evaluate, "nnunet_order.evaluate:evaluate"),
    "compare": Verb(Compare, "nnunet_order.comparing.compare:compare"),
    "distill": Verb(Distill, "nnunet_order.distilling.distill:distill"),
    "complexity": Verb(Complexity, "nnunet_order.complexity:complexity"),
    "benchmark": Verb(Benchmark, "nnunet_order.benchmark:benchmark"),
    "export": Verb(Export, "nnunet_order.export:export"),
    "predict": Verb(Predict, "nnunet_order.predict:predict"),
    "doctor": Verb(Doctor, "nnunet_order.doctor:doctor"),
    "demo": Verb(Demo, "nnunet_order.demo:demo"),
}


def read_and_run() -> None:
    """Do what the command line asks for."""
    description = (
        "Small networks for stock nnU-Net: convert data, measure, export. "
        f"Train with nnUNetv2_train -tr {trainer_of(RECOMMENDED)}; the paper's is nnUNetTrainerORDER."
    )
    run_verb(VERBS, "nnunet-order", description)
