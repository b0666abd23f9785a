"""Where a slice lies in space."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Geometry(NamedTuple):
    """Where a slice lies in space, in mm; spacing, origin and direction in SimpleITK's order (x, y, z)."""

    shape: tuple[int, int]  # (Y, X) of the slice's array
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    axis: int  # of the slices, in arrays (Z, Y, X)

    def resized(self, shape: tuple[int, int]) -> Geometry:
        """The same extent in mm with another number of pixels."""
        spacing, origin = np.array(self.spacing), np.array(self.origin)
        inner = [2 - axis for axis in range(3) if axis != self.axis]  # SimpleITK axes of Y and X
        scaled = spacing.copy()
        scaled[inner] *= np.array(self.shape) / np.array(shape)
        # A pixel's position is that of its centre: the corner stays where it is.
        origin = origin + np.array(self.direction).reshape(3, 3) @ ((scaled - spacing) / 2)
        return self._replace(
            shape=tuple(shape), spacing=tuple(scaled.tolist()), origin=tuple(origin.tolist())
        )
