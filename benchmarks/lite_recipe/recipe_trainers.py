"""Variants of the Lite trainers that no hyper-parameter gives, for benchmarks/recipe_study.py."""

from nnunet_order.trainers import nnUNetTrainerLite40K


class nnUNetTrainerLite40K_affine(nnUNetTrainerLite40K):
    """A learned a x + b per channel before the pretrained stages."""

    network_options = {"input_map": "affine"}  # noqa: RUF012, replaced, never changed
