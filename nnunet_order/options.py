"""The options of `nnunet-order`'s verbs, except `convert` and `compare`. Nothing here imports torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import SEED, Range, check_ranges
from nnunet_order.registry import DEMO_NETWORKS, NETWORKS, RECOMMENDED, total_stride

STOCK_NETWORK = "nnUNet"
NetworkName = Literal[(*NETWORKS, STOCK_NETWORK)]
DemoNetwork = Literal[DEMO_NETWORKS]
SKIPS = (0, 1, 2, 3)  # of ORDER, counted from the deepest
SMALLEST_SIDE = 8  # pixels; smaller images leave nothing after the halvings


@dataclass(frozen=True)
class Plan:
    """Write ORDERPlans.json beside a data set's nnUNetPlans.json.

    The stock nnUNetTrainer then trains ORDER with deep supervision: nnUNetv2_train DATASET 2d FOLD -p
    ORDERPlans. The data need no further preprocessing.

    With --reuse-plans-from, the data set gets the unchanged plans of another data set instead. Its own cases,
    which may be synthetic, then have no influence on the plans. Run nnUNetv2_preprocess -d DATASET -c 2d
    -plans_name nnUNetPlans afterwards.
    """

    dataset: tyro.conf.Positional[str]
    """The data set: its id (500) or name (Dataset500_Polyps). It must be planned and preprocessed for 2d,
    except with --reuse-plans-from."""
    source: str = "nnUNetPlans"
    """Name of the plans to start from."""
    batch_size: Annotated[int, Range(1)] = 16
    """Images per training step. The paper uses 16."""
    largest_patch: Annotated[int, Range(total_stride(NETWORKS["ORDER"].strides))] = 512
    """Largest patch side in pixels. The patch is as large as the median image, but no larger than this."""
    attention_stages: tuple[int, ...] = (0, 1)
    """Skips that have bidirectional attention, counted from the deepest."""
    reuse_plans_from: str | None = None
    """Id or name of a planned data set with the same channels and labels, whose plans are copied."""

    def check(self) -> None:
        """UserError: bad numbers, or options of ORDER's plans where the plans are copied."""
        check_ranges(self)
        if not {*self.attention_stages} <= {*SKIPS}:
            raise UserError(
                f"found --attention-stages {' '.join(map(str, self.attention_stages))}, expected some of "
                f"{' '.join(map(str, SKIPS))}; correct them"
            )
        copied = Plan(self.dataset, self.source, reuse_plans_from=self.reuse_plans_from)
        if self.reuse_plans_from is not None and self != copied:
            raise UserError(
                "found options of ORDER's plans with --reuse-plans-from, expected none, because the plans "
                "are copied unchanged; leave them out"
            )


@dataclass(frozen=True)
class Evaluate:
    """Score folders of predictions: mDice, mIoU, HD95 and NSD per test set and label, with 95 % intervals.

    Writes per_case.csv, summary.csv, summary.json and examples.png. The picture shows the best, the median
    and the worst case; of a volume it shows the slice with the most of the rarest label. With several
    folders, each is also compared with the first, and comparison.png shows all of them. A volume is one case,
    and its prediction must lie where its label lies. A label that is in neither the truth nor the prediction
    of a case is left out of that label's mean.
    """

    dataset: str
    """Raw data set: id, DatasetXXX_NAME or folder."""
    predictions: tuple[str, ...]
    """Folders that nnUNetv2_predict wrote, each as DIR or NAME=DIR. Tables and pictures show NAME."""
    out: Path
    """Folder for the results."""
    labels: Path | None = None
    """Folder of the true labels. The default is labelsTs of the data set, grouped by its test_sets.json."""
    fold: int | None = None
    """Score the validation cases of this fold against labelsTr. The folds are those of splits_final.json, or
    nnU-Net's own where that file does not exist."""
    nsd_tolerance: Annotated[float, Range(0)] = 2.0
    """Boundary error that NSD forgives: in mm, or in pixels where the files have no spacing (PNG)."""
    seed: Annotated[int, SEED] = 0
    """Seed of the bootstrap."""
    processes: int = os.cpu_count() or 1
    """Number of worker processes."""

    def check(self) -> None:
        """UserError: bad numbers, or options that exclude each other."""
        check_ranges(self)
        if self.fold is not None and self.labels is not None:
            raise UserError("found --fold and --labels, expected one of them; leave one out")


@dataclass(frozen=True)
class Complexity:
    """Print parameters and FLOPs of ORDER and the other networks beside the paper's Tables 3, 5 and 6."""

    size: Annotated[int, Range(SMALLEST_SIDE)] = 256
    """Side of the square image in pixels. The paper's text says 256; its tables do not say."""
    input_channels: Annotated[int, Range(1)] = 3
    """Number of image channels."""
    json: Path | None = None
    """Also write the numbers to this file."""

    def check(self) -> None:
        """UserError: a number out of its range."""
        check_ranges(self)


@dataclass(frozen=True)
class Benchmark:
    """Time training and inference of the networks on this machine, in interleaved rounds.

    --batch-size 1 --threads 1 --no-training gives the latency of one image on one core.
    """

    networks: tuple[NetworkName, ...] = ()
    """Networks to time. The default is all, or none with --models. Ratios are to the first. nnUNet is
    nnU-Net's default 2D network for this image size."""
    models: tuple[Path, ...] = ()
    """Results folders, <trainer>__<plans>__2d: their networks are timed as well, on images with the channels
    that they were trained on."""
    size: Annotated[int, Range(SMALLEST_SIDE)] = 256
    """Side of the square images in pixels."""
    input_channels: Annotated[int, Range(1)] = 3
    """Number of image channels."""
    batch_size: Annotated[int, Range(1)] = 16
    """Images per iteration."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run. cuda uses half precision under autocast, but not torch.compile, which nnU-Net adds. cpu
    uses fp32."""
    steps: Annotated[int, Range(1)] = 5
    """Number of timed rounds. A round times every network once, so that a noisy moment hits all alike."""
    warmup: Annotated[int, Range(0)] = 2
    """Number of rounds before these that are not timed."""
    threads: Annotated[int | None, Range(1)] = None
    """Number of CPU threads. The default is PyTorch's own."""
    training: bool = True
    """Time training iterations, too."""
    memory: bool = False
    """Also measure each network's peak memory in training, each in a fresh process."""
    seed: Annotated[int, SEED] = 0
    """Seed of the weights, images and masks."""
    json: Path | None = None
    """Also write all times, the machine, versions and command line to this file."""

    def check(self) -> None:
        """UserError: a number out of its range, something to time twice, or options that contradict."""
        check_ranges(self)
        for option, given in (("--networks", self.networks), ("--models", tuple(map(str, self.models)))):
            if len(set(given)) < len(given):
                raise UserError(f"found {option} {' '.join(given)}, expected each once; correct it")
        if self.memory and not self.training:
            raise UserError("found --memory with --no-training, expected one of them; leave one out")

    @property
    def timed(self) -> tuple[str, ...]:
        """Names of the networks and folders of the models, in the order of the table."""
        everything = () if self.models else (*NETWORKS, STOCK_NETWORK)
        return (*(self.networks or everything), *map(str, self.models))


@dataclass(frozen=True)
class Export:
    """Write a trained model as one ONNX file: the pixels of a frame in, its label map out.

    Any 2D nnU-Net model of grey or RGB images can be exported, whatever its trainer. The graph takes `frame`,
    uint8 (1, height, width, channels), and gives `labels` (1, height, width) and `probabilities` (1, classes,
    height, width). All that nnU-Net does lies within: cropping the black border, normalising, tiles, and the
    shrinking of the conversion's --max-side with the way back. The file is kept only if its labels equal
    those of PyTorch and of `nnunet-order predict` on drawn frames.
    """

    model: Path
    """Results folder, <trainer>__<plans>__2d, or one of its fold_x folders. Networks that are neither
    nnU-Net's nor this package's need your trust: NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    out: Path
    """ONNX file to write."""
    fold: str | None = None
    """Fold to export: a number or `all`. The default is the only trained one."""
    checkpoint: str = "checkpoint_final.pth"
    """File name of the weights in the fold's folder."""
    whole_image: bool = False
    """Send each frame through the network in one pass instead of nnU-Net's overlapping tiles. That is faster
    for frames a little larger than the patch, but their labels differ from nnU-Net's."""
    plain_onnx: bool = False
    """Use operators of the ONNX standard only. By default, attention is an operator of onnxruntime's own,
    which needs far less memory: 0.4 GiB instead of 17 for ORDER on a whole 1920x1080 frame."""
    logits_only: bool = False
    """Write the network alone: normalised images in, logits out. This is for volumes and other data that
    `predict` does not read. Images may come in batches; networks of other packages need sides that are
    multiples of the metadata's size_multiple."""

    deploy: Path | None = None
    """Also write this folder for programs that do without this package: a model repository of the Triton
    Inference Server, a Python and a C++ program. docs/deployment.md explains them."""

    def check(self) -> None:
        """UserError: a name that is no ONNX file's, or options that do not go together."""
        if self.logits_only and (self.whole_image or self.plain_onnx or self.deploy is not None):
            raise UserError(
                "found --logits-only with --whole-image, --plain-onnx or --deploy, expected it alone, as the "
                "network is plain ONNX for images of any size and its users do the rest; leave one out"
            )
        if self.out.suffix != ".onnx":
            raise UserError(f"found --out {self.out}, expected a new file ending in .onnx; give another name")


@dataclass(frozen=True)
class Predict:
    """Segment images with an exported model and write one PNG label map per image.

    The result equals that of `nnUNetv2_predict --disable_tta`, apart from single boundary pixels: nnU-Net
    adds up its tiles in half precision. If the data set was converted with --max-side, larger images are
    shrunk as those of the training were, and label maps are brought back to the size of the images.

    JPEG, WebP and GIF images, which nnU-Net does not read, are turned upright as their EXIF tag says.
    """

    model: Path
    """File that `nnunet-order export` wrote."""
    images: tuple[Path, ...]
    """Images, or one folder of images. If all names end in _0000, as nnU-Net requires, the results' names do
    not."""
    out: Path
    """Folder for the label maps. Existing files are never replaced."""
    whole_image: bool = False
    """Predict each image in one pass instead of nnU-Net's overlapping tiles. A file that takes frames must
    have been exported with --whole-image. With a file of the network alone, ORDER's memory grows with the
    squared area: 17 GiB for one 1920x1080 frame."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run. cuda needs the package onnxruntime-gpu."""

    def check(self) -> None:
        """All values of these options are allowed; `predict` looks at the files."""


@dataclass(frozen=True)
class Doctor:
    """Check the installation: nnU-Net, our trainers, nnU-Net's folders and the device.

    The exit code is 2 if a check fails.
    """

    def check(self) -> None:
        """There are no options."""


@dataclass(frozen=True)
class Demo:
    """Draw polyps, train two networks with stock nnU-Net, predict and evaluate, in 3 minutes on 2 cores.

    Every step is a command that is printed and that you can run yourself; commands.sh holds them all. If a
    demo was stopped, the same command continues it. If options have changed, only the steps that depend on
    them run again.
    """

    out: Path = Path("order_demo")
    """Folder for data, models and results."""
    networks: tuple[DemoNetwork, ...] = (RECOMMENDED, "ORDER")
    """Networks to train, each for five epochs. The pictures show the best, the median and the worst case of
    the first one."""
    cases: int = 64
    """Number of training images."""
    test_cases: int = 24
    """Number of test images."""
    size: int = 128
    """Side of the images in pixels."""
    seed: Annotated[int, SEED] = 0
    """Seed of the drawing and of the trainings."""
    again: bool = False
    """Also repeat the stages that other versions of the packages finished, and all stages that follow
    them."""

    def check(self) -> None:
        """UserError: a bad seed, no network, or one twice. The commands of the stages check the rest."""
        check_ranges(self)
        if not self.networks or len(set(self.networks)) < len(self.networks):
            raise UserError(
                f"found --networks {' '.join(self.networks) or 'without any'}, expected each once; correct it"
            )
