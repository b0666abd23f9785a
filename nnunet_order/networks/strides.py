"""The strides that a plans file gives a network must be those that the network was designed with."""

from __future__ import annotations

from nnunet_order.registry import FIVE_HALVINGS, Strides


def check_strides(strides: Strides | None, own: Strides = FIVE_HALVINGS) -> None:
    """Raise ValueError unless `strides`, from a plans file, are the network's own; None stands for these."""
    own = [list(stride) for stride in own]
    if strides is not None and [list(stride) for stride in strides] != own:
        raise ValueError(f"plans give strides {strides}, but the network down-samples by {own}")
