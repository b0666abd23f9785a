"""`law-synth init-base` and `train` on CT volumes and on pictures of two classes."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_records import small_run

from dataset_conversion.raw.folds import read_splits

pytest.importorskip("diffusers", reason="needs the extra synth")
pytest.importorskip("accelerate", reason="needs the extra synth")

from safetensors.torch import load_file

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.system.errors import UserError
from dataset_conversion.volumes import evenly_spaced
from law_synth.base.init_base import init_base
from law_synth.base.model import load_base
from law_synth.base.options import InitBase
from law_synth.base.seen import chosen_slices, view_with_base
from law_synth.records.base import read_base_config
from law_synth.records.run import TrainedRun, read_run
from law_synth.training.data import Draw, load_training_data
from law_synth.training.options import Train
from law_synth.training.settle import settle
from law_synth.training.train import train
from law_synth.view.slices import Slice, view_of


def making(dataset: Path, out: Path, **options) -> InitBase:
    """A base of one step on 32 px."""
    short = {"vae_steps": 1, "unet_steps": 1, "batch_size": 4, "image_size": 32, "device": "cpu"}
    return InitBase(
        **{"out": out, "source": str(dataset), "vae_width": 8, "unet_width": 16, **short, **options}
    )


def training(dataset: Path, base: Path, out: Path, **options) -> Train:
    """A training of a second."""
    short = {"max_steps": 1, "batch_size": 4, "gradient_accumulation": 1, "preset": "light", "log_every": 1}
    quiet = {"sample_every": 0, "device": "cpu"}
    return Train(**{"dataset": str(dataset), "base": str(base), "out": out, **short, **quiet, **options})


@pytest.fixture(scope="module")
def base(ct_dataset, tmp_path_factory) -> Path:
    """Made from three slices of each training volume of fold 0."""
    folder = tmp_path_factory.mktemp("base") / "base"
    init_base(making(ct_dataset, folder, slices_per_case=3))
    return folder


@pytest.fixture(scope="module")
def run(ct_dataset, base, tmp_path_factory) -> TrainedRun:
    """Two steps of LAW on fold 0, with a resume in between."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = training(ct_dataset, base, folder, slices_per_case=2, sample_every=2)
    train(options)
    train(replace(options, max_steps=2))
    return read_run(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Raw folder of 12 grey pictures of 8 bit with the classes rim (1) and core (2)."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset961_Pictures"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    y, x = np.indices((40, 40))
    for index in range(12):
        distance = np.hypot(y - 20, x - 12 - index)
        label = np.select([distance < 3, distance < 8], [2, 1], 0).astype(np.uint8)
        Image.fromarray(40 + 50 * label).save(folder / "imagesTr" / f"p{index:02d}_0000.png")
        Image.fromarray(label).save(folder / "labelsTr" / f"p{index:02d}.png")
    description = {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "rim": 1, "core": 2},
        "numTraining": 12,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_run_records_view_slices_and_prompt(run, ct_dataset, base):
    dataset = read_dataset(ct_dataset)
    trained = read_splits(dataset)[0]["train"]
    view = view_of(dataset, trained)
    assert run.config.view == view.record
    assert run.config.view == read_base_config(base).view
    assert run.view(dataset).window == view.window and run.view(dataset).axis == 0
    assert run.train_cases == sorted(trained)
    assert run.slices == view.slices(sorted(trained), 2) and len(run.slices) == 2 * len(trained)
    assert run.config.prompt == "a medical image of a kidney and a tumour"


def test_run_learns_and_logs_each_class(run):
    phi = load_file(run.folder / "weighter" / "weighter.safetensors")
    assert phi["phi.0.weight"].shape[1] == 4 + 2 and phi["phi.4.weight"].shape[0] == 2
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2]
    for entry in log:
        shares = [entry[f"weight/lesion_share_{name}"] for name in ("kidney", "tumour")]
        assert sum(shares) == pytest.approx(entry["weight/lesion_share"], rel=1e-4)  # all show both
        assert 0 < entry["loss/dice"] < 1
    assert (run.folder / "samples" / "step_000002.png").is_file()
    assert np.allclose(np.load(run.folder / "samples" / "delta_000000.npy"), 0.5)


def test_training_says_that_it_takes_slices(ct_dataset, base, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(training(ct_dataset, base, tmp_path / "run", dry_run=True))
    assert "holds volumes: training on 16 of their 2D slices along axis 0" in caplog.text
    init_base(making(ct_dataset, tmp_path / "base", dry_run=True))
    assert "would read 4 training cases (16 2D slices of them) of fold 0 of Dataset960_CT" in caplog.text
    assert not (tmp_path / "run").exists() and not (tmp_path / "base").exists()


def test_what_the_networks_see(ct_dataset, base, tmp_path):
    """Grey goes in three times, windowed; classes are colours for the ControlNet, channels for the loss."""
    dataset, model = read_dataset(ct_dataset), load_base(str(base))
    view = view_of(dataset, ["ct_0", "ct_1"])
    data = load_training_data(view, view.slices(["ct_0"], 1), model, 32, "a slice", "area", tmp_path)
    image, mask = data.images[0], data.masks[0]
    assert (image == image[:1]).all()
    assert image[0][mask == 1].float().mean() > image[0][mask == 2].float().mean() + 20 > 20
    assert (image[0][mask == 0] == 0).any()  # air, below the window
    draw = Draw(0, 5, *(torch.zeros(4, 8, 8),) * 2, prompt=True)
    batch = data.batch([draw], torch.device("cpu"), with_image=True)
    assert torch.equal(batch.image[0], image / 255)
    red, green, blue = batch.condition[0]
    assert torch.equal(red, (mask == 1).float()) and torch.equal(green, (mask == 2).float())
    assert (blue == 0).all()
    assert data.latent_masks.shape == (1, 2, 8, 8)
    for number in (1, 2):
        share = (mask == number).float().mean()
        assert share > 0 and torch.isclose(data.latent_masks[0, number - 1].mean(), share)


def test_grey_comes_out_as_the_mean_of_three_channels(ct_dataset):
    """Written and read again, values inside the window change by half a grey level at most."""
    view = view_of(read_dataset(ct_dataset), ["ct_0", "ct_1"])
    low, high = view.window.low[0], view.window.high[0]
    values = np.linspace(low, high, 97, dtype=np.float32).reshape(1, 1, 97)
    seen = view.window.to_rgb(values)
    assert seen.shape == (1, 97, 3) and (seen[..., 0] == seen[..., 2]).all()
    assert np.abs(view.window.from_rgb(seen) - values).max() <= (high - low) / 255 / 2 + 0.5
    tinted = seen + np.array([-9.0, 2.0, 7.0])  # an autoencoder's channels differ
    assert (view.window.from_rgb(tinted) == view.window.from_rgb(seen)).all()


def test_training_on_a_base_of_the_same_data_takes_its_window(ct_dataset, base, tmp_path):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    about = json.loads((base / "base_config.json").read_text())
    about["view"]["window"] |= {"low": [-100.0], "high": [250.0]}
    (other / "base_config.json").write_text(json.dumps(about))
    dataset = read_dataset(ct_dataset)
    options = training(ct_dataset, other, tmp_path / "run")
    plan = settle(options, dataset, load_base(str(other)), 1)
    assert plan.view.window.low == (-100.0,)
    assert settle(
        replace(options, window=(-100.0, 250.0)), dataset, load_base(str(other)), 1
    ).view.window == (plan.view.window)
    with pytest.raises(UserError, match=r"found --window 0 80, expected that of the base .*, -100 to 250"):
        view_with_base(dataset, ["ct_0"], (0.0, 80.0), str(other))
    about["dataset_origin"] = "Dataset123_Other"
    (other / "base_config.json").write_text(json.dumps(about))
    view = view_with_base(dataset, ["ct_0"], (0.0, 80.0), str(other))
    assert (view.window.low, view.window.high) == ((0.0,), (80.0,))


def test_validation_volumes_do_not_move_the_window(ct_dataset, base, tmp_path):
    import SimpleITK as sitk

    folder = tmp_path / ct_dataset.name
    shutil.copytree(ct_dataset, folder)
    dataset = read_dataset(folder)
    options = training(folder, base, tmp_path / "run")
    shutil.copytree(base, tmp_path / "plain", ignore=shutil.ignore_patterns("base_config.json"))
    model = load_base(str(tmp_path / "plain"))
    before = settle(options, dataset, model, 1).config
    for name in read_splits(dataset)[0]["val"]:
        path = folder / "imagesTr" / f"{name}_0000.nii.gz"
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image * 7, str(path))
    assert settle(options, read_dataset(folder), model, 1).config == before


def test_two_classes_in_pictures(pictures, base, tmp_path):
    """Fixed-noise loss and pictures by class."""
    run = tmp_path / "run"
    train(training(pictures, base, run, size=32, sample_every=1, monitor_cases=1, fold="all"))
    config = read_run(run).config
    assert config.slices is None and config.view.classes == {"rim": 1, "core": 2}
    assert len(config.monitor_cases) == 1
    looks = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    looks = [entry for entry in looks if "fixed_noise/all" in entry]
    assert len(looks) == 2
    for entry in looks:
        low, high = sorted((entry["fixed_noise/lesion_rim"], entry["fixed_noise/lesion_core"]))
        assert low < entry["fixed_noise/lesion"] < high
    picture = np.asarray(Image.open(run / "samples" / "step_000001.png").convert("RGB")).reshape(-1, 3)
    assert {(255, 0, 0), (0, 255, 0)} <= set(map(tuple, picture))  # rim and core in the mask and the legend


def test_volumes_without_lesions_are_refused_when_there_are_no_others(ct_dataset, tmp_path):
    import SimpleITK as sitk

    folder = tmp_path / ct_dataset.name
    shutil.copytree(ct_dataset, folder)
    dataset = read_dataset(folder)
    for name in ("ct_2", "ct_3"):
        path = folder / "labelsTr" / f"{name}.nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(path)) * 0, str(path))
    view = view_of(dataset, ["ct_4", "ct_5"])
    assert [one.case for one in chosen_slices(view, ["ct_2", "ct_4"], 1)] == ["ct_4"]
    with pytest.raises(UserError, match="found no slice with a lesion in 2 training cases"):
        chosen_slices(view, ["ct_2", "ct_3"], 1)


def test_pictured_slices_are_spread_over_volumes():
    volumes = {"a": [1, 2, 3], "b": [4, 5, 6], "c": [], "d": [7, 8]}
    config = small_run(train_cases=["a", "b"], monitor_cases=[], slices=volumes)
    assert len({one.case for one in config.monitored_slices}) == 2 and len(config.monitored_slices) == 4
    config = small_run(train_cases=["c"], monitor_cases=["a", "b", "d"], slices=volumes)
    shown = config.monitored_slices
    assert sorted(shown) == sorted(config.slices_of(["a", "b", "d"]))
    assert {one.case for one in shown[:4]} == {"a", "b", "d"}
    pictures = small_run(train_cases=["c"], monitor_cases=["a", "b"])
    assert pictures.monitored_slices == [Slice("a"), Slice("b")]
    assert evenly_spaced(range(12), 3) == [2, 6, 10] and evenly_spaced([1, 2], 3) == [1, 2]


def test_runs_of_older_versions_are_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "law_config.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match="found format 1, expected 2"):
        read_run(tmp_path / "run")
