"""What an exported ONNX file says about its model. `export` writes it and `predict` reads it.

This module imports neither torch nor nnunetv2 nor onnx, so that prediction needs none of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json, converted

FORMAT = 2  # 1 had no `format`, `takes_frames`, `whole_image`, `max_side` and `median_size`
METADATA_KEY = "nnunet_order"  # among the properties of an ONNX file
INSTALL_HINT = "pip install 'law-order[onnx]'"
WRITE_AGAIN = "write the file again with nnunet-order export"
CT_STATISTICS = ("percentile_00_5", "percentile_99_5", "mean", "std")


@dataclass(frozen=True)
class OnnxMetadata:
    """Everything that prediction needs, and where the model comes from."""

    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None
    """The value that each region paints, the later ones on top; None for plain labels."""
    label_values: list[int]
    """The value of each output channel, where there are no regions."""
    channel_names: dict[str, str]
    file_ending: str
    normalization_schemes: list[str]
    """The name of nnU-Net's normalisation class for each channel."""
    use_mask_for_norm: list[bool]
    intensity_properties: dict[str, dict[str, float]]
    """Channel number -> statistics of the training foreground."""
    spacing: list[float]
    patch_size: list[int]
    size_multiple: int
    """Sides that are multiples of it suit every network."""
    binary_sigmoid: bool
    """Whether the two output channels are [0, s], see `networks.SigmoidHead`."""
    architecture: dict[str, Any]
    dataset: str
    plans: str
    trainer: str
    fold: str
    checkpoint: str
    versions: dict[str, str]
    format: int = 1
    takes_frames: bool = False
    """Whether the graph makes a label map of an image's pixels; it is else the network alone."""
    whole_image: bool = False
    """Whether a graph that takes frames sends each through the network in one piece, not in tiles."""
    max_side: int | None = None
    """Training images whose longer side had more pixels were shrunk to it, see `resize_to`."""
    median_size: list[int] | None = None
    """(H, W) of the median training image in pixels, shrunk and without its black border."""

    @property
    def outputs(self) -> int:
        """The number of output channels: labels with the background, or regions."""
        return len(self.label_values if self.regions_class_order is None else self.regions_class_order)

    @property
    def brightest(self) -> int:
        """The largest pixel value that a graph of frames takes: of 8 bits, or of 16 for such grey images."""
        found = [known.get("max", 0) for known in self.intensity_properties.values()]
        return 65535 if len(self.channel_names) == 1 and max(found, default=0) > 255 else 255

    def check(self, file: Path) -> None:
        """UserError: a format of the future, or values that do not fit each other."""
        if self.format > FORMAT:
            raise UserError(
                f"{file}: found format {self.format}, expected {FORMAT} at most; run a newer law-order"
            )
        channels = len(self.channel_names)
        counts = {
            "normalization_schemes": (len(self.normalization_schemes), channels),
            "use_mask_for_norm": (len(self.use_mask_for_norm), channels),
            "patch_size": (len(self.patch_size), 2),
            "median_size": (len(self.median_size or [1, 1]), 2),
        }
        for name, (found, expected) in counts.items():
            if found != expected:
                raise UserError(f"{file}: found {found} values at {name}, expected {expected}; {WRITE_AGAIN}")
        sides = {
            "patch_size": self.patch_size,
            "size_multiple": [self.size_multiple],
            "max_side": [1 if self.max_side is None else self.max_side],
            "median_size": self.median_size or [1],
        }
        for name, pixels in sides.items():
            if min(pixels) < 1:
                raise UserError(f"{file}: found {min(pixels)} at {name}, expected 1 or more; {WRITE_AGAIN}")
        for channel, scheme in enumerate(self.normalization_schemes):
            known = self.intensity_properties.get(str(channel), {})
            missing = [name for name in CT_STATISTICS if name not in known]
            if scheme == "CTNormalization" and missing:
                raise UserError(
                    f"{file}: found no {missing[0]} at intensity_properties of channel {channel}, expected "
                    f"it for {scheme}; {WRITE_AGAIN}"
                )


def as_properties(metadata: OnnxMetadata) -> dict[str, str]:
    """The properties to write into an ONNX file."""
    return {METADATA_KEY: json.dumps(as_json(metadata))}


def read_properties(properties: Mapping[str, str], file: Path) -> OnnxMetadata:
    """The metadata among the properties of an ONNX file.

    UserError: there is none, a key is missing or has a wrong type, or values do not fit each other.
    """
    if METADATA_KEY not in properties:
        raise UserError(f"{file}: found no {METADATA_KEY} metadata, expected it; {WRITE_AGAIN}")
    try:
        # By Python's reader: nnU-Net's statistics of a channel may be NaN, which msgspec's refuses.
        content = json.loads(properties[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: found malformed metadata ({error}), expected JSON; {WRITE_AGAIN}") from None
    metadata = converted(content, OnnxMetadata, file, WRITE_AGAIN)
    metadata.check(file)
    return metadata
