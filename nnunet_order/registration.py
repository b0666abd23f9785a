"""Make `nnUNetv2_train -tr nnUNetTrainerORDER` find our trainers right after `pip install`.

nnU-Net looks for trainers in its own package and then in the folders that the environment variable
`nnUNet_extTrainer` lists. At its start Python runs the line of `nnunet_order.pth`, which lies beside the
package in site-packages, and so does every worker process that nnU-Net spawns. That line does what `register`
does, but imports nothing: every Python process of the environment pays for it, also where the package is
broken or gone. Nothing is written into nnunetv2, and uninstalling removes the file.
"""

from __future__ import annotations

import os

VARIABLE = "nnUNet_extTrainer"
OPT_OUT = "NNUNET_ORDER_NO_AUTOLOAD"


def shim_folder() -> str:
    """The folder to list in `nnUNet_extTrainer`.

    It holds one module of import lines: nnU-Net imports every module of such a folder and then forgets it, so
    trainers defined there could not be pickled.
    """
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "ext_trainer")


def register() -> None:
    """Append the shim folder to `nnUNet_extTrainer`, after the user's folders. Idempotent."""
    if os.environ.get(OPT_OUT, "") not in ("", "0"):
        return
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    if shim_folder() not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, shim_folder()])
