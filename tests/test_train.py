"""`law-synth train` on drawn polyps and a tiny base: every option, resume, what lies in the run folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_records import small_base

pytest.importorskip("diffusers", reason="needs the extra synth")
pytest.importorskip("accelerate", reason="needs the extra synth")

from accelerate import Accelerator
from accelerate.utils import DistributedType

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.lock import hold
from law_synth.base.held_back import hold_back_cases
from law_synth.base.init_base import init_base
from law_synth.base.model import load_base
from law_synth.base.options import InitBase
from law_synth.base.student import load_student
from law_synth.base.tiny import write_tiny_base
from law_synth.records.base import write_base_config
from law_synth.records.run import newest_run, read_run
from law_synth.training.build import new_objective
from law_synth.training.data import Sampler, latent_mask
from law_synth.training.options import Train
from law_synth.training.state import load_state, save_state
from law_synth.training.train import train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with nnUNet_raw/Dataset910_Phantom (12 images of 64 px) and a tiny base."""
    root = tmp_path_factory.mktemp("law")
    (root / "nnUNet_raw").mkdir()
    convert_phantom(
        ConvertPhantom(out=root / "nnUNet_raw" / "Dataset910_Phantom", cases=12, test_cases=2, size=64)
    )
    write_tiny_base(root / "base")
    return root


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps one precision per process; a command has a process of its own."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state()


@pytest.fixture
def options(world, tmp_path, monkeypatch) -> Train:
    """Options of a training of a second."""
    monkeypatch.setenv("nnUNet_raw", str(world / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    return Train(
        dataset="910",
        base=str(world / "base"),
        out=tmp_path / "run",
        size=64,
        max_steps=4,
        batch_size=2,
        gradient_accumulation=2,
        learning_rate=1e-3,
        log_every=1,
        save_every=2,
        sample_every=0,
        monitor_cases=0,
        device="cpu",
    )


def log_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(run.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same_weights(one, other) -> bool:
    one, other = weights_of(one), weights_of(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weighting", ["law", "difficulty", "uniform"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_is_exact(options, tmp_path, weighting, ema):
    options = replace(options, weighting=weighting, ema_decay=ema)
    train(options)
    in_parts = replace(options, out=tmp_path / "parts")
    for steps in (1, 3, 4):
        train(replace(in_parts, max_steps=steps))
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "run")
    assert same_weights(tmp_path / "parts", tmp_path / "run")
    train(in_parts)  # complete: changes nothing
    assert same_weights(tmp_path / "parts", tmp_path / "run")


@pytest.mark.slow
def test_kill_and_resume_through_the_command(options, tmp_path, world):
    """kill -9 in the middle; the same command goes on and ends as a run that nobody killed."""
    train(options)
    arguments = "train --dataset 910 --size 64 --max-steps 4 --batch-size 2 --gradient-accumulation 2 "
    arguments += (
        "--learning-rate 1e-3 --log-every 1 --save-every 2 --sample-every 0 --monitor-cases 0 --device cpu "
    )
    command = [sys.executable, "-m", "law_synth", *arguments.split(), "--base", str(world / "base")]
    command += ["--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / ".training" / "state.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "killed", tmp_path / "run")
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_do_the_same_training(options, tmp_path, world):
    """Two processes of batch 1 see the samples of one process of batch 2, and have its losses."""
    train(options)
    arguments = "train --dataset 910 --size 64 --max-steps 4 --batch-size 1 --gradient-accumulation 2 "
    arguments += (
        "--learning-rate 1e-3 --log-every 1 --save-every 2 --sample-every 0 --monitor-cases 0 --device cpu "
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "law_synth", *arguments.split(), "--base", str(world / "base")]
    command += ["--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FutureWarning" not in done.stderr
    for one, two in zip(log_of(tmp_path / "run"), log_of(tmp_path / "two"), strict=True):
        assert two["loss/total"] == pytest.approx(one["loss/total"], rel=1e-4)
        assert two["loss/dice"] == pytest.approx(one["loss/dice"], rel=1e-3)


def test_kill_in_the_last_save_is_mended(options):
    """The state is complete, the export is not: the same command writes what is missing."""
    train(options)
    before = weights_of(options.out)
    shutil.rmtree(options.out / "unet")
    (options.out / "law_config.json").unlink()
    train(options)
    assert read_run(options.out).config.finished
    after = weights_of(options.out)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_that_was_to_be_longer_is_finished_when_the_user_says_so(options):
    """Or generation would warn of a training that has not finished, for ever."""
    train(options)
    path = options.out / "law_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": False}))  # killed after 4 of 8
    before = weights_of(options.out)
    train(options)
    assert read_run(options.out).config.finished
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(options.out).items())


def test_the_optimizers_kind_is_that_of_the_machine_that_goes_on(tmp_path):
    """fp16 needs one that is not fused, which a saved state must not bring back, and the other way round."""
    (tmp_path / ".training").mkdir()
    for saved, now in ((True, False), (False, True)):
        module = torch.nn.Linear(2, 1)
        optimizers = [torch.optim.AdamW(module.parameters(), fused=fused) for fused in (saved, now)]
        module(torch.ones(2)).backward()
        optimizers[0].step()
        save_state(tmp_path, 7, module, optimizer=optimizers[0])
        assert load_state(tmp_path, module, optimizer=optimizers[1]) == 7
        assert [group["fused"] for group in optimizers[1].param_groups] == [now]
        optimizers[1].step()
        assert optimizers[1].state[module.weight]["step"] == 2


def test_a_run_goes_on_in_another_precision(options):
    """What a non-finite loss or a full memory asks for; the saved steps stay as they are."""
    from accelerate.state import AcceleratorState

    train(replace(options, mixed_precision="bf16", max_steps=2))
    before = log_of(options.out)
    AcceleratorState._reset_state()
    train(
        replace(
            options, mixed_precision="no", gradient_checkpointing=True, batch_size=1, gradient_accumulation=4
        )
    )
    after = log_of(options.out)
    assert after[:2] == before and [entry["step"] for entry in after] == [1, 2, 3, 4]


def test_fp16_may_be_new_to_a_run(tmp_path):
    """A state without a gradient scaler is restored into a training that has one."""
    from law_synth.training.state import load_state, save_state

    module = torch.nn.Linear(2, 2)
    (tmp_path / ".training").mkdir()
    save_state(tmp_path, 7, module, scaler=None)
    scaler = torch.amp.GradScaler("cpu")
    assert load_state(tmp_path, module, scaler=scaler) == 7
    assert scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()


def test_what_is_saved_is_the_moving_average(options):
    train(replace(options, ema_decay=0.9, preset="light"))
    state = torch.load(options.out / ".training" / "state.pt", weights_only=True)
    exported = weights_of(options.out)
    names = [
        name for name in state["weights"] if name.startswith("networks.controlnet.") and "down_blocks" in name
    ]
    gaps = []
    for name in names:
        saved = exported["controlnet/" + name.removeprefix("networks.controlnet.")]
        gaps.append((saved - state["weights"][name]).abs().max().item())
    assert 0 < max(gaps) < 4 * options.learning_rate * options.max_steps
    assert len(state["ema"]["shadow_params"]) > len(names)


def test_coefficients_make_the_total(options):
    """Equation 12 with other coefficients than the paper's."""
    train(replace(options, max_steps=1, beta_t=2.0, beta_d=3.0, lambda_dice=0.5))
    entry = log_of(options.out)[0]
    expected = entry["loss/student"] + 2 * entry["loss/teacher"] + 3 * entry["loss/distillation"]
    assert entry["loss/total"] == pytest.approx(expected + 0.5 * entry["loss/dice"])


def test_phi_has_a_learning_rate_of_its_own(options, tmp_path):
    """Both weighters start at the same weights and see the same samples; Adam moves them by their rates."""
    for name, rate in {"slow": 1e-5, "fast": 1e-2}.items():
        train(replace(options, max_steps=2, weighter_learning_rate=rate, out=tmp_path / name))
    moved = {
        name: weights_of(tmp_path / name)["weighter/phi.4.weight"].abs().max().item()
        for name in ("slow", "fast")
    }
    assert moved["slow"] < 3e-5 < 3e-3 < moved["fast"]


def test_stock_pipeline_loads_the_run(options, world):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel

    train(options)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        world / "base",
        controlnet=ControlNetModel.from_pretrained(options.out / "controlnet"),
        unet=UNet2DConditionModel.from_pretrained(options.out / "unet"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    mask = Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 22))
    image = pipeline("a polyp", image=mask, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3) and np.isfinite(image).all()


def test_config_tells_what_the_run_saw(options, world):
    """Training and held-out cases are the fold's; its validation cases appear nowhere."""
    from dataset_conversion.raw.dataset import find_dataset

    options = replace(options, monitor_cases=1, fold=1, out=None, max_steps=1)
    dataset = find_dataset("910")
    cases = [case.id for case in dataset.training_cases]
    splits = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:10], "val": cases[10:]}]
    splits_file = dataset.folder / "splits_final.json"
    splits_file.write_text(json.dumps(splits))
    try:
        train(options)
    finally:
        splits_file.unlink()
    run = newest_run()
    assert run.train_cases == cases[:10]
    assert len(run.config.monitor_cases) == 1
    assert run.fold == 1 and run.dataset_name == "Dataset910_Phantom"
    assert run.config.options["weighting"] == "law" and run.config.finished
    controlnet, unet = load_student(run, load_base(str(world / "base")), torch.float32)
    assert not controlnet.training and not unet.training
    assert run.folder.parent.name == "Dataset910_Phantom"


def test_frozen_decoder_exports_the_controlnet_only(options):
    train(replace(options, freeze_decoder=True, preset="light", max_steps=1))
    assert (options.out / "controlnet").is_dir() and not (options.out / "unet").exists()
    assert not read_run(options.out).config.trains_decoder


@pytest.mark.parametrize(
    "changes",
    [
        {"weighting": "ratio"},
        {"weighting": "ratio-clamped", "preset": "light"},
        {"weighting": "adaptive-distillation"},
        {"normalize": False, "w_min": 0.0, "w_max": float("inf"), "dice": False, "joint": True},
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"mixed_precision": "bf16", "freeze_decoder": True},
        {"mask_downsampling": "nearest", "detach_mask_control": True, "empty_prompts": 1.0},
        {"fold": "all", "prompt": "polyp " * 200},
        {"size": 72},
    ],
)
def test_every_option_trains(options, changes):
    train(replace(options, max_steps=2, **changes))
    last = log_of(options.out)[-1]
    assert last["step"] == 2 and np.isfinite(last["loss/total"])
    assert ("loss/teacher" in last) == (changes.get("preset") != "light")


def test_mixed_precision_keeps_trained_weights_in_fp32(options):
    train(replace(options, mixed_precision="bf16", max_steps=1))
    state = torch.load(options.out / ".training" / "state.pt", weights_only=True)
    assert {weight.dtype for weight in state["weights"].values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_training_begins_with_the_bases_own_weights(options, precision):
    """Halved and back they would differ from the teacher's, and from what an unchanged run exports."""
    base, fresh = load_base(options.base), load_base(options.base)
    networks = new_objective(replace(options, mixed_precision=precision), base, classes=1).networks
    ours, theirs = (dict(unet.named_parameters()) for unet in (networks.unet, fresh.unet))
    trained = [name for name, parameter in ours.items() if parameter.requires_grad]
    assert trained and all(torch.equal(ours[name], theirs[name]) for name in trained)
    frozen = {parameter.dtype for parameter in ours.values() if not parameter.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_one_process_at_a_time(options):
    train(replace(options, max_steps=1))
    before = weights_of(options.out)
    lock = hold(options.out / ".training" / "lock", options.out)
    with pytest.raises(UserError, match="found another process that writes there") as error:
        train(options)
    assert "\n" not in str(error.value)
    lock.release()
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(options.out).items())
    train(options)


def test_sharded_training_is_refused(options, monkeypatch):
    """accelerate may have been configured for it; one process would save its part as the whole."""
    kind = property(lambda accelerator: DistributedType.FSDP)
    monkeypatch.setattr("law_synth.training.build.Accelerator.distributed_type", kind)
    with pytest.raises(UserError, match="found FSDP in accelerate's configuration"):
        train(options)
    assert not options.out.exists()


def test_an_empty_prompt_is_a_prompt(options):
    train(replace(options, max_steps=1, prompt=""))
    assert read_run(options.out).config.prompt == ""


def test_gradient_checkpointing_changes_no_loss(options, tmp_path):
    train(options)
    train(replace(options, gradient_checkpointing=True, out=tmp_path / "checkpointing"))
    for one, other in zip(log_of(options.out), log_of(tmp_path / "checkpointing"), strict=True):
        assert one["loss/total"] == pytest.approx(other["loss/total"], rel=1e-5)


def test_pictures_and_logs(options):
    options = replace(options, sample_every=2, monitor_cases=1, fold="all", max_steps=4)
    train(options)
    names = {path.name for path in (options.out / "samples").iterdir()}
    assert {"step_000000.png", "step_000002.png", "step_000004.png", "delta_maps.png"} <= names
    assert np.allclose(np.load(options.out / "samples" / "delta_000000.npy"), 0.5)
    entries = log_of(options.out)
    looks = [entry for entry in entries if "fixed_noise/all" in entry]
    assert [entry["step"] for entry in looks] == [0, 2, 4]
    assert looks[-1]["fixed_noise/all"] < looks[0]["fixed_noise/all"]
    assert {"loss/student", "loss/dice", "weight/mean", "weight/clamped", "weight/lesion_share"} <= set(
        entries[1]
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(options.out / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("loss/total")) == 4 and events.Images("samples")


def test_fixed_noise_loss_is_the_same_for_the_same_weights(options, tmp_path):
    options = replace(options, sample_every=1, monitor_cases=1, fold="all", max_steps=1)
    train(options)
    train(replace(options, out=tmp_path / "again", weighting="uniform"))
    assert log_of(options.out)[0] == log_of(tmp_path / "again")[0]


def test_law_starts_where_the_clamped_prior_does(options, tmp_path):
    """Before phi has learned anything, LAW's loss is that of the clamped prior: same noise, same masks."""
    train(replace(options, max_steps=1))
    train(replace(options, max_steps=1, weighting="ratio-clamped", out=tmp_path / "clamped"))
    train(replace(options, max_steps=1, weighting="uniform", out=tmp_path / "uniform"))
    law, clamped, uniform = (log_of(tmp_path / name)[0] for name in ("run", "clamped", "uniform"))
    assert law["loss/student"] == pytest.approx(clamped["loss/student"])
    assert law["loss/student"] != pytest.approx(uniform["loss/student"], rel=1e-2)


def test_non_finite_loss_stops_and_names_the_term(options):
    train(options)
    state = torch.load(options.out / ".training" / "state.pt", weights_only=True)
    name = next(name for name in state["weights"] if name.startswith("networks.image_controlnet"))
    state["weights"][name].fill_(float("nan"))
    torch.save(state, options.out / ".training" / "state.pt")
    before = weights_of(options.out)
    with pytest.raises(UserError, match=r"step 5: found a teacher loss of nan"):
        train(replace(options, max_steps=6))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(options.out).items())


def test_steps_that_fp16_leaves_out_for_ever_stop_the_training(options, monkeypatch):
    """A CPU has no fp16: its scaler is said to skip, here."""
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: True))
    with pytest.raises(UserError, match="step 26: found 26 steps in a row whose gradients are not finite"):
        train(replace(options, max_steps=30, gradient_accumulation=1, save_every=30))
    assert not (options.out / "law_config.json").exists()


def test_odd_data(options, world):
    """One case; an empty and a full mask; odd image sizes; grey."""
    folder = world / "nnUNet_raw" / "Dataset911_Odd"
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    (folder / "labelsTr").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for number, (height, width, fill) in enumerate([(37, 91, 0), (64, 50, 1)]):
        image = generator.integers(0, 256, (height, width), dtype=np.uint8)
        Image.fromarray(image).save(folder / "imagesTr" / f"odd{number}_0000.png")
        Image.fromarray(np.full((height, width), fill, np.uint8)).save(
            folder / "labelsTr" / f"odd{number}.png"
        )
    description = {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 2,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    train(replace(options, dataset="911", fold="all", max_steps=2))
    assert all(np.isfinite(entry["loss/total"]) for entry in log_of(options.out))
    assert log_of(options.out)[-1]["loss/dice"] == 0
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "999"}, "found none for data set 999"),
        ({"fold": 7}, "found --fold 7, expected 0 to 4 or all"),
        ({"base": "/nowhere"}, "nowhere"),
        ({"size": 65}, "found --size 65, expected a multiple of 8"),
        ({"weighting": "adaptive-distillation", "preset": "light"}, "expected the teacher"),
        ({"dice": False}, "add --joint"),
        ({"w_min": 3.0}, "found --w-min 3.0 above --w-max 2.0"),
        ({"max_steps": 0}, "found --max-steps 0, expected 1 to"),
        ({"monitor_cases": -1}, "found --monitor-cases -1"),
        ({"size": -8}, "found --size -8"),
        ({"slices_per_case": 0}, "found --slices-per-case 0, expected 1"),
        ({"slices_per_case": 3}, r"found --slices-per-case 3 with \.png pictures"),
        ({"window": (80.0, 20.0)}, "found --window 80 20, expected two numbers, LOW below HIGH"),
        ({"window": (0.0, float("inf"))}, "found --window 0 inf"),
        ({"seed": -1}, "found --seed -1"),
        ({"empty_prompts": 2.0}, "found --empty-prompts 2.0, expected 0 to 1"),
        ({"weighting": "uniform", "w_max": 3.0}, "found --w-max with --weighting uniform"),
        ({"weighting": "difficulty", "dice": False}, "found --dice with --weighting difficulty"),
        ({"preset": "light", "beta_t": 1.0}, "found --beta-t with --weighting law --preset light"),
        ({"mixed_precision": "fp16"}, "found --mixed-precision fp16 on a CPU"),
        ({"dice": False, "joint": True, "lambda_dice": 7.0}, "found --lambda-dice with --weighting law"),
    ],
)
def test_bad_options_are_one_line(options, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(replace(options, **changes))
    assert "\n" not in str(error.value)
    assert not options.out.exists()


def test_another_training_in_the_folder_is_refused(options, tmp_path):
    train(replace(options, max_steps=1))
    with pytest.raises(UserError, match=r"found a run with weighting = \"law\", expected \"uniform\""):
        train(replace(options, weighting="uniform"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("important")
    with pytest.raises(UserError, match="found existing content"):
        train(replace(options, out=tmp_path / "other"))
    with pytest.raises(UserError, match="found a file"):
        train(replace(options, out=tmp_path / "other" / "thesis.txt"))


def test_damaged_files_of_a_run_are_one_line(options):
    """Empty, truncated, or another thing than was saved."""
    train(options)
    latents = next((options.out / ".training").glob("latents_*.safetensors"))
    whole = latents.read_bytes()
    latents.write_bytes(whole[: len(whole) // 2])  # only kept so that they need not be computed again
    train(replace(options, max_steps=6))
    assert latents.read_bytes() == whole and log_of(options.out)[-1]["step"] == 6
    on = replace(options, max_steps=8)
    state = (options.out / ".training" / "state.pt").read_bytes()
    for name, contents in (
        (".training/state.pt", (b"", b"PK\x03\x04", b"null", state[:-99])),
        (".training/config.json", (b"", b"{", b"null", b"[]")),
        ("log.jsonl", (b"null\n", b"{}\n", b"half a li\n")),
    ):
        path = options.out / name
        whole = path.read_bytes()
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(
                UserError, match=f"{name}: (cannot be read|malformed|found (null|array), expected object)"
            ) as error:
                train(on)
            assert "\n" not in str(error.value)
        path.write_bytes(whole)


def test_a_base_of_init_base_trains_at_its_own_size(options, tmp_path):
    init_base(InitBase(out=tmp_path / "tiny", size="tiny"))
    train(replace(options, base=str(tmp_path / "tiny"), size=None, max_steps=1))
    assert json.loads((options.out / "law_config.json").read_text())["size"] == 64


def test_base_that_saw_other_cases_is_refused(options, world, tmp_path, caplog):
    """A base from init-base must not know the validation cases of the fold."""
    shutil.copytree(world / "base", tmp_path / "base")
    from dataset_conversion.raw.dataset import find_dataset

    cases = [case.id for case in find_dataset("910").training_cases]
    about = small_base("Dataset910_Phantom", cases)
    write_base_config(tmp_path / "base", about)
    with pytest.raises(UserError, match="found a base trained on"):
        train(replace(options, base=str(tmp_path / "base")))
    train(replace(options, base=str(tmp_path / "base"), fold="all", max_steps=1))
    write_base_config(tmp_path / "base", replace(about, dataset="Dataset500_All"))
    with caplog.at_level(logging.WARNING):
        train(replace(options, base=str(tmp_path / "base"), dry_run=True, out=tmp_path / "other"))
    assert "was trained on Dataset500_All: make sure that it holds no validation or test case" in caplog.text
    # Made from a subset of it.
    about = replace(about, dataset="Dataset500_All", dataset_origin="Dataset910_Phantom")
    write_base_config(tmp_path / "base", about)
    with pytest.raises(UserError, match="found a base trained on"):
        train(replace(options, base=str(tmp_path / "base"), out=tmp_path / "other"))


def test_dry_run_writes_nothing(options):
    train(replace(options, dry_run=True))
    assert not options.out.exists()


def test_draws():
    """Every pass sees each case once; timesteps and noise differ; empty prompts have their share."""
    sampler = Sampler(seed=3, cases=7, latent_shape=(4, 2, 2), timesteps=1000, empty_prompts=0.3)
    draws = [sampler.draw(position) for position in range(700)]
    for epoch in range(100):
        assert sorted(draw.case for draw in draws[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert 0.2 < np.mean([not draw.prompt for draw in draws]) < 0.4
    assert len({draw.timestep for draw in draws}) > 400
    noise = torch.stack([draw.noise for draw in draws])
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    again = sampler.draw(600)
    assert torch.equal(again.noise, draws[600].noise) and again.timestep == draws[600].timestep
    other = Sampler(seed=4, cases=7, latent_shape=(4, 2, 2), timesteps=1000, empty_prompts=0.3).draw(600)
    assert not torch.equal(other.noise, again.noise)


def test_area_keeps_small_lesions_that_nearest_loses():
    masks = torch.zeros(1, 1, 64, 64)
    masks[0, 0, 9:12, 9:12] = 1
    assert latent_mask(masks, 8, "area").mean() == masks.mean()
    assert latent_mask(masks, 8, "nearest").sum() == 0


def test_monitored_cases_are_a_tenth_at_most():
    cases = [f"case{i}" for i in range(40)]
    alone = {case: case for case in cases}
    monitored = hold_back_cases(cases, 16, 0, alone)
    assert len(monitored) == 4 and set(monitored) < set(cases)
    two = hold_back_cases(cases, 2, 0, alone)
    assert two == hold_back_cases(cases, 2, 0, alone) != hold_back_cases(cases, 2, 1, alone)
    assert hold_back_cases(cases[:5], 16, 0, alone) == []


def test_monitored_patients_are_not_trained_on():
    cases = [f"case{i}" for i in range(60)]
    patients = {case: f"patient{i // 3}" for i, case in enumerate(cases)}
    monitored = hold_back_cases(cases, 5, 0, patients)
    assert len(monitored) == 3 and len({patients[case] for case in monitored}) == 1
    assert hold_back_cases(cases, 2, 0, patients) == []
