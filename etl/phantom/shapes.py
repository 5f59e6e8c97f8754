"""Bodies whose outlines in every plane are known exactly: sphere, box, torus, pierced cylinder.

They stand in the frame of a series: u along a row, v along a column, w along the normal, in
millimetres from the centre of its stack. So they look the same in any orientation.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

_PLACES: Final = ((-47.0, -31.0), (38.0, -32.0), (-44.0, 31.0), (38.0, 31.0))  # mm
_STEP: Final = 7  # of 24 orders, so that the next patient's is quite another one
_N_VERTICES: Final = 256  # of a circle: a polygon of them has 0.9999 of its area


class Shape(Protocol):
    """A body."""

    @property
    def volume(self) -> float:
        """The exact volume, mm3."""

    def area(self, w: float) -> float:
        """Return the exact area of its cut at a height, mm2."""

    def outlines(self, w: float) -> list[Floats]:
        """Return the borders of its cut at a height, even-odd together; (n, 2) in mm each."""

    def covers(self, u: Floats, v: Floats, w: float) -> npt.NDArray[np.bool_]:
        """Return which points at a height are inside."""


@dataclass(frozen=True)
class Sphere:
    """A ball."""

    centre: tuple[float, float, float]
    radius: float

    @property
    def volume(self) -> float:
        """The exact volume, mm3."""
        return 4 / 3 * math.pi * self.radius**3

    def area(self, w: float) -> float:
        """Return the exact area of its cut at a height, mm2."""
        return math.pi * max(0.0, self.radius**2 - (w - self.centre[2]) ** 2)

    def outlines(self, w: float) -> list[Floats]:
        """Return the borders of its cut at a height, even-odd together; (n, 2) in mm each."""
        area = self.area(w)
        return [_circle(self.centre, math.sqrt(area / math.pi))] if area > 0 else []

    def covers(self, u: Floats, v: Floats, w: float) -> npt.NDArray[np.bool_]:
        """Return which points at a height are inside."""
        x, y, z = self.centre
        return np.asarray((u - x) ** 2 + (v - y) ** 2 + (w - z) ** 2 < self.radius**2)


@dataclass(frozen=True)
class Box:
    """A box with edges along u and v, whose centre drifts with the height."""

    centre: tuple[float, float, float]
    edges: tuple[float, float, float]
    drift: tuple[float, float] = (0.0, 0.0)  # mm along u and v for each mm of height

    @property
    def volume(self) -> float:
        """The exact volume, mm3."""
        return math.prod(self.edges)

    def area(self, w: float) -> float:
        """Return the exact area of its cut at a height, mm2."""
        is_cut = abs(w - self.centre[2]) < self.edges[2] / 2
        return self.edges[0] * self.edges[1] if is_cut else 0.0

    def outlines(self, w: float) -> list[Floats]:
        """Return the borders of its cut at a height, even-odd together; (n, 2) in mm each."""
        if not self.area(w):
            return []
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2
        return [corners * self.edges[:2] + _at(self.centre, self.drift, w)]

    def covers(self, u: Floats, v: Floats, w: float) -> npt.NDArray[np.bool_]:
        """Return which points at a height are inside."""
        x, y = _at(self.centre, self.drift, w)
        is_inside = (abs(u - x) < self.edges[0] / 2) & (abs(v - y) < self.edges[1] / 2)
        return np.asarray(is_inside & bool(self.area(w)))


@dataclass(frozen=True)
class Ring:
    """A torus around the normal, or with a height a cylinder with a hole: a ring in each plane."""

    centre: tuple[float, float, float]
    radius: float  # of its middle line
    thickness: float  # of the tube: its radius, or half the wall's
    height: float | None = None  # of a cylinder
    drift: tuple[float, float] = (0.0, 0.0)  # mm along u and v for each mm of height

    @property
    def volume(self) -> float:
        """The exact volume, mm3."""
        if self.height is None:
            return 2 * math.pi**2 * self.radius * self.thickness**2
        return 4 * math.pi * self.radius * self.thickness * self.height

    def area(self, w: float) -> float:
        """Return the exact area of its cut at a height, mm2."""
        return 4 * math.pi * self.radius * self._half(w)

    def outlines(self, w: float) -> list[Floats]:
        """Return the borders of its cut at a height, even-odd together; (n, 2) in mm each."""
        half = self._half(w)
        if not half:
            return []
        centre = _at(self.centre, self.drift, w)
        return [_circle(centre, self.radius + half), _circle(centre, self.radius - half)]

    def covers(self, u: Floats, v: Floats, w: float) -> npt.NDArray[np.bool_]:
        """Return which points at a height are inside."""
        x, y = _at(self.centre, self.drift, w)
        distance = np.hypot(u - x, v - y)
        return np.asarray(abs(distance - self.radius) < self._half(w))

    def _half(self, w: float) -> float:
        """Return half the width of the ring at a height, 0 outside of the body."""
        off = abs(w - self.centre[2])
        if self.height is None:
            return math.sqrt(max(0.0, self.thickness**2 - off**2))
        return self.thickness if off < self.height / 2 else 0.0


def _at(
    centre: tuple[float, float, float], drift: tuple[float, float], w: float
) -> tuple[float, float]:
    """Return u and v of a body's centre at a height."""
    x, y, z = centre
    return x + drift[0] * (w - z), y + drift[1] * (w - z)


def _circle(centre: Sequence[float], radius: float) -> Floats:
    turns = 2 * math.pi * np.arange(_N_VERTICES) / _N_VERTICES
    return np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius + centre[:2]


def draw_shapes(rng: np.random.Generator, number: int) -> dict[str, Shape]:
    """Return the shapes of one patient, side by side in a field of 170 x 130 mm.

    Bodies with straight walls lean, so that no two planes of them have the same outline, and each
    of 24 patients has another arrangement: equal outlines and images would be suspicious.
    """
    orders = list(itertools.permutations(_PLACES))
    places = iter(orders[number * _STEP % len(orders)])

    def near(height: float) -> tuple[float, float, float]:
        x, y, z = np.array([*next(places), height]) + rng.uniform(-2.5, 2.5, 3)
        return float(x), float(y), float(z)

    def lean() -> tuple[float, float]:
        u, v = rng.uniform(0.05, 0.12, 2) * rng.choice([-1, 1], 2)
        return float(u), float(v)

    return {
        "sphere": Sphere(near(1), 22.7),
        "box": Box(near(-1), (43.3, 31.7, 33.1), lean()),
        "torus": Ring(near(0), 18.2, 7.6),
        "cylinder": Ring(near(1), 15.4, 6.3, 36.3, lean()),
    }
