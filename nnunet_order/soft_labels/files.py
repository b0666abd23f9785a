"""The files of soft labels: softlabelsTr/CASE.npz beside imagesTr and labelsTr of a raw data set.

Each holds `probabilities`, uint8 (K, Z, Y, X) from 0 to 255 at the size of the case's label file and with its
axes as nnU-Net's reader gives them. K are the foreground labels by value, or the regions in the order of
dataset.json, as the network's outputs are. dataset.json then says `"soft_labels": true`.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import write_atomically

FOLDER = "softlabelsTr"
KEY = "soft_labels"  # of dataset.json
ARRAY = "probabilities"
ENDING = ".npz"
REMEDY = "make the soft labels again with nnunet-order distill"


def soft_label_path(folder: Path, case_id: str) -> Path:
    """Where the soft label of a case lies in the raw data set `folder`."""
    return folder / FOLDER / f"{case_id}{ENDING}"


def output_names(regions: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of labels or regions, as `RawDataset.regions`, in the order of the channels of a soft label."""
    has_regions = any(len(values) > 1 for values in regions.values())
    return list(regions) if has_regions else sorted(regions, key=lambda name: regions[name][0])


def write_soft_label(path: Path, probabilities: np.ndarray) -> None:
    """Write probabilities (K, Z, Y, X) from 0 to 1 in steps of 1/255."""
    content = io.BytesIO()
    np.savez_compressed(content, **{ARRAY: quantised(probabilities)})
    write_atomically(path, content.getvalue())


def read_soft_label(path: Path, channels: int, shape: tuple[int, ...]) -> np.ndarray:
    """The probabilities, uint8 (K, Z, Y, X).

    UserError: no such file, damaged, another type, or not `channels` of `shape` (Z, Y, X).
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            probabilities = content[ARRAY]
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected the soft label of a training case; {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(f"{error}".split())
        raise UserError(f"{path}: cannot be read ({reason}), expected a soft label; {REMEDY}") from error
    expected = (channels, *shape)
    if probabilities.dtype != np.uint8 or probabilities.shape != expected:
        raise UserError(
            f"{path}: found {probabilities.dtype} {probabilities.shape}, expected uint8 {expected} as its "
            f"label file; {REMEDY}"
        )
    return probabilities


def quantised(probabilities: np.ndarray) -> np.ndarray:
    """From 0 to 1 in steps of 1/255, as uint8."""
    return np.rint(np.clip(probabilities, 0, 1) * 255).astype(np.uint8)
