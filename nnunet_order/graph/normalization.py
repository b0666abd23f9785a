"""nnU-Net's crop to what is not black and its normalisations, as ONNX; `image_steps` explains them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nnunet_order.graph.element_types import DOUBLE, FLOAT
from nnunet_order.image_steps import SMALLEST_DEVIATION
from nnunet_order.onnx_file import OnnxMetadata

if TYPE_CHECKING:
    from onnxscript import OpBuilder
    from onnxscript.ir import Value

ROWS_AND_COLUMNS = [2, 3]  # axes of (1, C, H, W)


class Box(NamedTuple):
    """A rectangle of pixels: row and column where it starts, and behind which it ends; int64 (2,)."""

    start: Value
    end: Value


def nonzero_box(op: OpBuilder, pixels: Value) -> Box:
    """Smallest box with all pixels of (1, C, H, W) that are not black; all of a black image."""
    starts, ends = [], []
    for others in ([0, 1, 3], [0, 1, 2]):
        is_bright = op.Sign(op.ReduceMax(pixels, others, keepdims=0))
        starts.append(op.ArgMax(is_bright, axis=0, keepdims=1))
        # Where nothing is bright, the first of equal values is the first line, and the last one the last.
        ends.append(op.Add(op.ArgMax(is_bright, axis=0, keepdims=1, select_last_index=1), [1]))
    return Box(op.Concat(*starts, axis=0), op.Concat(*ends, axis=0))


def normalize(op: OpBuilder, pixels: Value, metadata: OnnxMetadata) -> Value:
    """Normalise each channel of (1, C, H, W) by its scheme."""
    inside = None
    if any(metadata.use_mask_for_norm):
        inside = op.Greater(op.ReduceMax(pixels, [1], keepdims=1), 0.0)
    channels = []
    for index, scheme in enumerate(metadata.normalization_schemes):
        channel = op.Slice(pixels, [index], [index + 1], [1])
        mask = inside if metadata.use_mask_for_norm[index] else None
        properties = metadata.intensity_properties.get(str(index), {})
        channels.append(NORMALIZATIONS[scheme](op, channel, mask, properties))
    return op.Concat(*channels, axis=1)


def zscore(op: OpBuilder, channel: Value, mask: Value | None, properties: dict) -> Value:
    """Zero mean and unit deviation, inside the mask where there is one.

    Sums are in double precision, because onnxruntime adds up pixels one by one: single loses digits.
    """
    values = op.Cast(channel, to=DOUBLE)
    mean = _mean(op, values, mask)
    deviation = op.Sqrt(_mean(op, op.Pow(op.Sub(values, mean), 2.0), mask))
    deviation = op.Max(op.Cast(deviation, to=FLOAT), SMALLEST_DEVIATION)
    scaled = op.Div(op.Sub(channel, op.Cast(mean, to=FLOAT)), deviation)
    return scaled if mask is None else op.Where(mask, scaled, channel)


def _mean(op: OpBuilder, values: Value, mask: Value | None) -> Value:
    if mask is None:
        return op.ReduceMean(values, ROWS_AND_COLUMNS, keepdims=1)
    weights = op.Cast(mask, to=DOUBLE)
    count = op.Max(op.ReduceSum(weights, ROWS_AND_COLUMNS, keepdims=1), 1.0)  # a black image has none
    return op.Div(op.ReduceSum(op.Mul(values, weights), ROWS_AND_COLUMNS, keepdims=1), count)


def clipped_zscore(op: OpBuilder, channel: Value, mask: Value | None, properties: dict) -> Value:
    """CT: clip to the training foreground's percentiles, then scale by its mean and deviation."""
    clipped = op.Clip(channel, properties["percentile_00_5"], properties["percentile_99_5"])
    return op.Div(op.Sub(clipped, properties["mean"]), max(properties["std"], SMALLEST_DEVIATION))


def unchanged(op: OpBuilder, channel: Value, mask: Value | None, properties: dict) -> Value:
    """No normalisation."""
    return channel


def rescale(op: OpBuilder, channel: Value, mask: Value | None, properties: dict) -> Value:
    """Smallest value to 0, largest to 1."""
    shifted = op.Sub(channel, op.ReduceMin(channel, ROWS_AND_COLUMNS, keepdims=1))
    largest = op.ReduceMax(shifted, ROWS_AND_COLUMNS, keepdims=1)
    return op.Div(shifted, op.Max(largest, SMALLEST_DEVIATION))


def from_eight_bit(op: OpBuilder, channel: Value, mask: Value | None, properties: dict) -> Value:
    """0..255 to 0..1."""
    return op.Div(channel, 255.0)


NORMALIZATIONS = {
    "ZScoreNormalization": zscore,
    "CTNormalization": clipped_zscore,
    "NoNormalization": unchanged,
    "RescaleTo01Normalization": rescale,
    "RGBTo01Normalization": from_eight_bit,
}
