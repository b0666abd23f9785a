"""Parameters and FLOPs: pinned where the design and public sources pin them, and against counts by hand."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
import torch
from torch import nn

from dataset_conversion.system.errors import UserError
from nnunet_order import complexity as counting
from nnunet_order.complexity import complexity, gflops, paper_rows, parameters, planned_unet
from nnunet_order.options import Complexity
from nnunet_order.registry import NETWORKS


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> tuple[dict, str]:
    """What the verb writes and what it prints; counting all networks takes a minute."""
    path = tmp_path_factory.mktemp("complexity") / "complexity.json"
    with redirect_stdout(io.StringIO()) as printed:
        complexity(Complexity(json=path))
    assert list(path.parent.iterdir()) == [path]
    return json.loads(path.read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def report(counted) -> dict:
    return counted[0]


def numbers(report: dict, table: int) -> dict[str, tuple[int, float]]:
    return {
        row["network"]: (row["parameters"], pytest.approx(row["gflops"], rel=2e-3))
        for row in report["rows"]
        if row["table"] == table
    }


def test_table_3(report):
    with_smp = {"SMP, FPN with EfficientNet-Lite0": (4_710_785, 4.936)}  # an optional extra
    assert numbers(report, 3) == (with_smp if NETWORKS["SMP"].can_be_built else {}) | {
        "nnU-Net 2D": (33_470_886, 29.60),
        "UNeXt": (1_471_921, 1.124),
        "EGE-UNet": (53_374, 0.1442),
        "MK-UNet-T": (27_353, 0.0991),
        "ORDER": (42_457, 0.5397),
        "MKUNetWide": (41_055, 0.2188),
        "NanoNet-C": (34_073, 0.3597),
        "UltraSeg-130K": (147_674, 0.2907),
        "Lite40K": (39_745, 0.3124),
        "Lite95K": (95_139, 0.3931),
        "Lite333K": (333_507, 0.5077),
        "LiteUNet": (3_617_633, 11.23),
    }


def test_tables_5_and_6(report):
    table = numbers(report, 6)
    assert table == {
        "None: MK-UNet": (27_353, 0.0991),
        "None: ORDER, additive skips": (26_223, 0.0946),
        "Stages 3-4 (early)": (27_780, 103.2),
        "Stages 2-3 (mid)": (30_925, 109.7),
        "Stages 1-2": (35_785, 6.977),
        "Stages 0-1 (ours)": (42_457, 0.5397),
        "All stages": (47_159, 110.1),
    }
    assert numbers(report, 5)["ORDER, selective"] == table["Stages 0-1 (ours)"]
    assert numbers(report, 5)["ORDER, all stages"] == table["All stages"]


def test_fvcore_gives_the_papers_flops(report):
    pytest.importorskip("fvcore", reason="fvcore is not installed")
    (order,) = (row for row in report["rows"] if row["network"] == "ORDER")
    assert order["gflops_fvcore_x2"] == pytest.approx(float(order["paper_gflops"]), abs=0.005)


def test_tables_are_printed_with_their_convention(counted):
    printed = " ".join(counted[1].split())
    for text in ("Table 3", "Table 5", "Table 6", "2 x multiply-adds", "3 x 256 x 256", "(0.56)"):
        assert text in printed


def test_size_and_channels_are_those_asked_for(report, tmp_path, monkeypatch):
    """Of one network: a quarter of the side has a sixteenth of the FLOPs, and grey images a lighter stem."""
    rows = [row for row in paper_rows() if row.name == "MK-UNet-T"]
    monkeypatch.setattr(counting, "paper_rows", lambda: rows)
    complexity(Complexity(size=64, input_channels=1, json=tmp_path / "small.json"))
    small = json.loads((tmp_path / "small.json").read_text())
    assert "1 x 64 x 64" in small["convention"]
    parameters, gflops = numbers(report, 3)["MK-UNet-T"]
    (row,) = small["rows"]
    assert 0.9 * parameters < row["parameters"] < parameters
    assert 0.7 * gflops.expected / 16 < row["gflops"] < gflops.expected / 16


def test_counts_by_hand():
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
    assert parameters(network) == 2 * 3 * 9 + 6
    assert gflops(network, size=10, input_channels=2) == pytest.approx(2 * (2 * 3 * 9) * 100 / 1e9)


def test_planned_unet_is_nnunets(tmp_path):
    """A forward pass, and as many stages as nnU-Net's planner gives."""
    assert parameters(planned_unet(512)) == 46_323_111
    assert planned_unet(32, 1, 2)(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)
    with pytest.raises(UserError, match="found size 352, expected 384"):
        planned_unet(352)


def test_bad_numbers():
    with pytest.raises(UserError, match="found --size 0, expected 8 or more"):
        complexity(Complexity(size=0))
