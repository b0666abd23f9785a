"""Student and teacher on one frozen UNet encoder, which runs once for both.

The student is the mask ControlNet with the UNet's decoder; the teacher is a second ControlNet, which sees the
clean image, with a decoder of its own (Qiu et al., Adaptively Distilled ControlNet). The UNet's forward pass
is split where its encoder ends; a test holds the two halves against the whole, bit by bit, because diffusers
promises nothing about the parts.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

IMAGE_CONTROL_SCALE = 0.25  # teacher control = mask control + 0.25 x image control (ADC's code)

ENCODER_PARTS = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")
DECODER_PARTS = ("up_blocks", "conv_norm_out", "conv_out")


class Encoded(NamedTuple):
    """What a UNet's encoder hands to its decoder."""

    embedding: Tensor  # of the timestep, (B, E)
    skips: tuple[Tensor, ...]
    hidden: Tensor  # after the middle block


class Control(NamedTuple):
    """What a ControlNet adds to the skips and to the middle."""

    skips: tuple[Tensor, ...]
    hidden: Tensor

    def plus(self, other: Control, scale: float) -> Control:
        skips = tuple(a + scale * b for a, b in zip(self.skips, other.skips, strict=True))
        return Control(skips, self.hidden + scale * other.hidden)


def encode(unet: UNet2DConditionModel, sample: Tensor, timestep: Tensor, text: Tensor) -> Encoded:
    """Frozen encoder and middle block on noisy latents (B, C, h, w), timesteps (B,), text (B, N, D)."""
    with torch.no_grad():
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        hidden = unet.conv_in(sample)
        skips = (hidden,)
        for block in unet.down_blocks:
            attends = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            hidden, outputs = block(hidden_states=hidden, temb=embedding, **attends)
            skips += outputs
        if unet.mid_block is not None:
            hidden = unet.mid_block(hidden, embedding, encoder_hidden_states=text)
        return Encoded(embedding, skips, hidden)


def decode(unet: UNet2DConditionModel, encoded: Encoded, text: Tensor, control: Control) -> Tensor:
    """Decoder on encoder features plus control: prediction (B, C, h, w)."""
    skips = [skip + added for skip, added in zip(encoded.skips, control.skips, strict=True)]
    hidden = encoded.hidden + control.hidden
    for block in unet.up_blocks:
        count = len(block.resnets)
        taken, skips = tuple(skips[-count:]), skips[:-count]
        attends = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        # Odd latent sizes: up-sample to the next skip's size instead of doubling.
        size = skips[-1].shape[2:] if skips else None
        hidden = block(
            hidden_states=hidden,
            temb=encoded.embedding,
            res_hidden_states_tuple=taken,
            upsample_size=size,
            **attends,
        )
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)


def share_encoder(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet with `unet`'s encoder and a decoder of its own; a genuine diffusers model, saved as usual."""
    shared = {id(part): part for part in (getattr(unet, name) for name in ENCODER_PARTS)}
    return copy.deepcopy(unet, memo=shared)


def decoder_parameters(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """Parameters of the decoder half, which ADC trains (`sd_locked=False`)."""
    return [
        p
        for name in DECODER_PARTS
        if getattr(unet, name) is not None
        for p in getattr(unet, name).parameters()
    ]


class Predictions(NamedTuple):
    """Noise (or velocity) predicted by student and, where there is one, teacher: (B, C, h, w)."""

    student: Tensor
    teacher: Tensor | None


class StudentTeacher(nn.Module):
    """Mask ControlNet and UNet decoder, with an optional teacher on the same frozen encoder.

    Args:
        unet: its encoder is frozen; its decoder is trained unless `freeze_decoder`.
        controlnet: sees the mask.
        image_controlnet: sees the clean image; makes the teacher, with a copy of the decoder.
        freeze_decoder: train ControlNets only.
        detach_mask_control: keep the teacher's loss away from the mask ControlNet (ADC does not).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        image_controlnet: ControlNetModel | None = None,
        freeze_decoder: bool = False,
        detach_mask_control: bool = False,
    ):
        super().__init__()
        self.unet, self.controlnet, self.image_controlnet = unet, controlnet, image_controlnet
        self.detach_mask_control = detach_mask_control
        unet.requires_grad_(False)
        self.teacher_unet = None
        if image_controlnet is not None:
            # With a frozen decoder the teacher's would never differ from the student's.
            self.teacher_unet = unet if freeze_decoder else share_encoder(unet)
        if not freeze_decoder:
            for network in filter(None, (unet, self.teacher_unet)):
                for parameter in decoder_parameters(network):
                    parameter.requires_grad_(True)

    def forward(
        self, noisy: Tensor, timestep: Tensor, text: Tensor, condition: Tensor, image: Tensor | None
    ) -> Predictions:
        """Latents (B, C, h, w), timesteps (B,), text (B, N, D), mask and image (B, 3, H, W) in [0, 1].

        The teacher runs when the image is given.
        """
        encoded = encode(self.unet, noisy, timestep, text)
        mask_control = Control(*self.controlnet(noisy, timestep, text, condition, return_dict=False))
        student = decode(self.unet, encoded, text, mask_control)
        if image is None:
            return Predictions(student, None)
        if self.detach_mask_control:
            mask_control = Control(
                tuple(s.detach() for s in mask_control.skips), mask_control.hidden.detach()
            )
        image_control = Control(*self.image_controlnet(noisy, timestep, text, image, return_dict=False))
        control = mask_control.plus(image_control, IMAGE_CONTROL_SCALE)
        return Predictions(student, decode(self.teacher_unet, encoded, text, control))
