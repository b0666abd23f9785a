"""Equations 3 to 7 and 9, against their closed forms and the table of docs/law.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from law_synth.weighting import (
    Bounds,
    LearnableAdaptiveWeighter,
    bounded,
    dice_alignment_loss,
    difficulty_loss,
    has_both,
    lesion_ratio,
    multiplier,
    ratio_prior,
    relative_difficulty,
    spatial_weights,
    weight_statistics,
)


def mask_of(ratio: float, size: int = 40) -> torch.Tensor:
    """A (1, 1, size, size) mask whose lesion covers `ratio` of it."""
    mask = torch.zeros(size * size)
    mask[: round(ratio * size * size)] = 1
    return mask.view(1, 1, size, size)


def law_weights(mask: torch.Tensor, delta: torch.Tensor, **options) -> torch.Tensor:
    return LearnableAdaptiveWeighter(**options).weights(delta, mask)


@pytest.mark.parametrize(
    ("ratio", "lesion_before", "lesion", "background", "mean", "share_half", "share_mask"),
    [
        (0.01, 50, 2, 0.505, 0.52, 0.038, 0.048),
        (0.03, 16.7, 2, 0.515, 0.56, 0.107, 0.130),
        (0.07, 7.14, 2, 0.538, 0.64, 0.219, 0.259),
        (0.10, 5.0, 2, 0.556, 0.70, 0.286, 0.333),
        (0.20, 2.5, 2, 0.625, 0.90, 0.444, 0.500),
        (0.30, 1.67, 1.67, 0.714, 1.0, 0.500, 0.600),
        (0.50, 1.0, 1.0, 1.0, 1.0, 0.500, 0.600),
        (0.80, 0.625, 0.625, 2.0, 0.90, 0.556, 0.600),
    ],
)
def test_closed_form_table(ratio, lesion_before, lesion, background, mean, share_half, share_mask):
    """Lesion weight 1 / (2 r) before the clamp and what is left of it after; shares of the total weight."""
    mask = mask_of(ratio)
    half = torch.full_like(mask, 0.5)
    before = law_weights(mask, half, bounds=Bounds(w_min=0, w_max=float("inf")))
    assert before[mask == 1].mean().item() == pytest.approx(lesion_before, rel=3e-3)
    weights = law_weights(mask, half)
    assert weights[mask == 1].mean().item() == pytest.approx(lesion, rel=3e-3)
    assert weights[mask == 0].mean().item() == pytest.approx(background, rel=3e-3)
    assert weights.mean().item() == pytest.approx(mean, abs=6e-3)
    assert ((weights * mask).sum() / weights.sum()).item() == pytest.approx(share_half, abs=2e-3)
    focused = law_weights(mask, mask)
    assert ((focused * mask).sum() / focused.sum()).item() == pytest.approx(share_mask, abs=2e-3)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99), st.floats(0, 0.9))
def test_weights_have_mean_one_before_the_clamp_and_stay_in_bounds_after(seed, ratio, gamma):
    generator = torch.Generator().manual_seed(seed)
    mask, delta = mask_of(ratio), torch.rand(1, 1, 40, 40, generator=generator)
    free = law_weights(mask, delta, gamma=gamma, bounds=Bounds(w_min=0, w_max=float("inf")))
    assert free.mean().item() == pytest.approx(1, abs=1e-4)
    clamped = law_weights(mask, delta, gamma=gamma)
    assert clamped.min() >= 1e-3 and clamped.max() <= 2
    mu = multiplier(delta, gamma)
    assert mu.min() >= 1 - gamma - 1e-6 and mu.max() <= 1 + gamma + 1e-6


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 1599))
def test_ratio_prior_balances_lesion_and_background(area):
    mask = mask_of(area / 1600)
    r = lesion_ratio(mask).item()
    prior = ratio_prior(mask)
    assert prior.mean().item() == pytest.approx(2 * r * (1 - r), rel=1e-4)
    assert (prior * mask).sum().item() == pytest.approx((prior * (1 - mask)).sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    "weighting", ["ratio", "ratio-clamped", "adaptive-distillation", "law", "difficulty"]
)
@pytest.mark.parametrize("ratio", [0, 1])
def test_empty_and_full_masks_weigh_one_everywhere(weighting, ratio):
    mask = mask_of(ratio)
    weighter = LearnableAdaptiveWeighter(weighting=weighting) if weighting in ("law", "difficulty") else None
    found = spatial_weights(weighting, torch.randn(1, 4, 40, 40), mask, weighter=weighter)
    assert torch.equal(found.distillation, torch.ones_like(mask))
    assert not has_both(mask).any()


def test_each_image_is_weighted_on_its_own():
    """An image's weights do not depend on who shares its batch."""
    masks = torch.cat([mask_of(0.05), mask_of(0.4), mask_of(0)])
    together = spatial_weights("ratio-clamped", masks, masks).student
    for i in range(3):
        assert torch.equal(
            together[i : i + 1], spatial_weights("ratio-clamped", masks, masks[i : i + 1]).student
        )


def test_uniform_has_no_weights_and_adc_weights_the_distillation_only():
    mask = mask_of(0.1)
    assert spatial_weights("uniform", mask, mask) == (None, None, None)
    adc = spatial_weights("adaptive-distillation", mask, mask)
    assert adc.student is None
    assert torch.equal(adc.distillation, ratio_prior(mask))


def test_law_starts_as_the_clamped_prior():
    torch.manual_seed(0)
    mask, features = mask_of(0.1), torch.randn(1, 4, 40, 40)
    weighter = LearnableAdaptiveWeighter()
    weights, delta = weighter(features, mask)
    assert torch.equal(delta, torch.full_like(mask, 0.5))
    assert torch.allclose(weights, spatial_weights("ratio-clamped", features, mask).student)
    assert sum(p.numel() for p in weighter.parameters()) == 11_009


def test_dice_loss():
    mask = mask_of(0.25)
    assert dice_alignment_loss(mask, mask).item() == pytest.approx(0, abs=1e-6)
    assert dice_alignment_loss(1 - mask, mask).item() == pytest.approx(1, abs=1e-6)
    half = torch.full_like(mask, 0.5)
    assert dice_alignment_loss(half, mask).item() == pytest.approx(1 - 2 * 0.125 / (0.5 + 0.25))
    both = dice_alignment_loss(torch.cat([mask, half]), torch.cat([mask, mask]))
    assert both.shape == (2,) and both[0] < both[1]


def test_gradients_reach_phi_only_where_they_should():
    torch.manual_seed(0)
    mask = torch.cat([mask_of(0.3), mask_of(0.6)])
    features = torch.randn(2, 4, 40, 40, requires_grad=True)
    for joint in (False, True):
        weighter = LearnableAdaptiveWeighter(joint=joint)
        torch.nn.init.normal_(weighter.phi[-1].weight)
        weights, delta = weighter(features, mask)
        assert weights.requires_grad == joint
        dice_alignment_loss(delta, mask).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in weighter.parameters())
    assert features.grad is None  # neither loss may teach the student through phi


def test_difficulty_learns_where_the_error_is():
    """phi sees the error's place only through the features, and the weights follow it, within the bounds."""
    torch.manual_seed(0)
    weighter = LearnableAdaptiveWeighter(weighting="difficulty", tau=1.0)
    optimizer = torch.optim.Adam(weighter.parameters(), 1e-2)
    mask = mask_of(0.2).expand(8, -1, -1, -1)
    hard = torch.zeros(8, 1, 40, 40)
    hard[:, :, :, 20:] = 1
    for _ in range(60):
        features = torch.randn(8, 4, 40, 40) * (1 + 2 * hard)
        error = (torch.randn(8, 4, 40, 40) * (1 + hard)).square()  # four times as high on the right
        weights, delta = weighter(features, mask)
        optimizer.zero_grad()
        difficulty_loss(delta, error).mean().backward()
        optimizer.step()
    assert delta[hard == 1].mean() > delta[hard == 0].mean() + 0.1
    assert weights[hard == 1].mean() > 1.5 * weights[hard == 0].mean()
    assert weights.max() <= 2
    assert not weights.requires_grad


def test_relative_difficulty_does_not_depend_on_the_timestep_s_scale():
    error = torch.rand(2, 4, 8, 8)
    assert torch.allclose(relative_difficulty(error), relative_difficulty(100 * error))
    assert relative_difficulty(torch.ones(1, 4, 8, 8)).unique().tolist() == [0.5]
    assert relative_difficulty(torch.zeros(1, 4, 8, 8)).unique().tolist() == [0]


def test_weights_are_single_precision_under_autocast():
    weighter = LearnableAdaptiveWeighter()
    with torch.autocast("cpu", torch.bfloat16):
        weights, delta = weighter(torch.randn(1, 4, 40, 40).bfloat16(), mask_of(0.001).bfloat16())
        assert weights.dtype == delta.dtype == torch.float32
        assert dice_alignment_loss(delta, mask_of(0.001).bfloat16()).dtype == torch.float32


def test_ablation_flags():
    mask = mask_of(0.02)
    half = torch.full_like(mask, 0.5)
    assert torch.equal(law_weights(mask, half, bounds=Bounds(False, 0, float("inf"))), ratio_prior(mask))
    assert bounded(ratio_prior(mask), Bounds(w_max=4.0)).max() == 4


def test_statistics():
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 2:4, 2:4] = 1  # r = 1/16; the second image is empty and left out
    weighter = LearnableAdaptiveWeighter()
    delta = mask.clone()
    weights = weighter.weights(delta, mask)
    found = weight_statistics(
        spatial_weights("uniform", mask, mask)._replace(student=weights, delta=delta), mask, Bounds()
    )
    assert found["delta/inside"] == 1 and found["delta/outside"] == 0
    assert found["delta/border"] == pytest.approx(4 / 16)  # 4 of 16 cells in the 4x4 square are lesion
    assert found["weight/clamped"] == pytest.approx(4 / 64)
    assert found["weight/mean"] == pytest.approx(weights[0].mean().item())
    plain = weight_statistics(spatial_weights("uniform", mask, mask), mask, Bounds())
    assert plain["weight/lesion_share"] == pytest.approx(1 / 16)
    assert plain["weight/clamped"] == 0
