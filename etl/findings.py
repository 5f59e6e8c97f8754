"""Findings, and the one table of their codes: severity, condition, advice, bit in the flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Severity = Literal["error", "warning", "info"]

SEVERITY_ORDER: Final[tuple[Severity, ...]] = ("error", "warning", "info")


@dataclass(frozen=True, slots=True)
class FindingCode:
    """What the documentation and the file say of one code.

    Attributes
    ----------
    severity : {"error", "warning", "info"}
        error: a pair that should have been a row is not. warning: written, but suspicious.
        info: nothing wrong, worth knowing.
    when : str
        The condition, in Markdown.
    advice : str
        What to do, in Markdown; empty where there is nothing to do.
    flag : int, optional
        The code's bit in /manifest/flags: taken once, never given to another code.
    """

    severity: Severity
    when: str
    advice: str
    flag: int | None = None


CODES: Final[Mapping[str, FindingCode]] = {
    "link-invalid": FindingCode(
        "error",
        "a line of link.csv with an id that is empty or no folder's name",
        "repair the line",
    ),
    "link-unknown-patient": FindingCode(
        "error",
        "a line whose DICOM or contour folder does not exist or cannot be listed",
        "add the folder, or remove the line",
    ),
    "link-duplicate": FindingCode(
        "error",
        "one id linked to two others: all of its pairs are left out",
        "keep the right line",
    ),
    "image-unreadable": FindingCode(
        "error",
        "no DICOM, no regular file, damaged, or contradicts itself",
        "copy or export it again",
    ),
    "image-truncated": FindingCode(
        "error",
        "ends before its data do",
        "copy it again",
    ),
    "image-no-pixels": FindingCode(
        "error",
        "has no PixelData",
        "export it with its image",
    ),
    "image-not-grayscale": FindingCode(
        "error",
        "colour, or a palette",
        "",
    ),
    "image-multiframe": FindingCode(
        "error",
        "has more than one frame, and nothing says which is meant",
        "name the frame, or export single frames",
    ),
    "image-no-frame": FindingCode(
        "error",
        "an annotation is about a frame that its image does not have",
        "is it another image's?",
    ),
    "image-unsupported-encoding": FindingCode(
        "error",
        "pixels in an encoding that is not read, or whose decoder is not installed; 32-bit or "
        "floating point pixels; a Modality LUT",
        "as the message says: `pip install 'dicom-etl[codecs]'`, or export it uncompressed",
    ),
    "image-changed": FindingCode(
        "error",
        "changed while the build ran",
        "build again",
    ),
    "image-size": FindingCode(
        "error",
        "Rows or Columns is not the expected one",
        "resample it, or build such images apart with `--size`",
    ),
    "slice-ambiguous": FindingCode(
        "error",
        "two files mean one slice (`48.dcm`, `048.dcm`): none is guessed",
        "keep one of them",
    ),
    "contour-unreadable": FindingCode(
        "error",
        "a line that is not two plain decimal numbers",
        "repair the line named",
    ),
    "contour-too-few-points": FindingCode(
        "error",
        "fewer than 3 distinct points",
        "draw it again",
    ),
    "contour-not-finite": FindingCode(
        "error",
        "a number is NaN or infinite",
        "repair the line named",
    ),
    "contour-outside": FindingCode(
        "error",
        "wholly outside of the image, or a point over 65536 pixels off",
        "is it another image's?",
    ),
    "contour-too-large": FindingCode(
        "error",
        "over a million points, 64 MB, or a border of 10 million pixels",
        "",
    ),
    "mask-empty": FindingCode(
        "error",
        "no pixel centre lies inside",
        "draw it again",
    ),
    "row-excluded": FindingCode(
        "error",
        "left out by `--exclude-flagged`; the message has the warning",
        "",
    ),
    "image-file-damaged": FindingCode(
        "warning",
        "what wraps the data set is damaged or contradicts it (no preamble, no file meta "
        "information, another transfer syntax, bytes behind the pixels), but the pixels are whole",
        "export it again where other programs are to read it",
    ),
    "image-header-invalid": FindingCode(
        "warning",
        "a header value that breaks its format: a decimal comma is read as a point, any other "
        "value is left out",
        "export it again, or mend the attribute that the message names",
    ),
    "image-unused-bits": FindingCode(
        "warning",
        "bits above BitsStored that are neither sign nor overlay; they are left out",
        "are BitsStored and HighBit right?",
    ),
    "contour-no-image": FindingCode(
        "warning",
        "a contour without its DICOM",
        "",
    ),
    "contour-partly-outside": FindingCode(
        "warning",
        "cut off at the image's border; the share is given, but for contours that cross themselves",
        "look at its overlay",
        flag=0,
    ),
    "contour-open-gap": FindingCode(
        "warning",
        "first and last point 3 pixels or more apart, and 3 times as far as any other neighbours",
        "is a piece missing?",
        flag=1,
    ),
    "contour-self-crossing": FindingCode(
        "warning",
        "1 square pixel or more wound round twice or backwards (touching is not crossing)",
        "draw it again",
        flag=2,
    ),
    "contour-repeated-points": FindingCode(
        "warning",
        "3 points or more, and over 5 %, repeat others (closing by hand is fine)",
        "is a part drawn twice?",
        flag=3,
    ),
    "inner-outside-outer": FindingCode(
        "warning",
        "over 1 % of the inner pixels, and 4 or more, outside the outer contour",
        "does one of the two belong elsewhere?",
        flag=4,
    ),
    "identical-contour": FindingCode(
        "warning",
        "same points (to 0.01 pixel; any start, direction, format) on different images",
        "is it a copy?",
        flag=5,
    ),
    "identical-image": FindingCode(
        "warning",
        "same pixels under two paths",
        "remove one",
        flag=6,
    ),
    "area-jump": FindingCode(
        "warning",
        "radius over 15 % of the patient's median radius off its neighbours' line in slices and "
        "phases (45 % at a stack's end), and 7 robust deviations of the data set",
        "look at its overlay",
        flag=7,
    ),
    "centroid-jump": FindingCode(
        "warning",
        "the same for the centre, 25 % (75 % at an end)",
        "look at its overlay",
        flag=8,
    ),
    "area-outlier": FindingCode(
        "warning",
        "radius over twice the data set's median and 5 robust deviations above it, or under 0.15 "
        "times; from 10 contours on",
        "look at its overlay",
        flag=9,
    ),
    "image-constant": FindingCode(
        "warning",
        "1st and 99th percentile are equal",
        "is it empty?",
        flag=10,
    ),
    "image-saturated": FindingCode(
        "warning",
        "1 % of the pixels or more have the highest value",
        "export it again",
        flag=11,
    ),
    "geometry-changes": FindingCode(
        "warning",
        "spacing over 0.1 %, or a direction cosine over 0.01, off most of its series",
        "does it belong there?",
        flag=12,
    ),
    "instance-number-differs": FindingCode(
        "warning",
        "InstanceNumber disagrees with the file name, where 3 of the patient's images and 75 % "
        "agree on one difference",
        "is the file misnamed?",
        flag=13,
    ),
    "alignment-dataset": FindingCode(
        "warning",
        "contours lie 0.5 pixel or more off the edges, in most patients; row -1",
        "as the message says: `--contour-origin 1` where it is about (+1, +1)",
    ),
    "alignment-patient": FindingCode(
        "warning",
        "one patient 0.75 pixel or more off the others, or none of its contours near an edge; row "
        "-1",
        "contours and images of one acquisition?",
    ),
    "image-no-contour": FindingCode(
        "info",
        "a DICOM without contour",
        "",
    ),
    "image-lossy": FindingCode(
        "info",
        "pixels that were compressed with loss (LossyImageCompression, or the encoding itself)",
        "use the original where there is one",
    ),
    "contour-missing": FindingCode(
        "info",
        "with `i,o`: only one of the two, or a patient without one of the contour folders",
        "`--partial` writes such pairs",
    ),
}

# The codes of the bits of /manifest/flags, lowest bit first.
FLAG_CODES: Final = tuple(
    sorted(
        (code for code, entry in CODES.items() if entry.flag is not None),
        key=lambda code: CODES[code].flag or 0,
    )
)

# Codes that a build with --no-qc, and one with --no-audit, does not look for.
AUDIT_CODES: Final = ("alignment-dataset", "alignment-patient")
QUALITY_CODES: Final = (
    *(code for code in FLAG_CODES if code != "contour-partly-outside"),
    *AUDIT_CODES,
)


class SampleKey(NamedTuple):
    """What tells one sample from all others, and orders the rows."""

    patient_id: str
    series: str  # SeriesInstanceUID; empty where the source does not tell series apart
    slice: int  # the image's number in its series
    frame_number: int = 1  # of the frame in its file, from 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing rejected, unmatched or suspicious.

    Attributes
    ----------
    code : str
        A key of `CODES`.
    path : str
        Relative to DATA; empty where the finding is about all of it.
    message : str
        Why, and what to do.
    key : SampleKey, optional
        The sample that the finding is about, whether or not it becomes a row.
    label : int
        Code of the structure that the finding is about; 0 for none.
    other_key : SampleKey, optional
        The partner, where a finding is about two samples.
    """

    code: str
    path: str
    message: str
    key: SampleKey | None = None
    label: int = 0
    other_key: SampleKey | None = None

    @property
    def severity(self) -> Severity:
        """The severity that the code has."""
        return CODES[self.code].severity

    def __str__(self) -> str:
        """Return one line for people: severity, code, where and why."""
        return f"{self.severity}: {self.code}: {located(self.path, self.message)}"


def located(path: str, message: str) -> str:
    """Return a message after the path that it is about, if any, as one printable line."""
    return printable(f"{path}: {message}" if path else message)


def printable(text: str) -> str:
    """Return text with what a terminal obeys or cannot show, line ends too, as Python escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
