"""The plain data that the stages hand on to each other.

What travels between processes for every pair is a NamedTuple, which is made and pickled several
times faster than a dataclass.
"""

import math
import pickle
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.geometry import ImagePlane
from etl.options import Kind

Vertices: TypeAlias = npt.NDArray[
    np.float64
]  # (n_vertices, 2), (x, y) in pixels, integers at centres
Mask: TypeAlias = npt.NDArray[np.bool_]  # (rows, columns)
Image: TypeAlias = npt.NDArray[np.int16 | np.uint16 | np.int32 | np.float32]  # (rows, columns)
LabelMap: TypeAlias = npt.NDArray[np.uint8]  # (rows, columns)

LABELS: Final[dict[Kind, int]] = {"i": 1, "o": 2}  # codes in /contours/label, and in `i,o` masks


class Link(NamedTuple):
    """One DICOM file and its contour files; paths relative to DATA, empty where there is none."""

    patient_id: str
    original_id: str
    slice: int
    dicom_path: str
    icontour_path: str = ""
    ocontour_path: str = ""
    is_audited: bool = False  # whether its contours are compared with the image's edges

    def contour_paths(self) -> list[tuple[Kind, str]]:
        """Return (kind, path) of the contours that the link has, the inner first."""
        paths: list[tuple[Kind, str]] = [("i", self.icontour_path), ("o", self.ocontour_path)]
        return [(kind, path) for kind, path in paths if path]


class Identity(NamedTuple):
    """What tells one state of a file from another."""

    inode: int
    size: int
    mtime_ns: int


class PixelFormat(NamedTuple):
    """What the stored values of each frame of an instance mean."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    is_inverted: bool  # MONOCHROME1
    rescale_slope: float
    rescale_intercept: float
    overlay_bits: int = 0  # a bit set: bits of a pixel cell that belong to overlays
    padding: tuple[int, int] | None = None  # lowest and highest stored value that is no image

    @property
    def n_bytes(self) -> int:
        """Length of the pixels of one frame, without padding."""
        return self.rows * self.columns * self.bits_allocated // 8


class NativePixels(NamedTuple):
    """Where uncompressed pixels lie: frame after frame, without a gap between them.

    `offset` counts from the start of the file, or of the inflated data set where it is deflated.
    """

    offset: int  # of the first frame
    is_big_endian: bool
    is_word_swapped: bool  # bytes in big-endian 16-bit words: 8-bit pixels with VR OW
    deflated_at: int | None = None  # where in the file the deflated data set begins


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The values that images may have by their headers."""

    lowest: float
    highest: float
    is_whole: bool  # every slope and intercept is a whole number

    def __or__(self, other: "ValueRange") -> "ValueRange":
        """Return the range that covers both."""
        return ValueRange(
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            self.is_whole and other.is_whole,
        )


EMPTY_RANGE: Final = ValueRange(math.inf, -math.inf, is_whole=True)


class EncapsulatedPixels(NamedTuple):
    """Where the encoded pixels of one frame lie."""

    transfer_syntax_uid: str
    fragments: tuple[tuple[int, int], ...]  # (offset, length) in the file, in order


PixelStorage: TypeAlias = NativePixels | EncapsulatedPixels


class Instance(NamedTuple):
    """One frame of a DICOM file: its attributes and pixels; NaN or empty where it has no value."""

    pixel_format: PixelFormat
    storage: PixelStorage
    transfer_syntax_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    instance_number: float
    pixel_spacing: tuple[float, ...]  # 2 values, mm: between rows, between columns
    image_position: tuple[float, ...]  # 3 values, mm, patient coordinates
    image_orientation: tuple[float, ...]  # 6 direction cosines: along a row, then along a column
    slice_location: float  # mm
    trigger_time: float  # ms
    frame_number: int = 1  # from 1
    number_of_frames: int = 1
    dimension_indices: tuple[int, ...] = ()  # place along each dimension of the file, from 1
    stack_id: str = ""
    in_stack_position: float = math.nan  # from 1
    temporal_position: float = math.nan  # from 1
    warnings: tuple[tuple[str, str], ...] = ()  # (code, message) of what is worth knowing of it

    @property
    def plane(self) -> ImagePlane:
        """Where the frame lies in the patient."""
        return ImagePlane(
            self.image_position,
            self.image_orientation[:3],
            self.image_orientation[3:],
            self.pixel_spacing,
        )

    def plain(self) -> tuple[object, ...]:
        """Return the instance as tuples of no class, which pickle quickly."""
        pixels, storage, *attributes = self
        return tuple(pixels), isinstance(storage, NativePixels), tuple(storage), attributes

    @classmethod
    def of_plain(cls, plain: tuple[Any, ...]) -> "Instance":
        """Return the instance that `plain` was called on."""
        pixels, is_native, storage, attributes = plain
        make = NativePixels if is_native else EncapsulatedPixels
        return cls(PixelFormat(*pixels), make(*storage), *attributes)


class Contour(NamedTuple):
    """One closed polygon as it will be rasterised, and the digest of the file it came from."""

    kind: Kind
    vertices: Vertices
    xxh3: str

    @property
    def label(self) -> int:
        """The code in /contours/label."""
        return LABELS[self.kind]


class Sample(NamedTuple):
    """One pair that passed every check made without its pixels."""

    link: Link
    instance: Instance
    identity: Identity
    contours: tuple[Contour, ...]

    def packed(self) -> bytes:
        """Return what `unpacked` makes this again of; four times as fast as pickling it.

        Plain tuples and bytes name no class, and are made without asking for one.
        """
        link, instance, identity, contours = self
        drawn = [(kind, vertices.tobytes(), xxh3) for kind, vertices, xxh3 in contours]
        plain = tuple(link), instance.plain(), tuple(identity), drawn
        return pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpacked(cls, packed: bytes) -> "Sample":
        """Return the sample that `packed` was called on."""
        link, instance, identity, drawn = pickle.loads(packed)  # noqa: S301  our own
        return cls(
            Link(*link),
            Instance.of_plain(instance),
            Identity(*identity),
            tuple(
                Contour(kind, np.frombuffer(vertices).reshape(-1, 2), xxh3)
                for kind, vertices, xxh3 in drawn
            ),
        )
