"""What a training is made of: accelerate's processes, the networks and the optimizer, as its options ask."""

from __future__ import annotations

import logging
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from dataset_conversion.system.errors import UserError
from law_synth.base.model import BaseModel
from law_synth.denoiser import StudentTeacher
from law_synth.objective import TrainingObjective
from law_synth.training.options import Train
from law_synth.weighting import Bounds, LearnableAdaptiveWeighter
from law_synth.weightings import WEIGHTINGS
from nnunet_order.devices import has_bf16

logger = logging.getLogger(__name__)

PATIENCE = timedelta(hours=12)


def new_accelerator(options: Train) -> Accelerator:
    cpu = options.device == "cpu" or not torch.cuda.is_available()
    if cpu and options.mixed_precision == "fp16":
        raise UserError("found --mixed-precision fp16 on a CPU, expected a GPU for it; give bf16 or no")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation,
        kwargs_handlers=[
            # Others wait while one process reads and encodes, or saves; NCCL's default is ten minutes.
            InitProcessGroupKwargs(timeout=PATIENCE),
            # Else each process holds all gradients twice.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    if options.mixed_precision == "bf16" and not cpu and not has_bf16(accelerator.device):
        logger.warning("this GPU emulates bf16, which is slow; --mixed-precision fp16 is made for it")
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise UserError(
            f"found {kind.value} in accelerate's configuration, expected plain data parallelism, as one "
            "process saves whole weights; give accelerate launch --multi_gpu"
        )
    return accelerator


def new_optimizer(
    options: Train, objective: TrainingObjective, accelerator: Accelerator
) -> torch.optim.AdamW:
    """AdamW of ControlNets and decoders at their rate, and of phi at its own."""
    trained = [p for p in objective.networks.parameters() if p.requires_grad]
    phi = list(objective.weighter.parameters()) if objective.weighter else []
    groups = [{"params": trained}, {"params": phi, "lr": options.weighter_learning_rate}]
    # Fused: the default on a GPU holds a copy of all second moments while it steps. With fp16 it would leave
    # out steps by itself, and accelerate would not know.
    fused = accelerator.device.type == "cuda" and options.mixed_precision != "fp16"
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)


def new_objective(options: Train, base: BaseModel, classes: int) -> TrainingObjective:
    """Networks as `options` ask for them: trained weights fp32, frozen ones in the autocast type."""
    networks = StudentTeacher(
        base.unet,
        base.new_controlnet(),
        base.new_controlnet() if options.teaches else None,
        freeze_decoder=options.freeze_decoder,
        detach_mask_control=options.detach_mask_control,
    )
    if options.mixed_precision != "no":
        frozen = {"bf16": torch.bfloat16, "fp16": torch.float16}[options.mixed_precision]
        for parameter in base.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(frozen)
    if options.gradient_checkpointing:
        for network in (networks.unet, networks.teacher_unet, networks.controlnet, networks.image_controlnet):
            if network is not None:
                network.enable_gradient_checkpointing()
    weighter = None
    bounds = Bounds(options.normalize, options.w_min, options.w_max)
    if WEIGHTINGS[options.weighting].is_learned:
        weighter = LearnableAdaptiveWeighter(
            base.latent_channels,
            weighting=options.weighting,
            tau=options.tau,
            gamma=options.gamma,
            bounds=bounds,
            joint=options.joint,
            classes=classes,
        )
    return TrainingObjective(
        networks,
        base.scheduler.alphas_cumprod,
        velocity_target=base.scheduler.config.prediction_type == "v_prediction",
        weighting=options.weighting,
        bounds=bounds,
        weighter=weighter,
        dice=options.dice,
    )
