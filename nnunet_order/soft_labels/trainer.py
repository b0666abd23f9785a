"""nnU-Net's trainer with a loss that is checked, and that uses soft labels where the data set has some."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_order.finite_loss import FiniteLoss
from nnunet_order.soft_labels.files import KEY as SOFT_LABELS
from nnunet_order.soft_labels.loss import SoftLabelLoss
from nnunet_order.soft_labels.training_data import WithSoftLabels, prepare_soft_labels, soft_label_folder


class SoftLabelTrainer(nnUNetTrainer):
    """Trains on the soft labels of `nnunet-order distill`; on other data sets it is nnU-Net's trainer.

    Validation knows nnU-Net's labels only. Training transforms must begin with `TakeOutSoftLabels` and end
    with `AppendSoftLabels`; there is no deep supervision.
    """

    soft_label_weight = 1.0  # of the loss on soft labels; the rest is nnU-Net's loss on the label maps
    soft_label_temperature = 1.0

    @property
    def has_soft_labels(self) -> bool:
        """Whether the data set has soft labels and the recipe uses them."""
        return self.dataset_json.get(SOFT_LABELS) is True and self.soft_label_weight > 0

    def _build_loss(self) -> nn.Module:
        loss = FiniteLoss(super()._build_loss())
        if not self.has_soft_labels:
            return loss
        labels, dice = (
            self.label_manager,
            {"batch_dice": self.configuration_manager.batch_dice, "ddp": self.is_ddp},
        )
        own_channels = labels.num_segmentation_heads + labels.has_ignore_label if labels.has_regions else 1
        weight, temperature = self.soft_label_weight, self.soft_label_temperature
        return SoftLabelLoss(loss, own_channels, labels.has_regions, weight, temperature, dice)

    def get_tr_and_val_datasets(self) -> tuple:
        """nnU-Net's; that for training with soft labels where there are some, which are prepared first."""
        training, validation = super().get_tr_and_val_datasets()
        if not self.has_soft_labels:
            return training, validation
        folder = soft_label_folder(Path(self.preprocessed_dataset_folder))
        labels = self.label_manager
        channels = labels.num_segmentation_heads - (not labels.has_regions)
        if self.local_rank == 0:
            self.print_to_log_file(f"soft labels of {len(training.identifiers)} training cases")
            name = self.plans_manager.dataset_name
            prepare_soft_labels(
                training, folder, name, channels, self.plans_manager, self.configuration_manager
            )
        if self.is_ddp:
            dist.barrier()
        return WithSoftLabels(training, folder), validation
