"""nnU-Net trainers for our networks and those they are compared with: `nnUNetv2_train ... -tr NAME`.

`nnunet_order.registry.TRAINERS` lists them, and each is an attribute of this module. Every hyper-parameter is
a class attribute, so a subclass of two lines changes one:

    class nnUNetTrainerORDER_300epochs(nnUNetTrainerORDER):
        epochs = 300
"""

from __future__ import annotations

from types import MethodType

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_order.attention import autocast_off
from nnunet_order.fine_tuning_recipe import FineTuningTrainer
from nnunet_order.paper_recipe import PaperRecipeTrainer
from nnunet_order.registry import NETWORKS, TRAINERS, Trainer, network_path
from nnunet_order.small_network_trainer import SmallNetworkTrainer
from nnunet_order.smp_recipe import SMPTrainer

RECIPES = {"paper": PaperRecipeTrainer, "fine-tuning": FineTuningTrainer, "smp": SMPTrainer}


class FullPrecisionTrainer(PaperRecipeTrainer):
    """The paper's recipe without mixed precision."""

    def initialize(self) -> None:
        super().initialize()
        self.grad_scaler = None

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """A network that leaves the autocast that nnU-Net enters around every call."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        network.forward = MethodType(full_precision_forward, network)  # which copies along with the network
        return network


def full_precision_forward(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The network's own forward pass in float32."""
    with autocast_off(x.device.type):
        return type(network).forward(network, x.float())


def make_trainer(name: str, entry: Trainer) -> type[SmallNetworkTrainer]:
    """The class of an entry of the registry; it belongs to this module, so that it can be pickled."""
    network = NETWORKS[entry.network]
    recipe = FullPrecisionTrainer if entry.full_precision else RECIPES[network.recipe]
    attributes = {
        "__module__": __name__,
        "__doc__": entry.about,
        "network_class": network_path(entry.network),
        "network_options": dict(entry.network_options),
        "strides": network.strides,
        **entry.recipe,
    }
    return type(name, (recipe,), attributes)


globals().update({name: make_trainer(name, entry) for name, entry in TRAINERS.items()})
