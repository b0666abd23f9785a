"""The verb `benchmark` on tiny batches: every number it promises, and bad input."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dataset_conversion.system.errors import UserError
from nnunet_order.benchmark import Trial, bce_dice, benchmark, fitting, read_times
from nnunet_order.options import STOCK_NETWORK, Benchmark
from nnunet_order.registry import NETWORKS


def test_report(tmp_path, capsys):
    path = tmp_path / "benchmark.json"
    networks = ("ORDER", "MKUNet", "UNeXt", "EGEUNet", "nnUNet")
    benchmark(Benchmark(networks, size=32, batch_size=2, steps=3, warmup=1, json=path))
    report = json.loads(path.read_text())
    assert tuple(row["network"] for row in report["rows"]) == networks
    first = report["rows"][0]
    assert first["train_ratio"] == 1 and first["images_per_second_ratio"] == 1
    for row in report["rows"]:
        assert len(row["times"]["train"]) == len(row["times"]["inference"]) == 3
        assert row["train_seconds"] == statistics.median(row["times"]["train"]) > 0
        assert row["images_per_second"] == pytest.approx(2 / statistics.median(row["times"]["inference"]))
        assert row["train_ratio"] == pytest.approx(row["train_seconds"] / first["train_seconds"])
        assert row["peak_memory_mib"] is None
    assert report["machine"]["torch"] == torch.__version__ and report["machine"]["threads"] >= 1
    assert report["command"] and report["options"]["batch_size"] == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in networks) and torch.__version__ in printed


def test_latency_without_training(tmp_path, capsys):
    path, threads = tmp_path / "latency.json", torch.get_num_threads()
    options = Benchmark(("MKUNet", "Lite40K"), size=32, batch_size=1, steps=3, threads=1, training=False)
    benchmark(replace(options, json=path))
    report = json.loads(path.read_text())
    assert report["machine"]["threads"] == 1 and torch.get_num_threads() == threads
    assert [row["train_seconds"] for row in report["rows"]] == [None, None]
    times = read_times(path, "")
    assert [*times] == ["MKUNet", "Lite40K"] and all(len(rounds) == 3 for rounds in times.values())
    assert "training" not in capsys.readouterr().out


def test_all_networks_are_timed_unless_some_or_models_are_named(tmp_path):
    assert Benchmark().timed == (*NETWORKS, STOCK_NETWORK)
    assert Benchmark(models=(tmp_path,)).timed == (str(tmp_path),)
    assert Benchmark(("ORDER",), models=(tmp_path,)).timed == ("ORDER", str(tmp_path))


def test_images_too_small_for_a_network_are_padded():
    network, images = nn.Sequential(nn.MaxPool2d(8), nn.InstanceNorm2d(1)), torch.rand(1, 1, 8, 8)
    padded, outputs = fitting(network, images)
    assert padded.shape == (1, 1, 16, 16) and torch.equal(padded[..., :8, :8], images)
    assert outputs.shape == (1, 1, 2, 2)
    assert fitting(network, padded)[0] is padded


def test_memory_grows_with_the_batch(tmp_path):
    peaks = []
    for batch_size in (1, 64):
        path = tmp_path / f"{batch_size}.json"
        options = Benchmark(("MKUNet",), size=64, batch_size=batch_size, steps=1, warmup=0, memory=True)
        benchmark(replace(options, json=path))
        peaks.append(json.loads(path.read_text())["rows"][0]["peak_memory_mib"])
    assert 0 < peaks[0] < peaks[1] - 20


def test_training_trains():
    trial = Trial(Benchmark(size=32, batch_size=2), "MKUNet")
    before = [parameter.detach().clone() for parameter in trial.network.parameters()]
    trial.train()
    assert all(not torch.equal(b, p) for b, p in zip(before, trial.network.parameters(), strict=True))


def test_loss():
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2] = 1
    assert bce_dice((masks * 2 - 1) * 20, masks) == pytest.approx(0, abs=1e-4)
    assert bce_dice(torch.zeros_like(masks), masks) == pytest.approx(0.693147 + 0.5, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tmp_path):
    path = tmp_path / "cuda.json"
    benchmark(Benchmark(size=64, batch_size=2, device="cuda", steps=1, memory=True, json=path))
    assert all(row["peak_memory_mib"] > 0 for row in json.loads(path.read_text())["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "found --steps 0, expected 1 or more"),
        ({"networks": ("ORDER", "ORDER")}, "each once"),
        ({"models": (Path("a"), Path("a"))}, "each once"),
        ({"models": (Path("a"),)}, "a: found another name, expected a folder <trainer>__<plans>__2d"),
        ({"models": (Path("a__b__2d"),)}, "plans.json: not found"),
        ({"memory": True, "training": False}, "found --memory with --no-training"),
        ({"threads": 0}, "found --threads 0, expected 1 or more"),
        pytest.param(
            {"device": "cuda"},
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        benchmark(Benchmark(**options))
