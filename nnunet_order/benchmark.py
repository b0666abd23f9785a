"""The verb `benchmark`: seconds per training iteration, images per second and memory, side by side."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_json, write_json
from dataset_conversion.system.parallel import in_processes
from dataset_conversion.system.provenance import machine
from dataset_conversion.system.terminal import verbatim
from nnunet_order import networks
from nnunet_order.complexity import planned_unet
from nnunet_order.model_folder import open_model_folder
from nnunet_order.options import STOCK_NETWORK, Benchmark
from nnunet_order.registry import NETWORKS

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of each timed round of one network, for a batch."""

    inference: list[float]


@dataclass(frozen=True)
class TimedNetwork:
    """What we read of a row of the file that --json writes."""

    network: str
    times: RoundTimes


@dataclass(frozen=True)
class BenchmarkReport:
    """What we read of that file."""

    rows: list[TimedNetwork]


def benchmark(options: Benchmark) -> None:
    """Time the networks, print a table and write it with --json.

    UserError: bad options, no such device, a folder that is no trained model's.
    """
    options.check()
    check_device(options.device)
    peaks = peak_memory(options) if options.memory else {}
    with threads(options.threads):
        times = measure(options)
        about = conditions(options.device)
    rows = [row_of(name, of_network, options.batch_size) for name, of_network in times.items()]
    for row in rows:
        row["peak_memory_mib"] = peaks.get(row["network"])
        for column in ("train_seconds", "images_per_second"):
            known = row[column] is not None
            row[f"{column.removesuffix('_seconds')}_ratio"] = row[column] / rows[0][column] if known else None
    print_table(options, rows, about)
    if options.json is not None:
        given = asdict(options) | {"json": str(options.json), "models": list(map(str, options.models))}
        command = ["nnunet-order", *sys.argv[1:]]
        write_json(options.json, {"machine": about, "command": command, "options": given, "rows": rows})


def read_times(path: Path, remedy: str) -> dict[str, list[float]]:
    """Network -> seconds of each inference, from a file that --json wrote. UserError: as `read_json`."""
    return {row.network: row.times.inference for row in read_json(path, BenchmarkReport, remedy).rows}


def row_of(name: str, times: dict[str, list[float]], batch_size: int) -> dict:
    """A network's medians, and all its times."""
    return {
        "network": name,
        "train_seconds": statistics.median(times["train"]) if times["train"] else None,
        "images_per_second": batch_size / statistics.median(times["inference"]),
        "times": times,
    }


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """PyTorch with that many threads; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(device: str) -> None:
    """UserError: torch does not find it."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("found no CUDA device, expected one for --device cuda; use --device cpu")


class Trial:
    """One network with its optimizer and a fixed batch, ready to be timed."""

    def __init__(self, options: Benchmark, name: str):
        import torch

        torch.manual_seed(options.seed)
        self.device = options.device
        network, channels = build(name, options.size, options.input_channels)
        self.network = network.to(options.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.scaler = torch.amp.GradScaler(options.device, enabled=options.device == "cuda")
        shape = (options.batch_size, channels, options.size, options.size)
        self.images, outputs = fitting(self.network, torch.randn(shape, device=options.device))
        self.masks = (torch.rand_like(outputs) < 0.1).float()

    def train(self) -> None:
        """Forward, BCE + Dice, backward, optimizer step."""
        import torch

        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.float16, enabled=self.device == "cuda"):
            loss = bce_dice(self.network(self.images), self.masks)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def inference(self) -> None:
        """Forward in eval mode."""
        import torch

        self.network.eval()
        autocast = torch.autocast(self.device, torch.float16, enabled=self.device == "cuda")
        with torch.inference_mode(), autocast:
            self.network(self.images)

    def seconds(self, action: Callable[[], None]) -> float:
        """Wall time of `action`, the device's queue drained before and after."""
        self._wait()
        start = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def build(name: str, size: int, input_channels: int) -> tuple[nn.Module, int]:
    """A network with one output channel, or that of a trained model's folder; and its input channels.

    UserError: `name` is neither a network nor such a folder.
    """
    if name == STOCK_NETWORK:
        return planned_unet(size, input_channels), input_channels
    if name in NETWORKS:
        return getattr(networks, name)(input_channels, 1), input_channels
    parts = Path(name).resolve().name.split("__")
    if len(parts) != 3:
        raise UserError(
            f"{name}: found another name, expected a folder <trainer>__<plans>__2d of nnUNet_results; "
            "correct the path"
        )
    model = open_model_folder(Path(name))
    network = model.build_network(model.configuration(parts[2])[1], parts[0])
    return network, len(model.data.channel_names)


def fitting(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images that the network takes, and what it makes of them. Too small ones are padded to twice the side.

    nnU-Net, too, pads small images. Nine stages would leave one pixel of 256, which has no variance.
    """
    import torch

    network.eval()
    with torch.no_grad():
        try:
            return images, network(images)
        except ValueError:
            side = images.shape[-1]
            images = torch.nn.functional.pad(images, (0, side, 0, side))
            return images, network(images)


def bce_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """BCE + soft Dice over the batch, both (B, K, H, W); in fp32: the sums overflow half precision."""
    from torch.nn import functional as F

    logits = logits.float()
    probability = logits.sigmoid()
    overlap = 2 * (probability * masks).sum() / (probability.sum() + masks.sum()).clamp(min=1e-6)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - overlap


def measure(options: Benchmark) -> dict[str, dict[str, list[float]]]:
    """Network -> seconds of each timed round, under "train" and "inference"."""
    trials = {name: Trial(options, name) for name in options.timed}
    times: dict[str, dict[str, list[float]]] = {name: {"train": [], "inference": []} for name in trials}
    rounds = [(number, name) for number in range(options.warmup + options.steps) for name in trials]
    for number, name in track(rounds, "Timing"):
        trial = trials[name]
        actions = {"train": trial.train} if options.training else {}
        for kind, action in (actions | {"inference": trial.inference}).items():
            seconds = trial.seconds(action)
            if number >= options.warmup:
                times[name][kind].append(seconds)
    return times


def peak_memory(options: Benchmark) -> dict[str, float]:
    """Network -> MiB that two training iterations need at most, in a fresh process each."""
    if sys.platform == "win32" and options.device == "cpu":
        raise UserError("found Windows, expected Linux or macOS for --memory on the CPU; leave --memory out")
    peaks = {}
    for name in track(options.timed, "Memory"):
        with in_processes(partial(_peak_of_this_process, options), [name], workers=1) as found:
            peaks[name] = next(found)
    return peaks


def _peak_of_this_process(options: Benchmark, name: str) -> float:
    import torch

    cuda = options.device == "cuda"
    build(STOCK_NETWORK, 32, 1)  # loads the libraries, so that they do not count
    before = 0.0 if cuda else resident_peak()
    trial = Trial(options, name)
    for _ in range(2):  # the optimizer's state exists from the second on
        trial.train()
    return torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_peak() - before


def resident_peak() -> float:
    """Peak resident memory of this process in MiB."""
    if sys.platform == "linux":
        # Not getrusage: its ru_maxrss starts a child at its parent's peak.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def conditions(device: str) -> dict[str, str | int]:
    """What the times depend on."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": machine()["processor"],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nnunetv2": version("nnunetv2"),
    }


def print_table(options: Benchmark, rows: list[dict], about: dict) -> None:
    """Medians, with the range of the rounds, and ratios to the first network."""
    size = f"batch {options.batch_size}, {options.size} px, {options.input_channels} channels"
    table = Table(title=f"{size}: median of {options.steps} interleaved rounds")
    table.add_column("Network", overflow="fold")
    training = ("s / training iteration", "ratio") if options.training else ()
    for head in (*training, "images / s, inference", "ratio", *["peak MiB, training"] * options.memory):
        table.add_column(head, justify="right")
    for row in rows:
        cells = [verbatim(row["network"])]
        if options.training:
            train = row["times"]["train"]
            cells.append(f"{row['train_seconds']:.3g}\n[dim]{min(train):.3g}..{max(train):.3g}[/dim]")
            cells.append(f"{row['train_ratio']:.2f}")
        cells += [f"{row['images_per_second']:.3g}", f"{row['images_per_second_ratio']:.2f}"]
        if options.memory:
            cells.append(f"{row['peak_memory_mib']:,.0f}")
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
