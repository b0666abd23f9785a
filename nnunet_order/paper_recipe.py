"""The paper's training recipe (section 4.1); `trainers` has one trainer with it for each network."""

from __future__ import annotations

from nnunet_order.registry import network_path
from nnunet_order.small_network_trainer import SmallNetworkTrainer


class PaperRecipeTrainer(SmallNetworkTrainer):
    """100 epochs, batch 16, patches up to 512x512, AdEMAMix at 1e-4, cosine annealing, flips and rotations,
    BCE + Dice (cross-entropy + Dice for several classes).
    """

    network_class = network_path("ORDER")
    optimizer_name = "AdEMAMix"  # or AdamW, which is ahead in runs of 660 steps: docs/reproduction.md
    learning_rate = 1e-4
