"""The segmentation networks: ORDER, and the small networks that it is compared with.

A network of this package keeps this contract, which nnU-Net expects of every network:

* Its class takes `(input_channels, num_classes, deep_supervision=False, strides=None, **options)`. The
  options are JSON values, because they stand in plans.json.
* `forward` turns images (B, input_channels, H, W) of any H and W into logits (B, num_classes, H, W).
* `strides` are those of its entry in `nnunet_order.registry`: one (height, width) per encoder stage. nnU-Net
  computes from them the sizes of the deep-supervision targets, and we the multiple to which patches are
  rounded. The network refuses others (`strides.check_strides`).
* `decoder.deep_supervision` switches the lower outputs on and off after the network has been built. While it
  is on, `forward` returns a list from high to low resolution: one output per stride but the last.
* `decoder.seg_layers` holds the layers whose shape depends on the number of classes (`seg_layers.SegLayers`).
  nnU-Net's -pretrained_weights leaves out what has this name. A network whose other layers depend on the
  classes too, such as EGE-UNet, has none, and its weights carry over only between data sets with as many
  classes.
* A network whose first layers have published weights holds them in one module, which has timm's names of
  parameters and two attributes: `published`, timm's name of the whole network, and `stems`, the names of the
  weights whose shape depends on the image channels. A dot in a name may be an underscore, as it is in timm's
  networks of features. `nnunet_order.pretrained` finds and fills this module.
* Weights that were trained with deep supervision load into a network that was built without it.

tests/test_networks.py has the contract as one class, `NetworkTester`, that a new network subclasses.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nnunet_order.registry import NETWORKS

# As text, like the verbs of a command: what only names networks need not wait for torch.
MODULES = {name: network.module for name, network in NETWORKS.items()} | {"SigmoidHead": "sigmoid_head"}

__all__ = [*MODULES]


def __getattr__(name: str) -> Any:
    """A network class, or `SigmoidHead`, from its module (PEP 562)."""
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
