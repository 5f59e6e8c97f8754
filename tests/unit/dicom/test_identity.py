import io

import pytest
from builders import dicom_bytes, instance

from etl.dicom.instance import read_instance
from etl.model import NOBODY, Instance


def identity(syntax="explicit", **attributes):
    data = dicom_bytes(instance(**attributes), syntax)
    return read_instance(io.BytesIO(data)).identity


def test_equal_values_have_equal_digests_and_others_do_not():
    ids = ["DET0001", "DET0002", "1", "11", "ANON007", "P1", "p1", "a", "xy", "Müller"]
    found = {identity(PatientID=one).patient for one in ids}
    assert len(found - {0}) == len(ids)
    assert identity(PatientID="DET0001 ").patient == identity(PatientID="DET0001").patient
    one, other = (identity(PatientID="A7", StudyInstanceUID=f"1.2.{n}") for n in (3, 4))
    assert one.patient == other.patient
    assert one.study != other.study


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "deflated"])
def test_every_encoding_gives_the_same(syntax):
    attributes = {"PatientID": "A7", "StudyInstanceUID": "1.2.840.7"}
    assert identity(syntax, **attributes) == identity(**attributes)
    assert 0 not in identity(**attributes)


@pytest.mark.parametrize(
    "value",
    [
        None, "", " ", "X", "XXXXXXXX", "xxxx-xxxx", "0", "000000", "9999", "ANON", "Anonymous",
        "ANONYMIZED", "anonymised", "DEIDENTIFIED", "De-Identified", "UNKNOWN", "none", "No Name",
        "NULL", "N/A", "removed", "REDACTED", "Patient ID", "test", "-", "....",
    ],
)  # fmt: skip
def test_a_placeholder_is_nobody(value):
    assert identity(PatientID=value, StudyInstanceUID=None) == NOBODY


@pytest.mark.parametrize("letter", [b"X", b"0", b" ", b"\0"])
def test_a_uid_that_was_overwritten_in_place_is_none_and_no_warning(letter):
    uid = b"1.2.840.99.7"
    data = dicom_bytes(instance(StudyInstanceUID=uid.decode(), PatientID="A7"))
    found = read_instance(io.BytesIO(data.replace(uid, letter * len(uid))))
    assert found.identity.patient != 0
    assert (found.identity.study, found.warnings) == (0, ())


def test_nothing_of_it_is_packed():
    data = dicom_bytes(instance(PatientID="A7", StudyInstanceUID="1.2.840.7"))
    found = read_instance(io.BytesIO(data))
    assert Instance.of_plain(found.plain()) == found._replace(identity=NOBODY)
