"""The four recipes of CONTRIBUTING.md: each is followed in a copy of the packages, in the files it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_conversion.phantom import ConvertPhantom, convert_phantom

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dataset_conversion", "nnunet_order", "law_synth")
RECIPES = re.compile(r"^### (?P<title>[^:\n]+): (?P<files>\w+) files?\n(?P<text>.*?)(?=^#)", re.M | re.S)
NUMBERS = {"one": 1, "two": 2}
ORDER, LAW = (f"from {package}.cli import main; main()" for package in ("nnunet_order", "law_synth"))

# Recipe -> file -> the text of a new file, or the lines to add after a line of an old one.
ADDITIONS: dict[str, dict[str, str | dict[str, str]]] = {
    "A weighting": {
        "law_synth/weightings.py": {"WEIGHTINGS = {": '    "half": Weighting(options=BOUNDS),'},
        "law_synth/weighting.py": {
            "FIXED: dict[str, Callable[[Tensor, Bounds], SpatialWeights]] = {": (
                '    "half": lambda mask, bounds: on_both(bounded(mask.amax(1, keepdim=True) / 2, bounds)),'
            )
        },
    },
    "A network with its trainer": {
        "nnunet_order/networks/pixel_net.py": """
from torch import nn

from nnunet_order.networks.seg_layers import SegLayers
from nnunet_order.networks.strides import check_strides

STRIDES = ((1, 1), (2, 2))


class PixelNet(nn.Module):
    def __init__(self, input_channels, num_classes, deep_supervision=False, strides=None):
        super().__init__()
        check_strides(strides, STRIDES)
        self.decoder = nn.Module()
        self.decoder.deep_supervision = deep_supervision
        self.decoder.seg_layers = SegLayers([input_channels], num_classes, deep_supervision)

    def forward(self, x):
        logits = self.decoder.seg_layers[0](x)
        return [logits] if self.decoder.deep_supervision else logits
""",
        "nnunet_order/registry.py": {
            "NETWORKS = {": (
                '    "PixelNet": Network("pixel_net", "PixelNet", "One layer.", strides=((1, 1), (2, 2))),'
            )
        },
    },
    "A converter": {
        "dataset_conversion/squares.py": '''
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.raw.writer import RawDatasetWriter


@dataclass(frozen=True)
class ConvertSquares:
    """Draw squares."""

    out: Path
    """Folder to write."""

    def check(self) -> None:
        pass


def convert_squares(options: ConvertSquares) -> None:
    options.check()
    image = np.zeros((8, 8), np.uint8)
    image[2:5, 2:5] = 1
    with RawDatasetWriter(options.out, ["grey"], {"background": 0, "square": 1}) as dataset:
        for number in range(5):
            dataset.add_training_case(f"square_{number}", image * 200, image)
''',
        "nnunet_order/verbs.py": {
            "from dataset_conversion.polyps import ConvertPolyps": (
                "from dataset_conversion.squares import ConvertSquares"
            ),
            "CONVERSIONS = {": (
                '    "squares": Verb(ConvertSquares, "dataset_conversion.squares:convert_squares"),'
            ),
        },
    },
    "A metric": {
        "nnunet_order/metrics.py": {
            "METRIC_TABLE = (": (
                '    Metric("Precision", "precision", 100, "The share of the prediction that is true."),'
            ),
            '        "Dice": 2 * overlap / (size_truth + size_prediction),': (
                '        "Precision": overlap / size_prediction,'
            ),
        },
    },
}


def recipes() -> dict[str, tuple[int, str]]:
    """Title -> how many files the recipe says that it takes, and its text."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {match["title"]: (NUMBERS[match["files"]], match["text"]) for match in RECIPES.finditer(text)}


@pytest.mark.parametrize("title", ADDITIONS)
def test_a_recipe_names_the_files_that_it_takes(title):
    number, text = recipes()[title]
    assert number == len(ADDITIONS[title])
    for path, content in ADDITIONS[title].items():
        named = f"{Path(path).parent.as_posix()}/" if isinstance(content, str) else path  # a new file is free
        assert f"`{named}" in text


def test_there_is_no_other_recipe():
    assert recipes().keys() == ADDITIONS.keys()


@pytest.fixture
def changed(request, tmp_path) -> Path:
    """A copy of the packages in which a recipe has been followed."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / "copy" / package, ignore=ignored)
    for name, content in ADDITIONS[request.param].items():
        path = tmp_path / "copy" / name
        path.write_text(content if isinstance(content, str) else with_lines(path.read_text(), content))
    return tmp_path / "copy"


def with_lines(text: str, additions: dict[str, str]) -> str:
    for after, lines in additions.items():
        assert text.count(f"{after}\n") == 1
        text = text.replace(f"{after}\n", f"{after}\n{lines}\n")
    return text


def run(folder: Path, *words: object) -> str:
    """What a command prints that runs the changed packages."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    words = [sys.executable, "-c", *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("changed", ["A weighting"], indirect=True)
def test_a_weighting(changed):
    assert "half" in run(changed, LAW, "train", "--help")
    script = """
import torch
from law_synth.weighting import spatial_weights

mask = torch.zeros(1, 1, 4, 4)
mask[..., :2] = 1
print(spatial_weights("half", mask, mask).student[0, 0, 0].tolist())
"""
    assert run(changed, script).strip() == str([2.0, 2.0, 0.0010000000474974513, 0.0010000000474974513])


@pytest.mark.parametrize("changed", ["A network with its trainer"], indirect=True)
def test_a_network_and_its_trainer(changed):
    script = """
import torch
from nnunet_order.trusted_networks import check_architecture, find_trainer

trainer = find_trainer("nnUNetTrainerPixelNet")
print(trainer.__doc__, trainer.network_class, trainer.strides)
architecture = {"network_class_name": trainer.network_class, "arch_kwargs": {}, "_kw_requires_import": []}
check_architecture(architecture)

from nnunet_order.complexity import paper_rows

print([row.name for row in paper_rows()])
"""
    trainer, rows = run(changed, script).strip().splitlines()  # one process: importing torch takes seconds
    assert trainer == "One layer. nnunet_order.networks.PixelNet ((1, 1), (2, 2))"
    assert "'PixelNet'" in rows


@pytest.mark.parametrize("changed", ["A converter"], indirect=True)
def test_a_converter(changed):
    out = changed.parent / "Dataset701_Squares"
    run(changed, ORDER, "convert", "squares", "--out", out)
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 5


@pytest.mark.parametrize("changed", ["A metric"], indirect=True)
def test_a_metric(changed):
    data, out = changed.parent / "Dataset702_Phantom", changed.parent / "scores"
    convert_phantom(ConvertPhantom(out=data, cases=5, size=32))
    options = ("--predictions", f"same={data / 'labelsTr'}", "--labels", data / "labelsTr", "--out", out)
    printed = run(changed, ORDER, "evaluate", "--dataset", data, *options, "--processes", 1)
    assert "precision" in printed
    assert "precision" in (out / "summary.csv").read_text()
    assert "Precision" in (out / "per_case.csv").read_text().splitlines()[0]
