"""`law-synth train`: a mask-conditioned ControlNet on one fold of an nnU-Net data set."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from diffusers.training_utils import EMAModel
from torch.nn import Parameter

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.lock import hold
from dataset_conversion.system.terminal import progress
from law_synth.base.model import BaseModel, load_base
from law_synth.objective import Losses, total_loss
from law_synth.training.build import new_accelerator, new_objective, new_optimizer
from law_synth.training.data import Draw, Sampler, TrainingData, load_training_data
from law_synth.training.monitor import Monitor
from law_synth.training.options import Train
from law_synth.training.settle import TrainingPlan, chosen_dataset, describe, settle
from law_synth.training.state import (
    WORK,
    check_same_options,
    claim,
    export,
    is_exported,
    load_state,
    save_state,
    truncate_log,
)
from law_synth.view.slices import Slice
from law_synth.weighting import weight_statistics

logger = logging.getLogger(__name__)

REMEDY = (
    "give --mixed-precision no to go on after the last save, or start again in another --out with a lower "
    "--learning-rate"
)
MAX_SKIPPED = 25  # fp16's first scale of 65536 is below 1 after 17
MAX_GRADIENT_NORM = 1.0  # that of diffusers' own ControlNet script; the papers do not say


def train(options: Train) -> Path:
    """Train as `options` say; returns the run folder. UserError: bad input, non-finite loss."""
    options.check()
    accelerator = new_accelerator(options)
    dataset = chosen_dataset(options)
    base = load_base(options.base)
    plan = settle(options, dataset, base, accelerator.num_processes)
    check_same_options(plan.folder, plan.content)
    describe(plan)
    if options.dry_run:
        return plan.folder

    set_seed(options.seed)
    objective = new_objective(options, base, plan.view.classes.count).to(accelerator.device)
    data, monitored = load_data(options, plan, base, accelerator)
    with claimed(plan, accelerator):
        sampler = new_sampler(options, data, base)
        trained = [p for p in objective.networks.parameters() if p.requires_grad]
        optimizer = new_optimizer(options, objective, accelerator)
        ema = new_average(options, trained, accelerator)
        state = {"optimizer": optimizer, "ema": ema, "scaler": accelerator.scaler}
        start = same_start(plan.folder, load_state(plan.folder, objective, **state))
        if ema:
            ema.to(accelerator.device)
        model, optimizer = accelerator.prepare(objective, optimizer)
        monitor = new_monitor(plan, base, monitored, accelerator, start)

        def look(step: int) -> None:
            """Fixed-noise loss and pictures of what a save would export."""
            if monitor and options.sample_every:
                with averaged(ema, trained):
                    monitor.look(step, objective)

        def save(step: int) -> None:
            """State for a resume, and the folders that generation reads: of the averaged weights, if any."""
            if accelerator.is_main_process:
                save_state(plan.folder, step, objective, **state)
                with averaged(ema, trained):
                    export(plan.folder, objective, plan.config, step, finished=step >= options.max_steps)
            accelerator.wait_for_everyone()

        last, names, skipped = options.max_steps, plan.view.classes.names, 0
        tell_start(plan.folder, start, last)
        if not start:
            look(0)
        elif start >= last and not is_exported(plan.folder, start):
            save(start)  # it was killed in its last save, or this has become its last
        with progress("loss {task.fields[loss]:.4f}", disable=not accelerator.is_main_process) as bar:
            task = bar.add_task("training", total=last, completed=start, loss=math.nan)
            for step in range(start + 1, last + 1):
                logs = monitor and (step % options.log_every == 0 or step == last)
                passes, several = drawn_passes(options, sampler, data, step, accelerator)
                entries = []
                for draws in passes:
                    batch = data.batch(draws, accelerator.device, options.teaches, several)
                    with accelerator.accumulate(model):
                        losses = model(batch)
                        loss = total_loss(losses.terms, options.coefficients)
                        entries.append(finite_terms(accelerator, step, losses, loss))
                        if logs:
                            w, bounds = losses.weights, objective.bounds
                            entries[-1] |= weight_statistics(w, batch.mask, bounds, names)
                        accelerator.backward(loss)
                        clip_gradient(accelerator, options, step, trained)
                        optimizer.step()
                        optimizer.zero_grad()
                skipped = count_skipped(accelerator, step, skipped)
                if ema and not skipped:
                    ema.step(trained)
                means = mean_of(entries)
                if logs:
                    monitor.log(step, means)
                bar.update(task, advance=1, loss=means["loss/total"])
                if step % (options.sample_every or last) == 0 or step == last:
                    look(step)
                if step % options.save_every == 0 or step == last:
                    save(step)
        if monitor:
            monitor.close()
            logger.info("wrote %s", plan.folder)
        accelerator.end_training()
    return plan.folder


def load_data(
    options: Train, plan: TrainingPlan, base: BaseModel, accelerator: Accelerator
) -> tuple[TrainingData, TrainingData]:
    """What is trained on, and what the fixed-noise loss and the pictures show. UserError: no lesion."""

    def load(slices: list[Slice]) -> TrainingData:
        size, prompt = plan.config.size, plan.config.prompt
        cache = plan.folder / WORK
        return load_training_data(plan.view, slices, base, size, prompt, options.mask_downsampling, cache)

    base.vae.to(accelerator.device)
    with accelerator.main_process_first():  # it encodes, the others read what it kept
        data = load(plan.config.slices_of(plan.config.train_cases))
        monitored = load(plan.config.monitored_slices)
    base.text_encoder = None  # both prompts are encoded
    if not data.masks.any():
        raise UserError(
            f"{options.dataset}: found no lesion in {len(data.slices)} training masks, expected some to "
            "weigh the loss by; correct the labels"
        )
    return data, monitored


@contextmanager
def claimed(plan: TrainingPlan, accelerator: Accelerator) -> Iterator[None]:
    """Hold the run folder as the only training that writes there, and record what it trains.

    Entered only when the data have been read: what is wrong with them leaves no run behind.
    """
    if not accelerator.is_main_process:
        yield
        return
    lock = hold(plan.folder / WORK / "lock", plan.folder)
    try:
        claim(plan.folder, plan.content)
        yield
    finally:
        lock.release()


def tell_start(folder: Path, start: int, last: int) -> None:
    """Say which steps are there already."""
    if start >= last:
        logger.info("%s has %d steps already; give a higher --max-steps", folder, start)
    elif start:
        logger.info("going on after step %d", start)


def new_sampler(options: Train, data: TrainingData, base: BaseModel) -> Sampler:
    """Draws for the training cases."""
    timesteps, shape = base.scheduler.config.num_train_timesteps, tuple(data.mean.shape[1:])
    return Sampler(options.seed, len(data.slices), shape, timesteps, options.empty_prompts)


def new_average(options: Train, trained: Sequence[Parameter], accelerator: Accelerator) -> EMAModel | None:
    """The moving average of the trained weights, for the main process, which alone looks and saves."""
    averages = options.ema_decay > 0 and accelerator.is_main_process
    return EMAModel(trained, decay=options.ema_decay) if averages else None


def new_monitor(
    plan: TrainingPlan, base: BaseModel, monitored: TrainingData, accelerator: Accelerator, start: int
) -> Monitor | None:
    """The main process's log and pictures, from step `start` on. UserError: the log is damaged."""
    if not accelerator.is_main_process:
        return None
    truncate_log(plan.folder, start)
    return Monitor(plan, base, monitored, accelerator, start)


def same_start(folder: Path, start: int) -> int:
    """The step that this process goes on from. UserError: others go on from another."""
    if len(starts := set(gather_object([start]))) > 1:
        raise UserError(
            f"{folder}: found processes that would go on after steps {sorted(starts)}, expected one; put "
            "the run folder on a disk that all machines share"
        )
    return start


@contextmanager
def averaged(ema: EMAModel | None, trained: Sequence[Parameter]) -> Iterator[None]:
    """The moving average of the weights, where there is one, instead of the weights."""
    if ema:
        ema.store(trained)
        ema.copy_to(trained)
    yield
    if ema:
        ema.restore(trained)


def drawn_passes(
    options: Train, sampler: Sampler, data: TrainingData, step: int, accelerator: Accelerator
) -> tuple[list[list[Draw]], float]:
    """This process's samples in each pass of a step, by their positions in the training.

    Also the share of the whole step's images, of all passes and processes, whose masks tell delta something.
    """
    batch, processes = options.batch_size, accelerator.num_processes
    in_pass = batch * processes
    first = (step - 1) * options.gradient_accumulation * in_pass
    cases = [sampler.case(first + i) for i in range(options.gradient_accumulation * in_pass)]
    own = first + accelerator.process_index * batch
    passes = [
        [sampler.draw(own + number * in_pass + i) for i in range(batch)]
        for number in range(options.gradient_accumulation)
    ]
    return passes, data.several[cases].float().mean().item()


def finite_terms(
    accelerator: Accelerator, step: int, losses: Losses, total: torch.Tensor
) -> dict[str, float]:
    """Loss terms as numbers, the mean over processes. UserError names the first that is not finite."""
    values = torch.stack([*(term.mean() for term in losses.terms.values()), total]).detach()
    # Reduced first, so that all processes stop together.
    found = zip((*losses.terms, "total"), accelerator.reduce(values, "mean").tolist(), strict=True)
    terms = {f"loss/{name}": value for name, value in found}
    for name, value in terms.items():
        if not math.isfinite(value):
            name = name.removeprefix("loss/")
            raise UserError(f"step {step}: found a {name} loss of {value}, expected a finite one; {REMEDY}")
    return terms


def clip_gradient(accelerator: Accelerator, options: Train, step: int, trained: Sequence[Parameter]) -> None:
    """Clip the student's and the teacher's gradient to `MAX_GRADIENT_NORM`, after the last pass of a step.

    UserError: it is not finite. With fp16 the scaler leaves such steps out.
    """
    if not accelerator.sync_gradients:
        return
    norm = accelerator.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
    if options.mixed_precision != "fp16" and not torch.isfinite(norm):
        raise UserError(f"step {step}: found a gradient of norm {norm}, expected a finite one; {REMEDY}")


def count_skipped(accelerator: Accelerator, step: int, before: int) -> int:
    """How many steps in a row the scaler of fp16 has left out by now.

    UserError: it leaves out step after step, whatever its scale, and nothing is learned.
    """
    skipped = before + 1 if accelerator.optimizer_step_was_skipped else 0
    if skipped > MAX_SKIPPED:
        raise UserError(
            f"step {step}: found {skipped} steps in a row whose gradients are not finite in fp16, expected "
            f"some that are; {REMEDY}"
        )
    return skipped


def mean_of(entries: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each value over the passes that have it; a pass of empty masks has no weight statistics."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    values = {
        name: [entry[name] for entry in entries if math.isfinite(entry.get(name, math.nan))] for name in names
    }
    return {name: sum(found) / len(found) for name, found in values.items() if found}
