"""The mask augmentation that keeps a lesion inside its organ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, label

from law_synth.generation.augmentation import augment
from law_synth.generation.nested_masks import Nesting, filled_organ, find_nestings, move_lesions
from law_synth.view.resize import resize_mask

KIDNEY, TUMOUR, VESSEL = 1, 2, 3
NESTED = [Nesting(KIDNEY, TUMOUR)]
HEIGHT, WIDTH, SIZE = 100, 120, 64


def ellipse(y: float, x: float, height: float, width: float, turn: float = 0.0) -> np.ndarray:
    """bool (HEIGHT, WIDTH); half-axes, and a turn in radians."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] - np.array([y, x])[:, None, None]
    along, across = (
        np.cos(turn) * rows + np.sin(turn) * columns,
        np.cos(turn) * columns - np.sin(turn) * rows,
    )
    return (along / height) ** 2 + (across / width) ** 2 < 1


def draw(angle: float, out: float, radius: float, turn: float = 0.3) -> np.ndarray:
    """A kidney with a vessel beside it and a tumour at `angle`, from its centre (`out` 0) to its edge (1)."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[ellipse(50, 60, 26, 17, turn)] = KIDNEY
    mask[20:80, 96:99] = VESSEL
    along, across = 26 * out * np.sin(angle), 17 * out * np.cos(angle)
    y, x = (
        50 + np.cos(turn) * along - np.sin(turn) * across,
        60 + np.sin(turn) * along + np.cos(turn) * across,
    )
    mask[ellipse(y, x, radius, 0.8 * radius)] = TUMOUR
    return mask


MASKS = st.builds(
    draw,
    angle=st.floats(0, 6.28),
    out=st.floats(0, 1),
    radius=st.floats(2, 12),
    turn=st.floats(0, 3.14),
)


@settings(max_examples=30, deadline=None)
@given(MASKS, st.integers(0, 1000))
def test_a_moved_tumour_keeps_its_size_and_its_kidney(mask, seed):
    new = move_lesions(mask, NESTED, seed, SIZE)
    before, after = mask == TUMOUR, new == TUMOUR
    assert abs(int(after.sum()) - int(before.sum())) <= 0.1 * before.sum()
    # As much of it lies in the kidney as before, and it touches what is left of the kidney.
    organ = filled_organ(mask, KIDNEY, TUMOUR)
    assert (after & organ).sum() / after.sum() >= (before & organ).sum() / before.sum() - 1e-9
    assert (binary_dilation(after) & (new == KIDNEY)).any() and label(after, np.ones((3, 3)))[1] == 1
    # The kidney keeps its outline elsewhere, and everything else stays.
    np.testing.assert_array_equal((new == KIDNEY) | (after & organ), organ)
    np.testing.assert_array_equal(new == VESSEL, mask == VESSEL)
    assert set(np.unique(resize_mask(new, SIZE))) == set(np.unique(resize_mask(mask, SIZE)))
    np.testing.assert_array_equal(new, move_lesions(mask, NESTED, seed, SIZE))


@settings(max_examples=10, deadline=None)
@given(MASKS)
def test_places_and_shapes_vary(mask):
    new = [move_lesions(mask, NESTED, seed, SIZE) == TUMOUR for seed in range(6)]
    centres = np.array([np.argwhere(tumour).mean(axis=0) for tumour in new])
    assert len({tumour.tobytes() for tumour in new}) >= 5 and np.ptp(centres, axis=0).max() > 2


def test_a_tumour_inside_never_bulges_and_one_that_bulged_never_hangs_free():
    inside, bulging = draw(0.5, 0.3, 6), draw(0, 0.95, 8)
    for seed in range(25):
        assert not (
            (move_lesions(inside, NESTED, seed, SIZE) == TUMOUR) & ~filled_organ(inside, KIDNEY, TUMOUR)
        ).any()
    organ = filled_organ(bulging, KIDNEY, TUMOUR)
    shares = [
        ((new == TUMOUR) & organ).sum() / (new == TUMOUR).sum()
        for new in (move_lesions(bulging, NESTED, seed, SIZE) for seed in range(25))
    ]
    before = ((bulging == TUMOUR) & organ).sum() / (bulging == TUMOUR).sum()
    assert 0.2 < before < 0.7 and before <= min(shares) and max(shares) <= before + 0.25


def test_the_kidney_is_made_whole_where_the_tumour_was():
    organ = filled_organ(draw(0.0, 0.9, 8, turn=0), KIDNEY, TUMOUR)
    healthy = ellipse(50, 60, 26, 17)
    assert 2 * (organ & healthy).sum() / (organ.sum() + healthy.sum()) > 0.97


def test_each_of_several_tumours_moves_to_a_place_of_its_own():
    mask = draw(1.0, 0.5, 5)
    mask[ellipse(38, 56, 4, 4)] = TUMOUR
    for seed in range(8):
        new = move_lesions(mask, NESTED, seed, SIZE)
        assert label(new == TUMOUR, np.ones((3, 3)))[1] == 2 and not np.array_equal(new, mask)


@pytest.mark.parametrize("tumour", [ellipse(10, 20, 6, 6), ellipse(0, 60, 9, 9)])
def test_what_touches_no_kidney_or_the_border_stays(tumour):
    mask = draw(0, 0, 1)
    mask[mask == TUMOUR] = KIDNEY
    mask[ellipse(5, 60, 4, 9)] = KIDNEY
    mask[tumour] = TUMOUR
    np.testing.assert_array_equal(move_lesions(mask, NESTED, 1, SIZE), mask)


def test_bending_comes_on_top():
    mask, seed = draw(1.0, 0.5, 6), 4
    moved, bent = (augment(mask, kind, seed, SIZE, NESTED) for kind in ("nested", "nested-elastic"))
    np.testing.assert_array_equal(moved, move_lesions(mask, NESTED, seed, SIZE))
    assert not np.array_equal(moved, bent) and 2 * (moved & bent).sum() / (moved.sum() + bent.sum()) > 0.7


def test_bending_what_was_moved_keeps_the_area_of_the_mask_as_it_was():
    """Two changes of 10 % would be one of 21."""
    for seed in range(40):
        mask = draw(seed / 6, 0.5, 5 + seed % 4)
        bent = augment(mask, "nested-elastic", seed, SIZE, NESTED)
        area = (mask == TUMOUR).sum()
        assert abs(int((bent == TUMOUR).sum()) - area) <= 0.1 * area, seed


def test_which_class_lies_in_which_is_found_from_the_masks():
    masks = [draw(angle, 0.8, 7) for angle in range(6)]
    assert find_nestings(masks, 3) == NESTED
    swapped = np.array([0, 2, 1, 3], np.uint8)
    assert find_nestings([swapped[mask] for mask in masks], 3) == [Nesting(2, 1)]
    beside = np.zeros((20, 20), np.uint8)  # two halves of one disc: neither is inside
    beside[5:15, 5:10], beside[5:15, 10:15] = 1, 2
    assert find_nestings([beside], 2) == []
    deep = draw(0, 0, 9) % VESSEL
    deep[ellipse(50, 60, 4, 4)] = VESSEL
    assert find_nestings([deep], 3) == [Nesting(TUMOUR, VESSEL)]  # the tumour holds one: it stays
    assert find_nestings([np.zeros((9, 9), np.uint8)], 1) == []
