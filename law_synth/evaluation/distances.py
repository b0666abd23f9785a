"""Distances between sets of images and measures of single images, from arrays; no I/O."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RING_SHARE, RING_LEAST = 0.1, 2.0  # of the equivalent diameter; pixels
NEAR_COPY_PERCENTILE = 99


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians fitted to features (N, D) and (M, D); FID when Inception's.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017). The trace of the root is the sum of the
    singular values of A1 A2^T, where C = A^T A: exact for N < D too, and without a root of a singular matrix.
    NaN for fewer than two images.
    """
    if min(len(first), len(second)) < 2:
        return float("nan")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    shift = first.mean(0) - second.mean(0)
    roots = [np.linalg.qr(centred_root(features), mode="r") for features in (first, second)]
    spread = sum(float((root**2).sum()) for root in roots)
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(float(shift @ shift + spread - 2 * overlap), 0.0)


def centred_root(features: np.ndarray) -> np.ndarray:
    """(N, D) -> A (N, D) with A^T A = the unbiased covariance."""
    return (features - features.mean(0)) / np.sqrt(len(features) - 1)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) with KID's kernel (x.y / D + 1)^3.

    Bińkowski et al. 2018, from all pairs instead of subsets. Expected value 0 for two samples of one
    distribution, so that it may be negative. NaN for fewer than two images.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return float("nan")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within_first, within_second = kernel(first, first), kernel(second, second)
    mean_first = (within_first.sum() - np.trace(within_first)) / (n * (n - 1))
    mean_second = (within_second.sum() - np.trace(within_second)) / (m * (m - 1))
    return float(mean_first + mean_second - 2 * kernel(first, second).mean())


def mean_pairwise_distance(features: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of rows of (N, D); NaN for fewer than two."""
    count = len(features)
    if count < 2:
        return float("nan")
    features = np.asarray(features, np.float64)
    squares = (features**2).sum(1)
    total = 0.0
    for start in range(0, count, 512):  # bounds the memory
        part = slice(start, start + 512)
        squared = squares[part, None] + squares - 2 * features[part] @ features.T
        squared[np.arange(len(squared)), np.arange(start, start + len(squared))] = 0
        total += np.sqrt(np.maximum(squared, 0)).sum()
    return float(total / (count * (count - 1)))


def derangement(groups: Sequence[Hashable], seed: int) -> np.ndarray | None:
    """Random permutation (N,) that sends no item to one of its own group; None where there is none.

    Groups in random order, their members one after another; then each item gets the one that lies the largest
    group's size further on.
    """
    count = len(groups)
    members: dict[Hashable, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(count):
        members.setdefault(groups[index], []).append(int(index))
    largest = max(map(len, members.values()), default=0)
    if count < 2 or 2 * largest > count:
        return None
    order = np.array([index for group in members.values() for index in group])
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, -largest)
    return partner


def contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """Euclidean RGB distance, 0 to sqrt(3), of the mean colours inside a mask and in a ring around it.

    image: uint8 (H, W, 3); mask: (H, W) of 0 and 1. The ring is as wide as a tenth of the diameter of the
    disc of equal area, at least 2 px. NaN for an empty mask or where nothing lies around it.
    """
    from scipy import ndimage

    inside = mask > 0
    area = int(inside.sum())
    if area == 0 or area == inside.size:
        return float("nan")
    width = max(RING_LEAST, RING_SHARE * 2 * np.sqrt(area / np.pi))
    ring = ~inside & (ndimage.distance_transform_edt(~inside) <= width)
    difference = image[inside].mean(0) - image[ring].mean(0)
    return float(np.linalg.norm(difference) / 255)


def near_copies(similarity: np.ndarray, real_similarity: np.ndarray) -> dict[str, float]:
    """Similarity of each generated image to its nearest real one, and of each real one to its nearest other.

    similarity: (N,) of the generated images; real_similarity: (M,) of each real image to its nearest other.
    `share` is the part above the real images' 99th percentile, the `threshold`: about 0.01 for images that
    are as far from the real ones as these are from each other. NaN where M < 2.
    """
    known = real_similarity[np.isfinite(real_similarity)]
    threshold = float(np.percentile(known, NEAR_COPY_PERCENTILE)) if known.size else float("nan")
    return {
        "mean": float(similarity.mean()),
        "p95": float(np.percentile(similarity, 95)),
        "max": float(similarity.max()),
        "threshold": threshold,
        "share": float((similarity > threshold).mean()) if known.size else float("nan"),
    }
