"""A judge is any nnU-Net model folder: ours and stock, RGB and grey, one fold and several."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from PIL import Image

from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.errors import UserError
from law_synth.judging.segmenter import Segmenter, load_judge
from law_synth.view.slices import PICTURE_SPACING, Slice, view_of

ORDER = "nnUNetTrainerORDER_quick"


@pytest.fixture(autouse=True)
def nnunet_environment(nnunet, monkeypatch):
    for name, value in nnunet.environment.items():
        if name.startswith(("nnUNet_", "NNUNET_")):
            monkeypatch.setenv(name, value)


@pytest.fixture
def order_model(nnunet, nnunet_environment):
    """A model folder of ORDER, trained for one epoch."""
    folder = nnunet.results / "Dataset901_Phantom" / f"{ORDER}__nnUNetPlans__2d"
    if not (folder / "fold_1" / "checkpoint_final.pth").is_file():
        source = nnunet.preprocessed / "Dataset901_Phantom"
        plans = json.loads((source / "nnUNetPlans.json").read_text()) | {"continue_training": False}
        dataset_json = json.loads((source / "dataset.json").read_text())
        trainer_class = recursive_find_trainer_class_by_name(ORDER)
        trainer_class(plans, "2d", 1, dataset_json, device=torch.device("cpu")).run_training()
    return folder


@pytest.fixture
def stock_model(nnunet, tmp_path):
    """A maker of stock nnU-Net models with random weights: stock_model(channels, folds)."""

    def make(channels: int, folds=(0,), labels=None):
        source = nnunet.preprocessed / "Dataset901_Phantom"
        plans = json.loads((source / "nnUNetPlans.json").read_text())
        dataset_json = json.loads((source / "dataset.json").read_text())
        settings = plans["configurations"]["2d"]
        for key in ("normalization_schemes", "use_mask_for_norm"):
            settings[key] = settings[key][:channels]
        dataset_json["channel_names"] = {str(i): "c" for i in range(channels)}
        dataset_json["labels"] = labels or dataset_json["labels"]
        folder = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
        for seed, fold in enumerate(folds):
            torch.manual_seed(seed)
            trainer = nnUNetTrainer(
                plans | {"continue_training": False}, "2d", 0, dataset_json, torch.device("cpu")
            )
            trainer.initialize()
            (folder / f"fold_{fold}").mkdir(parents=True)
            trainer.save_checkpoint(str(folder / f"fold_{fold}" / "checkpoint_final.pth"))
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
        return folder

    return make


def test_judge_says_what_nnunet_predicts(nnunet, order_model, tmp_path):
    images = nnunet.raw / "Dataset901_Phantom" / "imagesTs"
    stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(order_model), [1])
    stock.predict_from_files_sequential(str(images), str(tmp_path))
    judge = Segmenter(order_model)
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    dataset = find_dataset(nnunet.raw / "Dataset901_Phantom")
    view = view_of(dataset, [case.id for case in dataset.training_cases])
    for case in dataset.test_cases:
        expected = np.asarray(Image.open(tmp_path / f"{case.id}.png"))
        (found,) = judge.predict(dataset.read_image(case), PICTURE_SPACING)
        assert np.array_equal(found, expected) and np.issubdtype(found.dtype, np.integer)
        mask = judge.find(view, view.read_rgb(Slice(case.id)), None)
        assert np.array_equal(mask, expected == 1) and mask.dtype == np.uint8
        assert np.array_equal(judge.find_slice(view, Slice(case.id)), mask)
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == (threads, benchmark)


def test_judge_knows_its_data(nnunet, order_model):
    judge = Segmenter(order_model)
    assert judge.name == f"{ORDER}__nnUNetPlans__2d, fold 1" and judge.train_dataset == "Dataset901_Phantom"
    split = read_splits(find_dataset(nnunet.raw / "Dataset901_Phantom"))[1]
    assert judge.train_cases == sorted(split["train"])
    assert judge.hash == Segmenter(order_model).hash and len(judge.hash) == 64
    assert (judge.channels, judge.regions) == (3, {"polyp": (1,)})


def test_unknown_splits_are_unknown(order_model, monkeypatch):
    judge = Segmenter(order_model)
    monkeypatch.delenv("nnUNet_preprocessed")
    monkeypatch.delenv("nnUNet_raw")
    assert judge.train_cases is None


def test_stock_model_of_grey_images_averages_folds(stock_model):
    folder = stock_model(1, folds=(0, 3))
    both, first, second = (Segmenter(folder, folds=folds) for folds in (None, [0], [3]))
    assert both.folds == ["0", "3"] and len({both.hash, first.hash, second.hash}) == 3
    grey = np.random.default_rng(0).integers(0, 255, (1, 1, 70, 50)).astype(np.float32)
    masks = [judge.predict(grey, PICTURE_SPACING)[0] for judge in (both, first, second)]
    assert all(mask.shape == (70, 50) and set(np.unique(mask)) <= {0, 1} for mask in masks)
    agree = masks[1] == masks[2]  # where both folds say the same, so does their mean
    assert agree.any() and np.array_equal(masks[0][agree], masks[1][agree])


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b"PK\x03\x04", None])
@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "fold_0/checkpoint_final.pth"])
def test_damaged_judges_are_one_line(stock_model, name, content):
    """Empty, truncated (None: to the half), or another thing."""
    path = stock_model(3) / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(
        UserError, match=f"{name}: (cannot be read|malformed|found (null|array), expected object)"
    ) as error:
        Segmenter(path.parents[name.count("/")])
    assert "\n" not in str(error.value)


def test_wrong_judges_are_one_line(stock_model, tmp_path):
    with pytest.raises(UserError, match="in folds: none; expected at least one"):
        Segmenter(tmp_path)
    folder = stock_model(3, labels={"background": 0, "a": 1, "b": 2})
    judge, dataset = Segmenter(folder), find_dataset("Dataset901_Phantom")
    with pytest.raises(UserError, match="expected those of Dataset901_Phantom"):
        load_judge(folder, "cpu", None, dataset)
    with pytest.raises(UserError, match=r"reads 3 channel\(s\), found images of 1"):
        judge.predict(np.zeros((1, 1, 64, 64), np.float32), PICTURE_SPACING)
    tables = [
        {"labels": {"background": 0, "b": 2, "a": 1}},
        {"labels": {"background": 0, "a": 2, "b": 1}},
        {"labels": {"background": 0, "a": [1, 2], "b": [2]}, "regions_class_order": [1, 2]},
    ]
    same, swapped, regions = (RawDataset(folder, dataset.json | table) for table in tables)
    assert load_judge(folder, "cpu", None, same).regions == same.regions
    for other in (swapped, regions):
        with pytest.raises(UserError, match="expected those of"):
            load_judge(folder, "cpu", None, other)
    grey = RawDataset(folder, same.json | {"channel_names": {"0": "grey"}})
    with pytest.raises(UserError, match=r"found a model of 3 channel\(s\), expected 1"):
        load_judge(folder, "cpu", None, grey)
    with pytest.raises(UserError, match="in folds: 0; expected 4"):
        Segmenter(folder, folds=[4])
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        Segmenter(folder)
