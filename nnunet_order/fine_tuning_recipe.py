"""The recipe for networks whose first layers have published weights; `trainers` has a trainer for each."""

from __future__ import annotations

from typing import Any

from nnunet_order.pretrained import load_pretrained, pretrained_part
from nnunet_order.registry import network_path
from nnunet_order.small_network_trainer import SmallNetworkTrainer


class FineTuningTrainer(SmallNetworkTrainer):
    """As the paper's recipe, but AdamW at 5e-3, and at a quarter of it for layers with published weights.

    These are loaded when a training begins. Whoever goes on with --c, starts from nnU-Net's
    -pretrained_weights, predicts or exports needs them no more.

    Raises:
        UserError: also published weights that cannot be had, see `load_pretrained`.
    """

    network_class = network_path("Lite40K")
    optimizer_name = "AdamW"
    learning_rate = 5e-3
    pretrained = "package"  # or timm (downloads), a file of timm's weights, or none
    pretrained_rate = 0.25  # of the learning rate, for layers with published weights; 0 keeps them

    def parameter_groups(self) -> Any:
        """The new layers, whose learning rate nnU-Net logs, and those with published weights."""
        published = list(pretrained_part(self.network).parameters())
        theirs = set(published)
        new = [parameter for parameter in self.network.parameters() if parameter not in theirs]
        rate = 1 if self.pretrained == "none" else self.pretrained_rate
        return [{"params": new}, {"params": published, "lr": self.initial_lr * rate}]

    def on_train_start(self) -> None:
        if not self.was_initialized:  # as it is with --c and -pretrained_weights
            self.initialize()
            if self.pretrained != "none":
                load_pretrained(self.network, self.pretrained)
                self.print_to_log_file(f"published weights: {self.pretrained}")
        super().on_train_start()
