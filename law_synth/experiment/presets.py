"""The paper's synthesis tables as configurations, at three scales."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["paper-table1", "paper-table2", "paper-table4"]
Scale = Literal["cpu", "gpu", "paper"]

# What the compared methods train: ControlNet and ArSDM have no teacher, ADC and LAW have one.
METHODS = {
    "uniform": {"weighting": "uniform", "preset": "light"},
    "ratio": {"weighting": "ratio", "preset": "light"},
    "adaptive-distillation": {"weighting": "adaptive-distillation", "preset": "paper"},
    "law": {"weighting": "law", "preset": "paper"},
    # Not in the paper: the prior alone, and a weighting that follows the error.
    "ratio-clamped": {"weighting": "ratio-clamped", "preset": "paper"},
    "difficulty": {"weighting": "difficulty", "preset": "paper"},
}
UNBOUNDED = {"w_min": 0.0, "w_max": float("inf")}
DELTA_ALONE = {"weighting": "law", "preset": "paper", "dice": False, "joint": True}
ABLATION = {
    "adaptive-distillation": METHODS["adaptive-distillation"],
    "delta": {**DELTA_ALONE, **UNBOUNDED, "normalize": False},
    "delta-normalized": {**DELTA_ALONE, **UNBOUNDED},
    "delta-normalized-clamped": DELTA_ALONE,
    "law": METHODS["law"],
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper-table1": {
        "title": "Table 1: synthesis quality",
        "arms": list(METHODS),
        "arm": METHODS,
        "segmenters": [],
        "judge": "nnUNetTrainerORDER",
    },
    "paper-table2": {
        "title": "Table 2: segmentation with synthetic cases",
        "arms": ["real", *METHODS],
        "arm": METHODS,
        "segmenters": ["nnUNetTrainer", "nnUNetTrainerORDER"],
        "judge": "nnUNetTrainerORDER",
    },
    "paper-table4": {
        "title": "Table 4: ablation of LAW",
        "arms": list(ABLATION),
        "arm": ABLATION,
        "segmenters": [],
        "judge": "nnUNetTrainerORDER",
    },
}

# Sizes and steps only. Small bases learn at 3e-4; the paper's 1e-5 is for Stable Diffusion.
SMALL_BATCH = {"batch_size": 16, "gradient_accumulation": 1, "learning_rate": 3e-4}
SCALES: dict[str, dict[str, Any]] = {
    "cpu": {
        "max_side": 64,
        "trainer_options": "epochs=15 learning_rate=5e-3",
        "init_base": {"image_size": 64},
        "train": {**SMALL_BATCH, "max_steps": 400},
    },
    "gpu": {
        "max_side": 256,
        "trainer_options": "epochs=30 learning_rate=5e-3",
        "init_base": {"image_size": 128, "unet_width": 96, "vae_steps": 4000, "unet_steps": 20000},
        "train": {**SMALL_BATCH, "max_steps": 4000},
    },
    "paper": {"generate": {"preset": "paper"}},
}
# nnU-Net's own trainers of fewer epochs.
SHORT_TRAINERS = {"cpu": "nnUNetTrainer_5epochs", "gpu": "nnUNetTrainer_20epochs", "paper": "nnUNetTrainer"}


def preset_content(preset: Preset, scale: Scale, dataset: str) -> dict[str, Any]:
    """Content of the configuration file that the preset stands for."""
    content = {"dataset": dataset, **PRESETS[preset], **SCALES[scale]}
    segmenters = [
        SHORT_TRAINERS[scale] if name == "nnUNetTrainer" else name for name in content["segmenters"]
    ]
    return content | {"segmenters": segmenters}
