"""Findings, and the one table of their codes: severity, condition, advice, bit in the flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
        "a line of link.csv or of a table has an id, path, label or frame that cannot be used",
        "repair the line",
    ),
    "link-unknown-patient": FindingCode(
        "error",
        "the DICOM folder or the contour folder of a line does not exist or cannot be listed",
        "add the folder, or remove the line",
    ),
    "link-duplicate": FindingCode(
        "error",
        "one id is linked to two others, or one image to two patients; all of these pairs are "
        "left out",
        "keep the right line",
    ),
    "structure-set-unreadable": FindingCode(
        "error",
        "an RT Structure Set is damaged",
        "export it again",
    ),
    "segmentation-unreadable": FindingCode(
        "error",
        "a DICOM Segmentation is damaged or contradicts itself, or its pixels cannot be decoded",
        "export it again",
    ),
    "mask-grid": FindingCode(
        "error",
        "the pixels of a segmentation are not at the places of its image's pixels",
        "export the segmentation of this image",
    ),
    "structure-number-invalid": FindingCode(
        "error",
        "drawings have a ROINumber or segment number that no structure of their file has, or two",
        "export the structure set again",
    ),
    "structure-name-too-long": FindingCode(
        "error",
        "a structure of a structure set or segmentation has a name longer than the limit "
        "`name-characters`; what it draws is left out",
        "name it shorter, or raise the limit",
    ),
    "structure-ambiguous": FindingCode(
        "error",
        "two structures of one file mean one of `--structures`, or two of a structure set have one "
        "name; neither is taken",
        "name one of them in `--structures`, or give them names of their own",
    ),
    "contour-off-plane": FindingCode(
        "error",
        "a contour or a frame of a segmentation lies between the planes of its series, or has "
        "points off the plane of its image, by more than `--plane-tolerance`",
        "draw it on the images, or check which series it belongs to",
    ),
    "image-no-plane": FindingCode(
        "error",
        "an image has no usable ImagePositionPatient, ImageOrientationPatient or PixelSpacing, "
        "which contours in millimetres need",
        "export the image again",
    ),
    "image-unreadable": FindingCode(
        "error",
        "the file is no DICOM, no regular file or damaged, or it contradicts itself",
        "copy or export it again",
    ),
    "image-truncated": FindingCode(
        "error",
        "the file ends before its data do",
        "copy it again",
    ),
    "image-no-pixels": FindingCode(
        "error",
        "the file has no PixelData",
        "export it with its image",
    ),
    "image-not-grayscale": FindingCode(
        "error",
        "the image is in colour or has a palette",
        "leave it out, or export it in grayscale",
    ),
    "image-multiframe": FindingCode(
        "error",
        "the file has more than one frame, and none is named",
        "name the frame in a table, or export single frames",
    ),
    "image-no-frame": FindingCode(
        "error",
        "an annotation names a frame that its image does not have",
        "check whether it belongs to another image",
    ),
    "image-unsupported-encoding": FindingCode(
        "error",
        "the pixels are in an encoding that is not read, or its decoder is not installed; "
        "pixels of 32 bits or floating point; a Modality LUT",
        "as the message says: `pip install 'dicom-etl[codecs]'`, or export it uncompressed",
    ),
    "image-changed": FindingCode(
        "error",
        "the file changed while the build ran",
        "build again",
    ),
    "image-size": FindingCode(
        "error",
        "Rows or Columns differs from the expected size",
        "take all sizes with `--fit`, or build such images apart with `--size`",
    ),
    "image-no-spacing": FindingCode(
        "error",
        "with `--resample`, the image has no usable PixelSpacing, or one that gives it less than a "
        "pixel, or more than 65535, along a side",
        "export the image again with its PixelSpacing, or build without `--resample`",
    ),
    "slice-ambiguous": FindingCode(
        "error",
        "two files have one slice number (`48.dcm`, `048.dcm`), or several images lie in the plane "
        "of a drawing that refers to none of them; none is taken",
        "keep one of them, or export the drawings with their references",
    ),
    "contour-unreadable": FindingCode(
        "error",
        "a line is not two plain decimal numbers, or a drawing of a structure set or segmentation "
        "cannot be read",
        "repair the line, or export the drawing again",
    ),
    "contour-too-few-points": FindingCode(
        "error",
        "the contour has fewer than 3 distinct points",
        "draw it again",
    ),
    "contour-not-finite": FindingCode(
        "error",
        "a number is NaN or infinite",
        "repair the line",
    ),
    "contour-outside": FindingCode(
        "error",
        "the contour is wholly outside of the image, or has a point more than 65536 pixels away",
        "check whether it belongs to another image",
    ),
    "contour-no-spacing": FindingCode(
        "error",
        "with `--contour-transform mm`, the image has no usable PixelSpacing",
        "give the image its PixelSpacing, or write the contour in pixels",
    ),
    "contour-too-large": FindingCode(
        "error",
        "the contour has over a million points, its file over 64 MB, or its border over 10 "
        "million pixels",
        "check what the file is",
    ),
    "mask-empty": FindingCode(
        "error",
        "no pixel centre is inside the contour, or a fractional segment reaches "
        "`--segment-threshold` nowhere",
        "draw it again, or lower the threshold",
    ),
    "annotation-duplicate": FindingCode(
        "error",
        "a table has two contours of one label on one image; the image is left out",
        "put both into one file with a blank line between them, or keep one",
    ),
    "mask-size": FindingCode(
        "error",
        "a mask has another size than its image",
        "export the mask of this image",
    ),
    "row-excluded": FindingCode(
        "error",
        "`--exclude-flagged` or `--exclude-file` left the row out; the message has the reason",
        "",
    ),
    "image-file-damaged": FindingCode(
        "warning",
        "preamble, file meta information or transfer syntax are damaged or contradict the data "
        "set, or bytes follow the pixels; the pixels are whole",
        "export it again if other programs are to read it",
        flag=14,
    ),
    "image-header-invalid": FindingCode(
        "warning",
        "a header value breaks its format; a decimal comma is read as a point, any other value "
        "is left out",
        "export it again, or repair the attribute",
        flag=15,
    ),
    "image-unused-bits": FindingCode(
        "warning",
        "pixels have bits above BitsStored that are neither sign nor overlay; they are left out",
        "check BitsStored and HighBit",
        flag=16,
    ),
    "contour-no-image": FindingCode(
        "warning",
        "a contour, or a frame of a segmentation, has no DICOM file",
        "copy the image, or check the slice number",
    ),
    "contour-by-position": FindingCode(
        "warning",
        "contours or frames of a segmentation refer to no image of the input, or to one in another "
        "plane; they belong to the image in whose plane they lie",
        "look at the overlays",
    ),
    "contour-not-closed": FindingCode(
        "warning",
        "contours of a structure set are open, not planar or have fewer than 3 distinct points, "
        "which encloses nothing; not read",
        "draw them closed",
    ),
    "frame-of-reference-differs": FindingCode(
        "warning",
        "structures are drawn in another frame of reference than that of the images that they "
        "refer to",
        "check whether they belong to another scan",
    ),
    "instance-duplicate": FindingCode(
        "warning",
        "two files of one patient have the same SOPInstanceUID: both are rows, and one finding "
        "counts those of the patient; with structure sets and segmentations, the first of two "
        "files by its path is taken",
        "remove the wrong one",
    ),
    "contour-partly-outside": FindingCode(
        "warning",
        "part of the contour is outside of the image and cut off; the message gives the share, "
        "unless the contour crosses itself; of a structure set, all of it where other contours of "
        "the image are inside",
        "look at its overlay",
        flag=0,
    ),
    "structure-cut": FindingCode(
        "warning",
        "with `--fit`, part of a structure is outside of the part of its image that is kept; the "
        "message gives the share",
        "give a larger `--fit`, or `--fit-about structures`",
        flag=18,
    ),
    "structure-too-small": FindingCode(
        "warning",
        "no pixel centre is inside what a structure set or segmentation draws of a structure on an "
        "image, and other structures have pixels there",
        "",
        flag=23,
    ),
    "contour-open-gap": FindingCode(
        "warning",
        "first and last point are 3 pixels or more apart, and 3 times as far as any other two "
        "neighbours",
        "draw the missing piece",
        flag=1,
    ),
    "contour-self-crossing": FindingCode(
        "warning",
        "the contour winds round 1 square pixel or more twice or backwards, or two polygons of one "
        "structure share over 5 % of the smaller one; touching is not crossing",
        "draw it again",
        flag=2,
    ),
    "contour-repeated-points": FindingCode(
        "warning",
        "3 points or more, and over 5 % of them, repeat others, or a structure has one polygon "
        "twice; closing by hand is fine",
        "remove what is drawn twice",
        flag=3,
    ),
    "inner-outside-outer": FindingCode(
        "warning",
        "over 1 % of the inner structure's pixels, and 4 or more, are outside of the outer one",
        "check whether one of the two belongs elsewhere",
        flag=4,
    ),
    "structures-overlap": FindingCode(
        "warning",
        "two structures of which neither lies in the other share over 5 % of the smaller one's "
        "pixels, and 4 or more; the mask shows the one that was painted last",
        "look at its overlay; `--masks bits` keeps both",
        flag=19,
    ),
    "structures-exchanged": FindingCode(
        "warning",
        "a structure of one patient looks like another structure of all other patients, by size, "
        "brightness or place, and that one like it, or it is not drawn; from 5 patients on",
        "check whether the names are exchanged in this patient",
        flag=21,
    ),
    "identical-contour": FindingCode(
        "warning",
        "contours on different images, or of a structure and of the one that it lies in, have the "
        "same points, to 0.01 pixel, whatever their start, direction and format",
        "check which one is a copy",
        flag=5,
    ),
    "identical-image": FindingCode(
        "warning",
        "two files have the same pixels",
        "remove one",
        flag=6,
    ),
    "near-duplicate": FindingCode(
        "warning",
        "images of two patients show the same with other values, compression, or a shift or zoom "
        "of some pixels",
        "leave one patient out, or give both one side of your split",
        flag=17,
    ),
    "area-jump": FindingCode(
        "warning",
        "the radius is over 15 % of the patient's median radius off the line through its "
        "neighbours in slices and phases (45 % at the end of a stack), and over 7 robust "
        "deviations of the data set",
        "look at its overlay",
        flag=7,
    ),
    "centroid-jump": FindingCode(
        "warning",
        "the centre is over 25 % of the patient's median radius off that line (75 % at the end "
        "of a stack), and over 7 robust deviations of the data set",
        "look at its overlay",
        flag=8,
    ),
    "area-outlier": FindingCode(
        "warning",
        "the radius is over twice the data set's median and over 5 robust deviations above it, "
        "or under 0.15 times the median; from 10 contours on",
        "look at its overlay",
        flag=9,
    ),
    "image-constant": FindingCode(
        "warning",
        "the 1st and 99th percentile of the pixels are equal",
        "look whether the image is empty",
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
        "the pixel spacing is over 0.1 % off most images of the series, or a direction cosine "
        "over 0.01",
        "check whether the image belongs to the series",
        flag=12,
    ),
    "rescale-differs": FindingCode(
        "warning",
        "an image has no RescaleSlope and RescaleIntercept, or 1 and 0, where 3 images of its "
        "series and 75 % of them agree on others",
        "export the image again",
        flag=20,
    ),
    "units-differ": FindingCode(
        "warning",
        "the values of an image are in another unit than those of most images that name one: by "
        "Units, SUVType and DecayCorrection of PET, a real-world value mapping that is the "
        "rescale, or RescaleType",
        "train on images of one unit, or leave such rows out",
        flag=22,
    ),
    "instance-number-differs": FindingCode(
        "warning",
        "InstanceNumber disagrees with the file name, where 3 of the patient's images and 75 % "
        "of them agree on one difference",
        "check the file's name",
        flag=13,
    ),
    "contours-misfit": FindingCode(
        "warning",
        "most audited contours lie on no clear edge or outside of their images; the message says "
        "which transformation makes them fit; the finding has no row",
        "as the message says: `--contour-transform`, or check that contours and images belong "
        "together",
    ),
    "alignment-dataset": FindingCode(
        "warning",
        "the contours of most patients are displaced by 0.4 pixel or more along x or y against the "
        "edges, and by 4 times the measurement's error; the finding has no row",
        "as the message says: `--contour-origin 1` for about (+1, +1)",
    ),
    "alignment-patient": FindingCode(
        "warning",
        "the contours of one patient are displaced by 0.4 pixel or more along x or y against the "
        "others, and by more than they differ among themselves, none is near an edge, or they fit "
        "in other coordinates; the finding has no row",
        "check whether contours and images are of one acquisition",
    ),
    "disagrees-with-model": FindingCode(
        "warning",
        "Dice between the mask and a model's prediction is far under the median of the structure; "
        "only with `report --predictions`, which never changes the file",
        "look at its overlay",
    ),
    "same-person": FindingCode(
        "warning",
        "two patients have the same PatientID, StudyInstanceUID, SeriesInstanceUID or "
        "SOPInstanceUID; the finding has no row",
        "give them one id, or one side of your split",
    ),
    "names-alike": FindingCode(
        "warning",
        "two patients, or two structures, have names that differ only in case, blanks, marks or "
        "leading zeros; the finding has no row",
        "write one name everywhere, or join structures with a mapping for `--structures`",
    ),
    "patient-id-differs": FindingCode(
        "warning",
        "the images of one patient have several PatientIDs, or a structure set or segmentation has "
        "another one than its images; the finding has no row",
        "give each person a patient_id of its own, or export the drawings again",
    ),
    "file-misnamed": FindingCode(
        "warning",
        "a file of a linked patient looks like an image or contour, but the build reads no such"
        " name or folder",
        "rename or move it as the message says",
    ),
    "patient-id-unusable": FindingCode(
        "warning",
        "a PatientID is longer than the limit `name-characters`, or has characters that cannot be "
        "shown; the patient is the first folder, as with `--patient-id folder`",
        "correct the PatientID, raise the limit, or take folders",
    ),
    "structure-missing": FindingCode(
        "warning",
        "`--structures` names a label that no annotation has",
        "look for a spelling mistake",
    ),
    "structure-not-chosen": FindingCode(
        "info",
        "a label of a table, structure set or segmentation is not among `--structures`",
        "add it if you want it",
    ),
    "structures-nested": FindingCode(
        "info",
        "a structure lies inside of another one on 90 % of the images that show both, and in 90 % "
        "of the patients, from 3 on: not flagged as structures-overlap; the finding has no row",
        "say so in a mapping file for `--structures`, with `inside_of`",
    ),
    "drawings-not-taken": FindingCode(
        "warning",
        "the newest structure set or segmentation of a series is taken, and an older one draws "
        "structures that it does not draw; or, with `--structure-sets all`, two of them draw one "
        "structure on one image, and the newer drawing is taken",
        "take all with `--structure-sets all`, with a name of its own for each structure",
    ),
    "structure-set-not-chosen": FindingCode(
        "info",
        "a series has a newer structure set or segmentation, or `--structure-sets` names another "
        "one",
        "choose with `--structure-sets`",
    ),
    "series-not-annotated": FindingCode(
        "info",
        "no annotation belongs to a series of images",
        "",
    ),
    "contour-point": FindingCode(
        "info",
        "a structure of a structure set has points, which no mask shows",
        "",
    ),
    "file-not-used": FindingCode(
        "info",
        "the folders of a linked patient hold another file or folder, or the input files without "
        "image or annotation",
        "",
    ),
    "structure-excluded": FindingCode(
        "info",
        "`--exclude-structures` left a structure out of its row; the message has the reason",
        "",
    ),
    "image-no-contour": FindingCode(
        "info",
        "an image has no contour",
        "",
    ),
    "image-lossy": FindingCode(
        "info",
        "the pixels were compressed with loss, by LossyImageCompression or by the encoding",
        "use the original if there is one",
    ),
    "real-world-values": FindingCode(
        "info",
        "an image has a RealWorldValueMappingSequence that says something else than RescaleSlope "
        "and RescaleIntercept; it is not applied; one finding for a series or patient",
        "apply the mapping before training if you need its unit",
    ),
    "geometry-missing": FindingCode(
        "info",
        "images have no usable PixelSpacing, ImagePositionPatient or ImageOrientationPatient; one "
        "finding counts their rows and patients, and it has no row",
        "export the images again with these attributes",
    ),
    "contour-missing": FindingCode(
        "info",
        "with `i,o`, a pair has only one of the two contours, or a patient lacks one of the "
        "contour folders",
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

# Codes that every build looks for.
_ALWAYS_CHECKED: Final = frozenset(
    {
        *("contour-partly-outside", "structure-cut", "structure-too-small"),
        *("image-file-damaged", "image-header-invalid", "image-unused-bits"),
    }
)
# Codes that a build looks for only where a mask has one code a pixel.
LABEL_MAP_CODES: Final = ("structures-overlap",)
# Codes that a build with --no-qc, and one with --no-audit, does not look for.
AUDIT_CODES: Final = ("contours-misfit", "alignment-dataset", "alignment-patient")
QUALITY_CODES: Final = (
    *(code for code in FLAG_CODES if code not in _ALWAYS_CHECKED),
    *AUDIT_CODES,
)


class SampleKey(NamedTuple):
    """What tells one sample from all others, and orders the rows."""

    patient_id: str
    series: str  # SeriesInstanceUID; empty where the source does not tell series apart
    slice: int  # the image's number in its series
    frame_number: int = 1  # of the frame in its file, from 1


def sample_keys(manifest: "Mapping[str, npt.NDArray[np.generic]]") -> list[SampleKey]:
    """Return the key of each row of a file's manifest, whose text is `str`.

    A version 1 file has no series and no frame numbers: they are empty and 1 there.
    """
    slices = manifest["slice"].tolist()
    series = manifest["series"].tolist() if "series" in manifest else [""] * len(slices)
    frames = manifest["frame_number"].tolist() if "frame_number" in manifest else [1] * len(slices)
    return list(map(SampleKey, manifest["patient_id"].tolist(), series, slices, frames))


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
    def patient_id(self) -> str:
        """Whose sample it is about; empty where it tells of none."""
        return self.key.patient_id if self.key else ""

    @property
    def severity(self) -> Severity:
        """The severity that the code has."""
        return CODES[self.code].severity

    def __str__(self) -> str:
        """Return one line for people: severity, code, where and why."""
        return f"{self.severity}: {self.code}: {located(self.path, self.message)}"


class FindingRow(NamedTuple):
    """One finding as the file has it, with the patient it is about where that is known."""

    severity: str
    code: str
    path: str
    row: int  # -1: about no row
    message: str
    label: int = 0  # code of the structure that it is about; 0: none
    other_row: int = -1  # the partner of a finding about two rows; -1: none
    patient_id: str = ""
    original_id: str = ""


class Remark(NamedTuple):
    """A finding's code and message, before it is known which file and sample it is about."""

    code: str
    message: str


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def located(path: str, message: str) -> str:
    """Return a message after the path that it is about, if any, as one printable line."""
    return printable(f"{path}: {message}" if path else message)


def shortened(text: str, most: int) -> str:
    """Return the beginning of a text, and how long it is, where it has more characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """Return text with what a terminal obeys or cannot show, line ends too, as Python escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
