"""The training loop behind `law-synth train`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    gather_object,
    set_seed,
)
from diffusers.training_utils import EMAModel

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.lock import hold
from dataset_conversion.system.terminal import progress
from law_synth.base.model import BaseModel, load_base
from law_synth.denoiser import StudentTeacher
from law_synth.devices import has_bf16
from law_synth.objective import Losses, TrainingObjective, total_loss
from law_synth.records.run import monitored_slices, slices_of
from law_synth.training.data import Sampler, TrainingData, load_training_data
from law_synth.training.monitor import Monitor
from law_synth.training.settle import Plan, chosen_dataset, describe, settle
from law_synth.training.state import (
    STATE,
    check_same_options,
    claim,
    export,
    is_exported,
    load_state,
    save_state,
    truncate_log,
)
from law_synth.view.slices import Slice
from law_synth.weighting import Bounds, LearnableAdaptiveWeighter, weight_statistics
from law_synth.weightings import WEIGHTINGS

if TYPE_CHECKING:
    from law_synth.training.train import Train

logger = logging.getLogger(__name__)

REMEDY = (
    "give --mixed-precision no to go on after the last save, or start again in another --out with a lower "
    "--learning-rate"
)
PATIENCE = timedelta(hours=12)
MAX_SKIPPED = 25  # fp16's first scale of 65536 is below 1 after 17
MAX_GRADIENT_NORM = 1.0  # that of diffusers' own ControlNet script; the papers do not say


def train(options: Train) -> Path:
    """Train as `options` say; returns the run folder. UserError: bad input, non-finite loss."""
    accelerator = _accelerator(options)
    dataset = chosen_dataset(options)
    base = load_base(options.base)
    plan = settle(options, dataset, base, accelerator.num_processes)
    check_same_options(plan.folder, plan.content)
    describe(plan)
    if options.dry_run:
        return plan.folder
    training = Training(options, plan, base, accelerator)
    try:
        training.run()
    finally:
        if training.lock:
            training.lock.release()
    return plan.folder


class Training:
    """Networks, optimizer and data of one process, restored to the last save of its run."""

    def __init__(self, options: Train, plan: Plan, base: BaseModel, accelerator: Accelerator):
        self.options, self.plan, self.accelerator = options, plan, accelerator
        self.coefficients = {  # of equation 12
            "student": 1.0,
            "teacher": options.beta_t,
            "distillation": options.beta_d,
            "dice": options.lambda_dice,
            "difficulty": options.lambda_dice,
        }
        set_seed(options.seed)
        self.classes = plan.view.classes
        self.objective = _objective(options, base, self.classes.count).to(accelerator.device)
        base.vae.to(accelerator.device)
        with accelerator.main_process_first():  # it encodes, the others read what it kept
            self.data = self._load(base, slices_of(plan.config, plan.config["train_cases"]))
            monitored = self._load(base, monitored_slices(plan.config))
        if not self.data.masks.any():
            raise UserError(
                f"{options.dataset}: found no lesion in {len(self.data.slices)} training masks, "
                "expected some to weigh the loss by; correct the labels"
            )
        self.lock = None
        if accelerator.is_main_process:  # only now: data that cannot be read leave no run behind
            self.lock = hold((plan.folder / STATE).with_name("lock"), plan.folder)
            claim(plan.folder, plan.content)
        base.text_encoder = None  # both prompts are encoded
        self.sampler = Sampler(
            options.seed,
            len(self.data.slices),
            tuple(self.data.mean.shape[1:]),
            base.scheduler.config.num_train_timesteps,
            options.empty_prompts,
        )
        self.trained = [p for p in self.objective.networks.parameters() if p.requires_grad]
        phi = list(self.objective.weighter.parameters()) if self.objective.weighter else []
        groups = [{"params": self.trained}, {"params": phi, "lr": options.weighter_learning_rate}]
        # Fused: the default on a GPU holds a copy of all second moments while it steps. With fp16 it would
        # leave out steps by itself, and accelerate would not know.
        fused = accelerator.device.type == "cuda" and options.mixed_precision != "fp16"
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)
        self.ema = None
        if options.ema_decay > 0 and accelerator.is_main_process:  # which alone looks and saves
            self.ema = EMAModel(self.trained, decay=options.ema_decay)
        self.skipped = 0  # steps in a row, by the scaler of fp16
        self.state = {"optimizer": optimizer, "ema": self.ema, "scaler": accelerator.scaler}
        self.start = load_state(plan.folder, self.objective, **self.state)
        if self.ema:
            self.ema.to(accelerator.device)
        if len(starts := set(gather_object([self.start]))) > 1:
            raise UserError(
                f"{plan.folder}: found processes that would go on after steps {sorted(starts)}, expected "
                "one; put the run folder on a disk that all machines share"
            )
        self.model, self.optimizer = accelerator.prepare(self.objective, optimizer)
        self.monitor = None
        if accelerator.is_main_process:
            truncate_log(plan.folder, self.start)
            self.monitor = Monitor(plan.folder, base, monitored, plan.config, accelerator, self.start)

    def run(self) -> None:
        """Train up to `max_steps`."""
        last = self.options.max_steps
        if self.start >= last:
            logger.info("%s has %d steps already; give a higher --max-steps", self.plan.folder, self.start)
            if not is_exported(self.plan.folder, self.start):  # killed in its last save, or now its last
                self.save(self.start)
        elif self.start:
            logger.info("going on after step %d", self.start)
        else:
            self.look(0)
        bar = progress("loss {task.fields[loss]:.4f}", disable=not self.accelerator.is_main_process)
        with bar:
            task = bar.add_task("training", total=last, completed=self.start, loss=math.nan)
            for step in range(self.start + 1, last + 1):
                loss = self.step(step)
                bar.update(task, advance=1, loss=loss)
                if step % (self.options.sample_every or last) == 0 or step == last:
                    self.look(step)
                if step % self.options.save_every == 0 or step == last:
                    self.save(step)
        if self.monitor:
            self.monitor.close()
            logger.info("wrote %s", self.plan.folder)
        self.accelerator.end_training()

    def step(self, step: int) -> float:
        """One optimizer step, from all passes of all processes; the total loss."""
        options, logged, several = self.options, [], self._share_with_several(step)
        logs = self.monitor and (step % options.log_every == 0 or step == options.max_steps)
        for number in range(options.gradient_accumulation):
            draws = self._draws(step, number)
            batch = self.data.batch(draws, self.accelerator.device, options.teaches, several)
            with self.accelerator.accumulate(self.model):
                losses: Losses = self.model(batch)
                loss = total_loss(losses.terms, self.coefficients)
                terms = self._finite(step, losses, loss)
                statistics = {}
                if logs:
                    statistics = weight_statistics(
                        losses.weights, batch.mask, self.objective.bounds, self.classes.names
                    )
                logged.append({f"loss/{name}": value for name, value in terms.items()} | statistics)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
                    self._check_gradient(step, norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self._count_skipped(step)
        if self.ema and not self.skipped:
            self.ema.step(self.trained)
        means = mean_of(logged)
        if logs:
            self.monitor.log(step, means)
        return means["loss/total"]

    def look(self, step: int) -> None:
        """Fixed-noise loss and pictures of what a save would export."""
        if self.monitor and self.options.sample_every:
            with self._averaged():
                self.monitor.look(step, self.objective)

    def save(self, step: int) -> None:
        """State for a resume, and the folders that generation reads (the EMA's weights if there is one)."""
        if self.accelerator.is_main_process:
            save_state(self.plan.folder, step, self.objective, **self.state)
            config = self.plan.config | {"step": step, "finished": step >= self.options.max_steps}
            with self._averaged():
                export(self.plan.folder, self.objective, config)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average of the weights, where there is one, instead of the weights."""
        if self.ema:
            self.ema.store(self.trained)
            self.ema.copy_to(self.trained)
        yield
        if self.ema:
            self.ema.restore(self.trained)

    def _draws(self, step: int, number: int) -> list:
        """This process's share of pass `number` of a step, by the samples' positions in the training."""
        batch, processes = self.options.batch_size, self.accelerator.num_processes
        in_pass = batch * processes
        first = ((step - 1) * self.options.gradient_accumulation + number) * in_pass
        first += self.accelerator.process_index * batch
        return [self.sampler.draw(first + i) for i in range(batch)]

    def _share_with_several(self, step: int) -> float:
        """Of the images of all passes and processes, those whose masks tell delta something."""
        samples = (
            self.options.batch_size * self.accelerator.num_processes * self.options.gradient_accumulation
        )
        cases = [self.sampler.case((step - 1) * samples + i) for i in range(samples)]
        return self.data.several[cases].float().mean().item()

    def _finite(self, step: int, losses: Losses, total: torch.Tensor) -> dict[str, float]:
        """Loss terms as numbers, the mean over processes. UserError names the first that is not finite."""
        values = torch.stack([*(term.mean() for term in losses.terms.values()), total]).detach()
        # Reduced first, so that all processes stop together.
        found = dict(
            zip((*losses.terms, "total"), self.accelerator.reduce(values, "mean").tolist(), strict=True)
        )
        for name, value in found.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {step}: found a {name} loss of {value}, expected a finite one; {REMEDY}"
                )
        return found

    def _check_gradient(self, step: int, norm: torch.Tensor) -> None:
        """UserError: not finite. With fp16 the scaler leaves such steps out."""
        if self.options.mixed_precision != "fp16" and not torch.isfinite(norm):
            raise UserError(f"step {step}: found a gradient of norm {norm}, expected a finite one; {REMEDY}")

    def _count_skipped(self, step: int) -> None:
        """UserError: the scaler leaves out step after step, whatever its scale, and nothing is learned."""
        self.skipped = self.skipped + 1 if self.accelerator.optimizer_step_was_skipped else 0
        if self.skipped > MAX_SKIPPED:
            raise UserError(
                f"step {step}: found {self.skipped} steps in a row whose gradients are not finite in fp16, "
                f"expected some that are; {REMEDY}"
            )

    def _load(self, base: BaseModel, slices: list[Slice]) -> TrainingData:
        return load_training_data(
            self.plan.view,
            slices,
            base,
            self.plan.config["size"],
            self.plan.config["prompt"],
            self.options.mask_downsampling,
            self.plan.folder / ".training",
        )


def mean_of(entries: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each value over the passes that have it; a pass of empty masks has no weight statistics."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    values = {
        name: [entry[name] for entry in entries if math.isfinite(entry.get(name, math.nan))] for name in names
    }
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def _accelerator(options: Train) -> Accelerator:
    cpu = options.device == "cpu" or not torch.cuda.is_available()
    if cpu and options.mixed_precision == "fp16":
        raise UserError("found --mixed-precision fp16 on a CPU, expected a GPU for it; give bf16 or no")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation,
        kwargs_handlers=[
            # Others wait while one process reads and encodes, or saves; NCCL's default is ten minutes.
            InitProcessGroupKwargs(timeout=PATIENCE),
            # Else each process holds all gradients twice.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    if options.mixed_precision == "bf16" and not cpu and not has_bf16(accelerator.device):
        logger.warning("this GPU emulates bf16, which is slow; --mixed-precision fp16 is made for it")
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise UserError(
            f"found {kind.value} in accelerate's configuration, expected plain data parallelism, as one "
            "process saves whole weights; give accelerate launch --multi_gpu"
        )
    return accelerator


def _objective(options: Train, base: BaseModel, classes: int) -> TrainingObjective:
    """Networks as `options` ask for them: trained weights fp32, frozen ones in the autocast type."""
    networks = StudentTeacher(
        base.unet,
        base.new_controlnet(),
        base.new_controlnet() if options.teaches else None,
        freeze_decoder=options.freeze_decoder,
        detach_mask_control=options.detach_mask_control,
    )
    if options.mixed_precision != "no":
        frozen = {"bf16": torch.bfloat16, "fp16": torch.float16}[options.mixed_precision]
        for parameter in base.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(frozen)
    if options.gradient_checkpointing:
        for network in (networks.unet, networks.teacher_unet, networks.controlnet, networks.image_controlnet):
            if network is not None:
                network.enable_gradient_checkpointing()
    weighter = None
    bounds = Bounds(options.normalize, options.w_min, options.w_max)
    if WEIGHTINGS[options.weighting].is_learned:
        weighter = LearnableAdaptiveWeighter(
            base.latent_channels,
            weighting=options.weighting,
            tau=options.tau,
            gamma=options.gamma,
            bounds=bounds,
            joint=options.joint,
            classes=classes,
        )
    return TrainingObjective(
        networks,
        base.scheduler.alphas_cumprod,
        velocity_target=base.scheduler.config.prediction_type == "v_prediction",
        weighting=options.weighting,
        bounds=bounds,
        weighter=weighter,
        dice=options.dice,
    )
