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
from nnunet_order.benchmark import Benchmark
from nnunet_order.comparing.options import Compare
from nnunet_order.complexity import Complexity
from nnunet_order.demo import Demo
from nnunet_order.doctor import Doctor
from nnunet_order.evaluate import Evaluate
from nnunet_order.export import Export
from nnunet_order.plan import Plan
from nnunet_order.predict import Predict

CONVERSIONS = {
    "polyps": Verb(ConvertPolyps, ""),
    "kits19": Verb(ConvertKits19, ""),
    "folder": Verb(ConvertFolder, ""),
    "phantom": Verb(ConvertPhantom, ""),
    "subset": Verb(ConvertSubset, ""),
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
    "plan": Verb(Plan, ""),
    "evaluate": Verb(Evaluate, ""),
    "compare": Verb(Compare, "nnunet_order.comparing.compare:compare"),
    "complexity": Verb(Complexity, ""),
    "benchmark": Verb(Benchmark, ""),
    "export": Verb(Export, ""),
    "predict": Verb(Predict, ""),
    "doctor": Verb(Doctor, ""),
    "demo": Verb(Demo, ""),
}


def read_and_run() -> None:
    """Do what the command line asks for."""
    description = (
        "ORDER for stock nnU-Net: convert data, measure, export. "
        "Train with nnUNetv2_train -tr nnUNetTrainerORDER."
    )
    run_verb(VERBS, "nnunet-order", description)
