"""What structure sets and segmentations say: structures, and drawings of them on planes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from etl.errors import SourceError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

POINT: Final = "POINT"
# The second one says what several contours of the first do as well: even-odd together.
CLOSED: Final = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "SEGMENT"})
SEGMENTATION: Final = "segmentation"
SEGMENT: Final = "SEGMENT"  # our own word for a frame of a segmentation
FEW_POINTS: Final = "FEW_POINTS"  # our own word for a closed contour of one or two distinct points

Point: TypeAlias = tuple[float, float, float]


class DrawnStructure(NamedTuple):
    """A structure of the set: its number, by which drawings name it, and its name."""

    number: str
    name: str
    frame_of_reference_uid: str


class Drawing(NamedTuple):
    """What is drawn on one plane, without its content; empty or 0 where the file says nothing."""

    number: str  # of its structure
    kind: str  # ContourGeometricType, of a contour
    sop_instance_uid: str  # of the image that it refers to
    frame_number: int
    centre: Point  # of its plane, mm
    spread: tuple[Point, ...] = ()  # points that no other plane has, unless they are on a line; mm
    problem: str = ""  # why it cannot be read
    strength: float = 1.0  # the highest fraction of a fractional segmentation


class AnnotationSet(NamedTuple):
    """What a file that annotates says; drawings in the order of the file."""

    what: str  # it is: "structure set" or SEGMENTATION
    sop_instance_uid: str
    patient_id: str
    label: str
    when: str  # date and time, as digits
    frame_of_reference_uid: str
    series: tuple[str, ...]  # SeriesInstanceUID of those that it refers to
    structures: tuple[DrawnStructure, ...]
    drawings: tuple[Drawing, ...]


def items(dataset: "Dataset", keyword: str) -> "Iterator[Dataset]":
    """Yield the items of a sequence; none where it is not there."""
    yield from dataset.get(keyword) or ()


def text(dataset: "Dataset", keyword: str) -> str:
    """Return a value as text without its padding; empty where there is none."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


@contextmanager
def plainly(code: str) -> Iterator[None]:
    """Turn whatever pydicom's parsing meets into an error in our own words, and be quiet.

    Raises
    ------
    SourceError
        With this code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SourceError:
        raise
    except Exception as error:
        message = f"cannot be read ({type(error).__name__}). Export it again."
        raise SourceError(code, message) from error
