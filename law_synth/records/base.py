"""base_config.json: what law-synth init-base says of a base, above all which cases it has learned from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json, converted, read_json, write_json
from dataset_conversion.system.names import check_case_ids
from law_synth.view.record import ViewRecord

FORMAT = 1
CONFIG = "base_config.json"
REMEDY = "make the base again"


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """base_config.json, with the order of its fields there.

    What is None of a base that was trained is left out of the file of a base of random weights.
    """

    format: int
    options: dict[str, Any]
    """The options of law-synth init-base that decide the weights."""
    dataset: str | None = None
    """Name of the data set that it was trained on; None for random weights, as all that follows."""
    dataset_folder: str | None = None
    fold: Fold | None = None
    image_size: int
    """Side of the images in pixels."""
    guidance_scale: int | float | None = None
    held_back_cases: list[str] | None = None
    """The training cases that only judge the autoencoder."""
    train_cases: list[str] | None = None
    dataset_origin: str | None = None
    """The `RawDataset.origin` of that data set; None also in a base of an earlier version."""
    view: ViewRecord | None = None
    images: int | None = None
    psnr: int | float | None = None
    """The reconstruction's PSNR in dB, over the images that were held back."""
    vae_loss: int | float | None = None
    unet_loss: int | float | None = None
    unet_loss_curve: list[int | float] | None = None
    versions: dict[str, str | None]

    @property
    def origin(self) -> str | None:
        """As `RawDataset.origin`, of the data set that it was trained on."""
        return self.dataset_origin or self.dataset


@dataclass(frozen=True)
class BegunBase:
    """What a base that has been begun or finished says of the options that it is made with."""

    options: dict[str, Any]


def read_base_config(source: str | Path) -> BaseConfig | None:
    """base_config.json of a base that init-base made; None for any other base.

    UserError: malformed, of another version, odd ids.
    """
    path = Path(source) / CONFIG
    if not path.is_file():
        return None
    content = read_json(path, dict[str, Any], REMEDY)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: found format {content.get('format')}, expected {FORMAT}; use the version of law-order "
            "that made it or make the base again"
        )
    config = converted(content, BaseConfig, path, REMEDY)
    if config.train_cases is None:
        return config
    if config.dataset is None:
        raise UserError(f"{path}: found train_cases without dataset, expected both; {REMEDY}")
    train, held_back = (
        check_case_ids(ids, path) for ids in (config.train_cases, config.held_back_cases or [])
    )
    return replace(config, train_cases=train, held_back_cases=held_back)


def write_base_config(folder: Path, config: BaseConfig) -> None:
    """Write base_config.json, which says that the base is complete."""
    write_json(folder / CONFIG, {name: value for name, value in as_json(config).items() if value is not None})
