"""The file format "dicom-etl", version 1: names, types and alignment, written down once.

The README's section "The file" says what each dataset means; `etl.output.hdf5_file` fills them and
`loader.dataset` maps them, both with the names below.
"""

from typing import Final

VERSION: Final = "0.1.0"  # of the distribution; here because both packages may import this module

FORMAT: Final = "dicom-etl"
FORMAT_VERSION: Final = 1
KNOWN_FEATURES: Final = frozenset[str]()

IMAGES: Final = "images"
MASKS: Final = "masks"
IMAGE_DTYPES: Final = ("<i2", "<u2", "<i4", "<f4")
MASK_DTYPE: Final = "|u1"

# A multiple of every page size in use (4, 16 and 64 KiB), so that a file written on one machine is
# page-aligned on all.
ALIGNMENT: Final = 65536

STRING: Final = "S"  # fixed-length UTF-8, padded with NUL, as long as its longest value

MANIFEST: Final[dict[str, str]] = {
    "patient_id": STRING,
    "original_id": STRING,
    "slice": "<i8",
    "instance_number": "<f8",
    "sop_instance_uid": STRING,
    "series_instance_uid": STRING,
    "dicom_path": STRING,
    "icontour_path": STRING,
    "ocontour_path": STRING,
    "dicom_xxh3": STRING,
    "icontour_xxh3": STRING,
    "ocontour_xxh3": STRING,
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
    "n_pixels_1": "<i8",
    "n_pixels_2": "<i8",
    "icontour_area": "<f8",
    "ocontour_area": "<f8",
    "row_xxh3": "<u8",
    "split": "|i1",
    "fold": "<i2",
    "flags": "<u8",
}

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

GROUPS: Final = {"manifest": MANIFEST, "contours": CONTOURS, "findings": FINDINGS}

SPLITS: Final = ("train", "validation", "test")  # the code in /manifest/split is the position here
NO_SPLIT: Final = -1
NO_FOLD: Final = -1


class Attribute:
    """Names of the root group's attributes."""

    FORMAT: Final = "format"
    FORMAT_VERSION: Final = "format_version"
    MIN_READER_VERSION: Final = "min_reader_version"
    REQUIRED_FEATURES: Final = "required_features"  # JSON list of strings
    GENERATOR: Final = "generator"
    OPTIONS: Final = "options"  # JSON object: what the file's content depends on
    LABELS: Final = "labels"  # JSON object: label code -> meaning
    SOURCES: Final = "sources"  # JSON object: counts of what was found in the input folder
    FLAG_CODES: Final = "flag_codes"  # JSON list: finding code of each bit of /manifest/flags
    IMAGE_MEAN: Final = "image_mean"
    IMAGE_STD: Final = "image_std"
    DATASET_ID: Final = "dataset_id"
    ALIGNMENT: Final = "alignment"  # JSON object, optional: how far contours lie off the edges
    DIGESTS: Final = "digests"  # JSON object: dataset -> XXH3-128 of its bytes, 32 hex digits
