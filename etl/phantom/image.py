"""The phantom's images: short-axis cuts through heart and chest, as cine MR shows them.

An image is painted structure by structure, back to front; each border is a ramp of about a pixel,
symmetric about the analytic curve, as the partial-volume effect makes it. Shading and Rician noise
come last.
"""

import cmath
import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.phantom.heart import Anatomy, Outline, rotated, ventricle_outlines

Plane: TypeAlias = npt.NDArray[np.float64]  # (ROWS, COLUMNS), intensity of each pixel
Pixels: TypeAlias = npt.NDArray[np.uint16]  # (ROWS, COLUMNS), stored values below 4096

ROWS: Final = 256
COLUMNS: Final = 256

# Intensities before shading, as balanced steady-state cine MR shows the tissues.
_AIR, _LUNG, _MUSCLE, _HEART_MUSCLE, _SPLEEN, _LIVER = 0.0, 9.0, 75.0, 98.0, 90.0, 118.0
_STOMACH, _BOWEL, _BLOOD, _HEART_FAT, _FAT = 165.0, 125.0, 315.0, 235.0, 400.0
_INK = 22.0  # fat and water cancel along their border: a thin dark line


@dataclass(frozen=True, slots=True)
class Scene:
    """What all phases of one slice share; made by `slice_scene`."""

    anatomy: Anatomy
    level: float
    tissue: Plane  # intensities of all that does not beat
    shading: Plane  # the receiving coils' sensitivity, and the tissues' texture


def slice_scene(anatomy: Anatomy, level: float) -> Scene:
    """Return all of a slice that does not beat: chest wall, lung, liver, stomach, spleen, fat.

    Parameters
    ----------
    anatomy : Anatomy
        The patient.
    level : float
        0 at the base of the left ventricle, 1 at its apex.
    """
    tissue = np.full((ROWS, COLUMNS), _LUNG)
    _paint_lung_vessels(tissue, anatomy, level)
    grain = _texture(anatomy, level, 2.5)
    _paint_abdomen(tissue, anatomy, level, grain)
    _paint_chest_wall(tissue, anatomy, level, grain)
    return Scene(anatomy, level, tissue, _shading(anatomy, level))


def short_axis_image(scene: Scene, contracted: float, rng: np.random.Generator) -> Pixels:
    """Return one image of the cine.

    Parameters
    ----------
    scene : Scene
        The slice.
    contracted : float
        0 at end-diastole, 1 at end-systole; the borders that `ventricle_outlines` gives for it lie
        on the image's edges.
    rng : numpy.random.Generator
        Draws the noise.

    Returns
    -------
    uint16 array, shape (ROWS, COLUMNS)
        Stored values from 0 to 4095.
    """
    image = scene.tissue.copy()
    _paint_right_heart(image, scene.anatomy, scene.level, contracted)
    _paint_left_ventricle(image, scene.anatomy, scene.level, contracted)
    image *= scene.shading
    # The magnitude of a complex signal with Gaussian noise in both parts: Rician.
    noise = rng.standard_normal((2, ROWS, COLUMNS), dtype=np.float32) * scene.anatomy.noise
    magnitude = np.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)
    if scene.anatomy.is_circular:
        magnitude *= _DISC
    stored: Pixels = np.minimum(magnitude + 0.5, 4095).astype(np.uint16)
    return stored


_X: Final = np.arange(COLUMNS, dtype=np.float64)
_Y: Final = np.arange(ROWS, dtype=np.float64)
_DISC: Final = np.hypot(_X - 127.5, _Y[:, None] - 127.5) < 127.5  # noqa: PLR2004


def _paint_lung_vessels(image: Plane, anatomy: Anatomy, level: float) -> None:
    for place, radius, middle in anatomy.vessels:
        visible = radius * (1 - (2.8 * (level - middle)) ** 2)
        if visible > 0.5:  # noqa: PLR2004
            moved = place + 25 * (level - middle) * cmath.rect(1, 7 * radius)
            vessel = _organ(anatomy, moved, visible, 0j, cmath.rect(0.4, 2 * cmath.phase(place)))
            _paint(image, vessel, 170.0, opacity=0.4 + 0.3 * radius)


def _paint_abdomen(image: Plane, anatomy: Anatomy, level: float, grain: Plane) -> None:
    """Paint what lies below the diaphragm, which rises towards the apex."""
    build = anatomy.build
    rise = 1j * (3 * build[0].imag - 17 * level)
    dome = _organ(anatomy, 132j + rise, 100, 0j, 0.08 + 0.05j * build[0].real, 0.03 * build[1])
    _paint(image, dome.grown(2), _MUSCLE)
    _paint(image, dome, _HEART_FAT)
    bowel = _organ(anatomy, 20 + 131j + rise, 84, 0j, 0.1j)
    _paint(image, bowel, _BOWEL * (1 + 0.6 * np.tanh(2.5 * grain)))
    aorta = _organ(anatomy, 47 + 6 * build[2].real + (62 + 4j * level) * 1j, 9 + build[2].imag)
    spleen = _organ(anatomy, 78 + 58j + 5 * build[3] + rise, 24 - 5 * level, 0j, 0.12 + 0.25j)
    liver = _organ(
        anatomy,
        complex(-60 - 16 * level, 86) + 6 * build[4] + rise,
        53 - 9 * level,
        0j,
        0.16 - 0.14j + 0.05 * build[5],
        0.06 * build[6],
    )
    stomach = _organ(
        anatomy,
        complex(20 + 8 * level, 60) + 5 * build[7] + rise,
        13 + 9 * level,
        0j,
        0.25 - 0.12j + 0.06 * build[8],
        0.06 * build[9],
    )
    organs = ((spleen, _SPLEEN), (liver, _LIVER), (stomach.grown(3), _SPLEEN), (aorta, _BLOOD))
    for organ, value in organs:
        _paint(image, organ, value, ink=1.4)
    _paint(image, stomach, _STOMACH * (1 + 0.3 * grain))
    for k in range(9):
        place = complex(-62, 88) + rise + cmath.rect(8 + 4 * k, 2.4 * k + 0.8 * level)
        vein = _organ(anatomy, place, 1.2 + 0.5 * abs(build[k]), 0j, cmath.rect(0.5, k))
        _paint(image, vein, _BLOOD, opacity=0.4)


def _paint_chest_wall(image: Plane, anatomy: Anatomy, level: float, grain: Plane) -> None:
    """Paint muscle, ribs, fat and the air around the patient over all that reaches too far."""
    build = anatomy.build
    shape = (0.12 - 0.1j + 0.03 * build[10], 0.03j + 0.02 * build[11], 0.015 * build[9])
    cavity = _organ(anatomy, complex(16, 29), 98, 0j, *shape)
    muscle = _organ(anatomy, complex(17, 30), 109, 0.01 * build[8], *shape)
    skin = _organ(anatomy, complex(11, 25), 122 + 4 * build[7].real, 0j, *shape[:2])
    pad = _organ(
        anatomy,
        complex(14 * level - 44, 8 * level - 26) + 4 * build[6],
        30,
        0j,
        0.4j,
        0.1 * build[5],
    )
    _paint(image, pad, _HEART_FAT * (0.9 + 0.25 * np.tanh(2 * grain)))
    _paint(image, cavity, _MUSCLE * (1 + 0.3 * grain), outside=True, ink=1.5)
    for k in range(12):
        turn = cmath.rect(1, 0.52 * k + 0.5 * level + build[0].real)
        place = cavity.centre + (cavity.radius_towards(turn) + 4.5) * turn
        rib = Outline(place, 3.0, (0j, 1.3 * turn**2 * cmath.rect(1, math.pi)))
        _paint(image, rib, _STOMACH, ink=1.2)
    _paint(image, muscle, _FAT * (1 + 0.12 * grain), outside=True, ink=1.0)
    _paint(image, skin, _AIR, outside=True)


def _paint_right_heart(image: Plane, anatomy: Anatomy, level: float, contracted: float) -> None:
    """Paint the right ventricle, of which the left one leaves a crescent, in a layer of fat."""
    _, outer = ventricle_outlines(anatomy, level, contracted)
    build = anatomy.build
    turn = cmath.rect(1, anatomy.rotation + 0.12 * build[1].real)
    radius = outer.radius * (1.02 - 0.45 * level**2) * (1 - 0.17 * contracted)
    centre = outer.centre - turn * complex(outer.radius * (0.85 - 0.2 * level), -2)
    fractions = (0j, -0.16 + 0.07 * build[2], 0.09 + 0.04 * build[3], 0.03 * build[4])
    shape = rotated([c * radius for c in fractions], anatomy.rotation)
    right = Outline(centre, radius, shape)
    fat = Outline(centre - 1.0 * turn, radius + 3.2, (0j, *(1.1 * c for c in shape[1:])))
    _paint(image, fat, _HEART_FAT)
    _paint(image, right.grown(2.0), _HEART_MUSCLE * 0.8)
    _paint(image, right, _BLOOD * 0.92)
    for k, place in enumerate(build[:7]):
        spot = centre + turn * radius * complex(-0.6 + 0.3 * place.real, 0.75 * place.imag)
        strand = Outline(spot, 1.1 + 0.2 * k, (0j, cmath.rect(0.4 + 0.1 * k, k)))
        _paint(image, strand, _HEART_MUSCLE, opacity=0.55)


def _paint_left_ventricle(image: Plane, anatomy: Anatomy, level: float, contracted: float) -> None:
    inner, outer = ventricle_outlines(anatomy, level, contracted)
    layer = Outline(outer.centre, outer.radius + 1.2, (1.2 * cmath.rect(1, 2.0), *outer.harmonics))
    _paint(image, layer, _HEART_FAT)
    _paint(image, outer, _HEART_MUSCLE)
    _paint(image, inner, _BLOOD)
    strength = math.sin(math.pi * min(0.1 + 0.9 * level, 0.92))
    for side, size in zip((-0.9, 0.8), anatomy.papillary, strict=True):
        turn = cmath.rect(1, anatomy.rotation + side)
        radius = size * inner.radius * strength
        place = inner.centre + turn * (0.8 * inner.radius - radius)
        lobes = rotated([0j, 0.2 * radius + 0j, 0.15 * radius + 0j], anatomy.rotation + side)
        _paint(image, Outline(place, radius, lobes), _HEART_MUSCLE * 1.1)
    for k, number in enumerate(anatomy.build):
        turn = cmath.rect(1, anatomy.rotation + 0.22 * (k - 5.5) + 0.15 * number.real)
        spot = inner.centre + turn * (inner.radius_towards(turn) - 3.2 - abs(number))
        _paint(image, Outline(spot, 0.9), _HEART_MUSCLE, opacity=0.55 * strength * abs(number))
    if level == 0:
        _paint_aortic_root(image, anatomy, inner)


def _paint_aortic_root(image: Plane, anatomy: Anatomy, inner: Outline) -> None:
    """Open the most basal slice, which nobody contours, towards the aorta and the atrium."""
    for angle, share in ((-2.5, 0.62), (2.2, 0.8)):
        turn = cmath.rect(1, anatomy.rotation + angle)
        root = Outline(inner.centre + turn * 1.15 * inner.radius, share * inner.radius)
        _paint(image, root.grown(1.6), _HEART_MUSCLE)
        _paint(image, root, _BLOOD * 0.97)
    _paint(image, inner.grown(-2), _BLOOD)


def _organ(anatomy: Anatomy, place: complex, radius: float, *shape: complex) -> Outline:
    """Return an outline placed and shaped relative to the heart, then scaled and turned with it."""
    centre = anatomy.centre + anatomy.scale * place * cmath.rect(1, anatomy.rotation)
    scaled = anatomy.scale * radius
    return Outline(centre, scaled, rotated([c * scaled for c in shape], anatomy.rotation))


def _paint(
    image: Plane,
    outline: Outline,
    value: float | Plane,
    *,
    opacity: float = 1.0,
    outside: bool = False,
    ink: float = 0.0,
) -> None:
    """Lay an intensity over what is inside of an outline, or over what is outside of it.

    `ink` is the width of a dark line along the border, as between fat and water.
    """
    rows, columns = (slice(0, ROWS), slice(0, COLUMNS)) if outside else _window(outline.grown(ink))
    depth = _depth(outline, rows, columns)
    if outside:
        np.negative(depth, out=depth)
    below = image[rows, columns]
    if ink:
        below += _ramp(depth + ink) * (_INK - below)
    below += opacity * _ramp(depth) * (np.broadcast_to(value, image.shape)[rows, columns] - below)


def _ramp(depth: Plane) -> Plane:
    """Return how much of each pixel is covered: from 0 to 1 across the border, half on it."""
    part = np.clip(0.5 + depth / _RAMP, 0, 1)
    covered: Plane = part * part * (3 - 2 * part)
    return covered


_RAMP: Final = 1.9  # pixels from 0 to 1: from a tenth to nine tenths takes 1.15


def _window(outline: Outline) -> tuple[slice, slice]:
    """Return the rows and columns that an outline may touch."""
    reach = outline.radius + sum(abs(c) for c in outline.harmonics) + 2
    top, left = outline.centre.imag - reach, outline.centre.real - reach
    return (
        slice(max(0, math.floor(top)), max(0, math.ceil(top + 2 * reach))),
        slice(max(0, math.floor(left)), max(0, math.ceil(left + 2 * reach))),
    )


def _depth(outline: Outline, rows: slice, columns: slice) -> Plane:
    """Return how far inside of an outline each pixel of a window is; negative outside.

    Exact on the border and to first order beside it, so that a ramp is steepest on the border.
    """
    offset = (_X[columns] - outline.centre.real) + 1j * (_Y[rows, None] - outline.centre.imag)
    distance = np.abs(offset)
    turn = np.conjugate(offset, out=offset)
    turn /= np.maximum(distance, 1e-9)
    wave, slope = np.zeros_like(turn), np.zeros_like(turn)
    for k in range(len(outline.harmonics), 0, -1):
        wave += outline.harmonics[k - 1]
        wave *= turn
        slope += k * outline.harmonics[k - 1]
        slope *= turn
    radius = wave.real + outline.radius
    steepness = slope.imag / np.maximum(radius, 1.0)
    depth: Plane = (radius - distance) / np.sqrt(1 + steepness * steepness)
    return depth


def _texture(anatomy: Anatomy, level: float, frequency: float) -> Plane:
    """Return a smooth random field about zero, most of it between -1 and 1."""
    field = np.zeros((ROWS, COLUMNS))
    for vector, phase in anatomy.waves:
        along_x = frequency * vector.real * _X + phase + 3 * level
        along_y = (frequency * vector.imag * _Y)[:, None]
        field += np.cos(along_x) * np.cos(along_y) - np.sin(along_x) * np.sin(along_y)
    return field / math.sqrt(2 * len(anatomy.waves))


def _shading(anatomy: Anatomy, level: float) -> Plane:
    coil = anatomy.centre + cmath.rect(95 * anatomy.scale, anatomy.rotation - 2.3)
    along_x = np.exp(-(((_X - coil.real) / 120) ** 2))
    along_y = np.exp(-(((_Y - coil.imag) / 120) ** 2))
    sensitivity = anatomy.brightness * (0.55 + 1.3 * along_x * along_y[:, None])
    shading: Plane = sensitivity * (1 + 0.05 * _texture(anatomy, level, 1.0))
    return shading
