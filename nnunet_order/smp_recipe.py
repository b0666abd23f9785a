"""The recipe for networks whose decoder and encoder are hyper-parameters."""

from __future__ import annotations

from typing import Any

from dataset_conversion.system.provenance import require
from nnunet_order.fine_tuning_recipe import FineTuningTrainer
from nnunet_order.networks.smp import SMP
from nnunet_order.registry import SMP_DECODER, SMP_ENCODER, network_path


class SMPTrainer(FineTuningTrainer):
    """As `FineTuningTrainer`, for a decoder of segmentation-models-pytorch and an encoder of timm.

    `pretrained` is "package" here, too: the default encoder's weights need no network. Another encoder wants
    another value, and the error says so.

    Raises:
        UserError: also no such decoder or encoder, or segmentation-models-pytorch is not installed.
    """

    network_class = network_path("SMP")
    decoder = SMP_DECODER
    encoder = SMP_ENCODER

    def plans_options(self) -> dict[str, Any]:
        require("smp", "segmentation_models_pytorch")
        options = {**super().plans_options(), "decoder": self.decoder, "encoder": self.encoder}
        SMP.check_options(options)
        return options
