"""Show or run the stages of an experiment as its options ask."""

from __future__ import annotations

import sys

from nnunet_order.stages.experiment_record import ExperimentRecord, begin
from nnunet_order.stages.options import Execution
from nnunet_order.stages.runner import Pipeline, make_workers


def carry_out(execution: Execution, pipeline: Pipeline, record: ExperimentRecord) -> bool:
    """Show or run the stages; whether all of them have run.

    `record` becomes experiment.json before the first one does. UserError: a folder with something else in it,
    or whatever ends a stage.
    """
    if execution.dry_run:
        sys.stdout.write(pipeline.script())
        return False
    if execution.list_stages:
        pipeline.list_stages()
        return False
    workers = make_workers(execution.jobs, execution.gpus)
    stage = pipeline.ready_stage(execution.stage) if execution.stage is not None else None
    begin(pipeline.folder, record)
    if stage is not None:
        pipeline.run_stage(stage.name, workers[0], execution.again)
        return False
    pipeline.run(workers, execution.again)
    return True
