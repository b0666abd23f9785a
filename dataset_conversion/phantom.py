"""Images drawn from a seed, with exact masks, for tests and demos: polyps in endoscopy, kidneys in CT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from dataset_conversion.images import SIDE
from dataset_conversion.phantom_ct import LABELS as CT_LABELS
from dataset_conversion.phantom_ct import phantom_ct_case
from dataset_conversion.raw.finished import conversion_of
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import SEED, Range, check_ranges
from dataset_conversion.system.parallel import in_parallel
from dataset_conversion.volumes import write_volume

SMALLEST, LARGEST = 0.005, 0.40  # area of the first polyp as a fraction of the image, log-uniform
VISIBLE = 0.55  # share of a polyp that must lie in view
FRAMED = 0.5  # share of images with the dark rounded frame of an endoscope


@dataclass(frozen=True)
class ConvertPhantom:
    """Draw an nnU-Net raw data set: endoscopy images with polyps, or CT volumes of kidneys with tumours.

    Polyps take 0.5 to 40 % of an image. Four fifths of the CT volumes have one tumour or two.
    """

    out: Path
    """Folder to write; its name has the form DatasetXXX_NAME."""
    kind: Literal["endoscopy", "ct"] = "endoscopy"
    """What to draw: endoscopy writes RGB images as PNG, ct writes volumes in HU as .nii.gz."""
    cases: Annotated[int, Range(1)] = 40
    """Number of training images."""
    test_cases: Annotated[int, Range(0)] = 10
    """Number of test images."""
    size: Annotated[int | None, SIDE] = None
    """Height and width in pixels. The default is 256 for endoscopy and 96 for ct."""
    slices: Annotated[int | None, Range(4)] = None
    """Number of slices of each ct volume. The default is 16."""
    seed: Annotated[int, SEED] = 0
    """Another seed gives other images. Case i of a seed is always the same image."""

    def check(self) -> None:
        """UserError: an option that is out of range, or does not fit another one."""
        check_ranges(self)
        if self.slices is not None and self.kind != "ct":
            raise UserError("found --slices with endoscopy images, expected --kind ct; correct one of them")


def convert_phantom(options: ConvertPhantom) -> None:
    """Draw and write. UserError: whatever is wrong with the options, or an unusable `out`."""
    options.check()
    is_ct = options.kind == "ct"
    size = options.size or (96 if is_ct else 256)
    conversion = conversion_of(options)
    if conversion.is_done():
        return
    channels, labels = (("CT",), CT_LABELS) if is_ct else (RGB, {"background": 0, "polyp": 1})
    ending = ".nii.gz" if is_ct else ".png"
    with RawDatasetWriter(
        options.out, channels, labels, file_ending=ending, sign=conversion.sign, license="none needed"
    ) as writer:

        def draw(index: int) -> None:
            case_id, is_training = f"phantom_{index:04d}", index < options.cases
            if is_ct:
                case = phantom_ct_case(options.seed, index, size, options.slices or 16)
                _write_ct_case(writer, case_id, is_training, *case)
                return
            image, mask = phantom_case(options.seed, index, size)
            (writer.add_training_case if is_training else writer.add_test_case)(case_id, image, mask)

        in_parallel(draw, range(options.cases + options.test_cases), "drawing")


def _write_ct_case(
    writer: RawDatasetWriter,
    case_id: str,
    is_training: bool,
    image: np.ndarray,
    label: np.ndarray,
    affine: np.ndarray,
) -> None:
    part = "Tr" if is_training else "Ts"
    for path, values in (
        (writer.image_path(part, case_id), image),
        (writer.label_path(part, case_id), label),
    ):
        write_volume(path, values.shape, values.dtype, affine, np.moveaxis(values, 2, 0))
    writer.add_written_case(case_id, is_training, has_foreground=True)


def phantom_case(seed: int, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Case `index` of `seed`: image uint8 (H, W, 3) and mask uint8 (H, W) of 0 and 1, H = W = `size`."""
    rng = np.random.default_rng([seed, index])
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    frame = _frame(rng, x, y)
    polyps = _polyps(rng, x, y, frame)
    mask = polyps.max(axis=0) > 0

    lumen = rng.uniform(-0.9, 0.9, 2)
    height = _folds(rng, x, y, lumen) + _bumps(rng, x, y) + _domes(rng, polyps)
    albedo = _albedo(rng, size, polyps)
    image = _light(rng, x, y, height, albedo, lumen)
    image = _bubbles(rng, x, y, image) * frame[..., None]
    return _camera(rng, image), (mask & (frame > 0.5)).astype(np.uint8)


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth random field (size, size) of about unit variance with `cells` bumps along a side."""
    centres = np.arange(-2, cells + 3)
    weights = np.exp(
        -0.5 * ((np.linspace(0, cells, size)[:, None] - centres) / 0.6) ** 2
    )  # (size, cells + 5)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights @ rng.standard_normal((len(centres), len(centres))) @ weights.T


def _frame(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the endoscope's round corners leave visible: 1 inside, 0 outside, soft over a few pixels."""
    if rng.random() > FRAMED:
        return np.ones_like(x)
    power, radius = rng.uniform(4, 12), rng.uniform(0.97, 1.08)
    distance = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
    return np.clip((radius - distance) / 0.02, 0, 1)


def _blob(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, area: float, centre: np.ndarray
) -> np.ndarray:
    """Irregular ellipse of `area` (fraction of the image): 1 in its centre, 0 on its outline, < 0 outside."""
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.6)
    dx, dy = x - centre[0], y - centre[1]
    along = (dx * np.cos(angle) + dy * np.sin(angle)) / np.sqrt(stretch)
    across = (dy * np.cos(angle) - dx * np.sin(angle)) * np.sqrt(stretch)
    theta = np.arctan2(across, along)
    waves = [rng.normal(0, 0.16 / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)]
    outline = np.sqrt(4 * area / np.pi) * (1 + sum(waves))
    return 1 - (along**2 + across**2) / outline**2


def _polyps(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """One to three polyps (P, H, W) as blobs that do not touch and are mostly in view."""
    polyps: list[np.ndarray] = []
    for number in range(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])):
        area = np.exp(rng.uniform(np.log(SMALLEST * 1.3), np.log(0.06 if number else LARGEST)))
        for spread in np.linspace(0.95, 0, 40):  # ever closer to the middle, where any polyp is in view
            blob = _blob(rng, x, y, area, spread * rng.uniform(-1, 1, 2))
            seen = ((blob > 0) & (frame > 0.5)).mean()
            touches = any(((blob > -0.6) & (other > -0.1)).any() for other in polyps)
            if seen >= max(VISIBLE * area, SMALLEST) and not touches:
                polyps.append(blob)
                break
    return np.stack(polyps)


def _domes(rng: np.random.Generator, polyps: np.ndarray) -> np.ndarray:
    """Height of the polyps: flat to bulging, with a soft foot."""
    height = np.zeros(polyps.shape[1:])
    for blob in polyps:
        radius = np.sqrt((blob > 0).mean())
        dome = np.clip(blob, 0, 1) ** rng.uniform(0.8, 1.5)
        height += radius * rng.uniform(0.2, 0.7) * dome
    return height


def _bumps(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distractors: bulges and short folds shaped like polyps, but with the colour and texture around them."""
    height = 0.05 * _noise(rng, len(x), 5) + 0.012 * _noise(rng, len(x), 14)
    for _ in range(rng.integers(1, 4)):
        area = np.exp(rng.uniform(np.log(0.01), np.log(0.12)))
        blob = _blob(rng, x, y, area, rng.uniform(-1, 1, 2))
        height += np.sqrt(area) * rng.uniform(0.3, 0.9) * np.exp(-1.8 * (1 - blob))
    return height


def _folds(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, lumen: np.ndarray) -> np.ndarray:
    """Haustral folds: broken arcs around the lumen."""
    size = len(x)
    distance = np.hypot(x - lumen[0], y - lumen[1])
    wobble = 0.3 * _noise(rng, size, 3) + 0.06 * _noise(rng, size, 8)
    phase = rng.uniform(0.9, 2.0) * distance**0.8 + wobble + rng.uniform()
    ridge = (0.5 + 0.5 * np.cos(2 * np.pi * phase)) ** 4
    return rng.uniform(0.03, 0.13) * ridge * np.clip(0.2 + 0.7 * _noise(rng, size, 4), 0, 1.3)


def _albedo(rng: np.random.Generator, size: int, polyps: np.ndarray) -> np.ndarray:
    """Colour of the tissue (H, W, 3): mottled mucosa with vessels, polyps of other hue and texture."""
    base = np.array([0.82, 0.46, 0.38]) * rng.uniform([0.92, 0.82, 0.75], [1.08, 1.15, 1.2])
    redness = 0.6 * _noise(rng, size, 4) + 0.4 * _noise(rng, size, 12) + 0.3 * _noise(rng, size, 40)
    albedo = base * (1 + redness[..., None] * np.array([0.02, -0.07, -0.06]))

    network = np.exp(-((_noise(rng, size, 7) / 0.05) ** 2)) + 0.7 * np.exp(
        -((_noise(rng, size, 13) / 0.06) ** 2)
    )
    present = np.clip(_noise(rng, size, 4), 0, 1)
    inside = np.clip(polyps.max(axis=0) * 6 + 0.5, 0, 1)  # soft border, half way on the outline
    vessels = rng.uniform(0.1, 0.9) * network * present * (1 - 0.8 * inside)
    albedo *= 1 - vessels[..., None] * np.array([0.16, 0.34, 0.28])

    hue = np.array([[0.04, -0.16, -0.12], [0.07, 0.14, 0.14], [-0.06, -0.12, -0.06]])[rng.integers(3)]
    pits = 0.08 * _noise(rng, size, rng.integers(28, 48)) * np.array([0.4, 1.0, 1.0])[:, None, None]
    change = rng.uniform(0.25, 1.0) * hue + np.moveaxis(pits, 0, 2)
    return albedo * (1 + inside[..., None] * change)


def _light(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    height: np.ndarray,
    albedo: np.ndarray,
    lumen: np.ndarray,
) -> np.ndarray:
    """Image (H, W, 3) under a lamp beside the camera: shading, fall-off, the dark lumen, wet highlights."""
    step = 2 / len(x)
    slope_y, slope_x = np.gradient(height, step)
    lamp = np.array([*rng.uniform(-0.5, 0.5, 2), rng.uniform(0.9, 1.4)])
    to_lamp = np.stack([lamp[0] - x, lamp[1] - y, lamp[2] - height])  # (3, H, W)
    to_lamp /= np.linalg.norm(to_lamp, axis=0)

    def facing(slopes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        length = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + 1)
        return (to_lamp[2] - slopes[0] * to_lamp[0] - slopes[1] * to_lamp[1]) / length

    diffuse = np.clip(0.3 + 0.7 * facing((slope_x, slope_y)), 0, 1)  # tissue scatters light into its shadows
    depth = np.exp(-(((x - lumen[0]) ** 2 + (y - lumen[1]) ** 2) / rng.uniform(0.05, 0.35)))
    vignette = 1 - rng.uniform(0.15, 0.4) * (x**2 + y**2) / 2
    brightness = rng.uniform(1.0, 1.3) * vignette * (1 - rng.uniform(0.2, 0.8) * depth)
    image = albedo * (diffuse**1.4 * brightness)[..., None]

    wet = [slope + 0.35 * _noise(rng, len(x), rng.integers(18, 36)) for slope in (slope_x, slope_y)]
    shine = np.clip(facing((wet[0], wet[1])), 0, 1) ** rng.uniform(120, 300) * np.clip(
        _noise(rng, len(x), 5), 0, 1
    )
    return image + (rng.uniform(0.3, 0.9) * brightness * shine)[..., None] * np.array([1.0, 0.97, 0.95])


def _bubbles(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Distractors: a few round bubbles with a bright rim and a highlight."""
    for _ in range(rng.poisson(1.5)):
        centre, radius = rng.uniform(-1, 1, 2), rng.uniform(0.02, 0.09)
        distance = np.hypot(x - centre[0], y - centre[1]) / radius
        rim = np.exp(-(((distance - 0.9) / 0.12) ** 2))
        spot = np.exp(
            -((np.hypot(x - centre[0] + 0.4 * radius, y - centre[1] + 0.4 * radius) / (0.18 * radius)) ** 2)
        )
        image = image * (1 - 0.12 * (distance < 1))[..., None] + (0.14 * rim + 0.7 * spot)[..., None]
    return image


def _camera(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Focus blur, sensor noise and 8 bits."""
    from scipy.ndimage import gaussian_filter

    size = len(image)
    blurred = gaussian_filter(image, (size / 256 * rng.uniform(0.4, 1.0),) * 2 + (0,))
    noisy = blurred + rng.normal(0, rng.uniform(0.004, 0.015), image.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)
