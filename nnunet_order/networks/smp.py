"""Decoders of segmentation-models-pytorch (SMP) with encoders of timm, behind the contract of our networks.

Both are read from plans.json, which may come from elsewhere, so only names of a fixed list of decoders and of
timm's own networks pass. Weights are never loaded here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.provenance import require
from nnunet_order.networks.efficientnet_lite import HalvingConvolution
from nnunet_order.networks.strides import check_strides
from nnunet_order.registry import SMP_DECODER, SMP_ENCODER, Strides

# Of SMP's, these keep the contract of our networks. DPT wants vision transformers for images of one size, PAN
# images of 128 pixels and more, PSPNet leaves the encoder's last stages unused, which stops DDP, and UPerNet
# pools to fixed sizes, which an ONNX file for images of any size cannot.
DECODERS = (
    "FPN",
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "DeepLabV3",
    "DeepLabV3Plus",
    "Segformer",
)
TIMM = "tu-"  # SMP's prefix for encoders of timm
MULTIPLE = 32  # of the sides that every decoder takes


def check_names(decoder: object, encoder: object) -> None:
    """UserError: a decoder that is none of `DECODERS`, or an encoder that timm does not have itself.

    timm would also take "local-dir:" and "hf-hub:" names, and read a folder or ask a hub.
    """
    import timm

    if decoder not in DECODERS:
        raise UserError(f"found decoder={decoder!r:.80}, expected one of {', '.join(DECODERS)}; correct it")
    found = re.fullmatch(rf"{TIMM}(\w+)(\.\w+)?", encoder) if isinstance(encoder, str) else None
    if found is None or not timm.is_model(found[1]) or (found[2] and not is_tagged(encoder)):
        raise UserError(
            f"found encoder={encoder!r:.80}, expected {TIMM} and the name of a network of timm, such as "
            f"{SMP_ENCODER}; correct it, or install a newer timm"
        )


def is_tagged(encoder: str) -> bool:
    """Whether timm knows weights of this name, tu-NETWORK.TAG."""
    import timm

    return encoder.removeprefix(TIMM) in timm.list_pretrained()


class SMPDecoder(nn.Module):
    """A decoder of SMP and its segmentation head, under the name that nnU-Net's -pretrained_weights knows."""

    def __init__(self, layers: nn.Module, head: nn.Module):
        super().__init__()
        self.layers = layers
        self.seg_layers = head

    def forward(self, features: list[Tensor]) -> Tensor:
        """features: of SMP's encoder, the image first -> logits at the image's size."""
        return self.seg_layers(self.layers(features))


class SMP(nn.Module):
    """x (B, input_channels, H, W), any H and W -> logits (B, num_classes, H, W).

    4,710,785 parameters with FPN and EfficientNet-Lite0. Images are continued by their last row and column to
    multiples of 32.

    Args:
        input_channels: image channels.
        num_classes: output channels (logits).
        deep_supervision: must be False; SMP's decoders have one output.
        strides: from a plans file, checked.
        decoder: one of `DECODERS`.
        encoder: "tu-" and timm's name of a network.

    Raises:
        UserError: no such decoder or encoder, one that SMP cannot combine, or SMP is not installed.
        ValueError: deep supervision, or other strides.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        strides: Strides | None = None,
        decoder: str = SMP_DECODER,
        encoder: str = SMP_ENCODER,
    ):
        super().__init__()
        if deep_supervision:
            raise ValueError("SMP has no deep supervision; train it with nnUNetTrainerSMP")
        check_strides(strides)
        check_names(decoder, encoder)
        built = build(input_channels, num_classes, decoder, encoder)
        self.encoder = built.encoder
        self.decoder = SMPDecoder(built.decoder, built.segmentation_head)
        fix_padding(self.encoder)
        mark_published(self.encoder.model, encoder.removeprefix(TIMM))

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """UserError: options of a plans file that name no decoder or encoder, see `check_names`."""
        check_names(options.get("decoder", SMP_DECODER), options.get("encoder", SMP_ENCODER))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return self.decoder(self.encoder(rounded_up(x)))[:, :, :height, :width]


def build(input_channels: int, num_classes: int, decoder: str, encoder: str) -> nn.Module:
    """SMP's network with random weights. UserError: see `SMP`."""
    require("smp", "segmentation_models_pytorch")
    import segmentation_models_pytorch

    network_class = getattr(segmentation_models_pytorch, decoder)
    try:
        return network_class(encoder, encoder_weights=None, in_channels=input_channels, classes=num_classes)
    except Exception as error:  # of timm or SMP, for networks that have no features of the sizes they want
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"found decoder={decoder} with encoder={encoder}, which SMP cannot build ({reason[:150]}), "
            "expected another pair; FPN and Unet take most encoders"
        ) from error


def rounded_up(x: Tensor) -> Tensor:
    """(B, C, H, W) -> both sides rounded up to a multiple of 32, by repeating the last row and column.

    By index, since the number of rows that F.pad would add is none at some sizes, for which torch.export
    would want a graph of its own.
    """
    for axis in (2, 3):
        side = x.shape[axis]
        places = torch.arange((side + MULTIPLE - 1) // MULTIPLE * MULTIPLE, device=x.device)
        x = x.index_select(axis, places.clamp(max=side - 1))
    return x


def fix_padding(encoder: nn.Module) -> None:
    """Give timm's convolutions with TensorFlow's padding "SAME" a fixed one, which is equal at even sizes.

    `rounded_up` makes all sizes even that they halve. timm computes the padding from the size, for which
    torch.export takes longer than anybody waits.
    """
    from timm.layers import Conv2dSame

    for parent in [*encoder.modules()]:
        for name, old in [*parent.named_children()]:
            if isinstance(old, Conv2dSame) and old.stride == (2, 2) and old.dilation == (1, 1):
                new = HalvingConvolution(old.in_channels, old.out_channels, old.kernel_size[0], old.groups)
                new.weight, new.bias = old.weight, old.bias
                setattr(parent, name, new)


def mark_published(features: nn.Module, name: str) -> None:
    """Tell `nnunet_order.pretrained` which network of timm has the weights of its network of features."""
    import timm

    part = getattr(features, "model", features)  # timm wraps some, others it takes to pieces
    first = timm.get_pretrained_cfg(name).first_conv or ()
    part.published = name
    part.stems = tuple(f"{layer}.weight" for layer in ([first] if isinstance(first, str) else first))
