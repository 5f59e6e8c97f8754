"""The file format "dicom-etl", version 2: names, types and alignment, written down once.

The documentation's page on the file says what each dataset means; `etl.output` fills them and
`loader.dataset` maps them, both with the names below.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VERSION: Final = "0.1.0"  # of the distribution; here because both packages may import this module

FORMAT: Final = "dicom-etl"
FORMAT_VERSION: Final = 2
MASK_LABELS: Final = "labels"  # the kind of mask: one code a pixel
MASK_BITS: Final = "bits"  # a bit of each structure in every pixel
BIT_MASKS: Final = "bit-masks"  # the feature that a reader of such masks has
KNOWN_FEATURES: Final = frozenset({BIT_MASKS})

IMAGES: Final = "images"
MASKS: Final = "masks"
IMAGE_DTYPES: Final = ("<i2", "<u2", "<i4", "<f4")
MASK_DTYPE: Final = "|u1"  # of label maps
BIT_DTYPES: Final = {8: "|u1", 16: "<u2", 32: "<u4"}  # of bit masks, by their number of bits
MAX_BITS: Final = 32

# A multiple of every page size in use (4, 16 and 64 KiB), so that a file written on one machine is
# page-aligned on all.
ALIGNMENT: Final = 65536

STRING: Final = "S"  # fixed-length UTF-8, padded with NUL, as long as its longest value

# Columns of /manifest that every file has, whatever its version and structures.
CORE: Final[dict[str, str]] = {
    "patient_id": STRING,
    "original_id": STRING,
    "slice": "<i8",
    "instance_number": "<f8",
    "sop_instance_uid": STRING,
    "series_instance_uid": STRING,
    "dicom_path": STRING,
    "dicom_xxh3": STRING,
    "pixel_spacing_row": "<f8",
    "pixel_spacing_column": "<f8",
    "image_position_x": "<f8",
    "image_position_y": "<f8",
    "image_position_z": "<f8",
    "image_orientation_row_x": "<f8",
    "image_orientation_row_y": "<f8",
    "image_orientation_row_z": "<f8",
    "image_orientation_column_x": "<f8",
    "image_orientation_column_y": "<f8",
    "image_orientation_column_z": "<f8",
    "slice_location": "<f8",
    "trigger_time": "<f8",
    "rescale_slope": "<f8",
    "rescale_intercept": "<f8",
    "minimum": "<f8",
    "maximum": "<f8",
    "mean": "<f8",
    "std": "<f8",
    "p01": "<f8",
    "p99": "<f8",
    "row_xxh3": "<u8",
    "split": "|i1",
    "fold": "<i2",
    "flags": "<u8",
}

# Columns that version 2 writes as well; a reader does without them.
VERSION_2: Final[dict[str, str]] = {
    "series": STRING,
    "frame_number": "<i8",
    "transfer_syntax_uid": STRING,
    "n_padding": "<i8",
    "padding_minimum": "<f8",
    "padding_maximum": "<f8",
    "dimension_indices": STRING,  # whole numbers, joined by a backslash
    "stack_id": STRING,
    "in_stack_position": "<f8",
    "temporal_position": "<f8",
    "n_overlapping": "<i8",
}

# Columns of files whose images were resampled, padded or cropped: where a row lies in its source.
SOURCE_GRID: Final[dict[str, str]] = {
    "source_rows": "<i8",
    "source_columns": "<i8",
    "source_row_offset": "<f8",
    "source_row_scale": "<f8",
    "source_column_offset": "<f8",
    "source_column_scale": "<f8",
}
# Further columns of version 2: a DICOM attribute each, under its keyword. A number or a text.
TAG_PREFIX: Final = "tag_"
TAG_KINDS: Final = ("<f8", STRING)

CONTOURS: Final[dict[str, str]] = {
    "x": "<f8",
    "y": "<f8",
    "row": "<i8",
    "label": "|u1",
    "start": "<i8",
    "length": "<i8",
}

FINDINGS: Final[dict[str, str]] = {
    "severity": STRING,
    "code": STRING,
    "path": STRING,
    "row": "<i8",
    "message": STRING,
}

FINDINGS_VERSION_2: Final[dict[str, str]] = {
    "label": "|u1",  # the structure's code; 0: none
    "other_row": "<i8",  # the partner of a finding about two rows; -1: none
    "patient_id": STRING,  # whose sample it is about, which may be no row; empty: not known
}

# What `build --update` needs to take rows over; no reader needs it, and opening a file skips it.
REUSE: Final[dict[str, str]] = {
    # A row each, of those that an update may take over.
    "row": "<i8",
    "link": STRING,
    "vertices": "<u8",
    "lowest": "<f8",
    "highest": "<f8",
    "is_whole": "|u1",
    "same_patient": "<i8",
    "same_study": "<i8",
    # As many again, or none where the build made no checks.
    "mark_image": "<u8",
    "mark_hash_0": "<u8",
    "mark_hash_1": "<u8",
    "mark_alignment_dx": "<f4",
    "mark_alignment_dy": "<f4",
    "mark_alignment_outcome": "|u1",
    "mark_alignment_code": "|u1",
    "mark_unit": STRING,
    # One for each region that is drawn.
    "region_row": "<i8",
    "region_code": "|u1",
    "region_digest": "<u8",
    "region_x": "<f8",
    "region_y": "<f8",
    "region_is_mask": "|u1",
    # One for each finding on a single pair, as it was before all rows were known.
    "remark_row": "<i8",
    "remark_stage": STRING,
    "remark_code": STRING,
    "remark_path": STRING,
    "remark_message": STRING,
    "remark_label": "|u1",
}

GROUPS: Final = ("manifest", "contours", "findings")  # that a reader needs
REUSE_GROUP: Final = "reuse"

SPLITS: Final = ("train", "validation", "test")  # the code in /manifest/split is the position here
NO_SPLIT: Final = -1
NO_FOLD: Final = -1
NO_ROW: Final = -1  # in /findings/row and other_row


IGNORE: Final = 255  # in label maps: not known, to be left out of a loss
MAX_CODE: Final = 254


class Structure(NamedTuple):
    """One structure that masks and contours show; an object of the attribute `structures`."""

    name: str
    code: int  # in label maps, 1 to MAX_CODE; in /findings/label; in the names of columns
    meaning: str  # of the code in a label map
    stem: str  # of the names of columns: <stem>_path, <stem>_xxh3, <stem>_area
    inside_of: str = ""  # the name of the structure that it lies in; empty: of none
    contrast: str = (
        ""  # its inside is "brighter" or "darker" than what surrounds it; empty: unknown
    )
    contour_label: int = 0  # its code in /contours/label, where that is another one
    source_codes: tuple[str, ...] = ()  # the names that its source has for it
    bit: int | None = None  # in bit masks, 0 for the lowest; None: masks are label maps

    @property
    def label(self) -> int:
        """The code in /contours/label."""
        return self.contour_label or self.code

    def covers(self, mask: "npt.NDArray[np.unsignedinteger]") -> "npt.NDArray[np.bool_]":
        """Return which pixels of a mask, or of several, show this structure."""
        is_in: npt.NDArray[np.bool_]
        is_in = mask == self.code if self.bit is None else mask & (1 << self.bit) != 0
        return is_in

    @property
    def columns(self) -> dict[str, str]:
        """The columns of /manifest that this structure has, with their types."""
        return {
            f"{self.stem}_path": STRING,
            f"{self.stem}_xxh3": STRING,
            f"{self.stem}_area": "<f8",
            f"n_pixels_{self.code}": "<i8",
            f"drawn_{self.code}": "|u1",
        }


# The structures of every version 1 file, as far as the names of its columns tell.
VERSION_1_STRUCTURES: Final = (
    Structure("o-contour", 2, "", "ocontour"),
    Structure("i-contour", 1, "", "icontour"),
)


# Columns of structures that a version 1 reader requires, whether or not a file shows them.
VERSION_1_COLUMNS: Final[dict[str, str]] = {
    column: kind
    for structure in VERSION_1_STRUCTURES
    for column, kind in structure.columns.items()
    if not column.startswith("drawn_")
}


def bit_dtype(n_structures: int) -> str:
    """Return the type of bit masks with a bit for each structure, `MAX_BITS` at most."""
    return next(dtype for n_bits, dtype in BIT_DTYPES.items() if n_structures <= n_bits)


def min_reader_version(
    structures: Iterable[Structure], *, has_ignored: bool = False, mask_kind: str = MASK_LABELS
) -> int:
    """Return the lowest version whose reader takes a file with these structures rightly.

    Parameters
    ----------
    has_ignored : bool
        Whether masks may have the code 255, which version 1 does not know.
    mask_kind : "labels" or "bits"
    """
    if has_ignored or mask_kind != MASK_LABELS:
        return FORMAT_VERSION
    known = {(one.stem, one.label) for one in VERSION_1_STRUCTURES}
    return 1 if {(one.stem, one.label) for one in structures} <= known else FORMAT_VERSION


def manifest_columns(
    structures: Iterable[Structure], *, has_source_grid: bool = False
) -> dict[str, str]:
    """Return the columns of /manifest that version 2 writes, with their types.

    Parameters
    ----------
    has_source_grid : bool
        Whether images were resampled, padded or cropped.
    """
    columns = CORE | VERSION_2 | (SOURCE_GRID if has_source_grid else {})
    for structure in sorted(structures, key=lambda one: one.code):
        columns |= structure.columns
    return columns


class Attribute:
    """Names of the root group's attributes."""

    FORMAT: Final = "format"
    FORMAT_VERSION: Final = "format_version"
    MIN_READER_VERSION: Final = "min_reader_version"
    REQUIRED_FEATURES: Final = "required_features"  # JSON list of strings
    GENERATOR: Final = "generator"
    OPTIONS: Final = "options"  # JSON object: what the file's content depends on
    LABELS: Final = "labels"  # JSON object: label code -> meaning
    STRUCTURES: Final = "structures"  # JSON list of structures in paint order (version 2)
    MASK_KIND: Final = "mask_kind"  # "labels" or "bits" (version 2)
    SOURCES: Final = "sources"  # JSON object: counts of what was found in the input folder
    FLAG_CODES: Final = "flag_codes"  # JSON list: finding code of each bit of /manifest/flags
    IMAGE_MEAN: Final = "image_mean"
    IMAGE_STD: Final = "image_std"
    DATASET_ID: Final = "dataset_id"
    ALIGNMENT: Final = "alignment"  # JSON object, optional: how far contours lie off the edges
    DIGESTS: Final = "digests"  # JSON object: dataset -> XXH3-128 of its bytes, 32 hex digits
