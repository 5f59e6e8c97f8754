"""What stops a run, and what rejects one source file."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl.findings import Finding


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
