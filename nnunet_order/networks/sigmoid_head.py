"""The paper's one-channel sigmoid output in nnU-Net, which gives one-label data sets two softmax channels."""

from __future__ import annotations

import pydoc

import torch
from torch import Tensor, nn


class SigmoidHead(nn.Module):
    """A one-channel network that emits [0, s]: softmax of that is sigmoid(s), its cross-entropy BCE(s).

    Everything else in nnU-Net (loss, label handling, export, ensembling) stays stock. A plans file names this
    class with the network inside, so which head a model has is on record. Its weights have the names of those
    inside, so that -pretrained_weights carries them to several labels and back.

    Args:
        input_channels: image channels.
        num_classes: 2, background and the one label.
        network: dotted path of the network, e.g. "nnunet_order.networks.ORDER".
        deep_supervision: passed on.
        options: passed on to the network.

    Raises:
        ValueError: num_classes is not 2, or there is no such network.
    """

    def __init__(
        self, input_channels: int, num_classes: int, network: str, deep_supervision: bool = False, **options
    ):
        super().__init__()
        if num_classes != 2:
            raise ValueError(f"a sigmoid head is for background and one label, found {num_classes} classes")
        network_class = pydoc.locate(network)
        if network_class is None:
            raise ValueError(f"plans name the network {network}, which cannot be imported; is it installed?")
        self.network = network_class(input_channels, 1, deep_supervision=deep_supervision, **options)
        self.register_state_dict_post_hook(_leave_out_wrapper)
        self.register_load_state_dict_pre_hook(_put_in_wrapper)

    @property
    def decoder(self) -> nn.Module:
        """Where nnU-Net switches deep supervision."""
        return self.network.decoder

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """x: (B, input_channels, H, W) -> (B, 2, H, W), or a list of such."""
        logits = self.network(x)
        return [two_channels(s) for s in logits] if isinstance(logits, list) else two_channels(logits)


def _leave_out_wrapper(module: SigmoidHead, weights: dict[str, Tensor], prefix: str, *_) -> None:
    """network.encoder... -> encoder..., in place."""
    for name in [name for name in weights if name.startswith(f"{prefix}network.")]:
        weights[prefix + name.removeprefix(f"{prefix}network.")] = weights.pop(name)


def _put_in_wrapper(module: SigmoidHead, weights: dict[str, Tensor], prefix: str, *_) -> None:
    """encoder... -> network.encoder..., in place."""
    for name in [name for name in weights if name.startswith(prefix)]:
        weights[f"{prefix}network.{name.removeprefix(prefix)}"] = weights.pop(name)


def two_channels(logit: Tensor) -> Tensor:
    """s (B, 1, H, W) -> [0, s] (B, 2, H, W)."""
    return torch.cat([torch.zeros_like(logit), logit], dim=1)
