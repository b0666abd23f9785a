"""The verb `complexity`: parameters and FLOPs beside Tables 3, 5 and 6 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import write_json
from nnunet_order import networks
from nnunet_order.options import Complexity
from nnunet_order.registry import NETWORKS

CONVENTION = (
    "Parameters: numel of all. GFLOPs: 2 x multiply-adds of convolutions and matrix products "
    "(torch.utils.flop_counter), ORDER on its materialized path, for one image of "
    "{channels} x {size} x {size}. fvcore x 2 also counts the elements of normalisation, pooling and "
    "up-sampling. One output channel, as in the paper and in our trainers for one label; nnU-Net's two "
    "softmax outputs add 5 parameters to ORDER and MK-UNet."
)


# Network of the registry -> parameters and GFLOPs in the paper's Table 3, and why ours differ.
TABLE_3 = {
    "UNeXt": ("1.3 M", "2", "its own paper: 1.47 M; 2 G: multiply-adds at 512 px"),
    "EGEUNet": ("0.5 M", "1", "its own paper: 0.053 M, ten times less"),
    "MKUNet": (
        "27 K",
        "0.15",
        "the official 27,384 have 31 in three unused heads; 0.15 G comes from no counter tried",
    ),
    "ORDER": ("42 K", "0.56", "the paper's 0.56 is fvcore x 2"),
}
UNET_IN_TABLE_3 = (
    "31 M",
    "50",
    "31 M is nnU-Net's 3D default (31.2 M); 2D: 7 stages, 33.5 M, for 256 px, 8 stages, 46.3 M, for 512 px; "
    "50 G fits neither size (30, 119)",
)
NOT_IN_PAPER = "not in the paper"
# What there is to say about a network that the paper does not have.
NOTES = {
    "MKUNetWide": "our own, not in the paper",
    "NanoNetC": "its own paper: 36,561, with 2,488 running statistics of batch norm",
    "UltraSeg130K": "its own paper: 0.130 M by thop, which misses 17,962",
}


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper, and how we build that network."""

    table: int
    name: str
    build: Callable[[int, int], nn.Module]
    """(size, input_channels) -> network."""
    paper_parameters: str
    paper_gflops: str
    note: str
    """Why the numbers differ, at 256 px and three channels."""


def complexity(options: Complexity) -> None:
    """Count, print and, with --json, write the numbers. UserError: bad options."""
    options.check()
    with_fvcore = find_spec("fvcore") is not None
    rows = [
        {"table": row.table, "network": row.name}
        | count(row, options.size, options.input_channels, with_fvcore)
        | {"paper_parameters": row.paper_parameters, "paper_gflops": row.paper_gflops, "note": row.note}
        for row in track(paper_rows(), "Counting")
    ]
    convention = CONVENTION.format(channels=options.input_channels, size=options.size)
    print_tables(rows, convention, with_fvcore)
    if options.json is not None:
        content = {"size": options.size, "input_channels": options.input_channels, "convention": convention}
        write_json(options.json, content | {"rows": rows})


def paper_rows() -> list[PaperRow]:
    """The rows of Tables 3, 5 and 6; networks of the registry that the paper does not have end Table 3."""
    own = [name for name, one in NETWORKS.items() if name not in TABLE_3 and one.can_be_built]
    return [
        PaperRow(3, "nnU-Net 2D", planned_unet, *UNET_IN_TABLE_3),
        *(PaperRow(3, NETWORKS[name].title, registered(name), *paper) for name, paper in TABLE_3.items()),
        *(
            PaperRow(3, NETWORKS[name].title, registered(name), "", "", NOTES.get(name, NOT_IN_PAPER))
            for name in own
        ),
        PaperRow(5, "MK-UNet (base)", registered("MKUNet"), "27 K", "", ""),
        PaperRow(5, "ORDER, all stages", order(0, 1, 2, 3), "50 K", "", "see Table 6"),
        PaperRow(5, "ORDER, selective", order(0, 1), "42 K", "", ""),
        PaperRow(6, "None: MK-UNet", registered("MKUNet"), "27 K", "", "gated skips"),
        PaperRow(6, "None: ORDER, additive skips", order(), "", "", "no such row in the paper"),
        PaperRow(
            6, "Stages 3-4 (early)", order(3), "35 K", "", "stage 4, the last, has no skip: stage 3 alone"
        ),
        PaperRow(
            6, "Stages 2-3 (mid)", order(2, 3), "38 K", "", "Table 6 is not additive: stage 4 would be < 0"
        ),
        PaperRow(6, "Stages 1-2", order(1, 2), "", "", "no such row in the paper"),
        PaperRow(6, "Stages 0-1 (ours)", order(0, 1), "42 K", "", ""),
        PaperRow(6, "All stages", order(0, 1, 2, 3), "50 K", "", "not additive, as above"),
    ]


def registered(name: str, **options: Any) -> Callable[[int, int], nn.Module]:
    """(size, input_channels) -> the network of that name in the registry, as its FLOPs are counted."""
    chosen = {**NETWORKS[name].counted_with, **options}
    return lambda size, channels: getattr(networks, name)(channels, 1, **chosen)


def order(*stages: int) -> Callable[[int, int], nn.Module]:
    """ORDER with attention on these skips."""
    return registered("ORDER", attention_stages=stages)


def planned_unet(size: int, input_channels: int = 3, num_classes: int = 1) -> nn.Module:
    """nnU-Net's default 2D PlainConvUNet as its planner lays it out for square patches of `size` pixels.

    Halvings down to 4 pixels, two convolutions per stage, 32 features doubled up to 512: 7 stages at 256,
    8 at 512 (nnunetv2 `ExperimentPlanner.get_plans_for_configuration`). UserError: uneven sizes.
    """
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    _, strides, kernel_sizes, patch, _ = get_pool_and_conv_props((1, 1), (size, size), 4, 999999)
    if patch[0] != size:
        raise UserError(
            f"found size {size}, expected {patch[0]}, to which nnU-Net's planner would pad; give that"
        )
    stages = len(strides)
    architecture = {
        "n_stages": stages,
        "features_per_stage": [min(512, 32 * 2**stage) for stage in range(stages)],
        "conv_op": "torch.nn.Conv2d",
        "kernel_sizes": kernel_sizes,
        "strides": strides,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    imports = ("conv_op", "norm_op", "dropout_op", "nonlin")
    return get_network_from_plans(
        name, architecture, imports, input_channels, num_classes, deep_supervision=False
    )


def parameters(network: nn.Module) -> int:
    """Number of parameters, by numel: bare `nn.Parameter`s count too, which thop misses (EGE-UNet#21)."""
    return sum(parameter.numel() for parameter in network.parameters())


def gflops(network: nn.Module, size: int = 256, input_channels: int = 3) -> float:
    """2 x multiply-adds of convolutions and matrix products for one square image, in 1e9.

    Nothing is computed or allocated (fake tensors): S of attention at H/2 would take GiBs.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    network.eval()
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
        network(torch.zeros(1, input_channels, size, size))
    return counter.get_total_flops() / 1e9


def fvcore_gflops(network: nn.Module, size: int = 256, input_channels: int = 3) -> float:
    """2 x what fvcore calls FLOPs, in 1e9: multiply-adds, and elements of normalisation and up-sampling."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(network.eval(), torch.zeros(1, input_channels, size, size))
    return 2 * analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total() / 1e9


def count(row: PaperRow, size: int, input_channels: int, with_fvcore: bool) -> dict:
    """Our numbers of one row; fvcore's for Table 3 only, because it runs the network for real."""
    network = row.build(size, input_channels)
    numbers = {"parameters": parameters(network), "gflops": gflops(network, size, input_channels)}
    if with_fvcore and row.table == 3:
        numbers["gflops_fvcore_x2"] = fvcore_gflops(network, size, input_channels)
    return numbers


def print_tables(rows: Sequence[dict], convention: str, with_fvcore: bool) -> None:
    """One table per table of the paper; ours beside the paper's."""
    console = Console()
    for number in (3, 5, 6):
        fvcore = with_fvcore and number == 3
        table = Table(title=f"Table {number} (paper's numbers in brackets)")
        for head in ("Network", "Parameters", "GFLOPs", *["fvcore x 2"] * fvcore, "Why they differ"):
            table.add_column(head, justify="left" if head in ("Network", "Why they differ") else "right")
        for row in (row for row in rows if row["table"] == number):
            table.add_row(
                row["network"],
                beside(f"{row['parameters']:,}", row["paper_parameters"]),
                beside(f"{row['gflops']:.3g}", row["paper_gflops"]),
                *[f"{row.get('gflops_fvcore_x2', 0):.3g}"] * fvcore,
                row["note"],
            )
        console.print(table)
    console.print(convention)


def beside(ours: str, paper: str) -> str:
    """Ours, and below it the paper's."""
    return f"{ours}\n[dim]({paper})[/dim]" if paper else ours
