"""The verbs of `nnunet-order`: one frozen dataclass per verb, read by tyro."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from dataset_conversion.folder import ConvertFolder
from dataset_conversion.kits19 import ConvertKits19
from dataset_conversion.phantom import ConvertPhantom
from dataset_conversion.polyps import ConvertPolyps
from dataset_conversion.subset import ConvertSubset
from nnunet_order.benchmark import Benchmark
from nnunet_order.complexity import Complexity
from nnunet_order.demo import Demo
from nnunet_order.doctor import Doctor
from nnunet_order.evaluate import Evaluate
from nnunet_order.experiment.compare import Compare
from nnunet_order.export import Export
from nnunet_order.plan import Plan
from nnunet_order.predict import Predict

Conversion = (
    Annotated[ConvertPolyps, tyro.conf.subcommand("polyps")]
    | Annotated[ConvertKits19, tyro.conf.subcommand("kits19")]
    | Annotated[ConvertFolder, tyro.conf.subcommand("folder")]
    | Annotated[ConvertPhantom, tyro.conf.subcommand("phantom")]
    | Annotated[ConvertSubset, tyro.conf.subcommand("subset")]
)


@dataclass(frozen=True)
class Convert:
    """Turn public data, images and masks, phantoms or a share of a data set into an nnU-Net raw folder."""

    kind: tyro.conf.OmitSubcommandPrefixes[Conversion]

    def run(self) -> None:
        self.kind.run()


Verb = (
    Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Complexity, tyro.conf.subcommand("complexity")]
    | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)


def read_verb() -> Verb:
    """The verb and its options on the command line. SystemExit: help was asked for, or an option is wrong."""
    return tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[Verb],
        prog="nnunet-order",
        description="ORDER for stock nnU-Net: convert data, measure, export. "
        "Train with nnUNetv2_train -tr nnUNetTrainerORDER.",
    )
