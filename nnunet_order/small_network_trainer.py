"""What all our nnU-Net trainers have in common; a recipe, such as `paper_recipe`, adds its numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed
from nnunet_order.final_validation import SKIPPED, leave_empty_summary
from nnunet_order.model_folder import load_checkpoint
from nnunet_order.network_plans import with_network
from nnunet_order.one_line_errors import one_line_errors
from nnunet_order.registry import FIVE_HALVINGS, Strides
from nnunet_order.schedule import CosineSchedule, one_pass
from nnunet_order.soft_labels.trainer import SoftLabelTrainer
from nnunet_order.soft_labels.transforms import AppendSoftLabels, TakeOutSoftLabels
from nnunet_order.trainer_options import HYPER_PARAMETERS, check_choice, check_resumed, trainer_options

SEED_VARIABLE = "NNUNET_ORDER_SEED"
one_line_errors()


def environment_seed() -> int | None:
    """NNUNET_ORDER_SEED; None where it is not set, or empty. UserError: not a whole number from 0."""
    text = os.environ.get(SEED_VARIABLE, "")
    if text and not text.isdecimal():
        raise UserError(f"{SEED_VARIABLE}: found {text}, expected a whole number from 0; correct it")
    if text:
        check_seed(int(text), SEED_VARIABLE)
    return int(text) if text else None


def check_processes(batch_size: int, processes: int) -> None:
    """UserError: GPUs that would get different numbers of samples, which nnU-Net's Dice cannot gather."""
    if batch_size % processes:
        raise UserError(
            f"found -num_gpus {processes} for a batch of {batch_size}, expected a number that divides it; "
            "give another, or samples_per_step in NNUNET_ORDER_OPTIONS"
        )


class SmallNetworkTrainer(SoftLabelTrainer):
    """Patches up to a limit, an epoch per pass over the data, cosine annealing, checked losses and resumes.

    With the environment variable NNUNET_ORDER_SEED each epoch draws its random numbers from (seed, epoch), so
    that a resumed run repeats an uninterrupted one (exactly so with nnUNet_n_proc_DA=0 on a CPU).
    NNUNET_ORDER_OPTIONS="epochs=5 learning_rate=5e-3" changes hyper-parameters for one process.

    Raises:
        UserError: the configuration is not 2D, or a wrong option.
    """

    network_class: str
    network_options: dict[str, Any] = {}  # noqa: RUF012, replaced by subclasses, never changed
    strides: Strides = FIVE_HALVINGS  # the network's own; see the contract in `nnunet_order.networks`
    epochs = 100
    optimizer_name: str  # AdEMAMix or AdamW
    learning_rate: float
    decoupled_weight_decay = 1e-2
    samples_per_step = 16
    largest_patch = 512
    augmentation = "paper"  # flips and rotations, or nnunet: nnU-Net's own
    rotation_probability = 0.5  # with augmentation "paper"
    iterations_per_epoch: int | None = None  # None: schedule.one_pass, at least minimum_iterations
    minimum_iterations = 50
    maximum_validation_iterations = 10  # per epoch, for the progress picture and checkpoint_best alone
    checkpoint_every = 5  # epochs
    final_validation: str | None = None  # full or none; None: none for fold all, whose cases all trained it
    _first_epoch: int | None = None  # of the training in this process whose weights it holds

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's own signature
    ):
        threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested levels, the outer one
        if device.type == "cpu" and threads.isdigit() and int(threads):
            torch.set_num_threads(int(threads))  # nnUNetv2_train takes all cores, so two of them collide
        given = trainer_options()
        options = {name: value for name, value in given.items() if hasattr(self, name)}
        vars(self).update(options)
        labels = PlansManager(plans).get_label_manager(dataset_json)
        # Before super().__init__: only plans changed here reach plans.json, and with it inference.
        plans = with_network(
            plans,
            configuration,
            self.network_class,
            self.plans_options(),
            strides=self.strides,
            batch_size=self.samples_per_step,
            largest_patch=self.largest_patch,
            sigmoid_head=not labels.has_regions and labels.num_segmentation_heads == 2,
        )
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.my_init_kwargs["recipe"] = self.recipe  # which every checkpoint holds
        self.num_epochs, self.initial_lr = self.epochs, self.learning_rate
        self.weight_decay, self.save_every = self.decoupled_weight_decay, self.checkpoint_every
        self.enable_deep_supervision = False
        if self.final_validation is None:
            self.final_validation = "none" if fold == "all" else "full"
        check_choice("final_validation", self.final_validation)
        check_choice("augmentation", self.augmentation)
        self.seed = environment_seed()
        self.print_to_log_file(
            f"{type(self).__name__}: patch {self.configuration_manager.patch_size}, "
            f"batch {self.configuration_manager.batch_size}, seed {self.seed}, "
            f"options: {', '.join(f'{name}={value}' for name, value in options.items()) or 'none'}"
        )
        if ignored := [name for name in given if name not in options]:  # of others in the same comparison
            self.print_to_log_file(f"ignored, as this trainer has no such options: {', '.join(ignored)}")

    def plans_options(self) -> dict[str, Any]:
        """The network's options for plans.json."""
        return self.network_options

    @property
    def recipe(self) -> dict[str, Any]:
        """Hyper-parameter -> value."""
        return {name: getattr(self, name) for name in HYPER_PARAMETERS if hasattr(self, name)}

    def initialize(self) -> None:
        if self.is_ddp:
            check_processes(self.configuration_manager.batch_size, dist.get_world_size())
        if not self.was_initialized:
            self._set_epoch_length()
            self._seed_everything(epoch=0)
        super().initialize()

    def _do_i_compile(self) -> bool:
        # Under DDP batch norm becomes SyncBatchNorm, which torch.compile cannot trace: a graph break each.
        return not self.is_ddp and super()._do_i_compile()

    def _set_epoch_length(self) -> None:
        """One pass over the fold; nnU-Net's 250 steps suit its 1000 epochs, not our 100."""
        batch = self.configuration_manager.batch_size
        slices = self.plans_manager.original_median_shape_after_transp[0]  # 1 for images
        training, validation = (one_pass(len(cases), slices, batch) for cases in self.do_split())
        self.num_iterations_per_epoch = self.iterations_per_epoch or max(self.minimum_iterations, training)
        self.num_val_iterations_per_epoch = min(self.maximum_validation_iterations, validation)

    def _seed_everything(self, epoch: int) -> None:
        if self.seed is None:
            return
        state = np.random.SeedSequence([self.seed, epoch, self.local_rank]).generate_state(1)[0]
        random.seed(int(state))
        np.random.seed(state)
        torch.manual_seed(int(state))

    def on_train_epoch_start(self) -> None:
        self._seed_everything(self.current_epoch)
        super().on_train_epoch_start()

    def parameter_groups(self) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        """What the optimizer gets: all parameters, or groups of them with learning rates of their own."""
        return self.network.parameters()

    def configure_optimizers(self):
        parameters = self.parameter_groups()
        options = {"lr": self.initial_lr, "weight_decay": self.weight_decay}
        if self.optimizer_name == "AdEMAMix":
            # It imports transformers where that is installed: an eighth of the start of every process.
            from pytorch_optimizer import AdEMAMix

            warm_up = self._ademamix_warm_up
            optimizer = AdEMAMix(parameters, weight_decouple=True, t_alpha_beta3=warm_up, **options)
        elif self.optimizer_name == "AdamW":
            optimizer = torch.optim.AdamW(parameters, **options)
        else:
            raise UserError(f"found optimizer_name {self.optimizer_name}, expected AdEMAMix or AdamW")
        return optimizer, CosineSchedule(optimizer, self.num_epochs)

    @property
    def _ademamix_warm_up(self) -> float:
        """Steps: the whole run, as its slow average spans 10,000."""
        return float(self.num_epochs * self.num_iterations_per_epoch)

    def save_checkpoint(self, filename: str) -> None:
        """Atomic: a kill while nnU-Net writes would leave a truncated file on which --c fails."""
        partial = f"{filename}.partial"
        super().save_checkpoint(partial)
        # With --disable_checkpointing a partial file is what a kill left behind, long ago.
        if self.local_rank == 0 and not self.disable_checkpointing:
            os.replace(partial, filename)

    def load_checkpoint(self, filename: str) -> None:
        """For --c and --val. UserError: other hyper-parameters than the training began with."""
        # Before nnU-Net loads weights, which would not fit another encoder.
        begun = load_checkpoint(Path(filename))["init_args"].get("recipe", {})
        check_resumed(begun, self.recipe, given=trainer_options())
        super().load_checkpoint(filename)
        self._first_epoch = None  # --val_best loads the best weights after a training
        self.my_init_kwargs["recipe"] = self.recipe
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):  # AdamW's, which on a GPU would be waited for in each step
                state["step"] = state["step"].cpu()
        for group in self.optimizer.param_groups:  # the optimizer's state brought the old values back
            group["weight_decay"] = self.weight_decay
            if "t_alpha_beta3" in group:
                group["t_alpha_beta3"] = self._ademamix_warm_up

    def run_training(self) -> None:
        self._first_epoch = self.current_epoch
        super().run_training()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net's; with final_validation "none" only where --val, --val_best or --npz ask for it."""
        if self.final_validation == "full" or self._first_epoch is None or save_probabilities:
            super().perform_actual_validation(save_probabilities)
            return
        self.print_to_log_file(SKIPPED)
        if self.local_rank == 0:  # --c may have found the training finished, and validated
            leave_empty_summary(Path(self.output_folder), replace=self._first_epoch < self.current_epoch)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """These trainers build their networks without deep supervision; there is nothing to switch."""

    @classmethod
    def get_training_transforms(
        cls,
        patch_size,
        rotation_for_DA,
        deep_supervision_scales,
        mirror_axes,
        do_dummy_2d_data_aug,
        use_mask_for_norm=None,
        **labels,
    ) -> BasicTransform:
        """Random rotations and flips, then nnU-Net's own handling of labels, regions and the ignore label.

        With augmentation "nnunet": nnU-Net's own transforms.
        """
        options = trainer_options()  # a class method does not see the instance's attributes
        if options.get("augmentation", cls.augmentation) == "nnunet":
            theirs = nnUNetTrainer.get_training_transforms(
                patch_size,
                rotation_for_DA,
                deep_supervision_scales,
                mirror_axes,
                do_dummy_2d_data_aug,
                use_mask_for_norm,
                **labels,
            )
            return ComposeTransforms([TakeOutSoftLabels(), theirs, AppendSoftLabels()])
        rotate = SpatialTransform(
            patch_size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=0,
            p_rotation=options.get("rotation_probability", cls.rotation_probability),
            rotation=rotation_for_DA,
            p_scaling=0,
            bg_style_seg_sampling=False,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
        transforms = [TakeOutSoftLabels(), rotate]
        if mirror_axes:  # None in nnU-Net's trainers without mirroring
            transforms.append(MirrorTransform(allowed_axes=mirror_axes))
        masked = [channel for channel, mask in enumerate(use_mask_for_norm or []) if mask]
        if masked:  # images normalised inside a mask stay zero outside it
            transforms.append(MaskImageTransform(masked, channel_idx_in_seg=0, set_outside_to=0))
        transforms += [cls.get_validation_transforms(deep_supervision_scales, **labels), AppendSoftLabels()]
        return ComposeTransforms(transforms)
