"""The networks that a run has trained, on its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataset_conversion.system.errors import UserError
from law_synth.base.model import BaseModel, load_model
from law_synth.records.run import TrainedRun

if TYPE_CHECKING:
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel


def load_student(
    run: TrainedRun, base: BaseModel, dtype: torch.dtype
) -> tuple[ControlNetModel, UNet2DConditionModel]:
    """Mask ControlNet and UNet of a run in eval mode.

    UserError: `base` is not the base of this run, a network is damaged, its weights are not safetensors.
    """
    from diffusers import ControlNetModel, UNet2DConditionModel

    expected = run.config.base.hash
    if base.hash != expected:
        raise UserError(
            f"{base.source}: found base model {base.hash[:12]}, expected {expected[:12]}, the base "
            f"of {run.folder}; restore it or train again"
        )
    controlnet = load_model(ControlNetModel, run.folder / "controlnet").to(dtype)
    unet = base.unet.to(dtype)
    if run.config.trains_decoder:
        unet = load_model(UNet2DConditionModel, run.folder / "unet").to(dtype)
        base.unet = unet  # the base's own is 3.4 GB that nothing needs
    return controlnet.eval(), unet.eval()
