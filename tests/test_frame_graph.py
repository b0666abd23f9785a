"""The graph of all steps, around tiny networks, against the same steps in numpy, Pillow and torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_graphs import ATTENTION, draw_frame, files_of, metadata_of, network_of

from dataset_conversion.images import resize_to
from dataset_conversion.system.errors import UserError
from nnunet_order.export_check import compare
from nnunet_order.graph.element_types import UINT8, UINT16
from nnunet_order.graph.resampling import shrink
from nnunet_order.image_steps import Segmentation, lies_inside, segment
from nnunet_order.onnx_file import FORMAT, METADATA_KEY, as_properties, read_properties
from nnunet_order.onnx_model import OnnxModel
from nnunet_order.options import Export, Predict
from nnunet_order.predict import predict

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

SIZES = [(64, 96), (40, 33), (131, 170), (300, 201)]  # as large as the patch, smaller, larger

MODELS = {
    "tiles": metadata_of(),
    "whole image": metadata_of(whole_image=True),
    "shrunk": metadata_of(max_side=80),
    "shrunk whole image": metadata_of(max_side=80, whole_image=True),
    "mask": metadata_of(use_mask_for_norm=[True] * 3, max_side=80),
    "grey": metadata_of(1, max_side=70),
    "16 bit": metadata_of(1, max_side=70, intensity_properties={"0": {"max": 4000.0}}),
    "regions": metadata_of(
        labels={"background": 0, "whole": [1, 2], "core": 2},
        label_values=[0, 1, 2],
        regions_class_order=[1, 2],
        max_side=80,
    ),
    "classes": metadata_of(labels={"background": 0, "a": 1, "b": 2, "ignore": 3}, label_values=[0, 1, 2]),
    "gaps": metadata_of(labels={"background": 0, "a": 2, "b": 300}, label_values=[0, 2, 300]),
    "schemes": metadata_of(
        normalization_schemes=[f"{name}Normalization" for name in ("CT", "RescaleTo01", "RGBTo01")],
        intensity_properties={
            "0": {"percentile_00_5": 20.0, "percentile_99_5": 200.0, "mean": 90.0, "std": 30.0}
        },
    ),
    "no scheme": metadata_of(1, normalization_schemes=["NoNormalization"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_graph_does_the_steps_of_numpy(tmp_path, name):
    metadata = MODELS[name]
    network, frames = files_of(tmp_path, metadata)
    stepwise, graph = OnnxModel(network, metadata.whole_image), OnnxModel(frames)
    seen = set()
    for size in SIZES:
        channels, brightest = len(metadata.channel_names), 65535 if name == "16 bit" else 255
        frame = draw_frame(*size, channels, brightest)
        expected, found = stepwise.segment(frame), graph.segment(frame)
        assert found.label_map.shape == size and found.label_map.dtype == np.uint16
        assert np.array_equal(found.label_map, expected.label_map)
        assert np.array_equal(graph(frame), expected.label_map)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)
        seen |= set(np.unique(found.label_map).tolist())
    assert seen == {0, *(metadata.regions_class_order or metadata.label_values)}  # nothing of it is empty
    black = np.zeros((50, 60, channels), dtype=np.uint8).squeeze()
    assert np.array_equal(graph(black), stepwise(black))


def test_originals_are_segmented_at_the_training_size_and_brought_back(tmp_path):
    """By other means: Pillow shrinks, a model without `max_side` segments, torch enlarges the logits."""
    import torch

    metadata = metadata_of(max_side=80)
    network, frames = files_of(tmp_path, metadata)
    original = draw_frame(300, 201)
    small = np.asarray(Image.fromarray(original).resize((54, 80), Image.Resampling.LANCZOS))
    assert np.array_equal(small, resize_to(80, original, None)[0])
    unlimited = dataclasses.replace(metadata, max_side=None)
    at_training_size = segment(small, unlimited, OnnxModel(network).run_network, False)
    logits = torch.log(torch.from_numpy(at_training_size.probabilities))[None]
    back = torch.nn.functional.interpolate(logits, (300, 201), mode="bilinear", align_corners=False)
    expected = back[0].argmax(0).numpy()
    found = OnnxModel(frames)(original)
    # Away from the black border: probabilities there have forgotten the logits.
    rows, columns = slice(300 // 9 + 8, None), slice(None, 201 - 201 // 7 - 8)
    assert found[rows, columns].any() and not found[rows, columns].all()
    assert np.array_equal(found[rows, columns], expected[rows, columns])
    # Nothing in the border, except where the filter has spread light.
    assert not found[: 300 // 9 - 12].any() and not found[:, 201 - 201 // 7 + 12 :].any()
    # Images that are small enough are left alone.
    other = files_of(tmp_path, unlimited)[1]
    assert np.array_equal(OnnxModel(frames)(small), OnnxModel(other)(small))


@pytest.mark.parametrize(("element_type", "kind"), [(UINT8, np.uint8), (UINT16, np.uint16)])
def test_shrinking_is_pillows_to_the_last_grey_level(element_type, kind):
    from onnxscript import GraphBuilder, ir

    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="shrink")
    builder = GraphBuilder(graph)
    frame = builder.input("frame", ir.DataType(element_type), [1, "height", "width", "channels"])
    builder.add_output(shrink(builder.op, frame, 100, element_type), "small")
    session = onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    random = np.random.default_rng(0)
    channels = 3 if kind is np.uint8 else 1  # Pillow has no 16-bit RGB
    for size in [(101, 7), (128, 128), (333, 577), (1080, 720), (5, 900)]:
        pixels = random.integers(0, np.iinfo(kind).max + 1, (*size, channels), dtype=kind)
        (found,) = session.run(None, {"frame": pixels[None]})
        expected, _ = resize_to(100, pixels.squeeze(2) if channels == 1 else pixels, None)
        assert np.array_equal(found[0].squeeze(), expected.squeeze()), size


def test_attention_is_one_operator_unless_plain_onnx_is_wanted(tmp_path):
    metadata = metadata_of()
    labels = []
    for plain in (False, True):
        network = network_of(metadata, ATTENTION, hidden=4, kernel=1)
        _, frames = files_of(tmp_path, metadata, network, plain)
        model = onnx.load(frames)
        (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
        operators = {node.op_type for node in loop.attribute[0].g.node}
        assert ("MultiHeadAttention" in operators) != plain and ("Softmax" in operators) == plain
        domains = {opset.domain for opset in model.opset_import}
        assert domains == ({""} if plain else {"", "com.microsoft"})
        labels.append(OnnxModel(frames)(draw_frame(131, 170)))
    assert np.array_equal(*labels) and labels[0].any() and not labels[0].all()


def test_interface_of_the_graph(tmp_path):
    _, frames = files_of(tmp_path, MODELS["regions"])
    graph = onnx.load(frames).graph

    def interface(value) -> tuple:
        kind = value.type.tensor_type
        return value.name, kind.elem_type, [axis.dim_param or axis.dim_value for axis in kind.shape.dim]

    assert [interface(value) for value in graph.input] == [("frame", UINT8, [1, "height", "width", 3])]
    assert [interface(value) for value in graph.output] == [
        ("labels", UINT8, [1, "height", "width"]),
        ("probabilities", onnx.TensorProto.FLOAT, [1, 2, "height", "width"]),
    ]
    assert frames.stat().st_size < 40_000


def test_a_box_is_brought_back_to_the_frame():
    # Half of 10 pixels: the middle of each of the 10 lies in one of the 5.
    assert lies_inside(slice(1, 3), 5, 10).tolist() == [False] * 2 + [True] * 4 + [False] * 4
    assert lies_inside(slice(0, 4), 4, 4).all()


def certain(labels: list[int], probability: float = 0.9) -> Segmentation:
    label_map = np.array([labels], dtype=np.uint16)
    of_polyp = np.where(label_map > 0, probability, 1 - probability)
    return Segmentation(label_map, np.stack([1 - of_polyp, of_polyp]).astype(np.float32))


def test_export_check_forgives_undecided_pixels_only():
    metadata = metadata_of()
    expected = certain([0, 1, 0, 1])
    assert compare(certain([0, 1, 0, 1]), expected, metadata, "PyTorch") == 0
    with pytest.raises(UserError, match=r"found 1 of 4 pixels of a 4 x 1 frame .* than PyTorch's"):
        compare(
            dataclasses.replace(expected, label_map=np.array([[0, 1, 1, 1]])), expected, metadata, "PyTorch"
        )
    with pytest.raises(UserError, match=r"found 0 of 4 pixels .* probabilities up to 2\.0e-01 apart"):
        compare(certain([0, 1, 0, 1], 0.7), expected, metadata, "PyTorch")
    tie = certain([0, 1, 0, 1], 0.5001)
    assert compare(certain([1, 1, 0, 1], 0.5001), tie, metadata, "PyTorch") == 1
    # 400,000 pixels that were resized: two of them may differ, three may not.
    large = certain([0] * 400_000)
    for count in (2, 3):
        found = dataclasses.replace(large, label_map=large.label_map.copy())
        found.label_map[0, :count] = 1
        with pytest.raises(UserError, match=f"found {count} of 400000"):
            compare(found, large, metadata, "PyTorch")
        if count == 2:
            assert compare(found, large, metadata_of(max_side=80), "PyTorch") == 2
        else:
            with pytest.raises(UserError, match="found 3 of 400000"):
                compare(found, large, metadata_of(max_side=80), "PyTorch")


def test_predict_tells_images_of_another_scale(tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    for name, size in {"like": (60, 90), "large": (200, 300), "small": (20, 30)}.items():
        Image.fromarray(draw_frame(*size)).save(images / f"{name}.png")
    unrecorded = metadata_of(median_size=[54, 76])
    for part, metadata in {"a": unrecorded, "b": dataclasses.replace(unrecorded, max_side=96)}.items():
        _, frames = files_of(tmp_path, metadata)
        predict(Predict(frames, (images,), tmp_path / part))
        for file in images.iterdir():
            assert Image.open(tmp_path / part / file.name).size == Image.open(file).size
    first, second = [record.message for record in caplog.records if "another scale" in record.message]
    assert "76 x 54 px in the median" in first and "2 file(s)" in first and "shrink these alike" in first
    assert "1 file(s), e.g. images/small.png" in second and "shrunk to 96 px" in second
    caplog.clear()
    predict(Predict(files_of(tmp_path, metadata_of())[0], (images,), tmp_path / "c"))  # as before format 2
    assert "another scale" not in caplog.text


def test_options_and_pixels_that_a_graph_does_not_take(tmp_path):
    _, frames = files_of(tmp_path, metadata_of(1))
    with pytest.raises(UserError, match=r"found a graph that cuts frames into tiles.*export the model with"):
        OnnxModel(frames, whole_image=True)
    model = OnnxModel(frames)
    dim = draw_frame(64, 96, 1)
    assert np.array_equal(model(dim.astype(np.uint16)), model(dim))
    with pytest.raises(UserError, match="found pixel values up to 65535, expected at most 255"):
        model(draw_frame(64, 96, 1, 65535))
    with pytest.raises(UserError, match="expected it alone"):
        Export(tmp_path, tmp_path / "model.onnx", logits_only=True, plain_onnx=True).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, f"found format {FORMAT + 1}, expected {FORMAT} at most; run a newer"),
        ({"max_side": 0}, "found 0 at max_side, expected 1 or more"),
        ({"median_size": [64]}, "found 1 values at median_size, expected 2"),
        ({"median_size": [0, 64]}, "found 0 at median_size"),
    ],
)
def test_wrong_values_of_the_new_format(changes, message):
    with pytest.raises(UserError, match=message):
        read_properties(as_properties(metadata_of(**changes)), Path("m.onnx"))


def test_files_of_the_first_format_are_read():
    import json

    content = json.loads(as_properties(metadata_of())[METADATA_KEY])
    for key in ("format", "takes_frames", "whole_image", "max_side", "median_size"):
        del content[key]
    metadata = read_properties({METADATA_KEY: json.dumps(content)}, Path("m.onnx"))
    assert metadata == metadata_of(format=1) and not metadata.takes_frames
