"""The `law-synth` command. Only its help so far: no verb is offered before it works."""

from __future__ import annotations

import argparse


def main() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(
        prog="law-synth",
        description="LAW: synthetic training cases for nnU-Net from a mask-conditioned ControlNet "
        "(arXiv:2603.04795). This version brings the segmentation half only (see nnunet-order); "
        "law-synth has no commands yet.",
    )
    parser.parse_args()
    parser.print_help()
