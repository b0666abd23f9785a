"""What our trainers change in an nnU-Net plans file: architecture, patch and batch (no I/O here)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from dataset_conversion.system.errors import UserError
from nnunet_order.registry import FIVE_HALVINGS, Strides, network_path, total_stride

SIGMOID_HEAD = network_path("SigmoidHead")


def patch_size(median_shape: Sequence[float], largest_side: int, multiple: int = 32) -> list[int]:
    """The median image, sides rounded up to a multiple of `multiple`, at most `largest_side`.

    The paper trains on 512x512 crops of resized images; nnU-Net never resizes, and a 512 patch on 256 px
    images would be 75 % padding, which spoils the batch statistics.
    """
    largest_side -= largest_side % multiple
    return [min(largest_side, -int(-side // multiple) * multiple) for side in median_shape]


def resolved(configurations: dict[str, dict], name: str) -> dict[str, Any]:
    """The settings of a configuration with those that it inherits, as nnU-Net resolves them."""
    settings = dict(configurations[name])
    parent = settings.pop("inherits_from", None)
    return settings if parent is None else resolved(configurations, parent) | settings


def with_network(
    plans: dict[str, Any],
    configuration: str,
    network: str,
    options: dict[str, Any],
    *,
    strides: Strides = FIVE_HALVINGS,
    batch_size: int,
    largest_patch: int,
    sigmoid_head: bool,
) -> dict[str, Any]:
    """A copy of `plans` whose `configuration` trains `network` (dotted path) with these keyword `options`.

    Args:
        plans: an nnU-Net plans dictionary; it is not changed.
        configuration: a 2D configuration of it.
        strides: those of the network; patch sides become multiples of their product.
        batch_size: of the new configuration.
        largest_patch: upper bound of a patch side in pixels.
        sigmoid_head: one output channel instead of two, see `networks.SigmoidHead`.

    Raises:
        UserError: no such configuration, it is not 2D, or sizes that nothing can be trained with.
    """
    multiple = total_stride(strides)
    if largest_patch < multiple or batch_size < 1:
        raise UserError(
            f"found largest patch {largest_patch} and batch size {batch_size}, expected at least "
            f"{multiple} and 1; change them"
        )
    plans = deepcopy(plans)
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise UserError(
            f"found no configuration {configuration} in the plans, expected {known}; train with 2d"
        )
    settings = plans["configurations"][configuration] = resolved(plans["configurations"], configuration)
    patch = settings["patch_size"]
    if len(patch) != 2:
        name = network.rpartition(".")[-1]
        raise UserError(
            f"found patch size {patch} in configuration {configuration}, expected two sides since {name} is "
            "2D; train with 2d"
        )
    # nnU-Net reads the deep-supervision targets' sizes from these strides.
    options = {**options, "strides": [list(stride) for stride in strides]}
    if sigmoid_head:
        options = {"network": network, **options}
        network = SIGMOID_HEAD
    settings["architecture"] = {
        "network_class_name": network,
        "arch_kwargs": options,
        "_kw_requires_import": [],
    }
    settings["patch_size"] = patch_size(settings["median_image_size_in_voxels"], largest_patch, multiple)
    settings["batch_size"] = batch_size
    return plans
