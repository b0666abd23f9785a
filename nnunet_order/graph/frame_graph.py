"""All the steps in one graph: a frame's pixels in, its label map and probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnunet_order.graph.attention import fuse_attention
from nnunet_order.graph.element_types import FLOAT, UINT8, UINT16
from nnunet_order.graph.normalization import ROWS_AND_COLUMNS, nonzero_box, normalize
from nnunet_order.graph.resampling import enlarge, lies_inside, shrink
from nnunet_order.graph.tiles import tiled_logits, whole_logits
from nnunet_order.image_steps import background_probabilities
from nnunet_order.onnx_file import OnnxMetadata, as_properties

if TYPE_CHECKING:
    import onnx
    from onnxscript import GraphBuilder, OpBuilder, ir

IR_VERSION = 10


def frame_model(network: onnx.ModelProto, metadata: OnnxMetadata, plain_onnx: bool) -> onnx.ModelProto:
    """The model of frames (1, H, W, C) around a network of normalised images.

    Its outputs are `labels` (1, H, W) and `probabilities` (1, K, H, W) of labels or regions. `plain_onnx`: no
    operators of onnxruntime's own.
    """
    import onnx
    from onnxscript import GraphBuilder, ir

    # The number of heads is among the shapes that onnx can infer.
    inner = ir.from_proto(onnx.shape_inference.infer_shapes(network, data_prop=True))
    if not plain_onnx:
        fuse_attention(inner)
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(inner.opset_imports), name="frame_to_labels")
    add_steps(GraphBuilder(graph), inner.graph, metadata)
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION, producer_name="law-order"))
    strip(model.graph)
    onnx.helper.set_model_props(model, as_properties(metadata))
    return model


def strip(graph: onnx.GraphProto) -> None:
    """Drop source positions and shapes in between, two thirds of a file of 40 K weights."""
    del graph.value_info[:]
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                strip(attribute.g)


def add_steps(builder: GraphBuilder, network: ir.Graph, metadata: OnnxMetadata) -> None:
    """Inputs, steps and outputs."""
    from onnxscript import ir

    op = builder.op
    element_type = UINT8 if metadata.brightest <= 255 else UINT16
    shape = [1, "height", "width", len(metadata.channel_names)]
    frame = builder.input("frame", ir.DataType(element_type), shape)
    size = op.Shape(frame, start=1, end=3)
    pixels = frame if metadata.max_side is None else shrink_large(op, frame, metadata.max_side, element_type)
    pixels = op.Cast(op.Transpose(pixels, perm=[0, 3, 1, 2]), to=FLOAT)  # (1, C, h, w)
    box = nonzero_box(op, pixels)
    image = normalize(op, op.Slice(pixels, box.start, box.end, ROWS_AND_COLUMNS), metadata)
    in_pieces = whole_logits if metadata.whole_image else tiled_logits
    logits = in_pieces(op, image, lambda op, image: insert(op, network, image), metadata)
    small = op.Shape(pixels, start=2)
    border = op.Concat([0, 0], box.start, [0, 0], op.Sub(small, box.end), axis=0)
    logits = op.Pad(logits, border, mode="edge")
    if metadata.max_side is not None:
        logits = enlarge(op, logits, size)
    inside = lies_inside(op, *box, small, size)
    add_outputs(builder, logits, inside, metadata)


def shrink_large(op: OpBuilder, frame: ir.Value, max_side: int, element_type: int) -> ir.Value:
    """(1, H, W, C) -> (1, h, w, C); frames that are small enough pass unchanged, and cost nothing."""
    from onnxscript import ir

    kind = ir.DataType(element_type)
    shape = ir.Shape([1, "shrunk_height", "shrunk_width", frame.shape[3]])

    def shrunk(op: OpBuilder) -> ir.Value:
        op.builder.push_module("shrunk")  # before each name, which must be the only one of its kind
        return shrink(op, frame, max_side, element_type)

    def unchanged(op: OpBuilder) -> ir.Value:
        op.builder.push_module("unchanged")
        return op.Identity(frame)

    large, other = (
        op.builder.subgraph(
            content,
            inputs=[],
            outputs=[ir.val(f"{content.__name__}_frame", dtype=kind, shape=shape)],
            name=content.__name__,
        )
        for content in (shrunk, unchanged)
    )
    longer = op.ReduceMax(op.Shape(frame, start=1, end=3), keepdims=0)
    return op.If(op.Greater(longer, max_side), then_branch=large, else_branch=other)


def insert(op: OpBuilder, network: ir.Graph, image: ir.Value) -> ir.Value:
    """Move the network's nodes to where `op` builds, and feed them (1, C, H, W); its logits (1, K, H, W)."""
    from onnxscript import ir

    (logits,) = network.outputs
    network.outputs.clear()
    ir.convenience.replace_all_uses_with(network.inputs[0], image)
    weights, nodes = list(network.initializers.values()), list(network)
    network.initializers.clear()
    network.remove(nodes)
    for value in [*weights, *(output for node in nodes for output in node.outputs)]:
        value.name = f"network/{value.name}"  # unlike those around it
    for node in nodes:
        node.name = f"network/{node.outputs[0].name}"
    for value in weights:
        op.builder.root.graph.register_initializer(value)
    op.builder.graph.extend(nodes)
    return logits


def add_outputs(builder: GraphBuilder, logits: ir.Value, inside: ir.Value, metadata: OnnxMetadata) -> None:
    """Label map and probabilities of logits (1, K, H, W); background where not `inside` (H, W)."""
    from onnxscript import ir

    op = builder.op
    if metadata.regions_class_order is None:
        labels = op.ArgMax(logits, axis=1, keepdims=0)
        if metadata.label_values != list(range(metadata.outputs)):
            labels = op.Gather(metadata.label_values, labels)
        # onnxruntime's own Softmax over this axis takes ten times as long.
        powers = op.Exp(op.Sub(logits, op.ReduceMax(logits, [1], keepdims=1)))
        probabilities = op.Div(powers, op.ReduceSum(powers, [1], keepdims=1))
    else:
        labels = 0
        for channel, value in enumerate(metadata.regions_class_order):
            region = op.Squeeze(op.Slice(logits, [channel], [channel + 1], [1]), [1])
            labels = op.Where(op.Greater(region, 0.0), value, labels)
        probabilities = op.Sigmoid(logits)
    highest = max(metadata.regions_class_order or metadata.label_values)
    kind = UINT8 if highest <= 255 else UINT16
    labels = op.Cast(op.Where(inside, labels, 0), to=kind)
    background = op.Reshape(background_probabilities(metadata).tolist(), [1, -1, 1, 1])
    probabilities = op.Where(inside, probabilities, background)
    for value, name, element_type, classes in (
        (labels, "labels", kind, []),
        (probabilities, "probabilities", FLOAT, [metadata.outputs]),
    ):
        value.type = ir.TensorType(ir.DataType(element_type))
        value.shape = ir.Shape([1, *classes, "height", "width"])
        builder.add_output(value, name)
