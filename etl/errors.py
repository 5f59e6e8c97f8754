"""What stops a run, and what rejects one source file."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from etl.findings import Finding

# What one source file may have at most; docs/reliability.md lists all. They bound the memory and
# time that a file takes, whatever is in it, and are far above what real files have.
MAX_IMAGE_BYTES: Final = 1 << 31
MAX_ANNOTATION_BYTES: Final = 1 << 30  # of a structure set or segmentation
MAX_TABLE_BYTES: Final = 1 << 28  # of link.csv, a table, a split file or a row list
MAX_CONTOUR_BYTES: Final = 1 << 26  # of a text contour
MAX_CONTOUR_POINTS: Final = 1_000_000  # of a text contour, or of one contour of a structure set
MAX_POLYGONS: Final = 500  # of a text contour
MAX_ELEMENTS: Final = 10_000  # of the outermost level of a header that pydicom reads
MAX_ITEMS: Final = 500_000  # of all sequences of a file that pydicom reads, which takes 11 us each
MAX_VALUE_BYTES: Final = 1 << 16  # of an attribute that is read
MAX_NESTING: Final = 16  # of sequences that are stepped over; pydicom reads some deeper ones
MAX_FRAMES: Final = 1 << 20  # that are looked for in a file
MAX_OFFSET_TABLE_BYTES: Final = 1 << 24  # of encapsulated pixels
MAX_INFLATED_HEADER_BYTES: Final = 1 << 25
MAX_INFLATED_BYTES: Final = 1 << 28  # of a deflated data set with an unusual header


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
