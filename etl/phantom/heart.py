"""The phantom's heart: exactly known outlines of the left ventricle, beat by beat.

Every structure is an `Outline`: a closed curve around a centre whose radius is a short Fourier
series of the angle, so that its area and centre of mass are known exactly.
"""

import cmath
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from etl.model import Vertices
from etl.options import KINDS, Kind

_END_SYSTOLE: Final = 0.35  # of the heart beat
_DIASTASIS: Final = 0.8  # the heart rests from here on


def stable_uid(name: str) -> str:
    """Return a UID that the same name always has."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed curve: radius(t) = `radius` + sum over k of a_k cos(k t) + b_k sin(k t).

    Parameters
    ----------
    centre : complex
        x + iy in pixels, x along Columns, y along Rows; integers are pixel centres.
    radius : float
        Mean radius in pixels.
    harmonics : tuple of complex
        a_k + i b_k in pixels, from k = 1 on.
    """

    centre: complex
    radius: float
    harmonics: tuple[complex, ...] = ()

    @property
    def area(self) -> float:
        """The exact area in square pixels: half the integral of radius(t) squared."""
        return math.pi * (self.radius**2 + sum(abs(c) ** 2 for c in self.harmonics) / 2)

    @property
    def centroid(self) -> complex:
        """The exact centre of mass, x + iy: a third of the integral of radius(t)^3 e^(it) / area.

        The integrand is a trigonometric polynomial, of which equally spaced samples, more than its
        degree, give the integral exactly.
        """
        n_samples = 3 * len(self.harmonics) + 2
        turns = [cmath.rect(1, math.tau * k / n_samples) for k in range(n_samples)]
        moment = sum(self.radius_towards(turn) ** 3 * turn for turn in turns) / n_samples
        return self.centre + math.tau / 3 * moment / self.area

    def radius_towards(self, turn: complex) -> float:
        """Return the radius in the direction of the unit vector `turn`."""
        return self.radius + sum(
            (c * turn.conjugate() ** k).real for k, c in enumerate(self.harmonics, start=1)
        )

    def grown(self, pixels: float) -> "Outline":
        """Return the outline with its mean radius larger by `pixels`."""
        return Outline(self.centre, self.radius + pixels, self.harmonics)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What differs from patient to patient; lengths in pixels, angles in radians."""

    centre: complex  # of the left ventricle at the base, x + iy
    axis: complex  # the way from there to the apex, as it moves through the image
    rotation: float
    scale: float
    radius: float  # of the blood pool at the base, at end-diastole
    wall: float
    shape: tuple[complex, ...]  # harmonics of the blood pool for a mean radius of 1
    emphasis: complex  # towards the thickest part of the wall, as a share of the wall
    contractility: float
    papillary: tuple[float, float]  # size of the two papillary muscles for a mean radius of 1
    brightness: float
    noise: float
    is_circular: bool  # the scanner shows a disc, zero outside of it
    vessels: tuple[tuple[complex, float, float], ...]  # of the lung: place, radius, level
    waves: tuple[tuple[complex, float], ...]  # of the tissues' texture: wave vector, phase
    build: tuple[complex, ...]  # small random numbers that move and shape the other organs


@dataclass(frozen=True, slots=True)
class Cine:
    """One patient's stack of cine slices; the same seed and index give the same patient.

    Parameters
    ----------
    seed : int
        Not negative; another one gives other patients.
    patient : int
        Index of the patient, from 0 on.
    slices, phases : int
        Slices from base to apex, and images of each slice over one heart beat.
    """

    seed: int
    patient: int
    slices: int
    phases: int

    @property
    def patient_id(self) -> str:
        """The name of the patient's DICOM folder, and PatientID."""
        return f"PHANTOM{self.patient + 1:03d}"

    @property
    def original_id(self) -> str:
        """The name of the patient's contour folder."""
        return f"SYN-{self.patient + 1:02d}"

    def rng(self, *place: int) -> np.random.Generator:
        """Return the random numbers that belong to one place (two indices) of this patient."""
        return np.random.default_rng((self.patient, *place, self.seed))

    def uid(self, *place: object) -> str:
        """Return a UID derived from a UUID, unique to this stack and to a place in it."""
        return stable_uid(f"dicom-etl phantom {self} {place}")

    def number(self, slice_index: int, phase: int) -> int:
        """Return the slice number of the link.csv layout, which is also InstanceNumber."""
        return slice_index * self.phases + phase + 1

    def level(self, slice_index: int) -> float:
        """Return where a slice cuts the left ventricle: 0 at the base, 1 at the apex."""
        if self.has_open_ends:
            return slice_index / (self.slices - 1)
        return (slice_index + 1) / (self.slices + 1)

    @property
    def has_open_ends(self) -> bool:
        """Whether the first and the last slice are where the ventricle opens and closes.

        They have no contour. A stack of one or two slices lies between them.
        """
        return self.slices >= 3  # noqa: PLR2004

    def contoured(self) -> Iterator[tuple[int, int, Kind]]:
        """Yield (slice_index, phase, kind) of every contour, in the order of their numbers.

        Both kinds at end-diastole and the i kind at end-systole, in every slice but open ends.
        """
        first, last = (1, self.slices - 1) if self.has_open_ends else (0, self.slices)
        for slice_index in range(first, last):
            yield from ((slice_index, 0, kind) for kind in KINDS)
            if self.phases > 1:
                yield slice_index, end_systole(self.phases), "i"


def draw_anatomy(cine: Cine) -> Anatomy:
    """Return the patient of a stack, drawn at random within what adults show."""
    rng = cine.rng(0, 0)

    def within(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    def turned(low: float, high: float) -> complex:
        return cmath.rect(within(low, high), within(0, math.tau))

    scale = within(0.88, 1.12)
    return Anatomy(
        centre=complex(within(120, 140), within(112, 128)),
        axis=complex(within(-2, 7), within(-4, 5)) * scale,
        rotation=within(-0.8, 0.45),
        scale=scale,
        radius=within(18.5, 23.0) * scale,
        wall=within(6.1, 8.2) * scale,
        shape=(0j, turned(0.015, 0.05), turned(0.005, 0.025), turned(0, 0.012)),
        emphasis=turned(0.02, 0.07),
        contractility=within(0.26, 0.4),
        papillary=(within(0.13, 0.19), within(0.13, 0.19)),
        brightness=within(0.8, 1.5),
        noise=within(6.0, 12.0),
        is_circular=rng.random() < 0.5,  # noqa: PLR2004
        vessels=tuple(
            (complex(within(-75, 85), within(-95, 35)), within(0.6, 1.7), within(-0.1, 1.1))
            for _ in range(90)
        ),
        waves=tuple((turned(0.05, 0.2), within(0, math.tau)) for _ in range(14)),
        build=tuple(complex(within(-1, 1), within(-1, 1)) for _ in range(12)),
    )


def contraction(phase: int, phases: int) -> float:
    """Return how far the heart has contracted: 0 at end-diastole (phase 0), 1 at its smallest."""
    moment = phase / phases
    if moment < _END_SYSTOLE:
        return (1 - math.cos(math.pi * moment / _END_SYSTOLE)) / 2
    relaxed = min((moment - _END_SYSTOLE) / (_DIASTASIS - _END_SYSTOLE), 1.0)
    return (1 + math.cos(math.pi * relaxed)) / 2


def end_systole(phases: int) -> int:
    """Return the phase in which the heart is smallest."""
    return max(range(phases), key=lambda phase: contraction(phase, phases))


def ventricle_outlines(
    anatomy: Anatomy, level: float, contracted: float
) -> tuple[Outline, Outline]:
    """Return the borders of the left ventricle's blood pool and of its muscle.

    The muscle is incompressible: where the blood pool shrinks, the wall thickens. It is nowhere
    thinner than 4 pixels.

    Parameters
    ----------
    anatomy : Anatomy
        The patient.
    level : float
        0 at the base, 1 at the apex.
    contracted : float
        0 at end-diastole, 1 at end-systole.

    Returns
    -------
    tuple of Outline
        The i-contour and the o-contour.
    """
    towards_septum = cmath.rect(-1.5 * contracted, anatomy.rotation)
    centre = anatomy.centre + level * anatomy.axis + towards_septum
    resting = anatomy.radius * math.sqrt(1 - (0.92 * level) ** 2)
    radius = resting * (1 - anatomy.contractility * contracted)
    # The long axis shortens too, which the sum of the cut areas shows as more muscle.
    muscle = ((resting + anatomy.wall) ** 2 - resting**2) * (1 + 0.12 * contracted)
    wall = math.sqrt(radius**2 + muscle) - radius
    twist = (0.15 - 0.3 * level) * contracted
    shape = rotated([c * radius for c in anatomy.shape], anatomy.rotation + twist)
    outer = (shape[0] + wall * anatomy.emphasis, *(0.85 * c for c in shape[1:]))
    return Outline(centre, radius, shape), Outline(centre, radius + wall, outer)


def contour_outline(cine: Cine, slice_index: int, phase: int, kind: Kind) -> Outline:
    """Return one contour of a patient as an exact curve; `Cine.contoured` names those written."""
    contracted = contraction(phase, cine.phases)
    outlines = ventricle_outlines(draw_anatomy(cine), cine.level(slice_index), contracted)
    return outlines[KINDS.index(kind)]


def contour_vertices(outline: Outline, n_vertices: int = 120) -> Vertices:
    """Return equally spaced directions' points on an outline, not closed.

    120 vertices cut 0.05 % off the area. The files have four decimals: with the real data's two,
    rounding alone moves the area of the smallest contours (radius 4 pixels) by 0.07 %.

    Returns
    -------
    float64 array, shape (n_vertices, 2)
        (x, y) in pixels, x along Columns, y along Rows; integers are pixel centres.
    """
    turns = [cmath.rect(1, math.tau * k / n_vertices) for k in range(n_vertices)]
    points = [outline.centre + outline.radius_towards(turn) * turn for turn in turns]
    return np.array([(point.real, point.imag) for point in points])


def rotated(harmonics: list[complex], angle: float) -> tuple[complex, ...]:
    """Return the harmonics of a curve turned by an angle."""
    return tuple(c * cmath.rect(1, k * angle) for k, c in enumerate(harmonics, start=1))
