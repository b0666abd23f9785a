"""Which device a verb computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataset_conversion.system.errors import UserError

if TYPE_CHECKING:
    import torch


def has_bf16(device: torch.device) -> bool:
    """Whether it is a GPU that computes in bf16; those before Ampere emulate it, many times slower."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto is CUDA where there is one, else the CPU. UserError: no such device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"found --device {name}, expected auto, cpu, cuda or cuda:1; correct it")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"found --device {name} and {count} GPUs that torch can use; give --device cpu")
    return device
