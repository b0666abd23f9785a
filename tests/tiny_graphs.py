"""Frames and tiny networks for tests of exported graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_order.graph.frame_graph import frame_model
from nnunet_order.onnx_file import FORMAT, OnnxMetadata, as_properties

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")

ZSCORE = "ZScoreNormalization"
PATCH = [64, 96]


def metadata_of(channels: int = 3, **changes) -> OnnxMetadata:
    values = dict(
        labels={"background": 0, "polyp": 1},
        regions_class_order=None,
        label_values=[0, 1],
        channel_names={str(channel): f"channel {channel}" for channel in range(channels)},
        file_ending=".png",
        normalization_schemes=[ZSCORE] * channels,
        use_mask_for_norm=[False] * channels,
        intensity_properties={},
        spacing=[1.0, 1.0],
        patch_size=PATCH,
        size_multiple=32,
        binary_sigmoid=False,
        architecture={},
        dataset="Dataset001_Test",
        plans="nnUNetPlans",
        trainer="nnUNetTrainer",
        fold="all",
        checkpoint="checkpoint_final.pth",
        versions={},
        format=FORMAT,
    )
    return OnnxMetadata(**values | changes)


CONVOLUTIONS = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[batch,{channels},height,width] image) => (float[batch,{outputs},height,width] logits) {{
    hidden = Conv<pads=[2,2,2,2]>(image, first)
    logits = Conv<pads=[1,1,1,1]>(hidden, second)
}}"""
ATTENTION = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[batch,3,height,width] image) => (float[batch,2,height,width] logits)
    <int64[4] tokens = {0, 2, 2, -1}> {
    queries = Conv(image, first)
    folded = Reshape(queries, tokens)
    q = Transpose<perm=[0,1,3,2]>(folded)
    similarity = MatMul(q, folded)
    share = Softmax<axis=-1>(similarity)
    update = MatMul(share, q)
    unfolded = Transpose<perm=[0,1,3,2]>(update)
    shape = Shape(queries)
    grid = Reshape(unfolded, shape)
    logits = Conv<pads=[1,1,1,1]>(grid, second)
}"""


def network_of(metadata: OnnxMetadata, text: str = CONVOLUTIONS, hidden: int = 6, kernel: int = 5):
    """A network of random weights whose labels are islands of many sizes."""
    channels, outputs = len(metadata.channel_names), metadata.outputs
    if text is CONVOLUTIONS:
        text = text.format(channels=channels, outputs=outputs)
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("first", (hidden, channels, kernel, kernel)), ("second", (outputs, hidden, 3, 3))):
        weights = random.normal(size=shape).astype(np.float32) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    onnx.helper.set_model_props(model, as_properties(metadata))
    return model


def files_of(
    folder: Path, metadata: OnnxMetadata, network=None, plain_onnx: bool = False
) -> tuple[Path, Path]:
    """The files of a network alone and of frames."""
    network = network_of(metadata) if network is None else network
    onnx.save(network, folder / "network.onnx")
    about = dataclasses.replace(metadata, takes_frames=True)
    frames = frame_model(onnx.load(folder / "network.onnx"), about, plain_onnx)
    onnx.checker.check_model(frames, full_check=True)
    onnx.save(frames, folder / "frames.onnx")
    return folder / "network.onnx", folder / "frames.onnx"


def draw_frame(height: int, width: int, channels: int = 3, brightest: int = 255) -> np.ndarray:
    """Soft clouds with noise in a black frame, and a black hole in the picture."""
    random = np.random.default_rng(height)
    coarse = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    values = np.asarray(coarse.resize((width, height))) / 255 + random.normal(0, 0.05, (height, width, 3))
    frame = np.clip(values * brightest, 1, brightest)[..., :channels]
    frame[: height // 9], frame[:, width - width // 7 :], frame[height // 2, width // 3] = 0, 0, 0
    return frame.astype(np.uint8 if brightest == 255 else np.uint16).squeeze()
