"""Spatial loss weights for mask-conditioned diffusion: equations 3 to 7 and 9 of arXiv:2603.04795.

Masks m are (B, 1, h, w) in [0, 1] at latent size, weights and delta maps have the same shape; everything is
computed in fp32 whatever autocast says, because eps_s and sums over a latent vanish in half precision. An
empty or a full mask says nothing about where to look (equation 7 is 0/0 there): its weights are 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weighting = Literal["uniform", "ratio", "ratio-clamped", "adaptive-distillation", "law", "difficulty"]

EPS_S = 1e-6  # equation 9
DISTILLING = ("adaptive-distillation",)  # weightings that mean nothing without a teacher
LEARNED = ("law", "difficulty")


class Bounds(NamedTuple):
    """What equation 7 does to weights; the paper's ablations (Table 4, Fig. 4) change these."""

    normalize: bool = True
    w_min: float = 1e-3
    w_max: float = 2.0


PAPER_BOUNDS = Bounds()


class SpatialWeights(NamedTuple):
    """Weights of one batch; None stands for 1 everywhere, so that the uniform loss costs nothing more."""

    student: Tensor | None = None  # in equation 8
    distillation: Tensor | None = None  # in equation 11
    delta: Tensor | None = None  # equation 4, with the gradient that its regulariser needs


def lesion_ratio(mask: Tensor) -> Tensor:
    """r = |m| / HW per image: (B, 1, h, w) -> (B, 1, 1, 1)."""
    return mask.float().mean((1, 2, 3), keepdim=True)


def has_both(mask: Tensor) -> Tensor:
    """Whether an image has lesion and background, (B, 1, 1, 1) bool; weights are 1 where it has not."""
    ratio = lesion_ratio(mask)
    return (ratio > 0) & (ratio < 1)


def ratio_prior(mask: Tensor) -> Tensor:
    """w_ratio = m (1 - r) + (1 - m) r, equation 3 (ArSDM); its mean is 2 r (1 - r) for a binary mask."""
    mask, r = mask.float(), lesion_ratio(mask)
    return torch.where(has_both(mask), mask * (1 - r) + (1 - mask) * r, 1.0)


def multiplier(delta: Tensor, gamma: float) -> Tensor:
    """mu = 1 + gamma (2 delta - 1), equation 5: within [1 - gamma, 1 + gamma]."""
    return 1 + gamma * (2 * delta - 1)


def bounded(weights: Tensor, bounds: Bounds) -> Tensor:
    """w_final = clamp(w / mean(w), w_min, w_max), equation 7, with the mean of each image."""
    if bounds.normalize:
        weights = weights / weights.mean((1, 2, 3), keepdim=True)
    return weights.clamp(bounds.w_min, bounds.w_max)


def dice_alignment_loss(delta: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum(delta m) + eps_s) / (sum(delta) + sum(m) + eps_s) per image, equation 9: (B,)."""
    delta, mask = delta.float().flatten(1), mask.float().flatten(1)
    overlap, total = (delta * mask).sum(1), delta.sum(1) + mask.sum(1)
    return 1 - (2 * overlap + EPS_S) / (total + EPS_S)


def relative_difficulty(error: Tensor) -> Tensor:
    """Squared error e (B, C, h, w) -> e / (e + mean(e)), (B, 1, h, w) in [0, 1); 0.5 is the average pixel.

    An image has one timestep, so its own mean normalises per timestep; the share keeps a few wild pixels
    (the error of a noise prediction has heavy tails) from ruling the regression.
    """
    error = error.detach().float().mean(1, keepdim=True)
    return error / (error + error.mean((2, 3), keepdim=True)).clamp(min=EPS_S)


def difficulty_loss(delta: Tensor, error: Tensor) -> Tensor:
    """Cross-entropy of delta with the difficulty that squared error (B, C, h, w) shows, per image: (B,)."""
    with torch.autocast(delta.device.type, enabled=False):
        return F.binary_cross_entropy(delta, relative_difficulty(error), reduction="none").mean((1, 2, 3))


class LearnableAdaptiveWeighter(nn.Module):
    """phi and what follows from it: delta = sigmoid(phi(f_t, m) / tau), equation 4, and the weights.

    phi is three 3x3 convolutions with 32 hidden channels and SiLU (11,009 parameters for 4 latent channels);
    the last one starts at zero, so that delta is 0.5 and mu is 1 at step 0, as in Fig. 8.

    Args:
        channels: of the prediction f_t.
        weighting: `law`: ratio prior times mu (equations 5 and 6). `difficulty`: delta is trained to be the
            share of `relative_difficulty`, and the weight is the error it stands for, delta / (1 - delta).
        joint: let the weighted loss train phi as well, as the paper has it. It teaches phi to look away from
            hard pixels (docs/law.md), so it is off.
    """

    def __init__(
        self,
        channels: int = 4,
        hidden: int = 32,
        weighting: Literal["law", "difficulty"] = "law",
        tau: float = 3.0,
        gamma: float = 0.2,
        bounds: Bounds = PAPER_BOUNDS,
        joint: bool = False,
    ):
        super().__init__()
        self.weighting, self.tau, self.gamma, self.bounds, self.joint = weighting, tau, gamma, bounds, joint
        self.phi = nn.Sequential(
            nn.Conv2d(channels + 1, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, 1, 3, padding=1),
        )
        nn.init.zeros_(self.phi[-1].weight)
        nn.init.zeros_(self.phi[-1].bias)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Student prediction (B, C, h, w) and mask (B, 1, h, w) -> w_final and delta, both (B, 1, h, w)."""
        with torch.autocast(features.device.type, enabled=False):
            # Detached: otherwise the Dice gradient reaches the student at a third of its own loss's.
            inputs = torch.cat([features.detach().float(), mask.float()], dim=1)
            delta = torch.sigmoid(self.phi(inputs) / self.tau)
            return self.weights(delta if self.joint else delta.detach(), mask), delta

    def weights(self, delta: Tensor, mask: Tensor) -> Tensor:
        """w_final of a delta map: equations 5 to 7."""
        if self.weighting == "law":
            adapted = ratio_prior(mask) * multiplier(delta, self.gamma)
        else:
            adapted = delta / (1 - delta).clamp(min=EPS_S)
        return torch.where(has_both(mask), bounded(adapted, self.bounds), 1.0)


def spatial_weights(
    weighting: Weighting,
    features: Tensor,
    mask: Tensor,
    bounds: Bounds = PAPER_BOUNDS,
    weighter: LearnableAdaptiveWeighter | None = None,
) -> SpatialWeights:
    """The weights that `weighting` gives the student's loss and the distillation.

    `ratio` is ArSDM's prior as it is; `ratio-clamped` is LAW with delta = 0.5; `adaptive-distillation`
    weights the distillation only, as the released code of ADC does. Learned weightings need their `weighter`.
    """
    if weighting == "uniform":
        return SpatialWeights()
    if weighter is not None:
        weights, delta = weighter(features, mask)
        return SpatialWeights(weights, weights, delta)
    prior = ratio_prior(mask)
    if weighting == "adaptive-distillation":
        return SpatialWeights(None, prior)
    if weighting == "ratio-clamped":
        prior = torch.where(has_both(mask), bounded(prior, bounds), 1.0)
    return SpatialWeights(prior, prior)


@torch.no_grad()
def weight_statistics(weights: SpatialWeights, mask: Tensor, bounds: Bounds) -> dict[str, float]:
    """What to log: mean weight, clamped fraction, lesion share of the weight, delta in / out / at the border.

    Images without both lesion and background are left out; NaN when that leaves none. The border is every
    cell within one cell of the mask's edge.
    """
    chosen = next(
        (w for w in (weights.student, weights.distillation) if w is not None), torch.ones_like(mask)
    )
    keep = has_both(mask).flatten()
    w, mask = chosen[keep], mask.float()[keep]
    found = {
        "weight/mean": w.mean(),
        "weight/clamped": ((w == bounds.w_min) | (w == bounds.w_max)).float().mean(),
        "weight/lesion_share": ((w * mask).sum((1, 2, 3)) / w.sum((1, 2, 3))).mean(),
    }
    if weights.delta is not None:
        delta, grown, shrunk = weights.delta[keep], F.max_pool2d(mask, 3, 1, 1), -F.max_pool2d(-mask, 3, 1, 1)
        for name, region in {"inside": mask, "outside": 1 - mask, "border": grown - shrunk}.items():
            found[f"delta/{name}"] = (delta * region).sum() / region.sum()
    return {name: value.item() for name, value in found.items()}
