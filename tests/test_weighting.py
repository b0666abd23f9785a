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
    has_several,
    joined_delta,
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
    ("weighting", "expected"),
    [("ratio", 0), ("adaptive-distillation", 0), ("ratio-clamped", 0.5), ("law", 0.5), ("difficulty", 1)],
)
@pytest.mark.parametrize("ratio", [0, 1])
def test_images_with_nothing_to_balance(weighting, expected, ratio):
    """Equation 3 gives 0 at r = 0 and r = 1; equation 7 is continued; phi's difficulty asks no mask."""
    mask = mask_of(ratio)
    weighter = LearnableAdaptiveWeighter(weighting=weighting) if weighting in ("law", "difficulty") else None
    found = spatial_weights(weighting, torch.randn(1, 4, 40, 40), mask, weighter=weighter)
    assert torch.equal(found.distillation, torch.full_like(mask, expected))
    assert not has_several(mask).any()


@pytest.mark.parametrize("weighting", ["ratio", "ratio-clamped"])
def test_a_vanishing_lesion_weighs_as_a_healthy_image_does(weighting):
    """The weight of the background has no jump where the lesion goes."""
    small, none = mask_of(1 / 1600), mask_of(0)
    with_lesion, healthy = (spatial_weights(weighting, mask, mask).student for mask in (small, none))
    background = with_lesion[small == 0]
    assert torch.allclose(background, healthy[small == 0], atol=1e-3)


def test_a_healthy_image_does_not_outweigh_one_with_a_lesion():
    """The fault this guards against: weight 1 everywhere against a mean of 2 r (1 - r)."""
    for r, mean in ((0.07, 0.126), (0.004375, 0.0087)):
        assert ratio_prior(mask_of(r)).mean().item() == pytest.approx(2 * r * (1 - r), rel=1e-3)
        assert ratio_prior(mask_of(r)).mean().item() == pytest.approx(mean, abs=5e-3)
        assert ratio_prior(mask_of(0)).mean().item() == 0


def test_without_normalising_a_healthy_image_has_the_lowest_weight():
    """Equation 7 is defined there: clamp(0)."""
    bounds = Bounds(normalize=False, w_min=0.01, w_max=2)
    assert spatial_weights("ratio-clamped", mask_of(0), mask_of(0), bounds).student.unique().item() == (
        pytest.approx(0.01)
    )


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


def classes_of(*ratios: float, size: int = 40) -> torch.Tensor:
    """A (1, K, size, size) mask whose classes cover these shares of it, one after the other."""
    mask, start = torch.zeros(len(ratios), size * size), 0
    for channel, ratio in zip(mask, ratios, strict=True):
        end = start + round(ratio * size * size)
        channel[start:end] = 1
        start = end
    return mask.view(1, -1, size, size)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_one_class_is_the_paper_s_equation_bit_for_bit(seed, batch):
    """Soft masks too: what `area` makes of small lesions."""
    mask = torch.rand(batch, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    r = mask.mean((1, 2, 3), keepdim=True)
    assert torch.equal(ratio_prior(mask), mask * (1 - r) + (1 - mask) * r)
    delta = torch.rand_like(mask)
    assert torch.equal(joined_delta(delta, mask), delta)
    overlap, total = (delta * mask).sum((1, 2, 3)), delta.sum((1, 2, 3)) + mask.sum((1, 2, 3))
    paper = 1 - (2 * overlap + 1e-6) / (total + 1e-6)
    assert torch.allclose(dice_alignment_loss(delta, mask), paper, atol=1e-7, rtol=0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=4))
def test_prior_s_mean_is_one_minus_the_squared_shares(areas):
    shares = [area / 1600 for area in areas]
    mask = classes_of(*shares)
    squares = sum(share**2 for share in (*shares, 1 - sum(shares)))
    if squares < 1:
        assert ratio_prior(mask).mean().item() == pytest.approx(1 - squares, abs=1e-5)
    for channel, share in zip(mask[0], shares, strict=True):
        if share > 0:
            assert ratio_prior(mask)[0, 0][channel == 1].unique().item() == pytest.approx(1 - share, abs=1e-6)


def test_order_of_the_classes_and_absent_ones_change_no_weight():
    mask = classes_of(0.1, 0.02, 0.3)
    prior = ratio_prior(mask)
    assert torch.allclose(ratio_prior(mask.flip(1)), prior, atol=1e-6)
    assert torch.allclose(ratio_prior(torch.cat([mask, torch.zeros(1, 1, 40, 40)], 1)), prior, atol=1e-6)


@pytest.mark.parametrize(("weighting", "expected"), [("ratio", 0), ("ratio-clamped", 0.5), ("law", 0.5)])
def test_images_of_one_of_several_classes(weighting, expected):
    """Without a class, filled by one class, filled by two classes without background."""
    mask = torch.cat([classes_of(0, 0), classes_of(0, 1), classes_of(0.3, 0.7)])
    assert has_several(mask).flatten().tolist() == [False, False, True]
    weighter = LearnableAdaptiveWeighter(classes=2) if weighting == "law" else None
    if weighter:
        torch.nn.init.normal_(weighter.phi[-1].weight)
    weights = spatial_weights(weighting, torch.randn(3, 4, 40, 40), mask, weighter=weighter).student
    assert weights.shape == (3, 1, 40, 40)
    assert (weights[:2] == expected).all()
    assert weights[2].min() > 0 and weights[2].unique().numel() > 1


def test_difficulty_of_a_healthy_image_is_phi_s():
    """Its weights come from phi, with a mean of 1, whatever the mask says."""
    weighter = LearnableAdaptiveWeighter(weighting="difficulty", bounds=Bounds(w_min=0, w_max=float("inf")))
    torch.nn.init.normal_(weighter.phi[-1].weight)
    weights, _ = weighter(torch.randn(2, 4, 40, 40), torch.cat([mask_of(0), mask_of(0.2)]))
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(2), atol=1e-5)
    assert weights[0].unique().numel() > 1


def test_two_classes_have_a_delta_map_each_and_a_mean_dice():
    torch.manual_seed(0)
    mask = torch.cat([classes_of(0.2, 0.05), classes_of(0.2, 0.0)])
    law = LearnableAdaptiveWeighter(classes=2)
    weights, delta = law(torch.randn(2, 4, 40, 40), mask)
    assert weights.shape == (2, 1, 40, 40) and torch.equal(delta, torch.full_like(mask, 0.5))
    assert torch.allclose(weights, spatial_weights("ratio-clamped", mask, mask).student)
    difficulty = LearnableAdaptiveWeighter(weighting="difficulty", classes=2)
    assert difficulty(torch.randn(2, 4, 40, 40), mask)[1].shape == (2, 1, 40, 40)
    each = [dice_alignment_loss(delta[:, [c]], mask[:, [c]]) for c in (0, 1)]
    both = dice_alignment_loss(delta, mask)
    assert both[0].item() == pytest.approx((each[0][0] + each[1][0]).item() / 2)
    assert both[1].item() == pytest.approx(each[0][1].item())  # the second image shows no second class


def test_dice_s_gradient_moves_the_shown_classes_only():
    delta = torch.full((1, 2, 40, 40), 0.5, requires_grad=True)
    dice_alignment_loss(delta, classes_of(0.2, 0)).sum().backward()
    assert delta.grad[:, 0].abs().sum() > 0 and delta.grad[:, 1].abs().sum() == 0


def test_joined_delta_is_the_union_and_leaves_out_absent_classes():
    """With delta = m every class is weighed up by gamma; an untrained map of an absent class is not heard."""
    mask = classes_of(0.2, 0.05)
    assert torch.equal(joined_delta(mask, mask), mask.sum(1, keepdim=True))
    absent = classes_of(0.2, 0)
    wild = torch.cat([absent[:, :1], torch.rand(1, 1, 40, 40)], 1)
    assert torch.equal(joined_delta(wild, absent), absent[:, :1])
    free = Bounds(normalize=False, w_min=0, w_max=float("inf"))
    weights = LearnableAdaptiveWeighter(classes=2, gamma=0.2, bounds=free).weights(mask, mask)
    assert torch.allclose(weights / ratio_prior(mask), 0.8 + 0.4 * mask.sum(1, keepdim=True))


def test_joint_gradients_are_finite_whatever_an_image_shows():
    mask = torch.cat([classes_of(0.2, 0.05), classes_of(0, 0), classes_of(0, 1)])
    weighter = LearnableAdaptiveWeighter(classes=2, joint=True, gamma=1.0)
    torch.nn.init.normal_(weighter.phi[-1].weight)
    weights, _ = weighter(torch.randn(3, 4, 40, 40), mask)
    weights.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in weighter.parameters())


def test_statistics_of_several_classes_go_by_name():
    mask = torch.cat([classes_of(0.25, 0.05), classes_of(0.5, 0), classes_of(0, 0)])
    found = weight_statistics(
        spatial_weights("uniform", mask, mask)._replace(delta=mask), mask, Bounds(), ("kidney", "tumour")
    )
    assert found["weight/lesion_share"] == pytest.approx((0.3 + 0.5) / 2)
    assert found["weight/lesion_share_kidney"] == pytest.approx((0.25 + 0.5) / 2)
    assert found["weight/lesion_share_tumour"] == pytest.approx(0.05)  # of the one image that shows it
    assert found["delta/inside"] == 1 and found["delta/outside"] == 0
    one = weight_statistics(spatial_weights("uniform", mask, mask[:, :1]), mask[:, :1], Bounds(), ("lesion",))
    assert set(one) == {"weight/mean", "weight/clamped", "weight/lesion_share"}
