"""What a training shows of itself: log, TensorBoard, fixed-noise loss, sample grids, delta maps (Fig. 8)."""

from __future__ import annotations

import json
import logging
from collections import defaultdict

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dataset_conversion.system.errors import writing
from law_synth.base.model import BaseModel
from law_synth.base.pipeline import new_pipeline
from law_synth.objective import Batch, TrainingObjective, add_noise, velocity
from law_synth.records.run import PICTURED
from law_synth.training.data import Sampler, TrainingData
from law_synth.training.settle import TrainingPlan
from law_synth.training.state import LOG
from law_synth.view.classes import colours
from law_synth.weighting import joined_delta

logger = logging.getLogger(__name__)

LOOKED_AT_ONCE = 4  # images per pass of the fixed-noise loss
SHARES_OF_T = (1 / 8, 3 / 8, 5 / 8, 7 / 8)  # timesteps of the fixed-noise loss
SAMPLING_STEPS = 20
SHOWN_LOOKS = 8  # in delta_maps.png, of however many


class Monitor:
    """Logs of the main process; pictures come from the live networks, no second model is loaded."""

    def __init__(
        self,
        plan: TrainingPlan,
        base: BaseModel,
        fixed: TrainingData,
        accelerator: Accelerator,
        start: int,
    ):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.base, self.fixed, self.config = plan.folder, base, fixed, plan.config
        self.accelerator = accelerator
        self.has_unseen = bool(self.config.monitor_cases)
        self.names = list(self.config.view.classes)
        self.pictures = self.folder / "samples"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=start + 1)
        shape, timesteps = tuple(fixed.mean.shape[1:]), base.scheduler.config.num_train_timesteps
        sampler = Sampler(plan.options.seed, len(fixed.slices), shape, timesteps, empty_prompts=0.0)
        self.timesteps = timesteps
        # Draws of a pass of their own: every case once, the same noise at every look.
        draws = [sampler.draw(position) for position in range(len(fixed.slices))]
        self.draws = sorted(draws, key=lambda draw: draw.case)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append to log.jsonl and TensorBoard."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        with writing(self.folder), (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    @torch.no_grad()
    def look(self, step: int, objective: TrainingObjective) -> None:
        """Fixed-noise loss and, as pictures, samples and delta maps."""
        with self.accelerator.autocast():
            if self.has_unseen:
                self.log(step, self.fixed_noise_loss(objective))
            deltas = self.delta_maps(objective)
            samples = self.sample(objective)
        with writing(self.folder):
            self._draw(step, deltas, samples)

    def _draw(self, step: int, deltas: np.ndarray | None, samples: np.ndarray) -> None:
        if len(self.config.view.window.low) == 1:  # as generate writes grey
            samples = np.broadcast_to(samples.mean(-1, keepdims=True), samples.shape)
        if deltas is not None:
            np.save(self.pictures / f"delta_{step:06d}.npy", deltas)
        masks = colours(len(self.names))[self.fixed.masks[:PICTURED].numpy()]
        images = self.fixed.images[:PICTURED].permute(0, 2, 3, 1).numpy()
        figure = _grid(self.names, masks, images, samples, deltas)
        figure.savefig(self.pictures / f"step_{step:06d}.png", dpi=100)
        self.writer.add_figure("samples", figure, step)
        if deltas is not None:
            every = sorted(self.pictures.glob("delta_*.npy"))
            shown = np.linspace(0, len(every) - 1, min(SHOWN_LOOKS, len(every))).round().astype(int)
            steps = [every[index] for index in shown]
            named = {int(path.stem.split("_")[1]): np.load(path) for path in steps}
            _delta_figure(self.names, masks, named).savefig(self.pictures / "delta_maps.png", dpi=100)

    def fixed_noise_loss(self, objective: TrainingObjective) -> dict[str, float]:
        """Unweighted error of the student on cases it never trains on: all pixels, lesions, background.

        Of several classes, each by its name as well.
        """
        sums = defaultdict(list)
        for share in SHARES_OF_T:
            for start in range(0, len(self.draws), LOOKED_AT_ONCE):
                batch = self._batch(self.draws[start : start + LOOKED_AT_ONCE], share)
                error = self._error(objective, batch).mean(1, keepdim=True)
                for name, region in _regions(batch.mask, self.names).items():
                    sums[name].append(torch.stack([(error * region).sum(), region.sum()]))
        totals = {name: torch.stack(values).sum(0).tolist() for name, values in sums.items()}
        return {f"fixed_noise/{name}": total / area for name, (total, area) in totals.items() if area}

    def delta_maps(self, objective: TrainingObjective) -> np.ndarray | None:
        """Delta of the shown cases at the middle timestep, float (PICTURED, h, w); None without a weighter.

        The largest of the classes' maps, which is what equation 5 takes.
        """
        if objective.weighter is None:
            return None
        batch = self._batch(self.draws[:PICTURED], 0.5)
        _, delta = objective.weighter(self._predict(objective, batch), batch.mask)
        return joined_delta(delta, batch.mask)[:, 0].float().cpu().numpy()

    def sample(self, objective: TrainingObjective) -> np.ndarray:
        """Images (PICTURED, S, S, 3) in [0, 1] for the shown masks, the same noise at every look."""
        networks = objective.networks
        pipeline = new_pipeline(self.base, networks.controlnet, networks.unet, "unipc")
        batch = self._batch(self.draws[:PICTURED], 0.5)
        empty, prompt = self.fixed.text.to(batch.text)
        return pipeline(
            prompt_embeds=prompt.expand(len(batch.text), -1, -1),
            negative_prompt_embeds=empty.expand(len(batch.text), -1, -1),
            image=batch.condition,
            latents=batch.noise,
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=self.config.guidance_scale,
            output_type="np",
        ).images

    def close(self) -> None:
        self.writer.close()

    def _batch(self, draws: list, share: float) -> Batch:
        timestep = int(share * self.timesteps)
        draws = [draw._replace(timestep=timestep) for draw in draws]
        return self.fixed.batch(draws, self.accelerator.device, with_image=False)

    def _predict(self, objective: TrainingObjective, batch: Batch) -> Tensor:
        noisy = add_noise(batch.latents, batch.noise, objective.alphas_cumprod[batch.timestep])
        return objective.networks(noisy, batch.timestep, batch.text, batch.condition, None).student

    def _error(self, objective: TrainingObjective, batch: Batch) -> Tensor:
        target = batch.noise
        if objective.velocity_target:
            target = velocity(batch.latents, batch.noise, objective.alphas_cumprod[batch.timestep])
        return (self._predict(objective, batch).float() - target).square()


def _regions(mask: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Masks (B, K, h, w) -> region name -> (B, 1, h, w)."""
    lesion = mask.sum(1, keepdim=True)
    regions = {"all": torch.ones_like(lesion), "lesion": lesion, "background": 1 - lesion}
    if len(names) > 1:
        regions |= {f"lesion_{name}": mask[:, [number]] for number, name in enumerate(names)}
    return regions


def _grid(
    names: list[str], masks: np.ndarray, images: np.ndarray, samples: np.ndarray, deltas: np.ndarray | None
):
    """Rows of mask, sample, real image and, where there is one, delta map."""
    columns = {"mask": masks, "sample": samples, "real": images}
    if deltas is not None:
        columns["delta"] = deltas
    rows = [[(column[row], name) for name, column in columns.items()] for row in range(len(masks))]
    return _figure(rows, names)


def _delta_figure(names: list[str], masks: np.ndarray, deltas: dict[int, np.ndarray]):
    """Rows of a mask and its delta maps over the training, as Fig. 8."""
    rows = [
        [(mask, "mask"), *((maps[row], f"step {step}") for step, maps in deltas.items())]
        for row, mask in enumerate(masks)
    ]
    return _figure(rows, names)


def _figure(rows: list[list[tuple[np.ndarray, str]]], names: list[str]):
    """Pictures (Y, X, 3) and maps (Y, X) in [0, 1] with titles; a legend where there are several classes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(1.6 * len(rows[0]), 1.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, cells in zip(axes, rows, strict=True):
        for axis, (picture, title) in zip(row, cells, strict=True):
            axis.imshow(picture, cmap="viridis", vmin=0, vmax=1)  # the map is for those without colours
            axis.set_title(title, fontsize=8)
            axis.axis("off")
    if len(names) > 1:
        palette = colours(len(names))[1:]
        handles = [
            Patch(facecolor=colour, edgecolor="black", label=name)
            for name, colour in zip(names, palette, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize=8)
    return figure
