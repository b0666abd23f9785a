"""The `nnunet-order` command. The imports wait until `run_command` can answer a Ctrl-C: they take a while."""

from __future__ import annotations

from dataset_conversion.system.errors import run_command


def main() -> None:
    """Entry point of the console script."""
    run_command(_read_and_run)


def _read_and_run() -> None:
    from nnunet_order.verbs import read_and_run

    read_and_run()
