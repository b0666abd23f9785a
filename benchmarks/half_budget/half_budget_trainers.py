"""nnU-Net's short trainers with half of their iterations: what real images get beside as many synthetic ones.

nnUNet_extTrainer=benchmarks/half_budget nnunet-order compare --dataset 510 --fraction 0.1 --device cpu \
    --trainers nnUNetTrainer_5epochs nnUNetTrainer_5epochs_half --out half_budget
"""

import torch
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import (
    nnUNetTrainer_1epoch,
    nnUNetTrainer_5epochs,
)

CPU = torch.device("cpu")


class nnUNetTrainer_1epoch_half(nnUNetTrainer_1epoch):
    """125 iterations."""

    def __init__(self, plans, configuration, fold, dataset_json, device=CPU):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = 125


class nnUNetTrainer_5epochs_half(nnUNetTrainer_5epochs):
    """625 iterations."""

    def __init__(self, plans, configuration, fold, dataset_json, device=CPU):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = 125
