"""Checks of how the rows agree, each → warnings with their numbers.

They look at all rows at the end: at their manifest and at a few numbers of each region (`SHAPES`),
sorted and grouped, never all against all. `drawing` looks at one row by itself, `neighbours`
compares neighbouring slices and phases.
"""

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.findings import Finding, SampleKey, counted
from etl.geometry import are_directions, heights, offsets_in_plane
from etl.labels import LabelScheme
from etl.quality.copies import Pictures, Twin, Verdict, judge
from etl.quality.exchanged import (
    BRIGHTNESS,
    MIN_PATIENTS,
    MOST_STRUCTURES,
    VALUE,
    Drawn,
    find_confusions,
    gather,
    largest,
)
from etl.quality.near_copies import find_near_copies
from etl.quality.neighbours import Stack, find_jumps
from etl.quality.patients import Patient
from etl.quality.statistics import median_of
from loader.format import Structure

ManifestTable: TypeAlias = Mapping[str, npt.NDArray[np.generic]]  # of the manifest
_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Flags: TypeAlias = npt.NDArray[np.bool_]

# The regions of all rows, with what the checks need of each; see `drawing.Shape`.
SHAPES: Final = np.dtype(
    [
        *(("row", "<i8"), ("code", "|u1"), ("digest", "<u8"), ("x", "<f8"), ("y", "<f8")),
        ("is_mask", "|b1"),
    ]
)

# ---------------------------------------------------------------------------------- the thresholds

# Where p01 and p99 are equal, an image is constant but for two pixels in a hundred. Where p99 and
# the maximum are, this share has the highest value, which otherwise only a few pixels reach.
SATURATED_SHARE: Final = 0.01
# Hearts differ by less than this from the median; the robust deviation makes room for mixed data.
LARGE_RADIUS: Final = 2.0  # times the median radius (four times its area)
LARGE_DEVIATIONS: Final = 5.0  # robust standard deviations of the radius as well
SMALL_RADIUS: Final = 0.15  # times the median radius (a fiftieth of its area): less than any apex
MIN_CONTOURS: Final = 10  # fewer have no usual size
# Rounding in headers is far below these.
SPACING_TOLERANCE: Final = 0.001  # of the spacing
ORIENTATION_TOLERANCE: Final = 0.01  # of a direction cosine: 0.6 degrees
# A patient's numbers agree where three rows do, and three of four of all its rows.
AGREEING_ROWS: Final = 3
AGREEING_SHARE: Final = 0.75

_NO_RESCALE: Final = (1.0, 0.0)  # slope and intercept
_ROBUST: Final = 1.4826  # times the median absolute deviation: a normal distribution's deviation
_LARGEST: Final = 1e10  # of a number in a header: more means nothing
_N_NAMED: Final = 3  # others that a message names
_MOST_READ: Final = 8  # images of a patient whose brightness is measured, one of each structure
_SAMPLED: Final = 128  # pixels of them along a side: a mean takes no more
_FEWEST: Final = 4  # pixels that make a mean

# -------------------------------------------------------------------------------------- of all rows


class Rows(NamedTuple):
    """All rows, as the checks see them."""

    manifest: ManifestTable  # the columns of /manifest but split, fold and flags
    images: npt.NDArray[np.uint64]  # a digest of each row's pixels
    shapes: npt.NDArray[np.void]  # of type SHAPES, by code, then by row
    scheme: LabelScheme
    pictures: Pictures | None = None  # the rows as written; None: none is looked at
    hashes: npt.NDArray[np.uint64] | None = None  # of each row's image; see `near_copies`
    has_bits: bool = False  # the masks have a bit of each structure
    side: tuple[int, int] = (1, 1)  # columns and rows of the images
    units: npt.NDArray[np.bytes_] | None = None  # of the values of each row; empty: not known

    def is_inside(self, mask: npt.NDArray[np.unsignedinteger], structure: Structure) -> _Flags:
        """Return which pixels of a mask show a structure."""
        if not self.has_bits:
            return np.asarray(mask == structure.code)
        return np.asarray((mask >> self.scheme.bits[structure.code]) & 1, np.bool_)

    def key(self, row: int) -> SampleKey:
        """Return the key of a row."""
        return key_of(self.manifest, row)

    def about_image(self, code: str, row: int, message: str, other: int | None = None) -> Finding:
        """Return a finding about the image of a row."""
        path, key = _text(self.manifest["dicom_path"], row), self.key(row)
        if self._has_several_frames(row):
            message = f"frame {key.frame_number}: {message}"
        return Finding(code, path, message, key, other_key=self._partner(other))

    def about_region(
        self, code: str, row: int, structure: Structure, message: str, other: int | None = None
    ) -> Finding:
        """Return a finding about the region that a structure has in a row."""
        path = _text(self.manifest[f"{structure.stem}_path"], row)
        if self._has_several_drawings(row, structure):
            message = f"{structure.name} on {self.image(row)}: {message}"
        key, partner = self.key(row), self._partner(other)
        return Finding(code, path, message, key, structure.code, partner)

    def image(self, row: int) -> str:
        """Return how messages name the image of a row."""
        path = _text(self.manifest["dicom_path"], row)
        if self._has_several_frames(row):
            return f"{path}, frame {self.key(row).frame_number}"
        return path

    def region(self, row: int, structure: Structure) -> str:
        """Return how messages name the region that a structure has in a row."""
        path = _text(self.manifest[f"{structure.stem}_path"], row)
        if self._has_several_drawings(row, structure):
            return f"{path} ({structure.name} on {self.image(row)})"
        return path

    def _has_several_frames(self, row: int) -> bool:
        paths = self.manifest["dicom_path"]
        return any(paths[row] == paths[one] for one in self._around(row) if one != row)

    def _has_several_drawings(self, row: int, structure: Structure) -> bool:
        """Say whether the file of a region has others: of this row, or of one beside it."""
        path = self.manifest[f"{structure.stem}_path"][row]
        return any(
            path == self.manifest[f"{other.stem}_path"][one]
            for one in self._around(row)
            for other in self.scheme
            if (one, other.code) != (row, structure.code)
        )

    def _around(self, row: int) -> range:
        return range(max(row - 1, 0), min(row + 2, len(self.manifest["slice"])))

    def _partner(self, row: int | None) -> SampleKey | None:
        return None if row is None else self.key(row)


def key_of(manifest: ManifestTable, row: int) -> SampleKey:
    """Return the key of a row of the manifest."""
    return SampleKey(
        _text(manifest["patient_id"], row),
        _text(manifest["series"], row),
        int(manifest["slice"][row]),
        int(manifest["frame_number"][row]),
    )


def check_rows(rows: Rows) -> list[Finding]:
    """Return what only all rows together show."""
    return [finding for check in CHECKS for finding in check(rows)]


def _image_values(rows: Rows) -> Iterator[Finding]:
    manifest = rows.manifest
    low, high, top = (manifest[name].astype(np.float64) for name in ("p01", "p99", "maximum"))
    is_constant = low == high
    for row in np.flatnonzero(is_constant | (high == top)).tolist():
        if is_constant[row]:
            code = "image-constant"
            message = f"almost all of its pixels have one value ({low[row]:g}). Is it empty?"
        else:
            code = "image-saturated"
            message = (
                f"{SATURATED_SHARE:.0%} or more of its pixels have its highest value "
                f"({top[row]:g}): what was brighter is cut off. Export it again."
            )
        yield rows.about_image(code, row, message)


def _identical_images(rows: Rows) -> Iterator[Finding]:
    for alike in _equal(rows.images):
        for position, row in enumerate(alike.tolist()):
            others = _others(
                [functools.partial(rows.image, one) for one in alike.tolist()], position
            )
            message = f"has the same pixels as {others}. Remove one of them, or its twin."
            partner = int(alike[0 if position else 1])
            yield rows.about_image("identical-image", row, message, partner)


def _near_copies(rows: Rows) -> Iterator[Finding]:
    """Compare the images of different patients; equal pixels are told already."""
    if rows.pictures is None or rows.hashes is None:
        return
    ids = rows.manifest["patient_id"]
    _, places, counts = np.unique(rows.images, return_inverse=True, return_counts=True)
    is_single = counts[places.reshape(-1)] == 1
    for one in find_near_copies(rows.hashes, _codes(ids), is_single, rows.pictures.image):
        message = (
            f"shows what {rows.image(one.other)} of patient "
            f"{_text(ids, one.other)!r} shows (correlation {one.correlation:.2f}), not with the "
            "same pixels. Is it a copy? Then leave one of them out."
        )
        yield rows.about_image("near-duplicate", one.row, message, one.other)


def _identical_contours(rows: Rows) -> Iterator[Finding]:
    """Compare the regions of all structures: one on equal pixels twice is no second mistake."""
    shapes, scheme = rows.shapes, rows.scheme
    groups: list[list[Twin]] = []
    for places in _equal(shapes["digest"]):
        alike = shapes[places]
        patients = rows.manifest["patient_id"][alike["row"]]
        # Masks of a straight body are equal in neighbouring planes; points drawn by hand are not.
        is_natural = alike["is_mask"].all() and (patients == patients[0]).all()
        if len(set(rows.images[alike["row"]].tolist())) > 1 and not is_natural:
            codes = alike["code"].tolist()
            groups.append(
                [
                    Twin(*one)
                    for one in zip(
                        alike["row"].tolist(), map(scheme.__getitem__, codes), strict=True
                    )
                ]
            )
    verdicts = [Verdict({})] * len(groups)
    if rows.pictures is not None:
        ids = rows.manifest["patient_id"]
        verdicts = judge(groups, rows.pictures, scheme, lambda row: _text(ids, row))
    for twins, verdict in zip(groups, verdicts, strict=True):
        yield from _twin_findings(rows, twins, verdict)


def _one_drawing_twice(rows: Rows) -> Iterator[Finding]:
    """Warn where a structure that lies in another one is drawn as that one: on one image.

    Other structures that share their pixels overlap, which `drawing` tells.
    """
    scheme = rows.scheme
    for places in _equal(rows.shapes["digest"]):
        alike = rows.shapes[places]
        order = np.argsort(alike["row"], kind="stable")
        drawn = list(zip(alike["row"][order].tolist(), alike["code"][order].tolist(), strict=True))
        for (row, code), (other_row, other) in itertools.pairwise(drawn):
            if row != other_row or (code, other) not in scheme.kin:
                continue
            for mine, twin in ((code, other), (other, code)):
                message = (
                    f"is drawn as the {scheme[twin].name} of this image is, so that nothing lies "
                    "between them. Is one of them a copy?"
                )
                yield rows.about_region("identical-contour", row, scheme[mine], message)


def _twin_findings(rows: Rows, twins: Sequence[Twin], verdict: Verdict) -> Iterator[Finding]:
    """Yield a finding for each of equal contours, but for the one that the others are copies of."""
    names = [functools.partial(rows.region, one.row, one.structure) for one in twins]
    original = next(place for place in range(len(twins)) if place not in verdict.copies)
    for place, twin in enumerate(twins):
        if place == verdict.original:
            continue
        if place in verdict.copies:
            partner = original
            message = (
                f"is a copy of {names[original]()}, of another image: "
                f"{verdict.copies[place]}. Draw it again."
            )
        else:
            partner = 0 if place else 1
            others = _others(names, place)
            message = f"has the same points as {others}, of another image. Is it a copy?"
        other = twins[partner].row
        yield rows.about_region("identical-contour", twin.row, twin.structure, message, other)


def _area_outliers(rows: Rows) -> Iterator[Finding]:
    manifest = rows.manifest
    spacing = _spacing(manifest).prod(axis=1)
    in_mm = not np.isnan(spacing).any()
    unit = "mm" if in_mm else "pixels"
    for structure in rows.scheme:
        area = _floats(manifest, f"{structure.stem}_area") * (spacing if in_mm else 1.0)
        radius = np.sqrt(area / math.pi)
        known = radius[~np.isnan(radius)]
        if len(known) < MIN_CONTOURS:
            continue
        usual = median_of(known)
        deviation = _ROBUST * median_of(np.abs(known - usual))
        high = max(LARGE_RADIUS * usual, usual + LARGE_DEVIATIONS * deviation)
        # Of a structure of which nothing is known, the last slice may show a tip of any size.
        low = SMALL_RADIUS * usual if structure.contrast else 0.0
        for row in np.flatnonzero((radius > high) | (radius < low)).tolist():
            expected = f"{low:.1f} to {high:.1f}" if low else f"{high:.1f} at most"
            contours = "" if structure.name.endswith("contour") else " contours"
            message = (
                f"is as large as a circle of radius {radius[row]:.1f} {unit}, expected "
                f"{expected}: the median of {len(known)} {structure.name}{contours or 's'} is "
                f"{usual:.1f}. Look at its overlay."
            )
            yield rows.about_region("area-outlier", row, structure, message)


def _geometry_changes(rows: Rows) -> Iterator[Finding]:
    """Compare each row with the geometry that most rows of its series have."""
    manifest = rows.manifest
    spacing, orientation = _spacing(manifest), _orientation(manifest)
    uids = manifest["series_instance_uid"]
    patients, series = _codes(manifest["patient_id"]), _codes(uids)
    group = _codes(patients * (int(series.max(initial=0)) + 1) + series)
    example = _usual(group, _geometries(spacing, orientation))[0]
    is_spaced = np.abs(spacing - spacing[example]) > SPACING_TOLERANCE * spacing[example]
    is_turned = np.abs(orientation - orientation[example]) > ORIENTATION_TOLERANCE
    is_other = (is_spaced.any(axis=1) | is_turned.any(axis=1)) & (uids != b"")
    for row in np.flatnonzero(is_other).tolist():
        name, values = "orientation", orientation
        if is_spaced[row].any():
            name, values = "spacing", spacing
        message = (
            f"its {name} is {_listed(values[row])}, but {_listed(values[example[row]])} in most of "
            "its series. Does it belong there?"
        )
        yield rows.about_image("geometry-changes", row, message)


def _lost_rescale(rows: Rows) -> Iterator[Finding]:
    """Warn of images whose values are as they are stored, where others of the series are rescaled.

    Slopes that differ from image to image, as in PET, are none of it.
    """
    manifest = rows.manifest
    rescale = np.stack([_floats(manifest, f"rescale_{name}") for name in ("slope", "intercept")], 1)
    uids = manifest["series_instance_uid"]
    patients, series = _codes(manifest["patient_id"]), _codes(uids)
    group = _codes(patients * (int(series.max(initial=0)) + 1) + series)
    example, n_usual, n_rows = _usual(group, _codes(_as_one(rescale.view(np.int64))))
    agrees = (n_usual >= AGREEING_ROWS) & (n_usual >= AGREEING_SHARE * n_rows) & (uids != b"")
    is_plain = (rescale == _NO_RESCALE).all(axis=1)
    for row in np.flatnonzero(agrees & is_plain & ~is_plain[example]).tolist():
        slope, intercept = rescale[example[row]].tolist()
        message = (
            f"its RescaleSlope is 1 and its RescaleIntercept 0, or it has none, but {slope:g} and "
            f"{intercept:g} are those of {n_usual[row]} of the {n_rows[row]} rows of its series. "
            "Are its values rescaled?"
        )
        yield rows.about_image("rescale-differs", row, message)


def _other_units(rows: Rows) -> Iterator[Finding]:
    """Warn of images whose values are in another unit than those of most rows that name one."""
    if rows.units is None:
        return
    is_known = rows.units != b""
    names, counts = np.unique(rows.units[is_known], return_counts=True)
    if len(names) <= 1:
        return
    usual, n_usual = names[counts.argmax()], counts.max()
    for row in np.flatnonzero(is_known & (rows.units != usual)).tolist():
        message = (
            f"its values are in {_text(rows.units, row)!r}, but in {usual.decode()!r} in {n_usual} "
            f"of the {is_known.sum()} rows whose unit is known. Are both one scale? Else build "
            "them apart, or leave one out."
        )
        yield rows.about_image("units-differ", row, message)


def _missing_geometry(rows: Rows) -> Iterator[Finding]:
    """Count the rows without an attribute of their place, in one finding for all of them."""
    manifest = rows.manifest
    values = {
        "PixelSpacing": _spacing(manifest),
        "ImagePositionPatient": _position(manifest),
        "ImageOrientationPatient": _directions(manifest),
    }
    patients = _codes(manifest["patient_id"])
    counts = []
    for name, columns in values.items():
        is_missing = np.isnan(columns.sum(axis=1))
        if is_missing.any():
            n_patients = len(set(patients[is_missing].tolist()))
            n_rows = f"{np.count_nonzero(is_missing)} of {counted(len(is_missing), 'row')}"
            counts.append(f"{name} in {n_rows} ({counted(n_patients, 'patient')})")
    if counts:
        message = (
            f"images have no usable {', '.join(counts)}. Areas in "
            "mm and comparisons with neighbouring slices need them. Export the images again with "
            "these attributes."
        )
        yield Finding("geometry-missing", "", message)


def _instance_numbers(rows: Rows) -> Iterator[Finding]:
    """Compare file name and InstanceNumber; in a patient they may differ by one constant."""
    manifest = rows.manifest
    instance, number = _floats(manifest, "instance_number"), _floats(manifest, "slice")
    # Where a source tells series apart, `slice` is no number of a file name.
    known = np.flatnonzero(~np.isnan(instance - number) & (manifest["series"] == b""))
    ahead = (instance - number)[known]
    patients = _codes(manifest["patient_id"])[known]
    example, n_usual, n_rows = _usual(patients, _codes(ahead))
    agrees = (n_usual >= AGREEING_ROWS) & (n_usual >= AGREEING_SHARE * n_rows)
    for place in np.flatnonzero(agrees & (ahead != ahead[example])).tolist():
        row = int(known[place])
        expected = number[row] + ahead[example[place]]
        message = (
            f"its InstanceNumber is {instance[row]:g}, expected {expected:g}: {n_usual[place]} of "
            f"the patient's {n_rows[place]} images agree on that. Is the file misnamed?"
        )
        yield rows.about_image("instance-number-differs", row, message)


def _jumps(rows: Rows) -> Iterator[Finding]:
    """Compare areas and centroids with those of neighbouring slices and phases."""
    manifest = rows.manifest
    spacing, orientation = _spacing(manifest), _directions(manifest)
    position = _position(manifest)
    height = heights(orientation, position)
    is_placed = ~np.isnan(height)
    # Where the first pixel lies in the slice's plane: slices of a stack may be cut out differently.
    shift = offsets_in_plane(orientation, position) / spacing[:, ::-1]
    if "source_rows" in manifest:  # where no millimetres are known, the cut in pixels at least
        cut = [
            _floats(manifest, f"source_{axis}_offset") / _floats(manifest, f"source_{axis}_scale")
            for axis in ("column", "row")
        ]
        shift = np.where(np.isnan(shift), np.stack(cut, axis=1), shift)
    key = [_codes(manifest["patient_id"]), _codes(manifest["series"])]
    key += [is_placed, _geometries(spacing, orientation)]
    stack = Stack(
        group=_codes(_as_one(np.column_stack(key))),
        height=np.where(is_placed, height, _floats(manifest, "slice_location")),
        time=_floats(manifest, "trigger_time"),
    )
    for structure in rows.scheme:
        radius = np.sqrt(_floats(manifest, f"{structure.stem}_area") / math.pi)
        drawn = rows.shapes[rows.shapes["code"] == structure.code]
        centroid = np.full((len(radius), 2), np.nan)
        centroid[drawn["row"]] = np.stack([drawn["x"], drawn["y"]], axis=1)
        for jump in find_jumps(stack, radius, centroid + np.nan_to_num(shift)):
            yield rows.about_region(jump.code, jump.row, structure, jump.message)


def _exchanged_structures(rows: Rows) -> Iterator[Finding]:
    """Compare each patient's structures with those of the others.

    Without the images, names that only their brightness contradicts would seem to be exchanged.
    """
    if rows.pictures is None:
        return
    manifest, ids = rows.manifest, rows.manifest["patient_id"]
    patients, series = _codes(ids), _codes(manifest["series"])
    if len(rows.scheme) == 1 or int(patients.max(initial=0)) + 1 < MIN_PATIENTS:
        return
    group = _codes(patients * (int(series.max()) + 1) + series)
    by_size = sorted(
        rows.scheme, key=lambda one: -np.count_nonzero(rows.shapes["code"] == one.code)
    )
    chosen = sorted(by_size[:MOST_STRUCTURES], key=lambda one: one.code)
    drawn = [_drawn(rows, one) for one in chosen]
    features = gather(group, int(group.max()) + 1, drawn)
    brightness = _brightness(rows, rows.pictures, group, chosen, drawn)
    features[:, :, [BRIGHTNESS, VALUE]] = brightness
    kin = rows.scheme.kin
    related = np.array([[(one.code, other.code) in kin for other in chosen] for one in chosen])
    for one in find_confusions(features, related):
        structure, other = chosen[one.structure].name, chosen[one.other].name
        mine = drawn[one.structure].row
        mine = mine[group[mine] == one.group]
        patient = Patient(_text(ids, int(mine[0])), _text(manifest["original_id"], int(mine[0])))
        if one.is_exchanged:
            message = (
                f"looks like the {other!r} of the other patients, and the {other!r} like their "
                f"{structure!r}. Compared with the {other!r}: {one.evidence}. Are the two names "
                f"exchanged in patient {patient}? Then give both the right one."
            )
        else:
            message = (
                f"looks like the {other!r} of the other patients: {one.evidence}. Has it the wrong "
                f"name in patient {patient}? Then give it the right one."
            )
        for row in mine.tolist():
            yield rows.about_region("structures-exchanged", row, chosen[one.structure], message)


def _drawn(rows: Rows, structure: Structure) -> Drawn:
    """Return where a structure is drawn, and how large."""
    manifest = rows.manifest
    shapes = rows.shapes[rows.shapes["code"] == structure.code]
    row = shapes["row"]
    centre = np.stack([shapes["x"], shapes["y"]], axis=1)
    spacing, orientation = _spacing(manifest)[row], _orientation(manifest)[row]
    steps = (centre * spacing[:, ::-1])[:, :, None] * orientation.reshape(-1, 2, 3)
    unit = _spacing(manifest).prod(axis=1)
    unit = unit[row] if not np.isnan(unit).any() else 1.0
    radius = np.sqrt(_floats(manifest, f"{structure.stem}_area")[row] / math.pi * unit)
    return Drawn(row, radius, _position(manifest)[row] + steps.sum(axis=1), centre / rows.side)


def _brightness(
    rows: Rows,
    pictures: Pictures,
    group: _Integers,
    chosen: Sequence[Structure],
    drawn: Sequence[Drawn],
) -> _Floats:
    """Return the mean of each structure in the image that shows it largest, for each group.

    In shares of the range of the group's images, from the 1st to the 99th percentile, and of that
    of all images.
    """
    n_groups = int(group.max()) + 1
    means = np.full((n_groups, len(chosen)), np.nan)
    found = np.full((n_groups, len(chosen), 2), np.nan)
    wanted: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for place, one in enumerate(drawn):
        for number, row in largest(group, one):
            wanted[number, row].append(place)
    n_read = Counter[int]()
    n_rows = np.bincount(group, minlength=n_groups)
    low, high = (
        np.bincount(group, rows.manifest[name].astype(np.float64), n_groups) / n_rows
        for name in ("p01", "p99")
    )
    for (number, row), places in wanted.items():
        n_read[number] += 1
        if n_read[number] > _MOST_READ:
            continue
        image, mask = pictures.image(row), pictures.mask(row)
        rough = tuple(slice(None, None, max(1, size // _SAMPLED)) for size in image.shape)
        image, mask = image[rough], mask[rough]
        for place in places:
            values = image[rows.is_inside(mask, chosen[place])]
            if len(values) >= _FEWEST:
                means[number, place] = math.fsum(values.tolist()) / len(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        found[:, :, 0] = (means - low[:, None]) / (high - low)[:, None]
        found[:, :, 1] = (means - median_of(low)) / (median_of(high) - median_of(low))
    found[~np.isfinite(found)] = np.nan
    return found


# Named checks of all rows, in the order in which their findings come.
CHECKS: Final[tuple[Callable[[Rows], Iterable[Finding]], ...]] = (
    _image_values,
    _identical_images,
    _near_copies,
    _identical_contours,
    _one_drawing_twice,
    _area_outliers,
    _geometry_changes,
    _lost_rescale,
    _other_units,
    _missing_geometry,
    _instance_numbers,
    _jumps,
    _exchanged_structures,
)


def _floats(manifest: ManifestTable, name: str) -> _Floats:
    """Return a column; as unknown where a header's value is beyond all sense."""
    values = manifest[name].astype(np.float64)
    values[~(np.abs(values) < _LARGEST)] = np.nan
    return values


def _text(values: npt.NDArray[np.generic], row: int) -> str:
    return bytes(values[row]).decode()


def _position(manifest: ManifestTable) -> _Floats:
    return np.stack([_floats(manifest, f"image_position_{axis}") for axis in "xyz"], axis=1)


def _orientation(manifest: ManifestTable) -> _Floats:
    """Return direction cosines as headers have them, shape (n, 6)."""
    names = [f"image_orientation_{half}_{axis}" for half in ("row", "column") for axis in "xyz"]
    return np.stack([_floats(manifest, name) for name in names], axis=1)


def _directions(manifest: ManifestTable) -> _Floats:
    """Return direction cosines, shape (n, 6); NaN where they are no two directions."""
    cosines = _orientation(manifest)
    cosines[~are_directions(cosines)] = np.nan
    return cosines


def _spacing(manifest: ManifestTable) -> _Floats:
    spacing = np.stack(
        [_floats(manifest, f"pixel_spacing_{axis}") for axis in ("row", "column")], 1
    )
    spacing[~(spacing > 1 / _LARGEST)] = np.nan
    return spacing


def _listed(values: _Floats) -> str:
    return " ".join(f"{value:g}" for value in values.tolist())


def _geometries(spacing: _Floats, orientation: _Floats) -> _Integers:
    """Return codes that are equal where spacing and orientation are, but for rounding."""
    scaled = np.hstack([spacing / SPACING_TOLERANCE, orientation / ORIENTATION_TOLERANCE])
    return _codes(_as_one(np.rint(np.nan_to_num(scaled)).astype(np.int64)))


def _as_one(table: _Integers) -> npt.NDArray[np.void]:
    """Return each row of a table as one opaque value, which sorts and compares."""
    whole: npt.NDArray[np.void] = table.view(f"V{table.itemsize * table.shape[1]}").ravel()
    return whole


def _codes(values: npt.NDArray[np.generic]) -> _Integers:
    """Return small whole numbers that are equal where the values are."""
    codes: _Integers = np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return codes


def _equal(digests: npt.NDArray[np.uint64]) -> Iterator[_Integers]:
    """Yield the places of each digest that occurs more than once, in order; 0 is none."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    borders = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    lengths = np.diff(np.append(borders, len(ordered)))
    for start, length in zip(borders[lengths > 1], lengths[lengths > 1], strict=True):
        if ordered[start]:
            yield order[start : start + length].astype(np.int64)


def _others(names: Sequence[Callable[[], str]], position: int) -> str:
    """Return the first few of some names but one, and how many more there are."""
    shown = [place for place in range(min(len(names), _N_NAMED + 1)) if place != position]
    told = [names[place]() for place in shown[:_N_NAMED]]
    n_more = len(names) - 1 - len(told)
    return ", ".join(told) + (f" and {n_more} more" if n_more else "")


def _usual(group: _Integers, code: _Integers) -> tuple[_Integers, _Integers, _Integers]:
    """Return, for each row, what is usual in its group.

    Returns
    -------
    example : int64 array
        The first row that has the group's most frequent code (the first such code where two are).
    n_usual, n_rows : int64 array
        How many rows of the group have that code, and how many it has.
    """
    if len(group) == 0:
        return group, group, group
    pair = group * (int(code.max()) + 1) + code
    _, first, count = np.unique(pair, return_index=True, return_counts=True)
    order = np.lexsort((first, -count, group[first]))
    best = order[np.append(True, np.diff(group[first][order]) != 0)]  # by group, ascending
    place = np.searchsorted(group[first][best], group)
    return first[best][place], count[best][place], np.bincount(group)[group]
