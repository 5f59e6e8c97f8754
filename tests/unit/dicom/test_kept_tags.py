import io
import struct

import numpy as np
import pytest
from builders import SYNTAXES, dicom_bytes, gradient, instance
from pydicom import datadict
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from etl.dicom.instance import read_instance
from etl.dicom.kept_tags import CHARACTER_SET, SAFE, kept_tags, more_tags, notes_on
from etl.errors import EtlError
from loader.format import CORE, VERSION_2

# Attributes of table E.1-1 of DICOM PS3.15 that people may take for parameters of a scan.
IN_THE_PROFILE = [
    "AccessionNumber",
    "AcquisitionComments",
    "AcquisitionDate",
    "AcquisitionDateTime",
    "AcquisitionDeviceProcessingDescription",
    "AcquisitionProtocolDescription",
    "AcquisitionTime",
    "ContentDate",
    "ContrastBolusAgent",
    "DecompositionDescription",
    "DerivationDescription",
    "DetectorID",
    "DeviceDescription",
    "DeviceSerialNumber",
    "DeviceUID",
    "EthnicGroup",
    "FilterLookupTableDescription",
    "FrameAcquisitionDateTime",
    "FrameComments",
    "FrameOfReferenceUID",
    "FrameReferenceDateTime",
    "GantryID",
    "GeneratorID",
    "ImageComments",
    "InstanceCreationDate",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "IrradiationEventUID",
    "OperatorsName",
    "PatientAge",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "PatientSize",
    "PatientState",
    "PatientWeight",
    "PerformedProcedureStepDescription",
    "PlateID",
    "PregnancyStatus",
    "ProtocolName",
    "RequestedContrastAgent",
    "RequestedProcedureDescription",
    "RespiratoryMotionCompensationTechniqueDescription",
    "SeriesDate",
    "SeriesDescription",
    "SeriesTime",
    "SmokingStatus",
    "StationName",
    "StudyDate",
    "StudyDescription",
    "StudyID",
    "StudyInstanceUID",
    "StudyTime",
    "TimezoneOffsetFromUTC",
]


def read(dataset, keywords, syntax="explicit", frame_number=None, *, anyway=False):
    kept = kept_tags(tuple(keywords), anyway=anyway)
    file = io.BytesIO(dicom_bytes(dataset, syntax))
    found = read_instance(file, frame_number, kept=kept)
    assert len(found.kept) == len(kept)
    return found


def test_what_is_safe_is_what_dicom_says_of_it():
    """Tags, value representations and numbers of values are those of pydicom's dictionary."""
    for keyword, (tag, vr, is_single) in SAFE.items():
        assert (tag, vr) == (datadict.tag_for_keyword(keyword), datadict.dictionary_VR(tag))
        assert is_single == (datadict.dictionary_VM(tag) == "1"), keyword
        assert vr in {"CS", "LO", "SH", "DS", "IS", "US", "FD"}


def test_nothing_that_the_confidentiality_profile_lists_is_safe():
    assert all(datadict.tag_for_keyword(keyword) for keyword in IN_THE_PROFILE)
    assert set(IN_THE_PROFILE) & SAFE.keys() == set()
    assert [keyword for keyword, (tag, *_) in SAFE.items() if tag >> 16 == 0x0010] == []


def test_no_column_has_the_name_of_another():
    columns = [one.column for one in kept_tags(tuple(SAFE))]
    assert set(columns) & {*CORE, *VERSION_2} == set()
    assert len(set(columns)) == len(columns)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("PatientName", "PatientName is a person's name. Leave it out, or give `keep_tags_anyway`"),
        ("OperatorsName", "is a person's name"),
        ("PatientSex", "PatientSex describes the patient"),
        ("PatientAge", "PatientAge describes the patient"),
        ("StudyDate", "is a date or a time"),
        ("StudyInstanceUID", "is an identifier"),
        ("SeriesDescription", "is text that a person may have typed"),
        ("ProtocolName", "is text that a person may have typed"),
        ("StationName", "is text that a person may have typed"),
        ("StationAETitle", "names a place in a network"),
        ("PatientState", "is text that a person may have typed"),
        ("CountryOfResidence", "describes the patient"),
        ("QueryRetrieveLevel", "is not on the list"),
    ],
)
def test_what_is_not_safe_is_refused_with_its_reason(keyword, words):
    with pytest.raises(EtlError, match=f"^Option not usable: `keep_tags`: {keyword} ") as error:
        kept_tags(("Modality", keyword))
    assert words in str(error.value)
    kept = kept_tags(("Modality", keyword), anyway=True)
    assert [one.keyword for one in kept] == ["Modality", keyword]
    (note,) = notes_on(kept)
    assert f"keeps {keyword}, by which patients may be found" in note
    assert notes_on(kept[:1]) == []


@pytest.mark.parametrize("anyway", [False, True])
@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("MagneticFieldStrenght", "Did you mean MagneticFieldStrength"),
        ("magnetic_field_strength", "'magnetic_field_strength' is no keyword"),
        ("", "'' is no keyword"),
        ("PixelSpacing", "is a column of every file: pixel_spacing_row"),
        ("TriggerTime", "is a column of every file: trigger_time"),
        ("PixelData", "no column can hold"),
        ("RequestAttributesSequence", r"no column can hold \(SQ\)"),
        ("SmallestImagePixelValue", r"no column can hold \(US or SS\)"),
    ],
)
def test_what_cannot_be_a_column_is_refused_in_any_case(keyword, words, anyway):
    with pytest.raises(EtlError, match=words):
        kept_tags((keyword,), anyway=anyway)


VALUES = {
    "MagneticFieldStrength": ("1.494", 1.494),
    "Manufacturer": ("SIEMENS ", "SIEMENS"),
    "ImageType": (["ORIGINAL", "PRIMARY", "M"], "ORIGINAL\\PRIMARY\\M"),
    "AcquisitionMatrix": ([0, 256, 192, 0], "0\\256\\192\\0"),
    "SeriesNumber": ("12", 12),
    "EffectiveEchoTime": (1.1, 1.1),
    "RFEchoTrainLength": (7, 7),
    "WindowCenter": (["40", "-600.5"], "40\\-600.5"),
    "BitsStored": (16, 16),  # one that every build reads
    "InversionTimes": ([0.5, 250.25], "0.5\\250.25"),
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_are_numbers_or_text_in_every_encoding(syntax):
    dataset = instance(**{name: value for name, (value, _) in VALUES.items()})
    found = read(dataset, VALUES, syntax)
    assert list(found.kept) == [expected for _, expected in VALUES.values()]
    assert found.warnings == ()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_a_header_lacks_is_nan_or_empty(syntax):
    dataset = instance(EchoTime="", Manufacturer="", EffectiveEchoTime=None)
    found = read(
        dataset, ("EchoTime", "EffectiveEchoTime", "KVP", "Manufacturer", "Modality"), syntax
    )
    assert np.isnan(found.kept[:3]).all()
    assert found.kept[3:] == ("", "")
    assert found.warnings == ()


@pytest.mark.filterwarnings("ignore")  # pydicom's, of what is planted here
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_value_that_breaks_its_format_is_left_out_with_a_warning(syntax):
    dataset = instance()
    dataset.add_new(0x00180081, "LO", "fast")  # EchoTime
    dataset.add_new(0x00180080, "LO", "4\\5")  # RepetitionTime
    dataset.add_new(0x00189082, "FD", float("inf"))  # EffectiveEchoTime
    dataset.add_new(0x00080070, "LO", "x" * 2000)  # Manufacturer
    keywords = ("EchoTime", "RepetitionTime", "EffectiveEchoTime", "Manufacturer", "Modality")
    found = read(dataset, keywords, syntax)
    assert np.isnan(found.kept[:3]).all()
    assert found.kept[3:] == ("", "")
    ((code, message),) = found.warnings
    assert code == "image-header-invalid"
    for keyword in keywords[:4]:
        assert keyword in message
    assert "fast" not in message


def test_an_attribute_that_stands_twice_costs_its_value_and_not_the_image():
    element = struct.pack("<HH2sH", 0x0018, 0x0081, b"DS", 2) + b"5 "
    data = dicom_bytes(instance(EchoTime="5"))
    assert data.count(element) == 1
    found = read_instance(
        io.BytesIO(data.replace(element, 2 * element)), kept=kept_tags(("EchoTime", "Modality"))
    )
    assert np.isnan(found.kept[0])


@pytest.mark.parametrize(
    ("charset", "raw", "expected"),
    [
        ("ISO_IR 192", "Müller 山田".encode(), "Müller 山田"),
        ("ISO_IR 100", "Müller".encode("latin-1"), "Müller"),
        ("ISO_IR 144", "Магнит".encode("iso8859_5"), "Магнит"),
        (["", "ISO 2022 IR 87"], b"\x1b$B;3ED\x1b(B", "山田"),
        ("ISO_IR 999", "Müller".encode("latin-1"), "Müller"),
        (None, b"plain", "plain"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # pydicom's, of a character set that is none
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_text_is_decoded_in_the_character_set_that_the_file_states(charset, raw, expected, syntax):
    dataset = instance(uid="1.2.3")
    if charset is not None:
        written = "ISO_IR 109" if charset == "ISO_IR 999" else charset  # pydicom writes known ones
        dataset.add_new(CHARACTER_SET, "CS", written)
    marker = b"MARKER" + b"." * (len(raw) + len(raw) % 2 - 6)
    dataset.Manufacturer = marker.decode()
    data = dicom_bytes(dataset, syntax).replace(b"ISO_IR 109", b"ISO_IR 999")
    data = data.replace(marker, raw.ljust(len(marker)))
    found = read_instance(io.BytesIO(data), kept=kept_tags(("Manufacturer",)))
    assert found.kept == (expected,)


def group(**attributes):
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return Sequence([item])


def groups(**macros):
    item = Dataset()
    for keyword, sequence in macros.items():
        setattr(item, keyword, sequence)
    return item


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_frame_has_its_own_value_then_the_shared_one_then_the_files(syntax, undefined):
    dataset = instance(
        NumberOfFrames=3, Manufacturer="ROOT", FlipAngle="1", SliceThickness="9", BitsStored=16
    )
    dataset.PixelData = np.stack([gradient(seed=n) for n in range(3)]).tobytes()
    timing = group(RepetitionTime="3.5", FlipAngle="60")
    # A functional group says nothing of the pixels' format, and is not asked.
    shared = groups(
        MRTimingAndRelatedParametersSequence=timing, PixelMeasuresSequence=group(BitsStored=3)
    )
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        groups(
            MREchoSequence=group(EffectiveEchoTime=1.25 * n),
            PixelMeasuresSequence=group(SliceThickness=str(n) if n > 1 else ""),
        )
        for n in (1, 2, 3)
    )
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
    keywords = (
        *("BitsStored", "EffectiveEchoTime", "FlipAngle", "Manufacturer", "RepetitionTime"),
        "SliceThickness",
    )
    rows = [read(dataset, keywords, syntax, number).kept for number in (1, 2, 3)]
    assert rows == [
        (16, 1.25, 60, "ROOT", 3.5, 9),
        (16, 2.5, 60, "ROOT", 3.5, 2),
        (16, 3.75, 60, "ROOT", 3.5, 3),
    ]


def test_a_header_is_scanned_for_no_more_than_is_wanted():
    assert more_tags(()) == ()
    assert more_tags(kept_tags(("BitsStored", "NumberOfFrames"))) == ()
    assert more_tags(kept_tags(("EchoTime",))) == (0x00180081,)
    assert CHARACTER_SET in more_tags(kept_tags(("Manufacturer",)))


def test_files_that_were_read_without_an_attribute_do_not_hide_it():
    """What a process remembers of headers depends on what it looked for."""
    data = dicom_bytes(instance(EchoTime="1.5", uid="1.2.77"))
    without = read_instance(io.BytesIO(data), stamp="s")
    with_it = read_instance(io.BytesIO(data), stamp="s", kept=kept_tags(("EchoTime",)))
    assert (without.kept, with_it.kept) == ((), (1.5,))
    assert read_instance(io.BytesIO(data), stamp="s") == without
