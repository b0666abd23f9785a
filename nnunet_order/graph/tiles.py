"""Images of any size through a network, as ONNX: in nnU-Net's overlapping tiles, or in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nnunet_order.graph.element_types import DOUBLE, FLOAT, INT64
from nnunet_order.graph.normalization import ROWS_AND_COLUMNS
from nnunet_order.image_steps import tile_profiles
from nnunet_order.onnx_file import OnnxMetadata

if TYPE_CHECKING:
    from onnxscript import OpBuilder
    from onnxscript.ir import Value

Network = Callable[["OpBuilder", "Value"], "Value"]  # puts the network where it is called: image to logits


def whole_logits(op: OpBuilder, image: Value, network: Network, metadata: OnnxMetadata) -> Value:
    """Logits of (1, C, H, W) from one pass over the image, padded to sides that the network takes."""
    multiple = metadata.size_multiple
    size = op.Shape(image, start=2)
    sides = op.Mul(op.Div(op.Add(size, [multiple - 1]), [multiple]), [multiple])
    padded, before = pad_to(op, image, op.Max(sides, metadata.patch_size))
    return op.Slice(network(op, padded), before, op.Add(before, size), ROWS_AND_COLUMNS)


def tiled_logits(op: OpBuilder, image: Value, network: Network, metadata: OnnxMetadata) -> Value:
    """Logits of (1, C, H, W) from tiles of the patch size, overlapping by half, weighted to their centres."""
    from onnxscript import ir

    patch, classes = metadata.patch_size, metadata.outputs
    size = op.Shape(image, start=2)
    padded, before = pad_to(op, image, op.Max(size, patch))
    padded_size = op.Shape(padded, start=2)
    surplus = op.Sub(padded_size, patch)
    steps = op.Div(op.Add(op.Mul(surplus, [2]), [side - 1 for side in patch]), patch)  # rounded up
    stride = op.Div(op.Cast(surplus, to=DOUBLE), op.Cast(op.Max(steps, [1]), to=DOUBLE))
    counts = op.Add(steps, [1])
    names = ("row_weights", "column_weights")
    profiles = zip(tile_profiles(patch), names, strict=True)
    rows, columns = (op.initializer(ir.tensor(profile, name=name)) for profile, name in profiles)
    weights = op.Unsqueeze(op.Cast(op.Mul(rows, columns), to=FLOAT), [0, 1])  # (1, 1, height, width)

    def add_tile(op: OpBuilder, index: Value, go_on: Value, total: Value) -> list[Value]:
        op.builder.push_module("tile")  # before each name, which must be the only one of its kind
        columns = op.Slice(counts, [1], [2])
        place = op.Concat(op.Div(index, columns), op.Mod(index, columns), axis=0)
        start = op.Cast(op.Round(op.Mul(op.Cast(place, to=DOUBLE), stride)), to=INT64)
        end = op.Add(start, patch)
        logits = network(op, op.Slice(padded, start, end, ROWS_AND_COLUMNS))
        weighted = op.Concat(op.Mul(logits, weights), weights, axis=1)
        around = op.Concat([0, 0], start, [0, 0], op.Sub(padded_size, end), axis=0)
        return [op.Identity(go_on), op.Add(total, op.Pad(weighted, around))]

    shape = ir.Shape([1, classes + 1, "padded_height", "padded_width"])
    body = op.builder.subgraph(
        add_tile,
        inputs=[
            ir.val("tile", dtype=ir.DataType.INT64, shape=[]),
            ir.val("go_on", dtype=ir.DataType.BOOL, shape=[]),
            ir.val("sum", dtype=ir.DataType.FLOAT, shape=shape),
        ],
        outputs=[
            ir.val("goes_on", dtype=ir.DataType.BOOL, shape=[]),
            ir.val("new_sum", dtype=ir.DataType.FLOAT, shape=shape),
        ],
        name="tile",
    )
    nothing = op.Expand(0.0, op.Concat([1, classes + 1], padded_size, axis=0))
    total = op.Loop(op.ReduceProd(counts, keepdims=0), True, nothing, body=body)
    logits = op.Div(op.Slice(total, [0], [classes], [1]), op.Slice(total, [classes], [classes + 1], [1]))
    return op.Slice(logits, before, op.Add(before, size), ROWS_AND_COLUMNS)


def pad_to(op: OpBuilder, image: Value, size: Value) -> tuple[Value, Value]:
    """(1, C, H, W) in the middle of zeros of `size`; also the row and column where it begins, int64 (2,)."""
    missing = op.Sub(size, op.Shape(image, start=2))
    before = op.Div(missing, [2])
    return op.Pad(image, op.Concat([0, 0], before, [0, 0], op.Sub(missing, before), axis=0)), before
