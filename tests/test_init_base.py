"""`law-synth init-base`: options, training that goes on after a kill, what the result is."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.raw.dataset import find_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.errors import UserError
from law_synth.base import losses, model_training
from law_synth.base.held_back import ENOUGH, hold_back_patients
from law_synth.base.init_base import init_base
from law_synth.base.losses import Batches, standardize_latents, unet_loss, vae_loss
from law_synth.base.model import load_base
from law_synth.base.model_training import ModelTraining
from law_synth.base.options import InitBase
from law_synth.base.tiny import new_scheduler, new_unet, new_vae
from law_synth.base.train_base import peak_signal_to_noise
from law_synth.records.base import read_base_config

UNET_WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
COMMAND = (
    "import tyro\n"
    "from dataset_conversion.system.errors import run_command\n"
    "from law_synth.base.init_base import init_base\n"
    "from law_synth.base.options import InitBase\n"
    "run_command(lambda: init_base(tyro.cli(InitBase)))\n"
)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset905_Phantom"
    convert_phantom(ConvertPhantom(out=folder, cases=12, test_cases=0, size=48))
    return folder


def training(phantoms: Path, out: Path, **options) -> InitBase:
    """A few steps of the smallest models on 32 px."""
    short = {"vae_steps": 4, "unet_steps": 4, "batch_size": 4, "checkpoint_every": 1}
    small = {"image_size": 32, "vae_width": 8, "unet_width": 16, "device": "cpu"}
    return InitBase(**{"out": out, "source": str(phantoms), **short, **small, **options})


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "base"
    init_base(training(phantoms, out))
    return out


def test_trained_base_is_complete_and_says_what_it_saw(trained, phantoms):
    base = load_base(str(trained))
    assert (base.latent_factor, len(base.tokenizer)) == (4, 49408)
    assert base.vae.config.scaling_factor == 1
    config = json.loads((trained / "base_config.json").read_text())
    split = read_splits(find_dataset(phantoms))[0]
    assert config["train_cases"] == sorted(split["train"])
    assert not set(config["train_cases"]) & set(split["val"])
    assert set(config["held_back_cases"]) < set(config["train_cases"])
    assert config["images"] == len(config["train_cases"]) - len(config["held_back_cases"])
    assert (config["dataset"], config["image_size"], config["fold"]) == ("Dataset905_Phantom", 32, 0)
    assert 0 < config["psnr"] < 60
    assert np.isfinite([config["vae_loss"], config["unet_loss"]]).all()
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    assert np.asarray(Image.open(trained / "samples.png").convert("RGB")).std() > 10
    assert not (trained / ".training").exists()


def test_finished_base_is_left_alone(trained, phantoms, caplog):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with caplog.at_level("INFO"):
        init_base(training(phantoms, trained))
    assert "finished already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    with pytest.raises(UserError, match="found a base with seed = 0, expected 1"):
        init_base(training(phantoms, trained, seed=1))


def test_killed_training_goes_on_bitwise(trained, phantoms, tmp_path):
    options = training(phantoms, tmp_path / "killed")
    arguments = [
        *("--out", options.out, "--from", phantoms, "--vae-steps", 4, "--unet-steps", 4, "--batch-size", 4),
        *(
            "--checkpoint-every",
            1,
            "--image-size",
            32,
            "--vae-width",
            8,
            "--unet-width",
            16,
            "--device",
            "cpu",
        ),
    ]
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    for checkpoint in ("vae.pt", "unet.pt"):  # killed once in each of the two trainings
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (options.out / ".training" / checkpoint).is_file() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (options.out / "base_config.json").is_file()
    with pytest.raises(UserError, match="unet_steps = 4, expected 5"):
        init_base(replace(options, unet_steps=5))
    init_base(options)
    assert load_base(str(options.out)).hash == load_base(str(trained)).hash
    configs = [json.loads((folder / "base_config.json").read_text()) for folder in (options.out, trained)]
    assert configs[0] == configs[1]


def test_killed_before_the_last_file(trained, phantoms, tmp_path, monkeypatch):
    options = training(phantoms, tmp_path / "base")
    with monkeypatch.context() as killed:
        killed.setattr("law_synth.base.init_base.finish", lambda *_: sys.exit(137))
        with pytest.raises(SystemExit):
            init_base(options)
    (options.out / UNET_WEIGHTS).write_bytes(b"half a file")
    init_base(options)
    assert load_base(str(options.out)).hash == load_base(str(trained)).hash


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_one_line_and_the_same_command_goes_on(trained, phantoms, tmp_path):
    options = training(phantoms, tmp_path / "base")
    work = options.out / ".training"
    work.mkdir(parents=True)
    for name in ("vae.partial", "unet.partial"):
        (work / name).symlink_to("/dev/full")
        with pytest.raises(UserError, match="found no space left for"):
            init_base(options)
        (work / name).unlink()
        assert not (options.out / "base_config.json").exists()
    init_base(options)
    assert load_base(str(options.out)).hash == load_base(str(trained)).hash


@pytest.mark.parametrize("size", [None, "tiny"])
def test_dry_run_says_and_writes_nothing(phantoms, tmp_path, caplog, size):
    caplog.set_level("INFO")
    out = tmp_path / "base"
    if size:
        init_base(InitBase(out=out, size="tiny", dry_run=True))
        assert f"would write a tiny base of random weights into {out}" in caplog.text
    else:
        init_base(training(phantoms, out, dry_run=True))
        line = (
            "would read 9 training cases of fold 0 of Dataset905_Phantom at 32 px, train an autoencoder for 4"
        )
        assert line in caplog.text and f"of 4 images on cpu, and write {out}" in caplog.text
    assert not out.exists()


def test_checkpoint_interval_does_not_change_the_result(trained, phantoms, tmp_path):
    init_base(training(phantoms, tmp_path / "base", checkpoint_every=100))
    assert load_base(str(tmp_path / "base")).hash == load_base(str(trained)).hash


def test_one_case(tmp_path, caplog):
    convert_phantom(ConvertPhantom(out=tmp_path / "Dataset906_One", cases=1, test_cases=0, size=40))
    options = training(tmp_path / "Dataset906_One", tmp_path / "base", fold="all", vae_steps=1, unet_steps=1)
    init_base(options)
    assert "too few to hold some back" in caplog.text
    config = json.loads((options.out / "base_config.json").read_text())
    assert (config["images"], config["held_back_cases"], config["fold"]) == (1, [], "all")


def test_whole_patients_are_held_back(tmp_path):
    folder = tmp_path / "Dataset907_Patients"
    convert_phantom(ConvertPhantom(out=folder, cases=12, test_cases=0, size=40))
    cases = [case.id for case in find_dataset(folder).training_cases]
    patients = {case: f"patient {index // 2}" for index, case in enumerate(cases)}
    (folder / "groups.json").write_text(json.dumps(patients))
    init_base(training(folder, tmp_path / "base", fold="all", vae_steps=1, unet_steps=1))
    held_back = json.loads((tmp_path / "base" / "base_config.json").read_text())["held_back_cases"]
    assert len(held_back) == 2 and len({patients[case] for case in held_back}) == 1


@pytest.mark.parametrize(
    ("sizes", "held_back"),
    [([1] * 40, 8), ([1] * 200, ENOUGH), ([9, 1], 1), ([1, 1, 1, 1], 0), ([40, 40], 0), ([5] * 40, 20)],
)
def test_a_fifth_at_most_is_held_back(sizes, held_back):
    patients = {f"{name}-{case}": str(name) for name, size in enumerate(sizes) for case in range(size)}
    for seed in range(5):
        chosen = hold_back_patients(list(patients), patients, seed)
        owners = {patients[case] for case in chosen}
        assert len(chosen) == held_back == sum(sizes[int(owner)] for owner in owners)


@pytest.mark.parametrize("factor", [4, 8])
def test_tiny(tmp_path, factor):
    options = InitBase(out=tmp_path / "tiny", size="tiny", vae_factor=factor, prediction_type="v_prediction")
    init_base(options)
    base = load_base(str(options.out))
    assert base.latent_factor == factor
    assert base.scheduler.config.prediction_type == "v_prediction"
    assert json.loads((options.out / "base_config.json").read_text())["options"]["size"] == "tiny"
    assert read_base_config(options.out).image_size == 64
    init_base(options)
    with pytest.raises(UserError, match="seed"):
        init_base(replace(options, seed=3))


def test_command_line(phantoms, tmp_path):
    options = tyro.cli(InitBase, args=["--from", str(phantoms), "--out", str(tmp_path), "--fold", "all"])
    assert (options.source, options.fold, options.size) == (str(phantoms), "all", None)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "--out", tmp_path / "x"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "neither --size nor --from" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "tiny"}, "both --size and --from"),
        ({"image_size": 40}, "--image-size 40, expected a multiple of 16"),
        ({"image_size": 48, "vae_factor": 8}, "multiple of 32"),
        ({"unet_width": 24}, "--unet-width 24, expected a multiple of 16"),
        ({"vae_width": 4}, "--vae-width 4"),
        ({"unet_steps": 0}, "--unet-steps 0"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0"),
        ({"slices_per_case": 3}, "--slices-per-case 3 with .png pictures"),
        ({"window": (80.0, 20.0)}, "--window 80 20, expected two numbers, LOW below HIGH"),
        ({"fold": 9}, "--fold 9, expected 0 to 4 or all"),
        ({"device": "tpu9"}, "--device tpu9, expected auto, cpu, cuda or cuda:1"),
        ({"source": "Dataset999_Nothing"}, "Dataset999_Nothing"),
    ],
)
def test_bad_options_are_one_line(phantoms, tmp_path, monkeypatch, change, message):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(UserError) as error:
        init_base(training(phantoms, tmp_path / "base", **change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "base").exists()


def test_training_options_do_not_go_with_tiny(tmp_path):
    with pytest.raises(UserError, match="--unet-steps with --size"):
        init_base(InitBase(out=tmp_path / "base", size="tiny", unet_steps=3))


def test_a_folder_with_other_content_is_refused(phantoms, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="something other than a base"):
        init_base(training(phantoms, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_non_finite_loss_stops(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "KL_WEIGHT", float("nan"))
    with pytest.raises(UserError, match="VAE loss is not finite at one of the steps 1 to 1"):
        init_base(training(phantoms, tmp_path / "base"))
    assert not (tmp_path / "base" / ".training" / "vae.pt").exists()


def random_images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("content", ["", "null", "{", "[]"])
def test_damaged_records_are_one_line(trained, phantoms, tmp_path, content):
    out = Path(shutil.copytree(trained, tmp_path / "base"))
    (out / "base_config.json").write_text(content)
    with pytest.raises(UserError, match=r"base_config\.json: (malformed|found)") as error:
        init_base(training(phantoms, out))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"base_config\.json: (malformed|found)"):
        read_base_config(out)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"null"])
def test_damaged_checkpoints_are_one_line(tmp_path, content):
    path = tmp_path / "vae.pt"
    path.write_bytes(content)
    stage = ModelTraining("VAE", torch.nn.Linear(1, 1), lambda step: None, 10, 1e-3)
    with pytest.raises(UserError, match=r"vae\.pt: cannot be read .*; remove it and give the same command"):
        stage.train(path, 5, 4)


def test_standardized_latents_and_unchanged_images():
    torch.manual_seed(0)
    vae = new_vae((8, 16, 32)).requires_grad_(False)
    vae.quant_conv.bias[:4] += torch.tensor([3.0, -2.0, 0.5, 0.0])
    vae.quant_conv.weight[:2] *= 5
    batches = Batches(random_images(10), 4, "none", 0, torch.device("cpu"))
    pixels = batches.pixels(slice(None))
    before = vae.encode(pixels).latent_dist
    decoded = vae.decode(before.mean).sample
    standardize_latents(vae, batches)
    after = vae.encode(pixels).latent_dist
    samples = after.mean + after.std * torch.randn(50, *after.mean.shape)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(samples.std((0, 1, 3, 4)), torch.ones(4), atol=0.02, rtol=0)
    torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=0)
    ratio = before.std / after.std
    torch.testing.assert_close(ratio, ratio[:1, :, :1, :1].expand_as(ratio), rtol=1e-3, atol=0)


def test_batches_depend_on_seed_and_step_only_and_flip_as_asked():
    images = random_images(3)
    batches = Batches(images, 64, "both", 7, torch.device("cpu"))
    draws = [batches.draw(batches.generator(0, step)) for step in (5, 5, 6)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][0], draws[2][0])
    assert set(draws[0][0].tolist()) == {0, 1, 2}
    assert set(draws[0][1].tolist()) == {0, 1, 2, 3}
    horizontal = replace(batches, flips="horizontal")
    assert set(horizontal.draw(horizontal.generator(0, 1))[1].tolist()) == {0, 1}
    pixels = batches.pixels(slice(0, 1), (-1,))[0].permute(1, 2, 0)
    np.testing.assert_allclose(pixels.numpy() * 127.5 + 127.5, images[0, :, ::-1], atol=1e-4)


def test_perfect_prediction_has_no_loss():
    """The target is the noise, or v, of the very latents that the UNet was shown."""
    batches = Batches(random_images(2), 4, "none", 0, torch.device("cpu"))
    means, stds = torch.randn(1, 2, 4, 8, 8), torch.zeros(1, 2, 4, 8, 8)
    means[0, 1] += 30  # so different that the oracle tells the images apart
    for prediction_type in ("epsilon", "v_prediction"):
        scheduler = new_scheduler(prediction_type)

        class Oracle(torch.nn.Module):
            def forward(self, noisy, t, prompts, scheduler=scheduler):
                alpha = scheduler.alphas_cumprod[t][:, None, None, None]
                candidates = [(noisy - alpha.sqrt() * m) / (1 - alpha).sqrt() for m in means[0]]
                noise = torch.stack(candidates, 1)  # (B, images, C, h, w); noise has unit power
                best = ((noise**2).mean((2, 3, 4)) - 1).abs().argmin(1)
                noise = noise[torch.arange(len(t)), best]
                v = alpha.sqrt() * noise - (1 - alpha).sqrt() * means[0][best]
                result = noise if scheduler.config.prediction_type == "epsilon" else v
                return type("Output", (), {"sample": result})

        loss = unet_loss(Oracle(), scheduler, (means, stds), torch.zeros(3, 77, 32), batches)
        assert loss(0) < 1e-4


def test_both_losses_fall_on_four_images(tmp_path):
    torch.manual_seed(0)
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (20, 90, 160, 230)])
    images[:, :, :16] //= 2
    batches = Batches(images, 8, "none", 0, torch.device("cpu"))
    vae, unet = new_vae((8, 16, 32)), new_unet((16, 32), layers=1)
    latents = torch.randn(1, 4, 4, 8, 8), torch.zeros(1, 4, 4, 8, 8)
    losses = {
        vae: vae_loss(vae, batches),
        unet: unet_loss(unet, new_scheduler(), latents, torch.zeros(1, 77, 32), batches),
    }
    for model, loss in losses.items():
        stage = ModelTraining("test", model, loss, steps=60, learning_rate=3e-3)
        stage.train(tmp_path / f"{type(model).__name__}.pt", every=60, images_per_step=8)
        assert np.mean(stage.losses[-10:]) < 0.8 * np.mean(stage.losses[:10])


def test_learning_rate_warms_up_and_decays():
    factors = [model_training.learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert np.all(np.diff(factors[5:]) < 0)
    assert factors[-1] == pytest.approx(0.05, abs=0.001)
    assert model_training.learning_rate_factor(0, 1) == 1


def test_peak_signal_to_noise():
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    assert peak_signal_to_noise(images, images + 10) == pytest.approx(20 * np.log10(25.5))


def test_a_base_begun_on_other_cases_is_not_gone_on_with(phantoms, tmp_path, monkeypatch):
    """Its record would name only the cases of now, and no audit would find the others."""
    options = training(phantoms, tmp_path / "base", fold=0)
    with monkeypatch.context() as killed:
        killed.setattr("law_synth.base.init_base.finish", lambda *_: sys.exit(137))
        with pytest.raises(SystemExit):
            init_base(options)
    folds = read_splits(find_dataset(str(phantoms)))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    other = tmp_path / "preprocessed" / phantoms.name / "splits_final.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps(folds[1:] + folds[:1]))
    with pytest.raises(UserError, match="found a base begun on other training cases"):
        init_base(options)
