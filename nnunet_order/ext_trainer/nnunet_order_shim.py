"""Where nnU-Net looks for our trainers: names only, see `nnunet_order.registration.shim_folder`."""

from nnunet_order import trainers
from nnunet_order.registry import TRAINERS

globals().update({name: getattr(trainers, name) for name in TRAINERS})
