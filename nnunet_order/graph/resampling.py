"""Frames to the size of the training images, and what the network says of them back to the frames' size.

ONNX's own Resize has no Lanczos filter, and its others round differently from Pillow, with which the training
images were made. So the filter is written out here, with Pillow's arithmetic: not a grey level differs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nnunet_order.graph.element_types import DOUBLE, INT64, UINT8, UINT16

if TYPE_CHECKING:
    from onnxscript import OpBuilder
    from onnxscript.ir import Value

LOBES = 3  # of the Lanczos filter on either side
BLOCK = 16  # output rows per matrix product: fewer means more products, more means more zeros in each
FIXED_POINT = 2.0**22  # Pillow stores the weights for 8-bit images as integers in this unit


def shrink(op: OpBuilder, frame: Value, max_side: int, element_type: int) -> Value:
    """(1, H, W, C) -> (1, h, w, C) with sides of at most `max_side`; as `resize_to`, columns before rows."""
    size = op.Shape(frame, start=1, end=3)
    ratio = op.Div(op.Cast(max_side, to=DOUBLE), op.Cast(op.ReduceMax(size, keepdims=0), to=DOUBLE))
    sides = op.Cast(op.Round(op.Mul(op.Cast(size, to=DOUBLE), ratio)), to=INT64)
    sides = op.Max(sides, [1])
    height, width = (op.Slice(sides, [axis], [axis + 1]) for axis in (0, 1))
    channels = op.Shape(frame, start=3, end=4)
    # onnxruntime is quick when one axis moves and the others keep their order.
    columns = op.Transpose(op.Squeeze(frame, [0]), perm=[1, 2, 0])  # (W, C, H)
    columns = _shrink_first_axis(op, columns, width, element_type)
    columns = op.Reshape(columns, op.Concat(width, channels, op.Slice(size, [0], [1]), axis=0))
    rows = op.Transpose(columns, perm=[2, 0, 1])  # (H, w, C)
    rows = _shrink_first_axis(op, rows, height, element_type)
    return op.Reshape(rows, op.Concat([1], height, width, channels, axis=0))


def _shrink_first_axis(op: OpBuilder, lines: Value, size: Value, element_type: int) -> Value:
    """(N, M, C) -> (n, M * C), n <= N: a block of output lines is a matrix times the input lines it sees."""
    taps, weights = _lanczos_blocks(op, op.Shape(lines, start=0, end=1), size)
    unit = FIXED_POINT if element_type == UINT8 else None
    if unit is not None:
        weights = op.Round(op.Mul(weights, unit))
    seen = op.Gather(op.Flatten(lines, axis=1), taps, axis=0)  # (blocks, window, M * C)
    sums = op.MatMul(weights, op.Cast(seen, to=DOUBLE))  # (blocks, BLOCK, M * C)
    sums = sums if unit is None else op.Div(sums, unit)
    brightest = {UINT8: 255.0, UINT16: 65535.0}[element_type]
    rounded = op.Min(op.Max(op.Floor(op.Add(sums, 0.5)), 0.0), brightest)
    blocks = op.Cast(rounded, to=element_type)
    joined = op.Reshape(blocks, op.Concat([-1], op.Shape(blocks, start=2), axis=0))
    return op.Slice(joined, [0], size, [0])  # without the rest of the last block


def _lanczos_blocks(op: OpBuilder, full: Value, size: Value) -> tuple[Value, Value]:
    """Which input lines each block sees, (blocks, window), and their weights, (blocks, BLOCK, window)."""
    scale = op.Div(op.Cast(full, to=DOUBLE), op.Cast(size, to=DOUBLE))
    window = op.Cast(op.Ceil(op.Mul(scale, BLOCK - 1 + 2.0 * LOBES)), to=INT64)
    window = op.Min(full, op.Add(window, [2]))
    blocks = op.Div(op.Add(size, [BLOCK - 1]), [BLOCK])
    lines = op.Range(0, op.Squeeze(op.Mul(blocks, [BLOCK]), [0]), 1)
    centres = op.Mul(op.Add(op.Cast(lines, to=DOUBLE), 0.5), scale)
    centres = op.Reshape(centres, [-1, BLOCK, 1])
    first = op.Sub(op.Slice(centres, [0], [1], [1]), op.Mul(scale, float(LOBES)))
    first = op.Max(op.Min(op.Cast(op.Floor(first), to=INT64), op.Sub(full, window)), [0])
    taps = op.Add(first, op.Range(0, op.Squeeze(window, [0]), 1))  # (blocks, 1, window)
    distances = op.Div(op.Sub(op.Add(op.Cast(taps, to=DOUBLE), 0.5), centres), scale)
    weights = op.Mul(_sinc(op, distances), _sinc(op, op.Div(distances, float(LOBES))))
    weights = op.Where(op.Less(op.Abs(distances), float(LOBES)), weights, op.CastLike(0.0, weights))
    return op.Squeeze(taps, [1]), op.Div(weights, op.ReduceSum(weights, [2], keepdims=1))


def _sinc(op: OpBuilder, x: Value) -> Value:
    """sin(pi x) / (pi x), and 1 at 0."""
    angle = op.Mul(x, math.pi)
    is_zero = op.Equal(angle, 0.0)
    one = op.CastLike(1.0, angle)
    return op.Where(is_zero, one, op.Div(op.Sin(angle), op.Where(is_zero, one, angle)))


def enlarge(op: OpBuilder, logits: Value, size: Value) -> Value:
    """(1, K, h, w) -> (1, K, H, W) by linear interpolation between pixel centres."""
    sizes = op.Concat(op.Shape(logits, start=0, end=2), size, axis=0)
    return op.Resize(logits, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")


def lies_inside(op: OpBuilder, start: Value, end: Value, small: Value, full: Value) -> Value:
    """(H, W): whether each pixel of a frame lies in a box of the frame shrunk to `small`; all int64 (2,)."""
    sides = []
    for axis in (0, 1):
        low, high, reduced, whole = (
            op.Cast(op.Slice(value, [axis], [axis + 1]), to=DOUBLE) for value in (start, end, small, full)
        )
        pixels = op.Range(0, op.Squeeze(op.Slice(full, [axis], [axis + 1]), [0]), 1)
        place = op.Div(op.Mul(op.Add(op.Cast(pixels, to=DOUBLE), 0.5), reduced), whole)
        sides.append(op.And(op.GreaterOrEqual(place, low), op.Less(place, high)))
    return op.And(op.Unsqueeze(sides[0], [1]), sides[1])
