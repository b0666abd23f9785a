"""Distances with known values, and measures that must find what they are named after."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from law_synth.evaluation.distances import (
    contrast,
    derangement,
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
    near_copies,
)
from law_synth.judging.features import nearest, thumbnails, unit_norm


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("n", "m", "size"), [(200, 150, 20), (12, 15, 40)])
def test_frechet_distance_is_the_formula(generator, n, m, size):
    """With more and with fewer images than features; the latter has singular covariances."""
    first, second = generator.normal(size=(n, size)), generator.normal(1, 2, size=(m, size))
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1] + 1e-10 * np.eye(size)).real
    shift = first.mean(0) - second.mean(0)
    expected = shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_known_gaussians(generator):
    """(m1 - m2)^2 + (s1 - s2)^2 in one dimension; a shift; nothing to itself."""
    sample = generator.normal(size=(500, 1))
    moved = 3 * sample + 5
    expected = (sample.mean() - moved.mean()) ** 2 + (2 * sample.std(ddof=1)) ** 2
    assert frechet_distance(sample, moved) == pytest.approx(expected)
    features = generator.normal(size=(50, 8))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 2) == pytest.approx(8 * 4)
    assert np.isnan(frechet_distance(features[:1], features))


def test_kernel_distance_is_kid_on_all_pairs(generator):
    torch = pytest.importorskip("torch")
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    first, second = (generator.normal(shift, size=(40, 16)) for shift in (0, 0.5))
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), kid_subsets=1, kid_subset_size=40, verbose=False
    )
    ours = kernel_distance(first, second)
    assert ours == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN])
    halves = [kernel_distance(*generator.normal(size=(2, 60, 16))) for _ in range(20)]
    assert abs(np.mean(halves)) < 0.1 * ours and min(halves) < 0  # unbiased


def test_mean_pairwise_distance_is_that_of_all_pairs(generator):
    features = generator.normal(size=(600, 5))
    pairs = np.linalg.norm(features[:, None] - features[None], axis=2)
    assert mean_pairwise_distance(features) == pytest.approx(pairs.sum() / (600 * 599))
    assert mean_pairwise_distance(np.ones((4, 3))) == 0


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 5))
def test_derangement_leaves_nobody_in_its_group(groups, seed):
    partner = derangement(groups, seed)
    largest = max((groups.count(group) for group in groups), default=0)
    if partner is None:
        assert len(groups) < 2 or 2 * largest > len(groups)
        return
    assert sorted(partner) == list(range(len(groups)))
    assert all(groups[i] != groups[j] for i, j in enumerate(partner))
    assert np.array_equal(partner, derangement(groups, seed))


def test_derangement_depends_on_its_seed():
    orders = {tuple(derangement(range(20), seed)) for seed in range(5)}
    assert len(orders) == 5


def test_contrast_of_a_square_on_plain_ground():
    image = np.zeros((40, 40, 3), np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 1
    image[mask > 0] = (255, 0, 0)
    assert contrast(image, mask) == pytest.approx(1)
    assert contrast(image, np.roll(mask, 15, axis=1)) < 0.1  # elsewhere
    image[(mask == 0) & (np.roll(mask, 3, axis=0) > 0)] = 255  # touches the ring of 2 px only below
    assert 0.5 < contrast(image, mask) < 1.2
    assert np.isnan(contrast(image, np.zeros_like(mask))) and np.isnan(contrast(image, np.ones_like(mask)))


def test_contrast_sees_no_further_than_a_tenth_of_the_diameter():
    image = np.zeros((100, 100, 3), np.uint8)
    rows, columns = np.mgrid[:100, :100] - 50
    radius = np.hypot(rows, columns)
    mask = (radius <= 30).astype(np.uint8)  # a ring of 6 px
    image[radius > 37.5] = 255
    assert contrast(image, mask) == 0
    image[radius > 34] = 255
    assert contrast(image, mask) > 0.3


def test_copies_are_found(generator):
    real = unit_norm(generator.normal(size=(300, 40)).astype(np.float32))
    _, real_similarity = nearest(real, real, np.arange(300))
    noise = 0.05 * generator.normal(size=(50, 40)).astype(np.float32)
    copied, similarity = nearest(unit_norm(real[:50] + noise), real)
    assert np.array_equal(copied, np.arange(50))
    assert near_copies(similarity, real_similarity)["share"] > 0.95
    _, fresh = nearest(unit_norm(generator.normal(size=(1000, 40)).astype(np.float32)), real)
    found = near_copies(fresh, real_similarity)
    assert found["share"] < 0.04 and found["mean"] <= found["p95"] <= found["max"]
    assert np.isnan(near_copies(fresh, np.array([-np.inf]))["share"])  # one real image: nothing to compare


def test_nearest_may_leave_out_the_query_itself(generator):
    vectors = unit_norm(generator.normal(size=(700, 6)).astype(np.float32))
    index, similarity = nearest(vectors, vectors)
    assert np.array_equal(index, np.arange(700)) and similarity == pytest.approx(1, abs=1e-5)
    others, _ = nearest(vectors, vectors, np.arange(700))
    assert (others != np.arange(700)).all()


def test_thumbnails_know_an_image_again_at_another_size_and_brightness(generator):
    images = [generator.integers(0, 200, (16, 16, 3)).astype(np.uint8) for _ in range(5)]
    larger = [image.repeat(8, axis=0).repeat(8, axis=1) // 2 + 20 for image in images]
    small = thumbnails(images)
    assert small.shape == (5, 3072) and small.dtype == np.float32
    assert np.allclose(small.sum(1), 0, atol=1e-3) and np.allclose((small**2).sum(1), 1, atol=1e-4)
    index, similarity = nearest(thumbnails(larger), small)
    assert np.array_equal(index, np.arange(5)) and similarity.min() > 0.99
    assert not thumbnails([np.full((8, 8, 3), 7, np.uint8)]).any()
