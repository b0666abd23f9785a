"""Shared fixtures: a planned nnU-Net data set of generated PNGs, and the environment that nnU-Net needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from dataset_conversion.raw.folds import read_splits

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # otherwise imports retry the network for 23 s
# Before torch is imported: where two test processes share two cores, threads that spin while they wait take
# them from each other (a test of two tiny networks took 187 s, not 25).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.pop(name, None)  # the user's own data sets stay out of the tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: then both processes have something to do until the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _process_stays_as_it_was():
    """What trainings leave in their process: torch's number of threads, on which rounding depends, and the
    fonts of nnU-Net's progress picture, with which all pictures after it are drawn."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    with matplotlib.rc_context():
        yield
    if threads is not None:
        torch.set_num_threads(threads)


# A user's own trainers, in a folder of the user's own: two lines change a recipe.
TINY_TRAINERS = """
from nnunet_order.trainers import nnUNetTrainerMKUNet, nnUNetTrainerORDER
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerORDER_tiny(nnUNetTrainerORDER):
    epochs, minimum_iterations, samples_per_step, learning_rate, checkpoint_every = 3, 2, 4, 1e-3, 1

class nnUNetTrainerORDER_quick(nnUNetTrainerORDER):
    epochs, minimum_iterations, samples_per_step = 1, 1, 2

class nnUNetTrainerMKUNet_tiny(nnUNetTrainerMKUNet):
    epochs, minimum_iterations, samples_per_step = 1, 2, 4

class nnUNetTrainer_tiny(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""


class NNUNet:
    """nnU-Net's folders in a temporary place, and its real commands."""

    def __init__(self, root: Path):
        self.root = root
        self.raw, self.preprocessed, self.results = (
            root / f"nnUNet_{name}" for name in ("raw", "preprocessed", "results")
        )
        trainers = root / "my_trainers"
        for folder in (self.raw, self.preprocessed, self.results, trainers):
            folder.mkdir()
        (trainers / "tiny_trainers.py").write_text(TINY_TRAINERS)
        folders = {f"nnUNet_{name}": str(getattr(self, name)) for name in ("raw", "preprocessed", "results")}
        self.environment = {
            **os.environ,
            **folders,
            "nnUNet_extTrainer": str(trainers),  # ours is appended at Python's start
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "NNUNET_ORDER_SEED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def command(self, program: str, *arguments: object) -> list[str]:
        """A console script of the environment that runs the tests."""
        return [str(Path(sys.executable).parent / program), *map(str, arguments)]

    def run(self, program: str, *arguments: object, code: int = 0, **environment: str) -> str:
        """Run a command to its end; -> its output. The test fails on another exit code."""
        done = subprocess.run(
            self.command(program, *arguments),
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == code, done.stdout[-5000:]
        return done.stdout

    def plan(self, *datasets: int) -> None:
        """Plan and preprocess; nnUNet_n_proc_DA=0 would crash it."""
        self.run(
            "nnUNetv2_plan_and_preprocess",
            *("-d", *datasets, "-c", "2d", "-np", 1, "-npfp", 1, "--verify_dataset_integrity"),
            nnUNet_n_proc_DA="1",
        )

    def relabelled(self, name: str, labels: dict, relabel: Callable, regions_class_order=None) -> None:
        """A copy of the phantom data set with other labels; `relabel` maps a 0/1 mask to the new labels."""
        source, target = self.raw / "Dataset901_Phantom", self.raw / name
        shutil.copytree(source / "imagesTr", target / "imagesTr")
        (target / "labelsTr").mkdir()
        for file in (source / "labelsTr").iterdir():
            mask = np.asarray(Image.open(file))
            Image.fromarray(relabel(mask).astype(np.uint8)).save(target / "labelsTr" / file.name)
        description = json.loads((source / "dataset.json").read_text()) | {"labels": labels}
        if regions_class_order:
            description["regions_class_order"] = regions_class_order
        (target / "dataset.json").write_text(json.dumps(description))


def upper_half(mask: np.ndarray, old: int, new: int) -> np.ndarray:
    """Another label for the pixels of one label in the upper half of the image."""
    mask = mask.copy()
    half = mask[: len(mask) // 2]
    half[half == old] = new
    return mask


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory) -> NNUNet:
    """Planned data sets of 12 training images of 64 px: 901 Phantom (and 4 test images), 902 Ignore,
    903 MultiClass, 904 Regions (with an ignore label)."""
    mine = NNUNet(tmp_path_factory.mktemp("nnunet"))
    # One process plans, which takes a minute; the others copy what it made.
    common = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else mine.root
    planned, finished = common / "planned", common / "planned" / "finished"
    with FileLock(common / "planned.lock"):
        if not finished.is_file():
            planned.mkdir()
            draw_and_plan(NNUNet(planned))
            finished.touch()
    for name in ("raw", "preprocessed"):
        shutil.copytree(planned / f"nnUNet_{name}", getattr(mine, name), dirs_exist_ok=True)
    return mine


def draw_and_plan(nnunet: NNUNet) -> None:
    """The data sets of the fixture `nnunet`."""
    from dataset_conversion.phantom import ConvertPhantom, convert_phantom

    convert_phantom(ConvertPhantom(out=nnunet.raw / "Dataset901_Phantom", cases=12, test_cases=4, size=64))
    nnunet.relabelled(
        "Dataset902_Ignore", {"background": 0, "polyp": 1, "ignore": 2}, lambda mask: upper_half(mask, 0, 2)
    )
    nnunet.relabelled(
        "Dataset903_MultiClass", {"background": 0, "rim": 1, "core": 2}, lambda mask: upper_half(mask, 1, 2)
    )
    nnunet.relabelled(
        "Dataset904_Regions",
        {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        lambda mask: upper_half(upper_half(mask, 1, 2), 0, 3),
        regions_class_order=[1, 2],
    )
    nnunet.plan(901, 902, 903, 904)


@pytest.fixture
def make(nnunet, monkeypatch):
    """A maker of trainers on the generated data sets: make(trainer class, data set id, fold)."""
    import torch

    for name, value in nnunet.environment.items():
        if name.startswith(("nnUNet_", "NNUNET_")):
            monkeypatch.setenv(name, value)

    def trainer(trainer_class, dataset=901, fold=0):
        folder = next(nnunet.preprocessed.glob(f"Dataset{dataset}_*"))
        plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
        dataset_json = json.loads((folder / "dataset.json").read_text())
        return trainer_class(plans, "2d", fold, dataset_json, device=torch.device("cpu"))

    return trainer


def write_volume(path: Path, array: np.ndarray, spacing=(0.8, 0.7, 4.0), origin=(-12.5, 40.0, 7.0)) -> None:
    """Write (Z, Y, X) with a direction in which two axes are flipped, as scanners have it."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def draw_ct_volume(seed: int, shape=(5, 40, 36)) -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and label (Z, Y, X): body 40, kidney 150 = 1, tumour 80 = 2 (not in the last slice), air."""
    rng = np.random.default_rng(seed)
    _, y, x = np.indices(shape)
    centre = np.array([20, 14]) + rng.integers(-3, 4, 2)
    distance = np.hypot(y - centre[0], x - centre[1])
    label = (distance < 8).astype(np.uint8)
    label[np.hypot(y - centre[0] - 4, x - centre[1] - 2) < 3 + rng.integers(0, 2)] = 2
    label[-1] = 0
    body = np.hypot((y - 20) / 19, (x - 18) / 17) < 1
    values = np.where(body, 40, -1000)
    values = np.select([label == 1, label == 2], [150, 80], values) + rng.normal(0, 8, shape) * body
    return np.rint(values).astype(np.int16), label


@pytest.fixture(scope="session")
def ct_dataset(tmp_path_factory) -> Path:
    """Raw folder Dataset960_CT: 6 training volumes ct_0 to ct_5 and 2 test volumes of int16 HU, kidney and
    tumour, patients (two volumes each) in groups.json, three folds by patient in splits_final.json."""
    folder = tmp_path_factory.mktemp("ct") / "nnUNet_raw" / "Dataset960_CT"
    names = {f"ct_{i}": "Tr" for i in range(6)} | {f"ct_{i}": "Ts" for i in (6, 7)}
    for index, (name, part) in enumerate(names.items()):
        image, label = draw_ct_volume(index)
        spacing = (0.8, 0.7, 4.0 + 0.5 * (index % 2))
        write_volume(folder / f"images{part}" / f"{name}_0000.nii.gz", image, spacing)
        write_volume(folder / f"labels{part}" / f"{name}.nii.gz", label, spacing)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumour": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    groups = {name: f"patient_{int(name[-1]) // 2}" for name in names}
    training = [name for name, part in names.items() if part == "Tr"]
    folds = [[name for name in training if groups[name] == f"patient_{i}"] for i in range(3)]
    splits = [{"train": [name for name in training if name not in val], "val": val} for val in folds]
    for name, content in (("dataset", description), ("groups", groups), ("splits_final", splits)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run folder as `law-synth train` leaves it, of random weights, on fold 0 of 12 images of 64 px.

    It lies in nnUNet_results/law_synth/Dataset950_Phantom/; nnUNet_raw and nnUNet_preprocessed are beside it.
    """
    import torch
    from small_records import small_run

    from dataset_conversion.phantom import ConvertPhantom, convert_phantom
    from dataset_conversion.raw.dataset import read_dataset
    from law_synth.base.model import load_base
    from law_synth.base.tiny import write_tiny_base
    from law_synth.records.run import TrainedOn, UsedBase, weights_hash, write_config
    from law_synth.view.slices import view_of

    root = tmp_path_factory.mktemp("law")
    data = root / "nnUNet_raw" / "Dataset950_Phantom"
    convert_phantom(ConvertPhantom(out=data, cases=12, test_cases=2, size=64))
    description = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(description | {"max_side": 64}))  # as of shrunk images
    (root / "nnUNet_preprocessed").mkdir()
    write_tiny_base(root / "base")
    base = load_base(str(root / "base"))
    controlnet = base.new_controlnet()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.2)  # they are zero at first: the mask would not matter
        torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.2)
    run = root / "nnUNet_results" / "law_synth" / "Dataset950_Phantom" / "law__fold_0"
    controlnet.save_pretrained(run / "controlnet")
    base.unet.save_pretrained(run / "unet")
    train_cases = read_splits(read_dataset(data))[0]["train"]
    config = small_run(
        dataset=TrainedOn(data.name, str(data)),
        train_cases=train_cases[1:],
        monitor_cases=train_cases[:1],
        view=view_of(read_dataset(data), train_cases).record,
        base=UsedBase(base.source, base.hash),
        prompt="a polyp",
        weights_hash=weights_hash(run),
    )
    write_config(run, config)
    return run
