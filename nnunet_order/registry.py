"""The networks and trainers of this package by name: the one list that commands, shim and tests read.

Nothing here imports torch, so `--help` and the option classes can read it. A new network needs two places:
its module in `nnunet_order.networks`, which keeps the contract written there, and its entry in `NETWORKS`,
from which `nnunet_order.trainers` makes nnUNetTrainer<Name>. A variant of a trainer is an entry in
`TRAINERS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

Strides = Sequence[Sequence[int]]
"""How each encoder stage down-samples (height, width), as in nnU-Net's plans; the first stage is 1, 1."""

THREE_HALVINGS: Strides = ((1, 1), *((2, 2),) * 3)
FOUR_HALVINGS: Strides = ((1, 1), *((2, 2),) * 4)
FIVE_HALVINGS: Strides = ((1, 1), *((2, 2),) * 5)
PACKAGE = "nnunet_order.networks"
SMP_DECODER = "FPN"
SMP_ENCODER = "tu-tf_efficientnet_lite0"  # whose ImageNet weights an installed package has
SHORT_RUN_LEARNING_RATE = 5e-3  # the paper's 1e-4 needs its 100 epochs; see docs/reproduction.md


@dataclass(frozen=True)
class Network:
    """A network class, which `nnunet_order.networks` offers under its name."""

    module: str
    """Its module in `nnunet_order.networks`."""
    title: str
    """Its name in the tables of `complexity`."""
    trainer: str
    """A sentence that describes its trainer, nnUNetTrainer<Name>."""
    of_others: bool = False
    """Whether others have published it; it is here to compare with."""
    strides: Strides = FIVE_HALVINGS
    recipe: Literal["paper", "fine-tuning", "smp"] = "paper"
    """What its trainers train it with: the paper's recipe, the one for published weights, or that with any
    decoder and encoder."""
    counted_with: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network for which its FLOPs are counted."""
    needs: str | None = None
    """A module of an optional extra, without which it cannot be built."""

    @property
    def can_be_built(self) -> bool:
        """Whether what it needs is installed."""
        return self.needs is None or find_spec(self.needs) is not None


@dataclass(frozen=True)
class Trainer:
    """A trainer class: the recipe of one of `NETWORKS`, with what differs from it."""

    network: str
    about: str
    network_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword options of the network."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the recipe's trainer class that have other values."""
    full_precision: bool = False
    """Whether it trains without mixed precision."""


NETWORKS = {
    "ORDER": Network(
        "mk_unet",
        "ORDER",
        "ORDER as the paper words it: attention on the two deepest skips.",
        # The fused path gives the same result, but torch counts it differently from the paper.
        counted_with={"attention_path": "materialized"},
    ),
    "MKUNet": Network(
        "mk_unet", "MK-UNet-T", "MK-UNet-T, the paper's baseline, on ORDER's recipe.", of_others=True
    ),
    "MKUNetWide": Network(
        "mk_unet", "MKUNetWide", "Our own alternative to ORDER of the same size: width instead of attention."
    ),
    "UNeXt": Network("unext", "UNeXt", "UNeXt on ORDER's recipe.", of_others=True),
    "EGEUNet": Network(
        "ege_unet",
        "EGE-UNet",
        "EGE-UNet on ORDER's recipe, without the deep supervision of its own.",
        of_others=True,
    ),
    "NanoNetC": Network(
        "nanonet",
        "NanoNet-C",
        "NanoNet-C on ORDER's recipe, from scratch: without the ImageNet weights that its paper starts from.",
        of_others=True,
        strides=THREE_HALVINGS,
    ),
    "UltraSeg130K": Network(
        "ultraseg",
        "UltraSeg-130K",
        "UltraSeg-130K on ORDER's recipe, without the mask and boundary supervision of its own.",
        of_others=True,
        strides=FOUR_HALVINGS,
    ),
    "Lite40K": Network(
        "lite",
        "Lite40K",
        "Our own network of ORDER's size, whose first stages start from ImageNet weights.",
        recipe="fine-tuning",
    ),
    "Lite95K": Network(
        "lite", "Lite95K", "As nnUNetTrainerLite40K, with one more stage.", recipe="fine-tuning"
    ),
    "Lite333K": Network(
        "lite", "Lite333K", "As nnUNetTrainerLite40K, with two more stages.", recipe="fine-tuning"
    ),
    "LiteUNet": Network(
        "lite",
        "LiteUNet",
        "A U-Net of 3.6 M parameters, whose encoder starts from ImageNet weights.",
        strides=FOUR_HALVINGS,
        recipe="fine-tuning",
    ),
    "SMP": Network(
        "smp",
        "SMP, FPN with EfficientNet-Lite0",
        "A decoder of segmentation-models-pytorch with an encoder of timm, from ImageNet weights.",
        recipe="smp",
        needs="segmentation_models_pytorch",
    ),
}


RECOMMENDED = "Lite40K"
"""What commands propose to somebody who has not chosen: the network of ORDER's size that scores best."""


def total_stride(strides: Strides) -> int:
    """The largest factor by which a network down-samples along any axis."""
    return max(map(math.prod, zip(*strides, strict=True)))


def network_path(name: str) -> str:
    """The dotted name by which plans files name a registered network."""
    return f"{PACKAGE}.{name}"


def trainer_of(network: str) -> str:
    """Name of the trainer that trains a registered network with its recipe."""
    return f"nnUNetTrainer{network}"


def counting_options(path: str) -> Mapping[str, Any]:
    """The options for which the FLOPs of the network with this dotted name are counted; {} for any other."""
    package, _, name = path.rpartition(".")
    return NETWORKS[name].counted_with if package == PACKAGE and name in NETWORKS else {}


def _attentive(stages: Sequence[int], about: str) -> Trainer:
    return Trainer("ORDER", about, network_options={"attention_stages": list(stages)})


def _short(network: str, epochs: int, about: str) -> Trainer:
    return Trainer(network, about, recipe={"epochs": epochs, "learning_rate": SHORT_RUN_LEARNING_RATE})


def _lite(network: str) -> dict[str, Trainer]:
    """The variants of a Lite network's trainer; their recipe has the learning rate of short runs already."""
    name = trainer_of(network)
    return {
        f"{name}_scratch": Trainer(network, "From random weights.", recipe={"pretrained": "none"}),
        f"{name}_30epochs": Trainer(network, "As nnUNetTrainerORDER_30epochs.", recipe={"epochs": 30}),
        f"{name}_5epochs": Trainer(network, "As nnUNetTrainerORDER_5epochs.", recipe={"epochs": 5}),
    }


def five_epochs(network: str) -> str:
    """Name of the trainer that `nnunet-order demo` trains a network with; some networks have none."""
    return f"{trainer_of(network)}_5epochs"


TRAINERS = {trainer_of(name): Trainer(name, network.trainer) for name, network in NETWORKS.items()} | {
    "nnUNetTrainerORDER_fp32": Trainer(
        "ORDER", "No mixed precision; nnU-Net itself has no switch for that.", full_precision=True
    ),
    "nnUNetTrainerORDER_none": _attentive((), "ORDER's backbone with additive skips only."),
    "nnUNetTrainerORDER_early": _attentive(
        (3,), 'Table 6, "stages 3-4 (early)": the highest skip; the paper\'s stage 4 has none.'
    ),
    "nnUNetTrainerORDER_mid": _attentive((2, 3), 'Table 6, "stages 2-3 (mid)".'),
    "nnUNetTrainerORDER_all": _attentive((0, 1, 2, 3), 'Tables 5 and 6, "all stages".'),
    "nnUNetTrainerORDER_30epochs": _short("ORDER", 30, "An hour on a CPU for about 1000 images of 256 px."),
    "nnUNetTrainerMKUNet_30epochs": _short("MKUNet", 30, "As nnUNetTrainerORDER_30epochs."),
    "nnUNetTrainerMKUNetWide_30epochs": _short("MKUNetWide", 30, "As nnUNetTrainerORDER_30epochs."),
    "nnUNetTrainerORDER_5epochs": _short("ORDER", 5, "Minutes on a CPU, for a first look."),
    "nnUNetTrainerMKUNet_5epochs": _short("MKUNet", 5, "As nnUNetTrainerORDER_5epochs."),
    **_lite("Lite40K"),
    **_lite("Lite95K"),
    **_lite("Lite333K"),
    **_lite("LiteUNet"),
}
DEMO_NETWORKS = tuple(name for name in NETWORKS if five_epochs(name) in TRAINERS)
