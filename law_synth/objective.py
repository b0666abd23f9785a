"""The training objective: equations 1, 8 and 10 to 12 of arXiv:2603.04795, per sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from law_synth.denoiser import Predictions, StudentTeacher
from law_synth.weighting import (
    PAPER_BOUNDS,
    Bounds,
    LearnableAdaptiveWeighter,
    SpatialWeights,
    dice_alignment_loss,
    difficulty_loss,
    has_several,
    spatial_weights,
)
from law_synth.weightings import WEIGHTINGS, WeightingName


class Batch(NamedTuple):
    """One batch; noise and timesteps come with it, so that a loss is a function of its arguments."""

    latents: Tensor  # z_0, (B, C, h, w)
    noise: Tensor  # epsilon, (B, C, h, w)
    timestep: Tensor  # (B,)
    text: Tensor  # (B, N, D)
    mask: Tensor  # at latent size, a channel per class, (B, K, h, w) in [0, 1]
    condition: Tensor  # what the ControlNet sees, (B, 3, H, W) in [0, 1]
    image: Tensor | None = None  # clean image for the teacher, (B, 3, H, W) in [0, 1]
    several: Tensor | None = None  # (B,): share of the step's images with `has_several`; None: this batch's


class Losses(NamedTuple):
    """Per-sample losses (B,) by name, and the weights that made them."""

    terms: dict[str, Tensor]
    weights: SpatialWeights


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) epsilon, equation 1; alpha_bar (B,)."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Target of bases with prediction type v: sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) z_0."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def weighted_error(prediction: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over channels and pixels of w (prediction - target)^2, in fp32: (B, C, h, w) -> (B,)."""
    error = (prediction.float() - target.float()).square()
    return (error if weights is None else weights * error).mean((1, 2, 3))


class TrainingObjective(nn.Module):
    """All that is trained in one module, as DDP wants it: a batch -> the terms of equation 12, per sample.

    The terms are `student` (equation 8), `teacher` (10) and `distillation` (11) where there is a teacher,
    `dice` (9) or `difficulty` where phi has a target of its own.

    Args:
        alphas_cumprod: of the base's noise schedule, (T,).
        velocity_target: the base predicts velocity, not noise.
        dice: off in the paper's ablation.
    """

    def __init__(
        self,
        networks: StudentTeacher,
        alphas_cumprod: Tensor,
        velocity_target: bool = False,
        weighting: WeightingName = "law",
        bounds: Bounds = PAPER_BOUNDS,
        weighter: LearnableAdaptiveWeighter | None = None,
        dice: bool = True,
    ):
        super().__init__()
        self.networks, self.weighter = networks, weighter
        self.velocity_target, self.weighting, self.bounds, self.dice = (
            velocity_target,
            weighting,
            bounds,
            dice,
        )
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, batch: Batch) -> Losses:
        alpha_bar = self.alphas_cumprod[batch.timestep]
        noisy = add_noise(batch.latents, batch.noise, alpha_bar)
        goal = velocity(batch.latents, batch.noise, alpha_bar) if self.velocity_target else batch.noise
        predictions: Predictions = self.networks(
            noisy, batch.timestep, batch.text, batch.condition, batch.image
        )
        student, teacher = predictions
        weights = spatial_weights(self.weighting, student, batch.mask, self.bounds, self.weighter)

        terms = {"student": weighted_error(student, goal, weights.student)}  # equation 8
        if teacher is not None:
            terms["teacher"] = weighted_error(teacher, goal, None)  # equation 10
            # The teacher does not learn from the student: ADC detaches it, the paper does not say.
            terms["distillation"] = weighted_error(student, teacher.detach(), weights.distillation)  # 11
        target = WEIGHTINGS[self.weighting].target
        if target == "mask" and self.dice:
            # The Dice of an empty mask is 1 whatever delta is: such images are left out of the mean.
            dice = dice_alignment_loss(weights.delta, batch.mask)
            terms["dice"] = mean_over(dice, has_several(batch.mask), batch.several)
        if target == "error":
            terms["difficulty"] = difficulty_loss(weights.delta, (student - goal).square())
        return Losses(terms, weights)


def mean_over(values: Tensor, valid: Tensor, share: Tensor | None = None) -> Tensor:
    """`values` (B,) scaled so that their mean is the mean over the valid ones, and 0 when none is.

    share: of valid values in all batches whose mean is taken, however a step is cut into them; default: here.
    """
    valid = valid.flatten().float()
    share = valid.mean() if share is None else share
    return values * valid / share.clamp(min=torch.finfo(valid.dtype).tiny)


def total_loss(terms: dict[str, Tensor], coefficients: dict[str, float]) -> Tensor:
    """L_total = L_S + beta_T L_T + beta_D L_{S<-T} + lambda L_dice, equation 12: the mean over the batch."""
    return sum(coefficients[name] * values.mean() for name, values in terms.items())
