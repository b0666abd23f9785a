"""The verb `compare`: trainers side by side on real data, as in the paper's Tables 3, 5 and 6."""

from __future__ import annotations

from dataset_conversion.raw.dataset import find_dataset
from nnunet_order.comparing.comparison import Comparison
from nnunet_order.comparing.options import Compare
from nnunet_order.comparing.table import print_table, table_rows
from nnunet_order.stages.execution import carry_out


def compare(options: Compare) -> None:
    """Train, predict and score, then print the table; or show the stages, or run one of them.

    UserError: options, data or a folder that cannot be used; a stage that fails.
    """
    options.check()
    comparison = Comparison(options, find_dataset(options.dataset))
    options.execution.check_device(comparison.device)
    if carry_out(options.execution, comparison.pipeline(), comparison.record()):
        print_table(table_rows(options.out, comparison), options.out)
