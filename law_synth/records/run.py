"""Run folders of `law-synth train`: where they lie, and what law_config.json says of them.

A run folder holds controlnet/ and, when the decoder was trained, unet/ in diffusers layout, weighter/ (the
weighting network, for pictures and for going on), law_config.json, samples/ and tensorboard/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dataset_conversion.raw.dataset import RawDataset, nnunet_folder
from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import feed
from dataset_conversion.system.json_files import as_json, converted, read_json, write_json
from dataset_conversion.system.names import check_case_id, check_case_ids
from dataset_conversion.volumes import evenly_spaced
from law_synth.view.record import ViewRecord
from law_synth.view.slices import Slice, SliceView, view_from

FORMAT = 2  # 1: no view, one class
CONFIG = "law_config.json"
PICTURED = 4  # slices in the pictures of a training
REMEDY = "check the folder, or train again"


@dataclass(frozen=True)
class TrainedOn:
    """The data set of a run."""

    name: str
    folder: str


@dataclass(frozen=True)
class UsedBase:
    """The base model of a run."""

    source: str
    """Absolute path of its folder, or its hub id."""
    hash: str


@dataclass(frozen=True)
class RunSettings:
    """What a training settles before it starts; with the order of the fields in law_config.json."""

    format: int
    versions: dict[str, str | None]
    git_commit: str | None
    options: dict[str, Any]
    """The options of law-synth train that decide what is trained; see `Train.recorded`."""
    processes: int
    dataset: TrainedOn
    fold: Fold
    train_cases: list[str]
    monitor_cases: list[str]
    """Training cases that only the fixed-noise loss sees."""
    view: ViewRecord
    slices: dict[str, list[int]] | None
    """Indices of each volume's slices; None for pictures."""
    base: UsedBase
    size: int
    """Side of the training images in pixels."""
    prompt: str
    guidance_scale: int | float
    """Classifier-free guidance to sample with, unless something else is asked for."""
    trains_decoder: bool

    @property
    def seen_cases(self) -> list[str]:
        """Ids of every case whose image or mask the run sees, those of its fixed-noise loss included."""
        return sorted(self.train_cases + self.monitor_cases)

    def slices_of(self, case_ids: Sequence[str]) -> list[Slice]:
        """Slices of these cases that the run takes, in the order of the cases."""
        if self.slices is None:
            return [Slice(case_id) for case_id in case_ids]
        return [Slice(case_id, index) for case_id in case_ids for index in self.slices[case_id]]

    @property
    def monitored_slices(self) -> list[Slice]:
        """What a run shows itself on: the slices set aside, or else a few of those that it trains on.

        The first `PICTURED` are those of the sample grids and delta maps, of volumes spread over the cases.
        """
        set_aside = self.slices_of(self.monitor_cases)
        slices = set_aside or self.slices_of(self.train_cases)
        pictured = slices[:PICTURED] if self.slices is None else evenly_spaced(slices, PICTURED)
        return pictured + [one for one in set_aside if one not in pictured]

    def saved(self, folder: Path, step: int, finished: bool) -> RunConfig:
        """The record of a save whose networks lie in `folder`."""
        settled = {field.name: getattr(self, field.name) for field in fields(RunSettings)}
        return RunConfig(**settled, step=step, finished=finished, **hashes_of(folder))


@dataclass(frozen=True)
class RunConfig(RunSettings):
    """law_config.json: what was settled, and what has been saved."""

    step: int
    finished: bool
    weights_hash: str
    configurations_hash: str | None = None
    """None in a run of an earlier version, which did not write it."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished or running training; `read_run` makes it."""

    folder: Path
    config: RunConfig

    @property
    def dataset_name(self) -> str:
        return self.config.dataset.name

    @property
    def dataset_folder(self) -> Path:
        return Path(self.config.dataset.folder)

    @property
    def fold(self) -> Fold:
        return self.config.fold

    @property
    def train_cases(self) -> list[str]:
        """As `RunSettings.seen_cases`."""
        return self.config.seen_cases

    @property
    def slices(self) -> list[Slice]:
        """What the run has seen of `train_cases`: the chosen slices of volumes, else the cases themselves."""
        return self.config.slices_of(self.train_cases)

    def view(self, dataset: RawDataset) -> SliceView:
        """How the run saw its data set. UserError: `dataset` has other classes."""
        return view_from(dataset, self.config.view)

    @property
    def size(self) -> int:
        return self.config.size

    @property
    def hash(self) -> str:
        """sha256 of the weights that generation uses besides the base's."""
        return self.config.weights_hash

    @property
    def is_as_saved(self) -> bool:
        """Whether the networks are those of law_config.json."""
        found, told = hashes_of(self.folder), self.config
        same_configurations = told.configurations_hash in (None, found["configurations_hash"])
        return found["weights_hash"] == told.weights_hash and same_configurations


def default_run_folder(dataset_name: str, weighting: str, fold: Fold) -> Path:
    """$nnUNet_results/law_synth/<data set>/<weighting>__fold_<k>. UserError: the variable is not set."""
    return _runs_root() / dataset_name / f"{weighting}__fold_{fold}"


def read_run(folder: Path) -> TrainedRun:
    """Read and check a run folder. UserError: not one, of another version, or without weights yet."""
    config = read_config(folder)
    if not (Path(folder) / "controlnet" / "config.json").is_file():
        raise UserError(
            f"{folder}: found no controlnet/, expected a run that has saved weights; finish the training"
        )
    return TrainedRun(Path(folder), config)


def read_config(folder: Path) -> RunConfig:
    """law_config.json of a run folder. UserError: not there, malformed, of another version, odd ids."""
    path = Path(folder) / CONFIG
    content = read_json(path, dict[str, Any], REMEDY)
    check_format(content, path)
    return checked_config(converted(content, RunConfig, path, REMEDY), path)


def check_format(content: Mapping[str, Any], path: Path, place: str = "") -> None:
    """UserError: the record of a run was written by another version, whose keys may differ."""
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: found format {content.get('format')}{place}, expected {FORMAT}; use the version of "
            "law-order that trained it or train again"
        )


def checked_config(config: RunConfig, path: Path) -> RunConfig:
    """A run's record whose ids are safe to make files of, see `check_case_ids`; `path` is where it stands.

    UserError: odd ids; slices of pictures, or a volume without its slices.
    """
    train, monitor = check_case_ids(config.train_cases, path), check_case_ids(config.monitor_cases, path)
    slices = config.slices and {check_case_id(case, path): found for case, found in config.slices.items()}
    config = replace(config, train_cases=train, monitor_cases=monitor, slices=slices)
    if (config.slices is None) != (config.view.axis is None):
        raise UserError(
            f"{path}: found slices or view.axis without the other, expected both or none; {REMEDY}"
        )
    if config.slices is not None and (absent := sorted(set(config.seen_cases) - config.slices.keys())):
        raise UserError(f"{path}: found no slices of {absent[0]}, expected those that were seen; {REMEDY}")
    return config


def write_config(folder: Path, config: RunConfig) -> None:
    """Write law_config.json."""
    write_json(folder / CONFIG, config_as_json(config))


def config_as_json(config: RunConfig) -> dict[str, Any]:
    """As the file has it: without a hash that earlier versions did not write."""
    content = as_json(config)
    if config.configurations_hash is None:
        del content["configurations_hash"]
    return content


def newest_run() -> TrainedRun:
    """The run under $nnUNet_results/law_synth whose weights were saved last. UserError: there is none."""
    root = _runs_root()
    configs = sorted(root.glob(f"*/*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise UserError(f"{root}: found no run of law-synth train, expected one; train first")
    return read_run(configs[-1].parent)


def hashes_of(folder: Path) -> dict[str, str]:
    """The two hashes of law_config.json for the networks that lie in a run folder."""
    return {"weights_hash": weights_hash(folder), "configurations_hash": configurations_hash(folder)}


def weights_hash(folder: Path) -> str:
    """sha256 over the safetensors files of controlnet/ and unet/."""
    digest = hashlib.sha256()
    for part in ("controlnet", "unet"):
        for path in sorted((folder / part).glob("*.safetensors")):
            digest.update(f"{part}/{path.name}".encode())
            feed(digest, path)
    return digest.hexdigest()


def configurations_hash(folder: Path) -> str:
    """sha256 over the configurations with which the weights of controlnet/ and unet/ are loaded."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("controlnet/*.json")) + sorted(folder.glob("unet/*.json")):
        digest.update(f"{path.parent.name}/{path.name}".encode())
        feed(digest, path)
    return digest.hexdigest()


def _runs_root() -> Path:
    results = nnunet_folder("nnUNet_results")
    if results is None:
        raise UserError(
            "nnUNet_results is not set, expected it because runs lie there; "
            "export nnUNet_results=FOLDER or name the run's folder"
        )
    return results / "law_synth"
