"""ORDER for stock nnU-Net v2: network, trainers, measuring.

Attributes are imported on first use (PEP 562), so that prediction from an ONNX file does without torch.
"""

from __future__ import annotations

__all__ = ["ORDER", "MKUNet"]


def __getattr__(name: str):
    if name in __all__:
        from nnunet_order import networks

        return getattr(networks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
