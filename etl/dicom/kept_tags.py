"""DICOM attributes that a build keeps as columns: which are safe to keep, and their values.

Safe attributes describe the equipment and the acquisition, and the Basic Confidentiality Profile of
DICOM PS3.15 (table E.1-1, 2024b) leaves each of them in a de-identified file. They are codes,
numbers, and names that the manufacturer or the scanner wrote. Everything else is refused with its
reason: what describes the patient, names a person or a place, is a date or an identifier, or may
hold what a person typed.
"""

import math
import struct
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from etl.dicom.elements import KEYWORDS, decimals
from etl.dicom.quick_scan import Element
from etl.errors import EtlError
from loader.format import STRING, TAG_PREFIX

CHARACTER_SET: Final = 0x00080005

_ONE, _SEVERAL = True, False  # values that an attribute has

# keyword → (tag, VR, whether it has one value)
SAFE: Final[dict[str, tuple[int, str, bool]]] = {
    # Equipment
    "Manufacturer": (0x00080070, "LO", _ONE),
    "ManufacturerModelName": (0x00081090, "LO", _ONE),
    "SoftwareVersions": (0x00181020, "LO", _SEVERAL),
    "MagneticFieldStrength": (0x00180087, "DS", _ONE),
    "ReceiveCoilName": (0x00181250, "SH", _ONE),
    "TransmitCoilName": (0x00181251, "SH", _ONE),
    # Kind of the image
    "Modality": (0x00080060, "CS", _ONE),
    "ImageType": (0x00080008, "CS", _SEVERAL),
    "BodyPartExamined": (0x00180015, "CS", _ONE),
    "Laterality": (0x00200060, "CS", _ONE),
    "ImageLaterality": (0x00200062, "CS", _ONE),
    "PatientPosition": (0x00185100, "CS", _ONE),
    "ViewPosition": (0x00185101, "CS", _ONE),
    "PresentationIntentType": (0x00080068, "CS", _ONE),
    "PixelPresentation": (0x00089205, "CS", _ONE),
    "VolumetricProperties": (0x00089206, "CS", _ONE),
    "VolumeBasedCalculationTechnique": (0x00089207, "CS", _ONE),
    "ComplexImageComponent": (0x00089208, "CS", _ONE),
    "AcquisitionContrast": (0x00089209, "CS", _ONE),
    # Place in the examination
    "SeriesNumber": (0x00200011, "IS", _ONE),
    "AcquisitionNumber": (0x00200012, "IS", _ONE),
    "ImagesInAcquisition": (0x00201002, "IS", _ONE),
    "TemporalPositionIdentifier": (0x00200100, "IS", _ONE),
    "NumberOfTemporalPositions": (0x00200105, "IS", _ONE),
    "TemporalResolution": (0x00200110, "DS", _ONE),
    "AcquisitionDuration": (0x00189073, "FD", _ONE),
    "FrameTime": (0x00181063, "DS", _ONE),
    "NumberOfFrames": (0x00280008, "IS", _ONE),
    # Pixels
    "SliceThickness": (0x00180050, "DS", _ONE),
    "SpacingBetweenSlices": (0x00180088, "DS", _ONE),
    "PhotometricInterpretation": (0x00280004, "CS", _ONE),
    "BitsAllocated": (0x00280100, "US", _ONE),
    "BitsStored": (0x00280101, "US", _ONE),
    "PixelRepresentation": (0x00280103, "US", _ONE),
    "RescaleType": (0x00281054, "LO", _ONE),
    "WindowCenter": (0x00281050, "DS", _SEVERAL),
    "WindowWidth": (0x00281051, "DS", _SEVERAL),
    "BurnedInAnnotation": (0x00280301, "CS", _ONE),
    "LossyImageCompression": (0x00282110, "CS", _ONE),
    "LossyImageCompressionRatio": (0x00282112, "DS", _SEVERAL),
    # Gating
    "HeartRate": (0x00181088, "IS", _ONE),
    "NominalInterval": (0x00181062, "IS", _ONE),
    "IntervalsAcquired": (0x00181083, "IS", _ONE),
    "IntervalsRejected": (0x00181084, "IS", _ONE),
    "CardiacNumberOfImages": (0x00181090, "IS", _ONE),
    "TriggerWindow": (0x00181094, "IS", _ONE),
    "CardiacSynchronizationTechnique": (0x00189037, "CS", _ONE),
    "CardiacSignalSource": (0x00189085, "CS", _ONE),
    "RespiratoryMotionCompensationTechnique": (0x00189170, "CS", _ONE),
    # MR
    "ScanningSequence": (0x00180020, "CS", _SEVERAL),
    "SequenceVariant": (0x00180021, "CS", _SEVERAL),
    "ScanOptions": (0x00180022, "CS", _SEVERAL),
    "MRAcquisitionType": (0x00180023, "CS", _ONE),
    "SequenceName": (0x00180024, "SH", _ONE),
    "PulseSequenceName": (0x00189005, "SH", _ONE),
    "RepetitionTime": (0x00180080, "DS", _ONE),
    "EchoTime": (0x00180081, "DS", _ONE),
    "EffectiveEchoTime": (0x00189082, "FD", _ONE),
    "InversionTime": (0x00180082, "DS", _ONE),
    "InversionTimes": (0x00189079, "FD", _SEVERAL),
    "FlipAngle": (0x00181314, "DS", _ONE),
    "VariableFlipAngleFlag": (0x00181315, "CS", _ONE),
    "NumberOfAverages": (0x00180083, "DS", _ONE),
    "ImagingFrequency": (0x00180084, "DS", _ONE),
    "ImagedNucleus": (0x00180085, "SH", _ONE),
    "ResonantNucleus": (0x00189100, "CS", _SEVERAL),
    "EchoNumbers": (0x00180086, "IS", _SEVERAL),
    "EchoTrainLength": (0x00180091, "IS", _ONE),
    "RFEchoTrainLength": (0x00189240, "US", _ONE),
    "GradientEchoTrainLength": (0x00189241, "US", _ONE),
    "NumberOfPhaseEncodingSteps": (0x00180089, "IS", _ONE),
    "InPlanePhaseEncodingDirection": (0x00181312, "CS", _ONE),
    "PercentSampling": (0x00180093, "DS", _ONE),
    "PercentPhaseFieldOfView": (0x00180094, "DS", _ONE),
    "AcquisitionMatrix": (0x00181310, "US", _SEVERAL),
    "PixelBandwidth": (0x00180095, "DS", _ONE),
    "SAR": (0x00181316, "DS", _ONE),
    "dBdt": (0x00181318, "DS", _ONE),
    "EchoPulseSequence": (0x00189008, "CS", _ONE),
    "InversionRecovery": (0x00189009, "CS", _ONE),
    "PhaseContrast": (0x00189014, "CS", _ONE),
    "TimeOfFlightContrast": (0x00189015, "CS", _ONE),
    "Spoiling": (0x00189016, "CS", _ONE),
    "SteadyStatePulseSequence": (0x00189017, "CS", _ONE),
    "EchoPlanarPulseSequence": (0x00189018, "CS", _ONE),
    "MagnetizationTransfer": (0x00189020, "CS", _ONE),
    "T2Preparation": (0x00189021, "CS", _ONE),
    "BloodSignalNulling": (0x00189022, "CS", _ONE),
    "SaturationRecovery": (0x00189024, "CS", _ONE),
    "SpectrallySelectedSuppression": (0x00189025, "CS", _ONE),
    "Tagging": (0x00189028, "CS", _ONE),
    "PartialFourier": (0x00189081, "CS", _ONE),
    "PartialFourierDirection": (0x00189036, "CS", _ONE),
    "ParallelAcquisition": (0x00189077, "CS", _ONE),
    "ParallelAcquisitionTechnique": (0x00189078, "CS", _ONE),
    "ParallelReductionFactorInPlane": (0x00189069, "FD", _ONE),
    "ParallelReductionFactorOutOfPlane": (0x00189155, "FD", _ONE),
    "DiffusionBValue": (0x00189087, "FD", _ONE),
    "DiffusionDirectionality": (0x00189075, "CS", _ONE),
    # CT and X-ray
    "KVP": (0x00180060, "DS", _ONE),
    "XRayTubeCurrent": (0x00181151, "IS", _ONE),
    "XRayTubeCurrentInmA": (0x00189330, "FD", _ONE),
    "Exposure": (0x00181152, "IS", _ONE),
    "ExposureTime": (0x00181150, "IS", _ONE),
    "ExposureTimeInms": (0x00189328, "FD", _ONE),
    "ExposureModulationType": (0x00189323, "CS", _SEVERAL),
    "ConvolutionKernel": (0x00181210, "SH", _SEVERAL),
    "ConvolutionKernelGroup": (0x00189316, "CS", _ONE),
    "ReconstructionAlgorithm": (0x00189315, "CS", _ONE),
    "ReconstructionDiameter": (0x00181100, "DS", _ONE),
    "DataCollectionDiameter": (0x00180090, "DS", _ONE),
    "FilterType": (0x00181160, "SH", _ONE),
    "GeneratorPower": (0x00181170, "IS", _ONE),
    "FocalSpots": (0x00181190, "DS", _SEVERAL),
    "GantryDetectorTilt": (0x00181120, "DS", _ONE),
    "TableHeight": (0x00181130, "DS", _ONE),
    "RotationDirection": (0x00181140, "CS", _ONE),
    "DistanceSourceToDetector": (0x00181110, "DS", _ONE),
    "DistanceSourceToPatient": (0x00181111, "DS", _ONE),
    "AcquisitionType": (0x00189302, "CS", _ONE),
    "RevolutionTime": (0x00189305, "FD", _ONE),
    "SingleCollimationWidth": (0x00189306, "FD", _ONE),
    "TotalCollimationWidth": (0x00189307, "FD", _ONE),
    "TableSpeed": (0x00189309, "FD", _ONE),
    "TableFeedPerRotation": (0x00189310, "FD", _ONE),
    "SpiralPitchFactor": (0x00189311, "FD", _ONE),
    "CTDIvol": (0x00189345, "FD", _ONE),
    # Nuclear medicine
    "Units": (0x00541001, "CS", _ONE),
    "CountsSource": (0x00541002, "CS", _ONE),
    "DecayCorrection": (0x00541102, "CS", _ONE),
    "ActualFrameDuration": (0x00181242, "IS", _ONE),
}

# Attributes that every file has in columns of its own.
_HAVE_COLUMNS: Final = {
    "TransferSyntaxUID": "transfer_syntax_uid",
    "SOPInstanceUID": "sop_instance_uid",
    "SeriesInstanceUID": "series_instance_uid",
    "InstanceNumber": "instance_number",
    "PixelSpacing": "pixel_spacing_row",
    "ImagePositionPatient": "image_position_x",
    "ImageOrientationPatient": "image_orientation_row_x",
    "SliceLocation": "slice_location",
    "TriggerTime": "trigger_time",
    "RescaleSlope": "rescale_slope",
    "RescaleIntercept": "rescale_intercept",
    "DimensionIndexValues": "dimension_indices",
    "StackID": "stack_id",
    "InStackPositionNumber": "in_stack_position",
    "TemporalPositionIndex": "temporal_position",
}

_BINARY: Final = {  # VR → format of one value
    "US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"
}  # fmt: skip
_DECIMAL: Final = frozenset({"DS", "IS"})
_ENCODED: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})  # by SpecificCharacterSet
_TEXT: Final = _ENCODED | {"AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"}
_WHOLE: Final = frozenset({"LT", "ST", "UR", "UT"})  # a backslash in these separates nothing
_LONGEST: Final = 1024  # bytes of a value: each row of a column has room for the longest
_PATIENT: Final = 0x0010  # group of the attributes that describe the patient
_REASONS: Final = {
    **dict.fromkeys(("DA", "DT", "TM"), "is a date or a time, by which a patient can be found"),
    **dict.fromkeys(("PN",), "is a person's name"),
    **dict.fromkeys(("UI",), "is an identifier, which other systems know"),
    **dict.fromkeys(("AE",), "names a place in a network"),
    **dict.fromkeys(
        ("LO", "LT", "SH", "ST", "UC", "UR", "UT"),
        "is text that a person may have typed, with a name in it",
    ),
}
_OTHER_REASON: Final = "is not on the list of attributes of equipment and acquisition"
_SHOWN: Final = 3


class KeptTag(NamedTuple):
    """One attribute that becomes a column."""

    keyword: str
    tag: int
    vr: str
    is_number: bool  # one number; everything else is text

    @property
    def column(self) -> str:
        """The column's name."""
        return TAG_PREFIX + self.keyword

    @property
    def kind(self) -> str:
        """The column's type in the file."""
        return "<f8" if self.is_number else STRING


@lru_cache(16)
def kept_tags(keywords: tuple[str, ...], *, anyway: bool = False) -> tuple[KeptTag, ...]:
    """Return the attributes to keep.

    Parameters
    ----------
    keywords : tuple of str
        DICOM keywords.
    anyway : bool
        Also keep attributes that are not safe.

    Raises
    ------
    EtlError
        One of them cannot be a column, or is not safe.
    """
    kept = []
    for keyword in keywords:
        tag, vr, is_single = SAFE.get(keyword) or _looked_up(keyword)
        if keyword in _HAVE_COLUMNS:
            raise _refusal(
                f"{keyword} is a column of every file: {_HAVE_COLUMNS[keyword]}. Leave it out"
            )
        if vr not in _TEXT | _DECIMAL | _BINARY.keys():
            raise _refusal(f"{keyword} has a value that no column can hold ({vr}). Leave it out")
        if keyword not in SAFE and not anyway:
            raise _refusal(
                f"{keyword} {_reason(tag, vr)}. Leave it out, or give `keep_tags_anyway` as well"
            )
        is_number = is_single and vr not in _TEXT
        kept.append(KeptTag(keyword, tag, vr, is_number))
    return tuple(kept)


def columns(kept: Iterable[KeptTag]) -> dict[str, str]:
    """Return the columns of kept attributes, with their types."""
    return {one.column: one.kind for one in kept}


def notes_on(kept: Iterable[KeptTag]) -> list[str]:
    """Return a note on the attributes that are kept although they are not safe."""
    unsafe = [one.keyword for one in kept if one.keyword not in SAFE]
    if not unsafe:
        return []
    return [
        f"the file keeps {', '.join(unsafe)}, by which patients may be found: hand it on as you "
        "would hand on the DICOM files."
    ]


def more_tags(kept: Iterable[KeptTag]) -> tuple[int, ...]:
    """Return the tags that a header must be scanned for besides those that every build reads."""
    tags = {one.tag for one in kept}
    if any(one.vr in _ENCODED for one in kept):
        tags.add(CHARACTER_SET)
    return tuple(sorted(tags - KEYWORDS.keys()))


def kept_values(
    elements: Mapping[int, Element], kept: Iterable[KeptTag], *, is_big_endian: bool
) -> tuple[tuple[str | float, ...], list[str]]:
    """Return the values of kept attributes, and remarks on those that break their format.

    A number is NaN, and a text empty, where the header has no usable value. Several values are one
    text, joined by a backslash as DICOM joins them.
    """
    found: list[str | float] = []
    remarks: list[str] = []
    charset = elements.get(CHARACTER_SET)
    for one in kept:
        element = elements.get(one.tag)
        value = (element.value or b"") if element is not None else b""
        vr = element.vr if element is not None and element.vr not in {"", "UN"} else one.vr
        problem = ""
        if len(value) > _LONGEST:
            value, problem = b"", f"is longer than {_LONGEST} bytes and is left out"
        if one.is_number:
            number, remark = _number(value, vr, is_big_endian=is_big_endian)
            found.append(number)
        else:
            text, remark = _text(
                value, vr, charset.value if charset else None, is_big_endian=is_big_endian
            )
            found.append(text)
        if problem or remark:
            remarks.append(f"{one.keyword} {problem or remark}")
    return tuple(found), remarks


def _number(value: bytes, vr: str, *, is_big_endian: bool) -> tuple[float, str]:
    if vr not in _BINARY:
        numbers, remark = decimals(value, 1)
        return numbers[0], remark
    if not value:
        return math.nan, ""
    values = _unpacked(value, vr, is_big_endian=is_big_endian)
    if len(values) != 1 or math.isinf(values[0]):
        return math.nan, "is not one number and is left out"
    return float(values[0]), ""


def _text(value: bytes, vr: str, charset: bytes | None, *, is_big_endian: bool) -> tuple[str, str]:
    if vr in _BINARY:
        values = _unpacked(value, vr, is_big_endian=is_big_endian)
        remark = "is no list of numbers and is left out" if value and not values else ""
        return "\\".join(map(repr, values)), remark
    text = _decoded(value, charset or b"")
    parts = [text] if vr in _WHOLE else text.split("\\")
    return "\\".join(part.strip(" \0") for part in parts), ""


def _unpacked(value: bytes, vr: str, *, is_big_endian: bool) -> tuple[float, ...]:
    """Return the numbers of a binary value; none where its length fits no whole number of them."""
    one = struct.Struct((">" if is_big_endian else "<") + _BINARY[vr])
    if len(value) % one.size:
        return ()
    return tuple(number for (number,) in one.iter_unpack(value))


@lru_cache(1024)  # most are the same for a whole series
def _decoded(value: bytes, charset: bytes) -> str:
    """Return text in the character set that the file states (DICOM PS3.3 C.12.1.1.2)."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    from pydicom.charset import convert_encodings, decode_bytes

    names = [name.strip(" \0") for name in charset.decode("ascii", "replace").split("\\")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode_bytes(value, convert_encodings(names), set())
    except (LookupError, UnicodeError, ValueError):
        return value.decode("latin-1")


def _looked_up(keyword: str) -> tuple[int, str, bool]:
    """Return tag, VR and whether it has one value, of any attribute of DICOM."""
    import difflib

    from pydicom import datadict

    tag = datadict.tag_for_keyword(keyword)
    if tag is None or not keyword:
        near = difflib.get_close_matches(keyword, [*SAFE, *datadict.keyword_dict], _SHOWN)
        hint = f" Did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        raise _refusal(f"{keyword!r} is no keyword of a DICOM attribute.{hint} Write it as DICOM")
    is_single = datadict.dictionary_VM(tag) == "1"
    return tag, datadict.dictionary_VR(tag), is_single


def _reason(tag: int, vr: str) -> str:
    if tag >> 16 == _PATIENT and vr != "PN":
        return "describes the patient"
    return _REASONS.get(vr, _OTHER_REASON)


def _refusal(what: str) -> EtlError:
    return EtlError(f"Option not usable: `keep_tags`: {what}.")
