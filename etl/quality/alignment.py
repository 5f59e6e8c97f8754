"""Do the contours lie on the edges of the image? Measured on a few contours of each patient.

A contour is moved over the image within `SEARCH` pixels; where the contrast across it, along its
normals, is strongest, there it belongs. Each contour is its drawer's, so medians decide: of a
patient, and over the patients.

Of most structures nobody knows whether they are brighter or darker than their surroundings. Of
these the contrast of either sign counts, if it comes from all sides: where only one side has an
edge, a contour drawn too large would look displaced. Structures that most contours show without
such a contrast are soft, and say nothing.
"""

import math
import posixpath
import zlib
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.findings import Finding, SampleKey
from etl.labels import BRIGHTER, DARKER, LabelScheme
from etl.model import Image, Link, Region, Vertices
from etl.options import AUDIT_CONTOURS
from etl.quality.statistics import median_of
from loader.format import Structure

_Floats: TypeAlias = npt.NDArray[np.float64]

# ---------------------------------------------------------------------------------- the thresholds

SEARCH: Final = 3  # pixels: an origin, a corner or a flip by one pixel lies well within
# Of the contrast that every normal could have had on its own. Three real patients' inner contours
# reach 0.36 to 0.79 and places with no contour 0.3. Around the heart muscle lie fat, lung and
# blood: its contours reach 0.5 at a place up to a pixel wrong, so that only more than that counts.
MIN_CONTRAST: Final[dict[str, float]] = {BRIGHTER: 0.4, DARKER: 0.7, "": 0.4}
# Of the same, from each of the four sides: only where the sign of the contrast is not known.
MIN_SIDE: Final = 0.2
# Along x or y, pixels: half a pixel is what a pixel's corner taken for its centre makes. Below, a
# border between pixels is a matter of taste.
MIN_DISPLACEMENT: Final = 0.4
AGREEMENT: Final = 0.5  # of the displacement, that a patient or a structure has at least
MIN_CONTOURS: Final = 4  # measured in all, for the data set to have a displacement
PATIENT_DISPLACEMENT: Final = 0.4  # pixels from the others, along x or y
PATIENT_CONTOURS: Final = 3  # measured, for the patient's median to be more than one drawing
MIN_PATIENTS: Final = 3  # of two patients nobody can say which one is off
DEVIATIONS: Final = 4.0  # standard errors: what the scatter of single contours makes by chance
ORIGIN_TOLERANCE: Final = 0.5  # pixels about (1, 1): nearer to it than to any other whole step
HALF_TOLERANCE: Final = 0.15  # pixels about half a pixel
MAX_SPREAD: Final = 1.0  # pixels, of the contours of a structure of unknown contrast: hand-drawn

_N_NORMALS: Final = 64
_ONE_IN: Final = 4  # images of structures of unknown contrast: the audit is to cost little
_SPARSER: Final = 2  # every second normal, where the sign of the contrast is not known
_SMOOTHING: Final = 3  # normals to either side: contours on a grid of half pixels are staircases
_PLACES: Final = np.arange(_N_NORMALS) + 0.5
_AROUND: Final = np.arange(-_SMOOTHING, _N_NORMALS + _SMOOTHING) % _N_NORMALS
_REACH: Final = 1.0  # pixels in and out along the normal: where half the edge's blur is crossed
_FAINT: Final = 0.5  # of the median: fainter normals weigh less, stronger ones the same
_RING: Final = SEARCH + 1  # places tried: one more on each side, to tell a peak from an edge
_MOVES: Final = np.arange(-_RING, _RING + 2)
_NEAR: Final = slice(_RING - 1, _RING + 2)  # places at most a pixel off
_ROBUST: Final = 1.4826  # times the median absolute deviation: a normal distribution's deviation
_MEDIAN_ERROR: Final = 1.2533  # of a median, times the error of a mean
_RAYLEIGH: Final = 1.1774  # median length of a vector whose components have deviation 1
_MAX_LISTED: Final = 500  # patients in the numbers: an attribute has room for 64 KB

# ---------------------------------------------------------------------------------- of one contour

DATA_SET: Final = ""  # among patients: all of them

_UNKNOWN: Final = 255  # no code of a structure: the samples in which no contrast is known

NOT_AUDITED: Final = 0
MEASURED: Final = 1
TOO_LITTLE_CONTRAST: Final = 2
AT_EDGE: Final = 3  # of the search: it may lie farther off, or be another image's

ALIGNMENT: Final = np.dtype([("dx", "<f4"), ("dy", "<f4"), ("outcome", "|u1"), ("code", "|u1")])


class Alignment(NamedTuple):
    """How far a contour lies off the image's edges; a row of type `ALIGNMENT`."""

    dx: float  # pixels, x: how far the contour is too far to the right
    dy: float  # pixels, y: so much too far down
    outcome: int
    code: int = 0  # of the structure, where its contrast is not known


def mark_audited(
    links: list[Link], scheme: LabelScheme, per_patient: int | None = AUDIT_CONTOURS
) -> None:
    """Mark the links to audit: some of each patient, evenly spread.

    Of each patient only those that show the structure with the lowest code whose contrast is known:
    of the heart the inner contour, where it is drawn. Where a patient has no such structure, any.

    Parameters
    ----------
    links : list of Link
        In the order of the rows; marked in place.
    per_patient : int, optional
        None marks all. Where no contrast is known, up to the default at most a quarter of them, but
        3 at least.
    """
    places: defaultdict[str, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, link in enumerate(links):
        codes = [annotation.code for annotation in link.annotations]
        if codes:
            code = audited_code(codes, scheme) or _UNKNOWN
            places[link.key.patient_id][code].append(place)
    for by_code in places.values():
        code = min(by_code)
        mine = by_code[code]
        n_chosen = len(mine) if per_patient is None else min(per_patient, len(mine))
        if code == _UNKNOWN and n_chosen <= AUDIT_CONTOURS:
            n_chosen = min(n_chosen, max(PATIENT_CONTOURS, len(mine) // _ONE_IN))
        for k in range(n_chosen):
            place = mine[(2 * k + 1) * len(mine) // (2 * n_chosen)]
            links[place] = links[place]._replace(is_audited=True)


def audited(
    regions: Iterable[Region], scheme: LabelScheme, key: SampleKey | None = None
) -> tuple[Vertices, Structure] | None:
    """Return the contour of a sample that the audit measures: the longest of its structure.

    Parameters
    ----------
    regions : iterable of Region
        Those that are masks have no contour.
    scheme : LabelScheme
    key : SampleKey, optional
        Chooses one of the structures where the contrast of none is known, so that the samples of a
        data set show all of them. None: no such structure is measured.
    """
    drawn = {region.code: region.polygons for region in regions if region.polygons}
    code = audited_code(drawn, scheme)
    if code is None and drawn and key is not None:
        turn = zlib.crc32(repr(tuple(key)).encode())
        code = sorted(drawn)[turn % len(drawn)]
    return None if code is None else (max(drawn[code], key=len), scheme[code])


def is_audited(rows: npt.NDArray[np.void], scheme: LabelScheme) -> bool:
    """Say whether an audit has something to tell of the rows: masks have no contours."""
    return scheme.has_contrast or bool((rows["outcome"] != NOT_AUDITED).any())


def audited_code(codes: Iterable[int], scheme: LabelScheme) -> int | None:
    """Return the structure of known contrast that the audit measures; None where there is none."""
    return min((code for code in codes if scheme[code].contrast), default=None)


def measure(image: Image, vertices: Vertices, structure: Structure) -> Alignment:
    """Return how far a contour lies off the image's edges.

    Parameters
    ----------
    image : array, shape (rows, columns)
        Modality values.
    vertices : float64 array, shape (n_vertices, 2)
        (x, y) in pixels.
    structure : Structure
        Its contrast says whether the inside is brighter or darker than what surrounds it, or that
        it is not known which.
    """
    code = 0 if structure.contrast else structure.code
    faint = Alignment(math.nan, math.nan, TOO_LITTLE_CONTRAST, code)
    measured = _contrast if structure.contrast else _contrast_of_either_sign
    contrast = measured(image, vertices, structure)
    if contrast is None:
        return faint
    row, column = divmod(int(contrast.argmax()), 2 * _RING + 1)
    if contrast[row, column] < MIN_CONTRAST[structure.contrast]:
        return faint
    at_edge = faint._replace(outcome=AT_EDGE)
    if {row, column} & {0, 2 * _RING}:
        return at_edge
    peak = peak_of(contrast[row - 1 : row + 2, column - 1 : column + 2])
    if peak is None:
        return faint
    # The contour belongs where the contrast is; so it lies off by the opposite.
    dx, dy = _RING - column - peak[0], _RING - row - peak[1]
    if max(abs(dx), abs(dy)) > SEARCH:
        return at_edge
    return Alignment(dx, dy, MEASURED, code)


def edge_contrast(image: Image, vertices: Vertices, structure: Structure) -> float:
    """Return the share of the edges' contrast that a contour has, at most a pixel from its place.

    1 where every normal crosses its strongest edge there, about 0 where there is none.
    """
    contrast = _contrast(image, vertices, structure)
    return 0.0 if contrast is None else float(contrast[_NEAR, _NEAR].max())


def _contrast(image: Image, vertices: Vertices, structure: Structure) -> _Floats | None:
    """Return the contrast across a contour moved along y, then x; None where there is none."""
    shares = _shares(image, *contour_normals(vertices))
    if shares is None:
        return None
    contrast: _Floats = np.add.reduce(shares) / len(shares)
    return -contrast if structure.contrast == DARKER else contrast


def _contrast_of_either_sign(
    image: Image, vertices: Vertices, _structure: Structure
) -> _Floats | None:
    """Return the contrast of the sign that is the stronger; None where a side has too little."""
    inside, outside = (points[::_SPARSER] for points in contour_normals(vertices))
    shares = _shares(image, inside, outside)
    if shares is None:
        return None
    contrast: _Floats = shares.mean(axis=0)
    row, column = divmod(int(np.abs(contrast).argmax()), 2 * _RING + 1)
    sign = math.copysign(1.0, contrast[row, column])
    x, y = (outside - inside).T
    is_level = np.abs(x) >= np.abs(y)
    side = np.where(is_level, x > 0, 2 + (y > 0))
    total = np.bincount(side, sign * shares[:, row, column], minlength=4)
    if (total < MIN_SIDE * np.bincount(side, minlength=4).clip(1)).any():
        return None
    return sign * contrast


def _shares(image: Image, inside: _Floats, outside: _Floats) -> _Floats | None:
    """Return the contrast of each normal moved along y, then x, in shares of its strongest one."""
    values = _moved_values(image, np.concatenate([inside, outside]))
    step = values[..., : len(inside)] - values[..., len(inside) :]
    step = np.ascontiguousarray(step.transpose(2, 0, 1))
    # Every normal counts the same: a bright vessel beside the contour must not decide by itself.
    own = np.abs(step).reshape(len(step), -1).max(axis=1)
    half = len(own) // 2  # an even number of normals
    middle = np.partition(own, (half - 1, half))[half - 1 : half + 1]
    own = np.maximum(own, _FAINT * float(middle.mean()))  # the median, at a fifth of its time
    if not own.all():
        return None
    step /= own[:, None, None]
    return step


def contour_normals(vertices: Vertices) -> tuple[_Floats, _Floats]:
    """Return points inside and outside of a closed contour, on its normals, equally spaced."""
    x, y = np.concatenate([vertices, vertices[:1]]).T
    length = np.zeros(len(x))
    np.cumsum(np.hypot(x[1:] - x[:-1], y[1:] - y[:-1]), out=length[1:])
    wanted = _PLACES * (length[-1] / _N_NORMALS)
    points = np.empty((2, _N_NORMALS))
    points[0], points[1] = np.interp(wanted, length, x), np.interp(wanted, length, y)
    # Adding up central differences of all widths is a difference of running sums.
    total = np.zeros((2, _N_NORMALS + 2 * _SMOOTHING + 1))
    np.cumsum(points.take(_AROUND, axis=1), axis=1, out=total[:, 1:])
    ahead = total[:, 2 * _SMOOTHING + 1 :] - total[:, _SMOOTHING + 1 : -_SMOOTHING]
    behind = total[:, _SMOOTHING : -_SMOOTHING - 1] - total[:, : -2 * _SMOOTHING - 1]
    along_x, along_y = ahead - behind
    normals = np.empty((2, _N_NORMALS))
    normals[0] = along_y
    np.negative(along_x, out=normals[1])
    normals /= np.maximum(np.hypot(*normals), 1e-9)
    x, y = points - points[:, :1]
    area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
    normals *= _REACH * np.sign(area)
    return (points - normals).T, (points + normals).T


def _moved_values(image: Image, points: _Floats) -> _Floats:
    """Return the image at each point moved by -_RING to _RING whole pixels in both directions.

    Bilinear between pixel centres; beyond the image its border goes on.

    Returns
    -------
    float64 array, shape (2 * _RING + 1, 2 * _RING + 1, n_points)
        Moved along y, then along x. Points are last: NumPy is slow where the last axis is short.
    """
    rows, columns = image.shape
    corner = np.floor(points)
    right, down = np.ascontiguousarray((points - corner).T)
    x, y = corner.T.astype(np.int64)[:, None, :] + _MOVES[:, None]
    x, y = np.minimum(np.maximum(x, 0), columns - 1), np.minimum(np.maximum(y, 0), rows - 1)
    pixels = (y * columns)[:, None] + x
    values = image.ravel().take(pixels).astype(np.float64)
    step = values[1:] - values[:-1]
    step *= down
    step += values[:-1]
    moved: _Floats = step[:, 1:] - step[:, :-1]
    moved *= right
    moved += step[:, :-1]
    return moved


def peak_of(around: _Floats) -> tuple[float, float] | None:
    """Return where (x, y) the quadratic through 3x3 values is highest, from the middle one.

    Least squares. None where it has no peak, or one outside: a ridge tells no place.
    """
    around = around.tolist()
    columns = [a + b + c for a, b, c in zip(*around, strict=True)]
    rows = [a + b + c for a, b, c in around]
    slope_x, slope_y = (columns[2] - columns[0]) / 6, (rows[2] - rows[0]) / 6
    curve_x = (columns[0] + columns[2] - 2 * columns[1]) / 3
    curve_y = (rows[0] + rows[2] - 2 * rows[1]) / 3
    twist = (around[0][0] + around[2][2] - around[0][2] - around[2][0]) / 4
    determinant = curve_x * curve_y - twist * twist
    if determinant <= 0 or curve_x >= 0:
        return None
    x = (twist * slope_y - curve_y * slope_x) / determinant
    y = (twist * slope_x - curve_x * slope_y) / determinant
    return (x, y) if max(abs(x), abs(y)) <= 1 else None


# ------------------------------------------------------------------------------ of all the patients


@dataclass(frozen=True, slots=True)
class Audit:
    """What the audit found, and its numbers for an attribute of the file."""

    findings: list[Finding]
    numbers: dict[str, object]


class _Patient(NamedTuple):
    folder: str  # the innermost that holds all of its images
    patient_id: str
    n_audited: int
    offsets: _Floats  # (n_measured, 2), dx and dy

    @property
    def median(self) -> _Floats:
        return _median(self.offsets)


def audit(
    patient_ids: Sequence[str],
    paths: Sequence[str],
    rows: npt.NDArray[np.void],
    contour_origin: int = 0,
    explained: Container[str] = (),
) -> Audit:
    """Return the displacement of the data set and of each patient, and who stands out.

    Parameters
    ----------
    patient_ids, paths : sequence of str
        Of each row; the path is the image's.
    rows : array of `ALIGNMENT`
        One for each row of the file, most of them not audited.
    contour_origin : {0, 1}
        As the build had it, for the advice.
    explained : container of str
        Patients about which there is a finding already; "" is among them where it is about all.
    """
    rows = _without_soft(rows)
    patients = _patients(patient_ids, paths, rows)
    measured = [patient for patient in patients if len(patient.offsets)]
    counts = np.bincount(rows["outcome"], minlength=4)
    numbers: dict[str, object] = {
        "n_contours": int(counts[MEASURED]),
        "n_too_little_contrast": int(counts[TOO_LITTLE_CONTRAST]),
        "n_at_edge": int(counts[AT_EDGE]),
        "n_patients": len(measured),
    }
    findings: list[Finding] = []
    if measured:
        medians = np.stack([patient.median for patient in measured])
        middle = _median(medians)
        every = np.concatenate([patient.offsets for patient in measured])
        numbers |= _numbers(middle, every)
        farthest = np.argsort(-np.hypot(*(medians - middle).T), kind="stable")[:_MAX_LISTED]
        numbers["patients"] = {
            measured[place].patient_id: _numbers(medians[place], measured[place].offsets)
            | {"n_contours": len(measured[place].offsets)}
            for place in sorted(farthest.tolist())
        }
        if DATA_SET not in explained:
            by_structure = _by_structure(rows)
            findings += _data_set(medians, middle, every, by_structure, contour_origin)
            single = [*_displaced(measured, medians, middle), *_lost(patients, measured)]
            findings += [finding for who, finding in single if who not in explained]
    return Audit(findings, numbers)


def _patients(
    patient_ids: Sequence[str], paths: Sequence[str], rows: npt.NDArray[np.void]
) -> list[_Patient]:
    """Return the audited patients in the order of their first rows."""
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for patient_id, path in zip(patient_ids, paths, strict=True):
        folders[patient_id].add(posixpath.dirname(path))
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, patient_id in enumerate(patient_ids):
        if rows["outcome"][place] != NOT_AUDITED:
            places[patient_id].append(place)
    patients = []
    for patient_id, mine in places.items():
        good = rows[mine][rows["outcome"][mine] == MEASURED]
        folder = posixpath.commonpath(folders[patient_id])
        patients.append(_Patient(folder, patient_id, len(mine), _offsets(good)))
    return patients


def _without_soft(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the rows; those of soft structures as if they had too little contrast.

    Soft is a structure of unknown contrast of which most contours lie by no edge, or off the edges
    by something else each time.
    """
    rows = rows.copy()
    codes, outcomes = rows["code"], rows["outcome"]
    for code in sorted(set(codes[codes > 0].tolist())):
        mine = (codes == code) & (outcomes != NOT_AUDITED)
        clear = mine & (outcomes == MEASURED)
        offsets = _offsets(rows[clear])
        is_soft = 2 * len(offsets) < np.count_nonzero(mine)
        if is_soft or _spread(offsets - _median(offsets)) > MAX_SPREAD:
            rows[clear] = (math.nan, math.nan, TOO_LITTLE_CONTRAST, code)
    return rows


def _by_structure(rows: npt.NDArray[np.void]) -> _Floats:
    """Return the median displacement of each structure of unknown contrast; shape (n, 2)."""
    good = rows[(rows["outcome"] == MEASURED) & (rows["code"] > 0)]
    codes, counts = np.unique(good["code"], return_counts=True)
    medians = [
        _median(_offsets(good[good["code"] == code])) for code in codes[counts >= MIN_CONTOURS]
    ]
    return np.array(medians).reshape(-1, 2)


def _data_set(
    medians: _Floats, middle: _Floats, every: _Floats, by_structure: _Floats, contour_origin: int
) -> list[Finding]:
    distance = math.hypot(*middle)
    spread = _spread(every - middle)
    error = _MEDIAN_ERROR * spread / math.sqrt(len(every))
    is_displaced = np.abs(middle).max() >= MIN_DISPLACEMENT
    if len(every) < MIN_CONTOURS or not is_displaced or distance < DEVIATIONS * error:
        return []
    wanted = AGREEMENT * distance
    # Images that lie elsewhere displace all structures: one by itself may be drawn like that.
    agrees, alike = (some @ (middle / distance) >= wanted for some in (medians, by_structure))
    if not agrees.mean() > 0.5 or (len(alike) and not alike.mean() > 0.5):  # noqa: PLR2004
        return []
    message = (
        f"the contours lie {_offset(middle)} off the edges in the images, give or take "
        f"{_rounded(error):.2f}: the median of {len(every)} contours, whose spread is "
        f"{spread:.2f}; so in {int(agrees.sum())} of {len(medians)} patients. "
        f"{_advice(middle, contour_origin)}"
    )
    if len(alike) and "--contour-origin" in message:
        message += " A structure set has millimetres: check ImagePositionPatient of the images."
    return [Finding("alignment-dataset", "", message)]


def _advice(middle: _Floats, contour_origin: int) -> str:
    for origin, whole in ((0, 1.0), (1, -1.0)):
        if origin == contour_origin and (np.abs(middle - whole) <= ORIGIN_TOLERANCE).all():
            return (
                f"Such files usually count from {1 - origin}: build with "
                f"--contour-origin {1 - origin}."
            )
    if _is_half(middle):
        return (
            "Half a pixel is what a pixel's corner makes that is taken for its centre: "
            "ImagePositionPatient, and (0, 0) in a text contour, are the first pixel's centre. "
            "Correct that in the program that wrote the contours, and write them again."
        )
    return "Look at the overlays, and at how the program that wrote the contours counts pixels."


def _is_half(displacement: _Floats) -> bool:
    """Say whether contours are off by half a pixel along one axis or both, and by no more."""
    size = np.abs(displacement)
    near = np.minimum(size, np.abs(size - 0.5)) <= HALF_TOLERANCE
    return bool(near.all() and size.max() > HALF_TOLERANCE)


def _displaced(
    measured: list[_Patient], medians: _Floats, middle: _Floats
) -> list[tuple[str, Finding]]:
    """Return the patients whose contours lie off by something else than the others'."""
    if len(measured) < MIN_PATIENTS:
        return []
    away = np.hypot(*(medians - middle).T)
    along = np.abs(medians - middle).max(axis=1)
    usual = median_of(away) / _RAYLEIGH
    own = [patient.offsets - patient.median for patient in measured]
    scatter = _spread(np.concatenate(own))
    findings = []
    for place, (patient, median) in enumerate(zip(measured, medians, strict=True)):
        n_contours = len(patient.offsets)
        spread = max(scatter, _spread(patient.offsets - median))
        error = math.hypot(usual, _MEDIAN_ERROR * spread / math.sqrt(n_contours))
        is_displaced = along[place] >= PATIENT_DISPLACEMENT and away[place] >= DEVIATIONS * error
        if n_contours >= PATIENT_CONTOURS and is_displaced:
            message = (
                f"its contours lie {_offset(median)} off the edges in its images (median of "
                f"{n_contours}), those of the data set {_offset(middle)}. Look at its overlays: "
                "are contours and images of one acquisition?"
            )
            findings.append(
                (patient.patient_id, about_patient(patient.patient_id, patient.folder, message))
            )
    return findings


def _lost(patients: list[_Patient], measured: list[_Patient]) -> list[tuple[str, Finding]]:
    """Return the patients none of whose contours lies near an edge, where most others' do."""
    n_clear = sum(2 * len(patient.offsets) > patient.n_audited for patient in measured)
    if len(patients) < MIN_PATIENTS or 2 * n_clear < len(patients):
        return []
    return [
        (
            patient.patient_id,
            about_patient(
                patient.patient_id,
                patient.folder,
                f"none of {patient.n_audited} contours lies within {SEARCH} pixels of a clear "
                f"edge, as most contours of {n_clear} of {len(patients)} patients do. Look at its "
                "overlays: are they another patient's contours?",
            ),
        )
        for patient in patients
        if len(patient.offsets) == 0 and patient.n_audited >= MIN_CONTOURS
    ]


def about_patient(patient_id: str, folder: str, message: str) -> Finding:
    """Return a finding about all contours of a patient, whose images lie in a folder."""
    if posixpath.basename(folder) != patient_id:
        message = f"patient {patient_id!r}: {message}"
    return Finding("alignment-patient", folder, message)


def _offsets(rows: npt.NDArray[np.void]) -> _Floats:
    """Return dx and dy of rows that are measured."""
    return np.stack([rows["dx"], rows["dy"]], axis=1).astype(np.float64)


def _median(offsets: _Floats) -> _Floats:
    return np.array([median_of(axis) for axis in offsets.T])


def _spread(residuals: _Floats) -> float:
    """Return the robust standard deviation of one component."""
    return _ROBUST * median_of(np.abs(residuals).ravel())


def _offset(displacement: _Floats) -> str:
    dx, dy = map(_rounded, displacement.tolist())
    return f"({dx:+.2f}, {dy:+.2f}) pixels (x, y)"


def _numbers(median: _Floats, offsets: _Floats) -> dict[str, float]:
    dx, dy = median.tolist()
    spread = _spread(offsets - median)
    return {"dx": _rounded(dx), "dy": _rounded(dy), "spread": _rounded(spread)}


def _rounded(pixels: float) -> float:
    """Return a number as the file has it, so that messages and reports round the same one."""
    return round(pixels, 3)
