"""What stops a run, what rejects one source file, and what one file may have at most."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from etl.findings import Finding

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class EtlError(Exception):
    """Nothing can be built; the message says what failed, where, why and what to do."""


class SourceError(EtlError):
    """One source file cannot be used; the pipeline turns it into a finding and goes on.

    Parameters
    ----------
    code : str
        The finding's code, a key of `etl.findings.CODES`.
    message : str
        Why, and what to do, in our own words: parsers' texts quote header values.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class ReuseError(EtlError):
    """Rows of an older file cannot be taken over: everything is to be parsed."""


class RejectedError(EtlError):
    """No row can be written, or with `strict` none may; `findings` tell why."""

    def __init__(self, message: str, findings: "list[Finding]") -> None:
        super().__init__(message, findings)
        self.findings = findings

    def __str__(self) -> str:
        """Return the message, and where the findings are."""
        return f"{self.args[0]}\nThe exception has all in its attribute `findings`."


class ImageError(SourceError):
    """A DICOM file that cannot become an image."""


class ContourError(SourceError):
    """A contour file that cannot become a polygon."""


# -------------------------------------------------------------------------------------- limits

Limits: TypeAlias = tuple[tuple[str, int], ...]  # name and value of each, in alphabetical order


class Limit(NamedTuple):
    """What one source file may have at most, unless the user allows more.

    Attributes
    ----------
    value : int
        The default: it bounds memory and time, and is far above what real files have.
    what : str
        What is counted, for messages: "bytes".
    of : str
        What has it, for the documentation.
    """

    value: int
    what: str
    of: str


LIMITS: Final[Mapping[str, Limit]] = {
    "image-bytes": Limit(1 << 31, "bytes", "a DICOM image; a worker holds one file at a time"),
    "annotation-bytes": Limit(1 << 30, "bytes", "a structure set or segmentation"),
    "table-bytes": Limit(1 << 28, "bytes", "link.csv, a table, a split file or a row list"),
    "contour-bytes": Limit(1 << 26, "bytes", "a text contour"),
    "contour-points": Limit(
        1_000_000, "points", "a text contour, or one contour of a structure set"
    ),
    "polygons": Limit(500, "polygons", "a text contour"),
    "name-characters": Limit(256, "characters", "a patient's id, or the name of a structure"),
    "elements": Limit(
        10_000, "data elements", "the outermost level of a header that pydicom reads"
    ),
    "items": Limit(
        500_000,
        "items of sequences",
        "a file that pydicom reads, without encapsulated pixels; each takes 11 us",
    ),
    "frames": Limit(1 << 20, "frames", "an image"),
    "inflated-header-bytes": Limit(
        1 << 25, "bytes of header when inflated", "the header of a deflated file"
    ),
    "inflated-bytes": Limit(
        1 << 28, "bytes when inflated", "a deflated file whose header is out of the ordinary"
    ),
    "decoder-seconds": Limit(
        10,
        "seconds of processor time",
        "the decoder of one compressed frame; a frame of more than a million pixels gets more",
    ),
}

# Fixed, with the reasons in docs/reliability.md.
MAX_VALUE_BYTES: Final = 1 << 16  # of an attribute that is read
MAX_SETTINGS_BYTES: Final = 1 << 20  # of a file of settings that the user names
MAX_NESTING: Final = 16  # of sequences that are stepped over; pydicom reads some deeper ones
OFFSET_TABLE_BYTES_A_FRAME: Final = 16  # four times what a basic offset table needs

# As `decimal` has its precision: a parser deep down asks, and no function between passes it on.
_changed: Final[ContextVar[Limits]] = ContextVar("limits", default=())


def changed_limits() -> Limits:
    """Return the limits that differ from their defaults here and now."""
    return _changed.get()


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Let these limits hold in the block, and the defaults of all others."""
    token = _changed.set(limits)
    try:
        yield
    finally:
        _changed.reset(token)


def run_limited(limits: Limits, run: Callable[[_Task], _Result], task: _Task) -> _Result:
    """Return what a function returns under these limits; it travels to workers."""
    with limited(limits):
        return run(task)


def most(name: str) -> int:
    """Return the value that a limit has here and now."""
    changed = _changed.get()
    return dict(changed).get(name, LIMITS[name].value) if changed else LIMITS[name].value


def beyond(name: str, found: int | None) -> str:
    """Return the end of a message on a file that exceeds a limit, and how to allow it.

    Parameters
    ----------
    found : int, optional
        How much the file has; None where counting stopped at the limit.
    """
    limit = most(name)
    has = f"more than {limit}" if found is None else str(found)
    allowed = 2 * limit if found is None else found
    return (
        f"has {has} {LIMITS[name].what}, expected {limit} at most. If that is right, allow it: "
        f"--limit {name}={allowed}."
    )
