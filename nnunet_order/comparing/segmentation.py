"""The stages that turn a real data set into nnU-Net trainings, predictions and scores."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Fold, leak_free_fold, splits_files
from dataset_conversion.subset import source_splits
from nnunet_order.comparing.trainer_lookup import takes_options, users_files
from nnunet_order.stages.experiment_record import SegmentationEntry
from nnunet_order.stages.inputs import dataset_digest, files_digest
from nnunet_order.stages.stage import Stage
from nnunet_order.trainer_options import OPTIONS_VARIABLE

REAL_DATASET = "Dataset001_Real"
PREDICT_PROCESSES = "-npp 1 -nps 1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmentation:
    """One nnU-Net training of an experiment, with its predictions and scores."""

    arm: str
    """What it trains on, in a word; the name of its rows in tables."""
    dataset: str
    """Data set that it trains on: Dataset001_Real or real + synthetic."""
    trainer: str
    fold: int | str
    """The fold of the real data set, a number or "all"."""
    seed: int
    train_fold: int | str
    """That fold's number in `dataset`."""
    options: str
    """NNUNET_ORDER_OPTIONS; empty for none."""
    on: str
    """What it is measured on: "test" or "validation"."""
    device: str

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.trainer}_fold_{self.fold}_seed_{self.seed}"

    @property
    def model(self) -> str:
        """nnU-Net's folder of the trained model."""
        return f"nnUNet_results/seed_{self.seed}/{self.dataset}/{self.trainer}__nnUNetPlans__2d"

    @property
    def predictions(self) -> str:
        """Folder of what is scored; on validation cases nnU-Net predicts at the end of the training."""
        if self.on == "test":
            return f"predictions/{self.name}"
        return f"{self.model}/fold_{self.train_fold}/validation"

    @property
    def scores(self) -> str:
        return f"scores/{self.name}"

    def stages(self, after: tuple[str, ...]) -> list[Stage]:
        """Train, predict (test cases only) and score; `after` is what the training waits for."""
        trained = f"segment_{self.name}"
        code = files_digest(users_files(self.trainer))
        segment = Stage(
            *(trained, (self._train,), self._trained, after, self._training_environment),
            inputs=code,
            resumes=True,  # by --c
        )
        if self.on == "validation":
            return [segment, self._score(trained)]
        predicted = f"predict_{self.name}"
        predict = Stage(predicted, (self._predict,), (self.predictions,), (trained,), self._environment)
        return [segment, predict, self._score(predicted)]

    def entry(self) -> SegmentationEntry:
        """Its line in experiment.json."""
        names = ("name", "arm", "trainer", "fold", "seed", "dataset", "predictions", "scores")
        return SegmentationEntry(**{name: getattr(self, name) for name in names})

    @property
    def _train(self) -> str:
        model = f"{self.dataset} 2d {self.train_fold} -tr {self.trainer}"
        return f"nnUNetv2_train {model} -device {self.device} --c"

    @property
    def _predict(self) -> str:
        files = f"-i nnUNet_raw/{REAL_DATASET}/imagesTs -o {self.predictions}"
        model = f"-d {self.dataset} -c 2d -f {self.train_fold} -tr {self.trainer} -device {self.device}"
        return f"nnUNetv2_predict {files} {model} {PREDICT_PROCESSES}"

    def _score(self, after: str) -> Stage:
        fold = f" --fold {self.fold}" if self.on == "validation" else ""
        command = (
            f"nnunet-order evaluate --dataset nnUNet_raw/{REAL_DATASET} "
            f"--predictions {self.arm}={self.predictions} --out {self.scores}{fold}"
        )
        return Stage(f"score_{self.name}", (command,), (self.scores,), (after,))

    @property
    def _trained(self) -> tuple[str, ...]:
        fold = f"{self.model}/fold_{self.train_fold}"
        return (fold, f"{fold}/checkpoint_final.pth", f"{fold}/validation/summary.json")

    @property
    def _environment(self) -> dict[str, str]:
        environment = {"nnUNet_results": f"nnUNet_results/seed_{self.seed}"}
        # Each of nnU-Net's eight worker processes would load torch to write a handful of files.
        modest = {"nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}
        return environment | (modest if self.device == "cpu" else {})

    @property
    def _training_environment(self) -> dict[str, str]:
        environment = {**self._environment, "NNUNET_ORDER_SEED": str(self.seed)}
        # Also none: the user's own shell may export some. Stock trainers read none, and need no new training.
        environment[OPTIONS_VARIABLE] = self.options if takes_options(self.trainer) else ""
        if self.device == "cpu":
            environment["nnUNet_n_proc_DA"] = "0"  # then a training repeats itself bit by bit
            environment["nnUNet_def_n_proc"] = "1"  # the default of 8 starts as many at the end of a training
        return environment


def prepare_real(source: RawDataset, fraction: float, max_side: int | None) -> list[Stage]:
    """Stages "real" and "plan": the experiment's own copy of the real data, planned and preprocessed.

    Its folds are those that nnU-Net would use, the user's $nnUNet_preprocessed first. Volumes keep their size
    whatever `max_side` says.
    """
    raw, preprocessed = f"nnUNet_raw/{REAL_DATASET}", f"nnUNet_preprocessed/{REAL_DATASET}"
    place = ["--dataset", str(source.folder.resolve())]
    folds = next((path for path in splits_files(source.folder) if path.is_file()), None)
    if folds is not None:
        place += ["--splits", str(folds.resolve())]
    splits = source_splits(source, folds)
    convert = ["nnunet-order", "convert", "subset", *place, "--out", raw]
    if fraction < 1:
        convert += ["--fraction", str(fraction), "--seed", "0"]
    if max_side is not None and source.holds_volumes:
        logger.info(
            "%s holds volumes, which keep their size: max_side %d is left out; slices can be shrunk when "
            "they are converted (nnunet-order convert kits19 --slices --max-side %d)",
            *(source.folder.name, max_side, max_side),
        )
    elif max_side is not None:
        convert += ["--max-side", str(max_side)]
    number = int(REAL_DATASET[7:10])
    plan = [f"nnUNetv2_plan_and_preprocess -d {number} -c 2d -np 1 -npfp 1 --verify_dataset_integrity"]
    if splits:
        plan.append(f"cp {raw}/splits_final.json {preprocessed}/splits_final.json")
    # So that it writes nothing there: stage "plan" owns that folder with the splits in it.
    unset = {"nnUNet_preprocessed": ""}
    inputs = dataset_digest(source, splits)
    read = (shlex.join(place),)
    return [
        Stage("real", (shlex.join(convert),), (raw,), environment=unset, inputs=inputs, places=read),
        Stage("plan", tuple(plan), (preprocessed,), ("real",), {"nnUNet_n_proc_DA": "1"}),
    ]


def refuse_shared_groups(dataset: RawDataset, folds: Sequence[Fold], on: str) -> None:
    """UserError: a group (patient, sequence) is on both sides of one of `folds`.

    One that is also in a test set is only warned of: the published splits of the polyp sets are so.
    """
    tested = {dataset.groups[case.id] for case in dataset.test_cases} if on == "test" else set()
    for fold in folds:
        training, _ = leak_free_fold(dataset, fold)
        if shared := sorted(tested.intersection(dataset.groups[case_id] for case_id in training)):
            logger.warning(
                "%s: group %s (%d such) is in training and test cases: the test is easier than new patients",
                *(dataset.folder.name, shared[0], len(shared)),
            )
