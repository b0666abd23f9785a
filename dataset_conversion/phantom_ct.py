"""CT-like volumes of an abdomen with kidneys and tumours, drawn from a seed, with exact labels.

Positions and sizes are fractions of half the volume: x from the patient's right (-1) to the left, y from
anterior to posterior, z from inferior to superior. Intensities are Hounsfield units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LABELS = {"background": 0, "kidney": 1, "tumour": 2}
TUMOUR_FREE = 0.2  # share of cases
AIR, FAT, MUSCLE = -1000, -100, 55


class Phase(NamedTuple):
    """Mean HU after contrast medium."""

    aorta: float
    vein: float
    cortex: float
    medulla: float
    pelvis: float
    liver: float
    spleen: float


NATIVE = Phase(42, 40, 34, 31, 8, 58, 50)
ARTERIAL = Phase(300, 90, 195, 85, 10, 72, 125)
VENOUS = Phase(160, 150, 190, 165, 25, 108, 118)
EXCRETORY = Phase(110, 105, 135, 125, 380, 88, 90)


class Voxels:
    """Coordinates of the voxel centres, (size, 1, 1), (1, size, 1) and (1, 1, slices)."""

    def __init__(self, size: int, slices: int):
        self.shape = (size, size, slices)
        centres = [(2 * np.arange(n) + 1) / n - 1 for n in self.shape]
        self.x, self.y, self.z = np.ix_(*centres)

    def noise(self, rng: np.random.Generator, cells: int) -> np.ndarray:
        """Smooth field of about unit variance with `cells` bumps along x and y, fewer along z."""
        values = rng.standard_normal((cells + 5, cells + 5, cells // 2 + 5))
        for axis, (n, bumps) in enumerate(zip(self.shape, (cells, cells, cells // 2), strict=True)):
            centres = np.arange(-2, bumps + 3)
            weights = np.exp(-0.5 * ((np.linspace(0, bumps, n)[:, None] - centres) / 0.6) ** 2)
            weights /= np.linalg.norm(weights, axis=1, keepdims=True)
            values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
        return values

    def ellipsoid(self, centre, radii, angle: float = 0.0) -> np.ndarray:
        """1 in the centre, 0 on the surface, negative outside; `angle` turns it about z."""
        dx, dy = self.x - centre[0], self.y - centre[1]
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        return 1 - (along / radii[0]) ** 2 - (across / radii[1]) ** 2 - ((self.z - centre[2]) / radii[2]) ** 2


def phantom_ct_case(
    seed: int, index: int, size: int = 96, slices: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Case `index` of `seed`: image int16 HU and label uint8, both (size, size, slices), affine (4, 4).

    Axes point to the patient's left, posterior and superior; labels are 0, 1 kidney, 2 tumour.
    """
    rng = np.random.default_rng([seed, index, 1])
    grid = Voxels(size, slices)
    phase = [NATIVE, ARTERIAL, VENOUS, EXCRETORY][rng.choice(4, p=[0.1, 0.4, 0.35, 0.15])]
    phase = Phase(*(value * rng.uniform(0.85, 1.15) for value in phase))
    image, inside = _body(rng, grid)
    _bowel(rng, grid, image, inside)
    _liver_and_spleen(rng, grid, image, inside, phase)
    _bones_and_muscles(rng, grid, image)
    _vessels(rng, grid, image, phase)
    label = _kidneys(rng, grid, image, inside, phase)
    return _scanner(rng, grid, image), label, _affine(rng, size)


def _body(rng: np.random.Generator, grid: Voxels) -> tuple[np.ndarray, np.ndarray]:
    """Air, table, skin, fat and the muscle wall -> (image, what lies inside of the wall)."""
    radii = np.array([rng.uniform(0.85, 0.95), rng.uniform(0.64, 0.75), 9.0])
    outline = grid.ellipsoid((rng.normal(0, 0.02), rng.normal(0, 0.02), 0), radii) + 0.03 * grid.noise(rng, 4)
    fat, wall = rng.uniform(0.05, 0.2), rng.uniform(0.09, 0.15)
    front = np.clip(-grid.y, 0, 1)  # more fat on the belly, less on the back
    depth = outline - fat * (0.7 + front)
    image = np.full(grid.shape, AIR, float)
    image[np.broadcast_to(np.abs(grid.y - 0.88 + 0.06 * grid.x**2) < 0.02, grid.shape)] = -150  # table
    image[outline > 0] = 10  # skin
    tissue = outline > 0.035
    image[tissue] = FAT + 8 * grid.noise(rng, 12)[tissue]
    muscle = (depth > 0) & (depth < wall)
    image[muscle] = MUSCLE + 10 * grid.noise(rng, 20)[muscle]
    inside = depth >= wall
    strands = np.clip(grid.noise(rng, 18) - 1.3, 0, None)  # small vessels in the abdominal fat
    image[inside] = (FAT + 110 * strands)[inside]
    return image, inside


def _bowel(rng: np.random.Generator, grid: Voxels, image: np.ndarray, inside: np.ndarray) -> None:
    """Loops with a wall around fluid, stool, oral contrast medium or gas above a level of fluid."""
    shape, stool = 0.15 * grid.noise(rng, 7), 25 * grid.noise(rng, 24)
    for _ in range(rng.integers(8, 15)):
        centre = (rng.uniform(-0.6, 0.6), rng.uniform(-0.45, -0.02), rng.uniform(-1, 1))
        radii = np.array([*rng.uniform(0.07, 0.17, 2), rng.uniform(0.25, 0.7)])
        loop = grid.ellipsoid(centre, radii, rng.uniform(0, np.pi)) + shape
        image[(loop > 0) & inside] = rng.uniform(40, 90)
        lumen = (loop > 0.35) & inside
        image[lumen] = (rng.choice([10, 30, 260], p=[0.45, 0.4, 0.15]) + stool)[lumen]
        if rng.random() < 0.45:
            image[lumen & (grid.y < centre[1] + rng.uniform(-0.05, 0.1))] = -930


def _liver_and_spleen(
    rng: np.random.Generator, grid: Voxels, image: np.ndarray, inside: np.ndarray, phase: Phase
) -> None:
    """Two organs of the density of kidneys, one of them beside the left kidney."""
    liver = grid.ellipsoid(
        (-0.52, rng.uniform(-0.2, -0.08), rng.uniform(0.7, 1.1)), (0.4, 0.34, rng.uniform(0.7, 1.4)), 0.5
    )
    spleen = grid.ellipsoid(
        (rng.uniform(0.55, 0.66), rng.uniform(-0.05, 0.1), rng.uniform(0.5, 1.0)),
        (rng.uniform(0.13, 0.2), rng.uniform(0.2, 0.3), rng.uniform(0.5, 1.0)),
        rng.uniform(-0.5, 0.2),
    )
    for shape, density in ((liver, phase.liver), (spleen, phase.spleen)):
        organ = (shape + 0.1 * grid.noise(rng, 5) > 0) & inside
        vessels = np.clip(np.abs(grid.noise(rng, 9)) < 0.1, 0, 1) * (phase.vein - density) * 0.7
        image[organ] = (density + 6 * grid.noise(rng, 16) + vessels)[organ]


def _bones_and_muscles(rng: np.random.Generator, grid: Voxels, image: np.ndarray) -> None:
    """Vertebrae and discs, spinal canal, psoas and back muscles, and ribs that climb through the slices."""
    for side in (-1, 1):
        psoas = grid.ellipsoid((side * 0.2, 0.24, -0.4), (0.085, 0.1, rng.uniform(0.9, 1.6)))
        back = grid.ellipsoid((side * 0.18, 0.42, 0), (0.16, 0.09, 9))
        for muscle in (psoas, back):
            shape = muscle + 0.1 * grid.noise(rng, 9) > 0
            image[shape] = (MUSCLE + 12 * grid.noise(rng, 22))[shape]
    centre = (rng.normal(0, 0.015), 0.22 + rng.normal(0, 0.015), 0)
    bone = rng.uniform(130, 240)
    vertebra = grid.ellipsoid(centre, (0.14, 0.11, 99))
    levels = grid.z * rng.uniform(1, 1.6) + rng.random()
    disc = np.broadcast_to(np.cos(2 * np.pi * levels) > 0.8, grid.shape)
    arch = grid.ellipsoid((centre[0], centre[1] + 0.16, 0), (0.11, 0.07, 99))
    spine = grid.ellipsoid((centre[0], centre[1] + 0.23, 0), (0.022, 0.07, 99))
    image[(vertebra > 0) | (arch > 0) | (spine > 0)] = 420
    image[vertebra > 0.2] = (bone + 40 * grid.noise(rng, 26))[vertebra > 0.2]
    image[(vertebra > 0) & disc] = 85
    image[grid.ellipsoid((centre[0], centre[1] + 0.15, 0), (0.06, 0.042, 99)) > 0] = 25
    for side in (-1, 1):
        for number in range(4):
            angle = 0.35 + 0.42 * number + 0.18 * grid.z + rng.normal(0, 0.04)  # from the back to the flank
            x, y = side * 0.78 * np.sin(angle), 0.02 + 0.5 * np.cos(angle)
            rib = ((grid.x - x) / 0.045) ** 2 + ((grid.y - y) / 0.03) ** 2
            image[np.broadcast_to(rib < 1, grid.shape)] = 480
            image[np.broadcast_to(rib < 0.3, grid.shape)] = 180


def _vessels(rng: np.random.Generator, grid: Voxels, image: np.ndarray, phase: Phase) -> None:
    """Aorta, partly calcified, vena cava, and the two vessels to each kidney."""
    for x, radius, density in ((0.06, 0.055, phase.aorta), (-0.11, 0.065, phase.vein)):
        bend = x + 0.03 * np.sin(2 * grid.z + rng.uniform(0, 6))
        tube = ((grid.x - bend) ** 2 + ((grid.y - 0.05) / 0.9) ** 2) / radius**2
        image[np.broadcast_to(tube < 1, grid.shape)] = density
        if x > 0 and rng.random() < 0.4:
            image[(np.abs(tube - 1) < 0.35) & (grid.noise(rng, 12) > 1.4)] = 600
        for side in (-1, 1):
            level = rng.uniform(-0.3, 0.3)
            path = 0.05 + 0.16 * np.abs(grid.x)
            branch = ((grid.y - path) / 0.022) ** 2 + ((grid.z - level) / 0.12) ** 2
            image[(branch < 1) & (side * grid.x > 0) & (np.abs(grid.x) < 0.36)] = density


def _kidneys(
    rng: np.random.Generator, grid: Voxels, image: np.ndarray, inside: np.ndarray, phase: Phase
) -> np.ndarray:
    """Draw both kidneys and their tumours, which stay `inside`; -> label."""
    kidneys = [_Kidney(rng, grid, inside, side) for side in (-1, 1)]
    label = np.zeros(grid.shape, np.uint8)
    for kidney in kidneys:
        kidney.draw(rng, grid, image, phase)
        label[kidney.tissue] = 1
    tumours = 0 if rng.random() < TUMOUR_FREE else 2 if rng.random() < 0.2 else 1
    first = rng.integers(2)
    for number in range(tumours):
        kidney = kidneys[(first + number) % 2] if rng.random() < 0.8 else kidneys[first]
        tumour = kidney.tumour(rng, grid, inside)
        _draw_tumour(rng, grid, image, tumour, phase)
        label[tumour > 0] = 2
    return label


class _Kidney:
    """An ellipsoid with a sinus of fat and urine that opens towards the spine; `side` is 1 on the left."""

    def __init__(self, rng: np.random.Generator, grid: Voxels, inside: np.ndarray, side: int):
        self.centre = np.array(
            [side * rng.uniform(0.38, 0.46), rng.uniform(0.12, 0.2), rng.uniform(-0.2, 0.1) + 0.06 * side]
        )
        self.radii = np.array([rng.uniform(0.12, 0.16), rng.uniform(0.14, 0.19), rng.uniform(0.5, 0.72)])
        self.angle = side * rng.uniform(0.3, 0.9)
        level = grid.ellipsoid(self.centre, self.radii, self.angle) + 0.09 * grid.noise(rng, 7)
        self.level = np.where(inside, level, -1)
        hilum = self.centre - (side * self.radii[0] * rng.uniform(0.5, 0.8), 0.03, 0)
        size = rng.uniform(0.42, 0.6)
        self.sinus = grid.ellipsoid(hilum, self.radii * (size, size, 0.62), self.angle)
        self.sinus = self.sinus + 0.25 * grid.noise(rng, 12)
        self.tissue = (self.level > 0) & (self.sinus <= 0)

    def draw(self, rng: np.random.Generator, grid: Voxels, image: np.ndarray, phase: Phase) -> None:
        """Fat around it, cortex, pyramids of medulla, and the sinus."""
        image[(self.level > -0.7) & (self.level <= 0) & (image > -200) & (image < 40)] = FAT
        pyramids = (self.level < 0.75) & (self.level > 0.28) & (grid.noise(rng, 15) > 0)
        density = np.where(pyramids, phase.medulla, phase.cortex) + 5 * grid.noise(rng, 24)
        image[self.tissue] = density[self.tissue]
        image[(self.level > 0) & (self.sinus > 0)] = FAT + 30
        image[(self.level > 0) & (self.sinus > 0.45)] = phase.pelvis

    def tumour(self, rng: np.random.Generator, grid: Voxels, inside: np.ndarray) -> np.ndarray:
        """Level of a growth from a small cyst to half the kidney, centred in its tissue or on its surface."""
        depth = np.quantile(self.level[self.tissue], rng.uniform(0.1, 0.8))
        candidates = np.argwhere(self.tissue & (self.level <= depth))
        start = candidates[rng.integers(len(candidates))]
        centre = np.array([grid.x.ravel()[start[0]], grid.y.ravel()[start[1]], grid.z.ravel()[start[2]]])
        radius = np.exp(rng.uniform(np.log(0.055), np.log(0.16)))
        outwards = (centre - self.centre)[:2] / max(np.linalg.norm((centre - self.centre)[:2]), 1e-6)
        centre[:2] += rng.uniform(-0.2, 0.7) * radius * outwards  # from endophytic to exophytic
        radii = radius * np.array([*rng.uniform(0.85, 1.2, 2), 3.5 * rng.uniform(0.8, 1.2)])
        level = grid.ellipsoid(centre, radii, rng.uniform(0, np.pi)) + 0.2 * grid.noise(rng, 9)
        level[tuple(start)] = max(level[tuple(start)], 0.1)  # it grows from this voxel of the kidney
        return np.where(_grown_from((level > 0) & inside, tuple(start)), level, -1)


def _grown_from(shape: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    """The part of `shape` that hangs together with the voxel `start`."""
    from scipy.ndimage import label

    parts, _ = label(shape)
    return parts == parts[start]


def _draw_tumour(
    rng: np.random.Generator, grid: Voxels, image: np.ndarray, level: np.ndarray, phase: Phase
) -> None:
    """A cyst of water, or solid tissue that takes up less contrast than the cortex, often dead inside."""
    inside = level > 0
    if rng.random() < 0.25:
        image[inside] = rng.uniform(-5, 22)
        return
    density = 25 + rng.uniform(0.25, 0.8) * (phase.cortex - 25)
    texture = rng.uniform(8, 30) * grid.noise(rng, 14) + 8 * grid.noise(rng, 30)
    image[inside] = (density + texture)[inside]
    if rng.random() < 0.5:
        dead = inside & (level + 0.3 * grid.noise(rng, 10) > rng.uniform(0.35, 0.7))
        image[dead] = rng.uniform(5, 30)


def _scanner(rng: np.random.Generator, grid: Voxels, image: np.ndarray) -> np.ndarray:
    """Blur, beam hardening, streaks from bone and gas, correlated noise -> int16 HU."""
    from scipy.ndimage import gaussian_filter

    scale = grid.shape[0] / 96
    blurred = gaussian_filter(image, (0.55 * scale, 0.55 * scale, 0.35))
    blurred += _streaks(rng, grid, image) * (blurred > -700)
    noise = gaussian_filter(rng.standard_normal(grid.shape), (0.7, 0.7, 0.3))
    noise -= gaussian_filter(noise, (2.5, 2.5, 0))  # reconstruction filters leave no slow waves
    centre = np.exp(-1.5 * ((grid.x / 0.9) ** 2 + (grid.y / 0.65) ** 2))  # fewest photons get there
    noise *= rng.uniform(9, 24) / noise.std() * (0.6 + 0.6 * centre)
    cupping = rng.uniform(4, 14) * centre * (blurred > -300)
    return np.clip(np.rint(blurred + noise - cupping), -1024, 3071).astype(np.int16)


def _streaks(rng: np.random.Generator, grid: Voxels, image: np.ndarray) -> np.ndarray:
    """Lines along random directions, bright and dark, strongest where they run through bone or gas."""
    from scipy.ndimage import rotate

    dense = np.clip(image - 250, 0, 400) / 400 + 0.6 * (image < -800) * (np.hypot(grid.x, grid.y) < 0.5)
    streaks = np.zeros(grid.shape)
    for angle in rng.uniform(-35, 35, 4):  # most attenuation is from side to side
        turned = rotate(dense, angle, axes=(0, 1), reshape=False, order=1)
        amount = turned.mean(axis=0, keepdims=True)  # along each ray
        rays = rng.standard_normal(amount.shape) * amount - 0.5 * amount
        streaks += rotate(np.broadcast_to(rays, grid.shape), -angle, axes=(0, 1), reshape=False, order=1)
    return rng.uniform(30, 120) * streaks


def _affine(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pixels of 0.6 to 0.9 mm, slices 3 to 5 mm apart, anywhere in the scanner's room; RAS+ as in NIfTI."""
    pixel, thickness = rng.uniform(0.6, 0.9), rng.uniform(3, 5)
    affine = np.diag([-pixel, -pixel, thickness, 1.0])
    affine[:2, 3] = pixel * size / 2 + rng.normal(0, 8, 2)
    affine[2, 3] = rng.uniform(-1500, 300)
    return affine
