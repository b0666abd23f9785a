"""Run folders of `law-synth train`: where they lie, what law_config.json says, how their weights load.

A run folder holds controlnet/ and, when the decoder was trained, unet/ in diffusers layout, weighter/ (the
weighting network, for pictures and for going on), law_config.json, samples/ and tensorboard/.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_conversion.raw.dataset import nnunet_folder
from dataset_conversion.raw.description import load_table
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import feed
from dataset_conversion.system.names import check_case_ids
from dataset_conversion.volumes import evenly_spaced
from law_synth.view.slices import Slice, SliceView, view_from

if TYPE_CHECKING:
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    from dataset_conversion.raw.dataset import RawDataset
    from dataset_conversion.raw.folds import Fold
    from law_synth.base.model import BaseModel

FORMAT = 2  # 1: no view, one class
CONFIG = "law_config.json"
PICTURED = 4  # slices in the pictures of a training
CASE_LISTS = ("train_cases", "monitor_cases")


@dataclass(frozen=True)
class TrainedRun:
    """A finished or running training; `read_run` makes it."""

    folder: Path
    config: dict

    @property
    def dataset_name(self) -> str:
        return self.config["dataset"]["name"]

    @property
    def dataset_folder(self) -> Path:
        return Path(self.config["dataset"]["folder"])

    @property
    def fold(self) -> Fold:
        return self.config["fold"]

    @property
    def train_cases(self) -> list[str]:
        """Ids of every case whose image or mask the run has seen, those of its fixed-noise loss included."""
        return sorted(self.config["train_cases"] + self.config["monitor_cases"])

    @property
    def slices(self) -> list[Slice]:
        """What the run has seen of `train_cases`: the chosen slices of volumes, else the cases themselves."""
        return slices_of(self.config, self.train_cases)

    def view(self, dataset: RawDataset) -> SliceView:
        """How the run saw its data set. UserError: `dataset` has other classes."""
        return view_from(dataset, self.config["view"])

    @property
    def size(self) -> int:
        """Side of the training images in pixels."""
        return self.config["size"]

    @property
    def prompt(self) -> str:
        return self.config["prompt"]

    @property
    def guidance_scale(self) -> float:
        """Classifier-free guidance to sample with, unless something else is asked for."""
        return self.config["guidance_scale"]

    @property
    def base_source(self) -> str:
        """Folder or hub id of the base model."""
        return self.config["base"]["source"]

    @property
    def base_hash(self) -> str:
        return self.config["base"]["hash"]

    @property
    def hash(self) -> str:
        """sha256 of the weights that generation uses besides the base's."""
        return self.config["weights_hash"]

    @property
    def is_as_saved(self) -> bool:
        """Whether the networks are those of law_config.json."""
        # Earlier versions did not write the second hash.
        told = self.config.get("configurations_hash")
        weights_fit = weights_hash(self.folder) == self.hash
        return weights_fit and told in (None, configurations_hash(self.folder))

    def load_student(
        self, base: BaseModel, dtype: torch.dtype
    ) -> tuple[ControlNetModel, UNet2DConditionModel]:
        """Mask ControlNet and UNet in eval mode.

        UserError: `base` is not the base of this run, a network is damaged, its weights are not safetensors.
        """
        from diffusers import ControlNetModel, UNet2DConditionModel

        from law_synth.base.model import load_model

        if base.hash != self.base_hash:
            raise UserError(
                f"{base.source}: found base model {base.hash[:12]}, expected {self.base_hash[:12]}, the base "
                f"of {self.folder}; restore it or train again"
            )
        controlnet = load_model(ControlNetModel, self.folder / "controlnet").to(dtype)
        unet = base.unet.to(dtype)
        if self.config["trains_decoder"]:
            unet = load_model(UNet2DConditionModel, self.folder / "unet").to(dtype)
            base.unet = unet  # the base's own is 3.4 GB that nothing needs
        return controlnet.eval(), unet.eval()


def default_run_folder(dataset_name: str, weighting: str, fold: Fold) -> Path:
    """$nnUNet_results/law_synth/<data set>/<weighting>__fold_<k>. UserError: the variable is not set."""
    return _runs_root() / dataset_name / f"{weighting}__fold_{fold}"


def read_run(folder: Path) -> TrainedRun:
    """Read and check a run folder. UserError: not one, of another version, or without weights yet."""
    path = Path(folder) / CONFIG
    config = load_table(path, "a run of law-synth train", "check the folder, or train again")
    if config.get("format") != FORMAT:
        raise UserError(
            f"{path}: found format {config.get('format')}, expected {FORMAT}; use the version of law-order "
            "that trained it or train again"
        )
    if not (Path(folder) / "controlnet" / "config.json").is_file():
        raise UserError(
            f"{folder}: found no controlnet/, expected a run that has saved weights; finish the training"
        )
    lists = {name: check_case_ids(config.get(name), path) for name in CASE_LISTS}
    return TrainedRun(Path(folder), config | lists)


def newest_run() -> TrainedRun:
    """The run under $nnUNet_results/law_synth whose weights were saved last. UserError: there is none."""
    root = _runs_root()
    configs = sorted(root.glob(f"*/*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise UserError(f"{root}: found no run of law-synth train, expected one; train first")
    return read_run(configs[-1].parent)


def slices_of(config: dict, case_ids: list[str]) -> list[Slice]:
    """Slices of these cases that the run of a law_config.json takes, in the order of the cases."""
    chosen = config["slices"]
    if chosen is None:
        return [Slice(case_id) for case_id in case_ids]
    return [Slice(case_id, index) for case_id in case_ids for index in chosen[case_id]]


def monitored_slices(config: dict) -> list[Slice]:
    """What a run shows itself on: the slices set aside, or a few of the trained ones where there are none.

    The first `PICTURED` are those of the sample grids and delta maps, of volumes spread over the cases.
    """
    set_aside = slices_of(config, config["monitor_cases"])
    slices = set_aside or slices_of(config, config["train_cases"])
    pictured = slices[:PICTURED] if config["slices"] is None else evenly_spaced(slices, PICTURED)
    return pictured + [one for one in set_aside if one not in pictured]


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
