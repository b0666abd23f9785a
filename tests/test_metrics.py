"""Metrics against hand-made masks, a brute-force search over all boundary pairs, and their own invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_order.bootstrap import draw_cases, interval, mean_over_cases, resampled_means
from nnunet_order.metrics import METRICS, binary_metrics, label_metrics

mask_pairs = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def square(top: int, left: int, side: int = 10, size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_shifted_square():
    scores = binary_metrics(square(10, 10), square(10, 13), tolerance=2)
    assert scores["Dice"] == pytest.approx(2 * 70 / 200)
    assert scores["IoU"] == pytest.approx(70 / 130)
    assert scores["HD95"] == pytest.approx(3)
    # Of 36 boundary pixels of either square, 3 px off the other's boundary: the ten of the outer column, and
    # the four in the middle of the opposite column (the others there are near its top or bottom row).
    assert scores["NSD"] == pytest.approx(22 / 36)


def test_spacing_scales_distances_but_not_overlap():
    pixels = binary_metrics(square(10, 10), square(10, 13), tolerance=2)
    millimetres = binary_metrics(square(10, 10), square(10, 13), spacing=(0.5, 0.5), tolerance=1)
    assert millimetres == {**pixels, "HD95": pytest.approx(pixels["HD95"] / 2)}
    anisotropic = binary_metrics(square(10, 10), square(10, 13), spacing=(1.0, 4.0))
    assert anisotropic["HD95"] > 2 * pixels["HD95"]


def test_a_boundary_at_the_tolerance_is_within_it_whatever_the_rounding():
    truth, prediction = (np.zeros((30, 30), bool) for _ in range(2))
    truth[5:15, 5:15] = prediction[5:15, 10:20] = True
    for spacing in (1.0, 0.4, float(np.float32(0.4)), 0.7):
        found = binary_metrics(truth, prediction, (spacing, spacing), tolerance=5 * round(spacing, 6))
        assert found["NSD"] == 1.0, spacing


def test_perfect_prediction_also_at_the_image_border():
    whole = np.ones((5, 7), bool)
    assert binary_metrics(whole, whole, tolerance=0) == {"Dice": 1, "IoU": 1, "HD95": 0, "NSD": 1}


def test_both_empty_is_left_out():
    empty = np.zeros((8, 8), bool)
    assert all(np.isnan(value) for value in binary_metrics(empty, empty).values())


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_scores_zero_and_the_diagonal(swap):
    pair = [square(3, 3, size=30), np.zeros((30, 30), bool)]
    scores = binary_metrics(*(reversed(pair) if swap else pair), spacing=(2.0, 1.0))
    assert scores == {"Dice": 0, "IoU": 0, "NSD": 0, "HD95": pytest.approx(np.hypot(60, 30))}


def brute_force_boundary(mask: np.ndarray) -> np.ndarray:
    """Coordinates of mask pixels with a face neighbour outside the mask or the image."""
    padded = np.pad(mask, 1)
    shifts = [np.roll(padded, step, axis) for axis in range(mask.ndim) for step in (-1, 1)]
    inner = np.logical_and.reduce(shifts)
    return np.argwhere(padded & ~inner)


@settings(max_examples=200, deadline=None)
@given(mask_pairs, st.floats(0, 5), st.sampled_from([0.5, 1.0, 3.0]))
def test_properties_and_brute_force(masks, tolerance, first_spacing):
    truth, prediction = masks
    spacing = np.array([first_spacing] + [1.0] * (truth.ndim - 1))
    scores = binary_metrics(truth, prediction, spacing, tolerance)
    if not (truth.any() or prediction.any()):
        return
    assert 0 <= scores["IoU"] <= scores["Dice"] <= 1
    assert scores["IoU"] == pytest.approx(scores["Dice"] / (2 - scores["Dice"]))
    assert 0 <= scores["NSD"] <= 1
    assert 0 <= scores["HD95"] <= np.linalg.norm(spacing * truth.shape)
    assert scores == pytest.approx(binary_metrics(prediction, truth, spacing, tolerance))
    if truth.any() and prediction.any():
        points = [brute_force_boundary(mask) * spacing for mask in (truth, prediction)]
        distances = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
        directed = [distances.min(axis=1), distances.min(axis=0)]
        within = np.concatenate(directed) <= tolerance
        assert scores["HD95"] == pytest.approx(max(np.percentile(d, 95) for d in directed))
        assert scores["NSD"] == pytest.approx(within.mean(), abs=1e-9)


def test_regions_and_ignore_label():
    truth = np.array([[0, 1, 2, 9], [0, 1, 2, 9]])
    prediction = np.array([[0, 1, 1, 1], [0, 1, 1, 2]])
    scores = label_metrics(truth, prediction, {"whole": (1, 2), "core": (2,)}, ignore_label=9)
    assert scores["whole"]["Dice"] == 1  # the last column is ignored, whatever was predicted there
    assert scores["core"] == {"Dice": 0, "IoU": 0, "NSD": 0, "HD95": pytest.approx(np.hypot(2, 4))}
    assert set(scores["core"]) == set(METRICS)


def test_mean_is_per_label_first():
    values = np.array([[1.0, 0.2], [0.0, np.nan], [0.5, np.nan]])
    assert mean_over_cases(values) == pytest.approx((0.5 + 0.2) / 2)
    assert mean_over_cases(np.array([[0.5, np.nan]])) == 0.5  # no case has the second label
    assert np.isnan(mean_over_cases(np.full((3, 2), np.nan)))


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = interval(resampled_means(rng.normal(0.8, 0.1, (60, 1)), seed, 2000))
        hits += low <= 0.8 <= high
    assert 180 <= hits <= 199  # 95 % of 200 = 190, give or take three standard deviations


def test_paired_interval_is_narrower_and_seeded():
    rng = np.random.default_rng(2)
    difficulty = rng.uniform(0, 1, (80, 1))
    first, second = difficulty, np.clip(difficulty + rng.normal(0.05, 0.02, (80, 1)), None, 1.1)
    paired = interval(resampled_means(second, 3) - resampled_means(first, 3))
    unpaired = interval(resampled_means(second, 4) - resampled_means(first, 3))
    assert paired[0] > 0 and paired[1] - paired[0] < (unpaired[1] - unpaired[0]) / 5
    assert np.array_equal(resampled_means(first, 3), resampled_means(first, 3))
    assert not np.array_equal(resampled_means(first, 3), resampled_means(first, 4))


def test_groups_are_drawn_whole():
    groups = ["a", "b", "a", "c", "c", "c"]
    counts = draw_cases(np.random.default_rng(0), 6, 200, groups)
    assert counts.shape == (200, 6)
    assert (counts[:, 0] == counts[:, 2]).all() and (counts[:, 3] == counts[:, 5]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()  # of 3 groups
    assert np.ptp(counts[:, 0]) > 0
    alone = draw_cases(np.random.default_rng(0), 6, 200, list("abcdef"))
    assert np.array_equal(alone, draw_cases(np.random.default_rng(0), 6, 200))
    assert draw_cases(np.random.default_rng(0), 6, 200, ["a"] * 6) is None


def test_interval_over_groups_covers_the_mean_as_often_as_it_says():
    """Of 30 videos of 10 like frames; frame by frame the interval is far too narrow."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(30), 10)
    covered = dict.fromkeys(("groups", "cases"), 0)
    for seed in range(300):
        values = (rng.normal(0.8, 0.1, 30)[groups] + rng.normal(0, 0.02, 300))[:, None]
        for name, of_cases in (("groups", groups), ("cases", None)):
            low, high = interval(resampled_means(values, seed, 1000, of_cases))
            covered[name] += low <= 0.8 <= high
    assert 270 <= covered["groups"] <= 297 and covered["cases"] < 200


def test_interval_of_one_case_is_unknown():
    assert np.isnan(interval(resampled_means(np.array([[0.7]])))).all()
