"""The plain data that the stages hand on to each other.

What travels between processes for every pair is a NamedTuple, which is made and pickled several
times faster than a dataclass.
"""

import json
import math
import pickle
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import Finding, Remark, SampleKey
from etl.geometry import ImagePlane, SourceGrid
from loader.format import Structure

Vertices: TypeAlias = npt.NDArray[
    np.float64
]  # (n_vertices, 2), (x, y) in pixels, integers at centres
Mask: TypeAlias = npt.NDArray[np.bool_]  # (rows, columns)
Image: TypeAlias = npt.NDArray[np.int16 | np.uint16 | np.int32 | np.float32]  # (rows, columns)
LabelMap: TypeAlias = npt.NDArray[np.uint8]  # (rows, columns)
BitMask: TypeAlias = npt.NDArray[np.uint8 | np.uint16 | np.uint32]  # (rows, columns)

# What a later build wants to know of a sample to tell whether it may take over its row.
BASICS: Final = np.dtype(
    [
        ("link", "S32"),  # digest of the link
        ("vertices", "<u8"),  # XXH3-64 of all its vertices, in pixels of the file, in order
        ("lowest", "<f8"),  # value that the image may have by its header
        ("highest", "<f8"),
        ("is_whole", "|b1"),
    ]
)


class FrameRef(NamedTuple):
    """One frame of a DICOM file; the path is relative to the root of the input."""

    path: str
    frame_number: int | None = None  # from 1; None: the file must have one frame

    def __str__(self) -> str:
        """Return how messages name it."""
        return self.path if self.frame_number is None else f"{self.path}, frame {self.frame_number}"


class AnnotationRef(NamedTuple):
    """Where one structure of one frame is annotated; the path is relative to the root."""

    code: int  # of the structure
    path: str
    locator: str = ""  # within the file, where it holds several annotations


class Link(NamedTuple):
    """One frame and its annotations, at most one of each structure, by code."""

    key: SampleKey
    original_id: str
    frame: FrameRef
    annotations: tuple[AnnotationRef, ...]
    is_audited: bool = False  # whether a contour is compared with the image's edges
    looked_for: tuple[int, ...] = ()  # structures that whoever drew would have drawn here

    @property
    def drawn(self) -> set[int]:
        """Codes of which the masks tell: without a region they are nowhere in the image."""
        return {*self.looked_for, *(annotation.code for annotation in self.annotations)}

    def about_image(self, remark: Remark) -> Finding:
        """Return a finding about the frame; it says which one, where the file has several."""
        number = self.frame.frame_number
        message = remark.message if number is None else f"frame {number}: {remark.message}"
        return Finding(remark.code, self.frame.path, message, self.key)

    def about_annotation(self, structure: Structure, remark: Remark) -> Finding:
        """Return a finding about the annotation of a structure.

        It says what is drawn on which image, where the annotation's file has several.
        """
        annotation = next(one for one in self.annotations if one.code == structure.code)
        message = remark.message
        if annotation.locator:
            message = f"{structure.name} on {self.frame}: {message}"
        return Finding(remark.code, annotation.path, message, self.key, structure.code)

    def digest(self) -> str:
        """Return a digest of all that the link says, except for what the other links decide."""
        text = json.dumps(self._replace(is_audited=False) if self.is_audited else self)
        return xxhash.xxh3_128_hexdigest(text.encode())


class FileStamp(NamedTuple):
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
    """The place of uncompressed pixels: frame after frame, without a gap between them.

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
    """The place of the encoded pixels of one frame."""

    transfer_syntax_uid: str
    fragments: tuple[tuple[int, int], ...]  # (offset, length) in the file, in order


PixelStorage: TypeAlias = NativePixels | EncapsulatedPixels


class Identity(NamedTuple):
    """Digests of what tells people apart; 0 where a header tells nothing. Never in OUT."""

    patient: int  # PatientID
    study: int  # StudyInstanceUID


NOBODY: Final = Identity(0, 0)


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
    identity: Identity = NOBODY  # in memory only
    kept: tuple[str | float, ...] = ()  # values of the attributes that become columns
    unit: str = ""  # of the modality values; empty where the file does not tell

    @property
    def plane(self) -> ImagePlane:
        """The plane of the frame in the patient."""
        return ImagePlane(
            self.image_position,
            self.image_orientation[:3],
            self.image_orientation[3:],
            self.pixel_spacing,
        )

    def plain(self) -> tuple[object, ...]:
        """Return the instance as tuples of no class, which pickle quickly; of nobody."""
        pixels, storage, *attributes = self
        attributes[_IDENTITY] = None
        return tuple(pixels), isinstance(storage, NativePixels), tuple(storage), attributes

    @classmethod
    def of_plain(cls, plain: tuple[Any, ...]) -> "Instance":
        """Return the instance that `plain` was called on."""
        pixels, is_native, storage, attributes = plain
        attributes[_IDENTITY] = NOBODY
        make = NativePixels if is_native else EncapsulatedPixels
        return cls(PixelFormat(*pixels), make(*storage), *attributes)


_IDENTITY: Final = Instance._fields.index("identity") - 2  # behind the pixels and their storage


class Region(NamedTuple):
    """What one annotation draws in one frame: polygons, even-odd together, or a mask."""

    code: int  # of the structure
    polygons: tuple[Vertices, ...]  # in pixels of the frame
    xxh3: str  # XXH3-128 of the annotation's file
    mask: Mask | None = None  # instead of polygons

    @property
    def n_vertices(self) -> int:
        """Vertices of all polygons."""
        return sum(map(len, self.polygons))


class Sample(NamedTuple):
    """One link that passed every check made without its pixels."""

    link: Link
    instance: Instance
    stamp: FileStamp
    regions: tuple[Region, ...]
    grid: SourceGrid | None = None  # None: the row has the pixels of the frame

    def without(self, codes: Collection[int]) -> "Sample":
        """Return the sample without some of its structures."""
        link = self.link._replace(
            annotations=tuple(one for one in self.link.annotations if one.code not in codes),
            looked_for=tuple(code for code in self.link.looked_for if code not in codes),
        )
        regions = tuple(region for region in self.regions if region.code not in codes)
        return self._replace(link=link, regions=regions)

    def packed(self) -> bytes:
        """Return what `unpacked` makes this again of; four times as fast as pickling it.

        Plain tuples and bytes name no class, and are made without asking for one.
        """
        (key, original_id, frame, annotations, *more), instance, stamp, regions, grid = self
        link = tuple(key), original_id, tuple(frame), [*map(tuple, annotations)], *more
        drawn = [
            (code, [vertices.tobytes() for vertices in polygons], xxh3, _packed_mask(mask))
            for code, polygons, xxh3, mask in regions
        ]
        plain = link, instance.plain(), tuple(stamp), drawn, grid and tuple(grid)
        return pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpacked(cls, packed: bytes) -> "Sample":
        """Return the sample that `packed` was called on."""
        link, instance, stamp, drawn, grid = pickle.loads(packed)  # noqa: S301  our own
        key, original_id, frame, annotations, *more = link
        return cls(
            Link(
                SampleKey(*key),
                original_id,
                FrameRef(*frame),
                tuple(AnnotationRef(*annotation) for annotation in annotations),
                *more,
            ),
            Instance.of_plain(instance),
            FileStamp(*stamp),
            tuple(
                Region(
                    code,
                    tuple(np.frombuffer(vertices).reshape(-1, 2) for vertices in polygons),
                    xxh3,
                    _unpacked_mask(mask),
                )
                for code, polygons, xxh3, mask in drawn
            ),
            grid and SourceGrid(*grid),
        )


@dataclass(frozen=True, slots=True)
class Examined:
    """The good samples of a stretch of links, in order, and the findings on all of them."""

    n_links: int
    samples: list[bytes]  # packed: each is opened again only by the worker that renders it
    contours: npt.NDArray[np.int64]  # (n, 3): position in `samples`, label, number of vertices
    vertices: Vertices  # of all these contours, one after the other
    values: ValueRange  # over the samples
    identities: npt.NDArray[np.uint64]  # (n, 2): `Identity` of each sample
    basics: npt.NDArray[np.void]  # of type BASICS, of each sample
    findings: list[Finding]


def _packed_mask(mask: Mask | None) -> tuple[bytes, tuple[int, ...]] | None:
    return None if mask is None else (np.packbits(mask).tobytes(), mask.shape)


def _unpacked_mask(packed: tuple[bytes, tuple[int, int]] | None) -> Mask | None:
    if packed is None:
        return None
    data, (rows, columns) = packed
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=rows * columns)
    return bits.reshape(rows, columns).view(np.bool_)
