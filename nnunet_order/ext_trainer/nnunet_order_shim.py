"""Where nnU-Net looks: import lines only, see `nnunet_order.registration.shim_folder`."""

from nnunet_order.trainers import (  # noqa: F401
    nnUNetTrainerEGEUNet,
    nnUNetTrainerMKUNet,
    nnUNetTrainerMKUNet_5epochs,
    nnUNetTrainerMKUNet_30epochs,
    nnUNetTrainerMKUNetWide,
    nnUNetTrainerMKUNetWide_30epochs,
    nnUNetTrainerORDER,
    nnUNetTrainerORDER_5epochs,
    nnUNetTrainerORDER_30epochs,
    nnUNetTrainerORDER_all,
    nnUNetTrainerORDER_early,
    nnUNetTrainerORDER_fp32,
    nnUNetTrainerORDER_mid,
    nnUNetTrainerORDER_none,
    nnUNetTrainerUNeXt,
)
