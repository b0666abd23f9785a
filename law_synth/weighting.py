"""Spatial loss weights for mask-conditioned diffusion: equations 3 to 7 and 9 of arXiv:2603.04795.

Masks m are (B, K, h, w) in [0, 1] at latent size, one channel per lesion class, which sum to at most 1: what
is left is background. Weights are (B, 1, h, w). The paper has one class; the formulas for several
(docs/law.md) are the paper's for K = 1. Everything is computed in fp32 whatever autocast says, because eps_s
and sums over a latent vanish in half precision.

An image that shows only background, or only one class, has a ratio prior of 0 (equation 3): `ratio` and the
distillation of ADC do not see it, as in ADC's code. Equation 7 divides 0 by 0 there; `bounded` continues it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from law_synth.weightings import WEIGHTINGS, WeightingName

EPS_S = 1e-6  # equation 9
# The weight of an image for which equation 7 is 0/0: what the background weighs as its lesion vanishes,
# 1 / (2 (1 - r)) for r -> 0. Measured against 0 and 1 in docs/reproduction.md.
NOTHING_TO_BALANCE = 0.5


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
    # Equation 4, with the gradient that its regulariser needs: a map per class, one in all for `difficulty`.
    delta: Tensor | None = None


def lesion_ratio(mask: Tensor) -> Tensor:
    """r = |m| / HW per image and class: (B, K, h, w) -> (B, K, 1, 1)."""
    return mask.float().mean((2, 3), keepdim=True)


def shown_in_part(mask: Tensor) -> Tensor:
    """Which classes an image shows without being filled by one: (B, K, h, w) -> (B, K, 1, 1) bool."""
    ratio = lesion_ratio(mask)
    return (ratio > 0) & (ratio < 1)


def has_several(mask: Tensor) -> Tensor:
    """Whether an image shows two or more of background and classes: (B, K, h, w) -> (B, 1, 1, 1) bool."""
    return shown_in_part(mask).any(1, keepdim=True)


def regularised(mask: Tensor) -> Tensor:
    """The classes whose delta equation 9 holds to an image's mask, (B, K, 1, 1) bool: those it shows in part.

    All of them where there are none; such images are left out of the Dice mean.
    """
    return shown_in_part(mask) | ~has_several(mask)


def ratio_prior(mask: Tensor) -> Tensor:
    """w_ratio = m (1 - r) + (1 - m) r, equation 3 (ArSDM), for several classes: (B, K, h, w) -> (B, 1, h, w).

    w = sum_c m_c (1 - r_c) + (1 - sum_c m_c) sum_c r_c. Every class, background included, weighs the share of
    the image that it leaves to the others; the mean over binary masks is 1 - the sum of all squared shares.
    An image of background alone, or filled by one class, weighs 0.
    """
    mask, r = mask.float(), lesion_ratio(mask)
    classes = (mask * (1 - r)).sum(1, keepdim=True)
    background = (1 - mask.sum(1, keepdim=True)) * r.sum(1, keepdim=True)
    return classes + background


def joined_delta(delta: Tensor, mask: Tensor) -> Tensor:
    """The largest delta of the classes that an image shows: (B, K or 1, h, w) -> (B, 1, h, w).

    Equation 5 needs one map. With delta trained towards m the largest is the union of the classes, as in the
    paper for one; where all are 0.5 (step 0) it is 0.5 still, which a sum or a noisy-or is not, and a mean
    would divide the paper's emphasis by K. Classes that an image does not show are left out: nothing
    regularises their delta there.
    """
    return torch.where(regularised(mask), delta, 0.0).amax(1, keepdim=True)


def multiplier(delta: Tensor, gamma: float) -> Tensor:
    """mu = 1 + gamma (2 delta - 1), equation 5: within [1 - gamma, 1 + gamma]."""
    return 1 + gamma * (2 * delta - 1)


def bounded(weights: Tensor, bounds: Bounds) -> Tensor:
    """w_final = clamp(w / mean(w), w_min, w_max), equation 7, with each image's own mean; (B, 1, h, w).

    Where that mean is 0 the quotient is `NOTHING_TO_BALANCE`.
    """
    if bounds.normalize:
        mean = weights.mean((1, 2, 3), keepdim=True)
        # The inner `where` keeps the branch that is not taken, and so its gradient, finite.
        quotient = weights / torch.where(mean > 0, mean, 1.0)
        weights = torch.where(mean > 0, quotient, NOTHING_TO_BALANCE)
    return weights.clamp(bounds.w_min, bounds.w_max)


def dice_alignment_loss(delta: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum(delta m) + eps_s) / (sum(delta) + sum(m) + eps_s), equation 9: (B, K, h, w) twice -> (B,).

    The mean over the `regularised` classes of an image: not over those that it does not show.
    """
    counted = regularised(mask).float().flatten(1)  # (B, K)
    delta, mask = delta.float().flatten(2), mask.float().flatten(2)
    overlap, total = (delta * mask).sum(2), delta.sum(2) + mask.sum(2)
    loss = 1 - (2 * overlap + EPS_S) / (total + EPS_S)
    return (loss * counted).sum(1) / counted.sum(1)


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


def law_weights(mask: Tensor, delta: Tensor, gamma: float) -> Tensor:
    """w_adapt = w_ratio mu, equation 6: masks and delta maps (B, K, h, w) -> (B, 1, h, w)."""
    return ratio_prior(mask) * multiplier(joined_delta(delta, mask), gamma)


def difficulty_weights(mask: Tensor, delta: Tensor, gamma: float) -> Tensor:
    """The squared error that a `relative_difficulty` stands for, over the image's mean: (B, 1, h, w)."""
    return delta / (1 - delta).clamp(min=EPS_S)


# Name of each weighting of `WEIGHTINGS` -> its formula: of mask and bounds, ...
FIXED: dict[str, Callable[[Tensor, Bounds], SpatialWeights]] = {
    "uniform": lambda mask, bounds: SpatialWeights(),
    "ratio": lambda mask, bounds: on_both(ratio_prior(mask)),
    "ratio-clamped": lambda mask, bounds: on_both(bounded(ratio_prior(mask), bounds)),
    "adaptive-distillation": lambda mask, bounds: SpatialWeights(None, ratio_prior(mask)),
}
# ... or, where delta is learned, of mask, delta and gamma; `bounded` follows.
LEARNED: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "law": law_weights,
    "difficulty": difficulty_weights,
}


def on_both(weights: Tensor) -> SpatialWeights:
    """The same weights for the student's loss and the distillation."""
    return SpatialWeights(weights, weights)


class LearnableAdaptiveWeighter(nn.Module):
    """phi and what follows from it: delta = sigmoid(phi(f_t, m) / tau), equation 4, and the weights.

    phi is three 3x3 convolutions with 32 hidden channels and SiLU (11,009 parameters for 4 latent channels
    and one class); the last one starts at zero, so that delta is 0.5 and mu is 1 at step 0, as in Fig. 8.

    Args:
        channels: of the prediction f_t.
        weighting: one of `LEARNED`. `law`: ratio prior times mu (equations 5 and 6). `difficulty`: delta is
            trained to be the share of `relative_difficulty`, and the weight is the error it stands for.
        joint: let the weighted loss train phi as well, as the paper has it. It teaches phi to look away from
            hard pixels (docs/law.md), so it is off.
        classes: K; phi sees a mask channel of each, and gives a delta map of each if the mask is its target.
    """

    def __init__(
        self,
        channels: int = 4,
        hidden: int = 32,
        weighting: WeightingName = "law",
        tau: float = 3.0,
        gamma: float = 0.2,
        bounds: Bounds = PAPER_BOUNDS,
        joint: bool = False,
        classes: int = 1,
    ):
        super().__init__()
        self.weighting, self.tau, self.gamma, self.bounds, self.joint = weighting, tau, gamma, bounds, joint
        maps = classes if WEIGHTINGS[weighting].target == "mask" else 1
        self.phi = nn.Sequential(
            nn.Conv2d(channels + classes, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, maps, 3, padding=1),
        )
        nn.init.zeros_(self.phi[-1].weight)
        nn.init.zeros_(self.phi[-1].bias)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Student prediction (B, C, h, w) and mask (B, K, h, w) -> w_final (B, 1, h, w) and delta.

        delta is (B, K, h, w) for `law`, (B, 1, h, w) for `difficulty`.
        """
        with torch.autocast(features.device.type, enabled=False):
            # Detached: otherwise the Dice gradient reaches the student at a third of its own loss's.
            inputs = torch.cat([features.detach().float(), mask.float()], dim=1)
            delta = torch.sigmoid(self.phi(inputs) / self.tau)
            return self.weights(delta if self.joint else delta.detach(), mask), delta

    def weights(self, delta: Tensor, mask: Tensor) -> Tensor:
        """w_final of delta maps: equations 5 to 7."""
        return bounded(LEARNED[self.weighting](mask, delta, self.gamma), self.bounds)


def spatial_weights(
    weighting: WeightingName,
    features: Tensor,
    mask: Tensor,
    bounds: Bounds = PAPER_BOUNDS,
    weighter: LearnableAdaptiveWeighter | None = None,
) -> SpatialWeights:
    """The weights that `weighting` gives the student's loss and the distillation.

    `ratio` is ArSDM's prior as it is; `ratio-clamped` is LAW with delta = 0.5; `adaptive-distillation`
    weights the distillation only, as the released code of ADC does. Learned weightings need their `weighter`.
    """
    if weighter is None:
        return FIXED[weighting](mask, bounds)
    weights, delta = weighter(features, mask)
    return SpatialWeights(weights, weights, delta)


@torch.no_grad()
def weight_statistics(
    weights: SpatialWeights, mask: Tensor, bounds: Bounds, names: Sequence[str] = ("lesion",)
) -> dict[str, float]:
    """What to log: mean weight, clamped fraction, lesion share of the weight, delta in / out / at the border.

    Lesion is any class; with several, each has its own share by its name, over the images that show it.
    Images without two of background and classes are left out; NaN when that leaves none. The border is every
    cell within one cell of the lesion's edge.
    """
    keep = has_several(mask).flatten()
    chosen = next(
        (w for w in (weights.student, weights.distillation) if w is not None), torch.ones_like(mask[:, :1])
    )
    w, mask = chosen[keep], mask.float()[keep]
    shares = (w * mask).sum((2, 3)) / w.sum((2, 3))  # (B, K)
    found = {
        "weight/mean": w.mean(),
        "weight/clamped": ((w == bounds.w_min) | (w == bounds.w_max)).float().mean(),
        "weight/lesion_share": shares.sum(1).mean(),
    }
    if len(names) > 1:
        for name, share, shown in zip(names, shares.T, shown_in_part(mask).flatten(1).T, strict=True):
            found[f"weight/lesion_share_{name}"] = share[shown].mean()
    if weights.delta is not None:
        delta, lesion = joined_delta(weights.delta[keep], mask), mask.sum(1, keepdim=True)
        grown, shrunk = F.max_pool2d(lesion, 3, 1, 1), -F.max_pool2d(-lesion, 3, 1, 1)
        for name, region in {"inside": lesion, "outside": 1 - lesion, "border": grown - shrunk}.items():
            found[f"delta/{name}"] = (delta * region).sum() / region.sum()
    return {name: value.item() for name, value in found.items()}
