"""The segmentation networks: ORDER, and the small networks that the paper compares it with."""

from nnunet_order.networks.ege_unet import EGEUNet
from nnunet_order.networks.mk_unet import ORDER, MKUNet, MKUNetWide
from nnunet_order.networks.sigmoid_head import SigmoidHead
from nnunet_order.networks.unext import UNeXt

__all__ = ["ORDER", "EGEUNet", "MKUNet", "MKUNetWide", "SigmoidHead", "UNeXt"]
