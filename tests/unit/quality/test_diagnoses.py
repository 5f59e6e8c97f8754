import numpy as np
import pytest

from etl.findings import FindingRow, Remark
from etl.labels import cardiac_scheme
from etl.quality import drawing
from etl.quality.diagnoses import diagnose
from etl.quality.patients import Patient, Patients

STRUCTURES = cardiac_scheme(("i", "o")).structures
PATIENTS = ["A", "A", "A", "B", "B", "B", "C", "C"]
ORIGINALS = {"A": "a", "B": "b", "C": "C"}


def texts(values):
    return np.array([value.encode() for value in values])


MANIFEST = {
    "patient_id": texts(PATIENTS),
    "original_id": texts(ORIGINALS[one] for one in PATIENTS),
    "slice": np.array([1, 2, 3, 1, 2, 3, 1, 2]),
    "dicom_path": texts(f"{one}/{row}, x.dcm" for row, one in enumerate(PATIENTS)),
    "icontour_path": texts(f"{one}/{row}-i.txt" for row, one in enumerate(PATIENTS)),
    "ocontour_path": texts(
        f"{one}/{row}-o.txt" if row < 6 else "" for row, one in enumerate(PATIENTS)
    ),
}


def finding(code, row=-1, message="is odd. Look.", label=0, other=-1, severity="warning", path=""):
    if row >= 0:
        kind = {0: "dicom", 1: "icontour", 2: "ocontour"}[label]
        path = bytes(MANIFEST[f"{kind}_path"][row]).decode()
    return FindingRow(severity, code, path, row, message, label, other)


def diagnosed(*findings):
    patients = Patients(PATIENTS, [ORIGINALS[one] for one in PATIENTS])
    return diagnose(patients.assigned(findings), MANIFEST, STRUCTURES)


def outside(row, n):
    """Return the finding of an inner contour that lies partly outside, with its real message."""
    inner, outer = (one for one in sorted(STRUCTURES, key=lambda one: one.code))
    (remark,) = drawing.check_overlap(outer, 100, n)
    assert isinstance(remark, Remark)
    return finding(remark.code, row, remark.message, inner.code)


def copies(rows, others, *, is_told):
    start = "is a copy of" if is_told else "has the same points as"
    for row, other in zip(rows, others, strict=True):
        path = bytes(MANIFEST["ocontour_path"][other]).decode()
        yield finding("identical-contour", row, f"{start} {path}, of another image. X?", 2, other)


def test_nothing_wrong_has_no_diagnosis():
    info = finding("image-no-contour", severity="info", path="A/1.dcm")
    assert diagnosed() == []
    assert diagnosed(info, finding("row-excluded", severity="error", path="A/1.dcm")) == []


def test_the_contours_of_another_patient_are_told_with_extent_evidence_and_remedy():
    found = [*copies([0, 1, 2], [3, 4, 5], is_told=True), outside(0, 17), outside(2, 67)]
    (one,) = diagnosed(*found, finding("centroid-jump", 1, label=2))
    assert str(one) == (
        "A (a): all 3 o-contours are copies of B (b)'s and do not fit these images (17 to 67 % of "
        "the inner contour lies outside); they fit B's. Exclude with --exclude-flagged "
        "identical-contour:A."
    )
    assert (one.severity, one.code, one.patient_id, one.original_id) == (
        "warning", "identical-contour", "A", "a",
    )  # fmt: skip
    assert (one.n_findings, one.rows) == (3, (0, 1, 2))


@pytest.mark.parametrize("has_columns", [True, False])
def test_of_a_file_that_flags_both_the_inner_contours_tell_which_is_the_copy(has_columns):
    """So do files of version 1, whose findings know no partner but by its path."""
    found = [*copies([0, 1], [3, 4], is_told=False), *copies([3, 4], [0, 1], is_told=False)]
    if not has_columns:
        found = [one._replace(other_row=-1) for one in found]
    (one,) = diagnosed(*found, outside(3, 20), outside(4, 30))
    assert one.text.startswith("B (b): 2 of 3 o-contours are copies of A (a)'s")
    assert one.rows == (3, 4)


def test_where_nothing_tells_neither_is_called_the_copy():
    found = [*copies([0, 1], [3, 4], is_told=False), *copies([3, 4], [0, 1], is_told=False)]
    for more in ([], [outside(0, 20), outside(4, 20)]):
        one, *_ = diagnosed(*found, *more)
        assert one.text == (
            "A (a) and B (b): 2 o-contours of one have the same points as the other's "
            "(slices 1, 2)."
        )
        assert "Nothing tells which is the copy" in one.remedy
        assert (one.patient_id, one.n_findings, one.rows) == ("", 4, (0, 1, 3, 4))


def test_a_patients_alignment_is_no_second_cause_where_its_inner_contours_are_copies():
    lost = finding("alignment-patient", message="none of 6 near an edge. Look.", path="dicoms/A")
    inner = [one._replace(label=1) for one in copies([0, 1, 2], [3, 4, 5], is_told=True)]
    assert len(diagnosed(*inner, lost)) == 1
    outer = list(copies([0, 1, 2], [3, 4, 5], is_told=True))
    assert [one.code for one in diagnosed(*outer, lost)] == [
        "identical-contour", "alignment-patient",
    ]  # fmt: skip


def test_the_most_harmful_comes_first():
    found = [
        finding(
            "image-size",
            severity="error",
            path="A/9.dcm",
            message="is 240x256 (rows x columns), expected",
        ),
        finding("area-jump", 6, label=1),
        finding("alignment-patient", path="dicoms/C", message="off. Which?"),
        finding("identical-image", 0, "has the same pixels as B/3, x.dcm. Remove one.", other=3),
        finding("identical-image", 3, "has the same pixels as A/0, x.dcm. Remove one.", other=0),
        *copies([1], [4], is_told=True),
        finding("alignment-dataset", message="they lie off. Build with --contour-origin 1."),
    ]
    diagnoses = diagnosed(*found)
    assert [one.code for one in diagnoses] == [
        "alignment-dataset", "identical-contour", "identical-image", "alignment-patient",
        "image-size", "area-jump",
    ]  # fmt: skip
    assert str(diagnoses[0]) == "The data set: they lie off. Build with --contour-origin 1."
    assert diagnoses[2].text.startswith("A (a) and B (b): 1 image of one has the same pixels")
    assert str(diagnoses[3]) == "C: off. Which?"
    assert diagnoses[4].remedy == (
        "Take all sizes with --fit, or build such images apart: --size 240x256."
    )


def test_no_size_takes_images_that_are_resampled():
    message = (
        "is 240x256 (rows x columns), and 120x128 by --resample, expected 128x128. "
        "Take all sizes with --fit ROWSxCOLUMNS."
    )
    (one,) = diagnosed(finding("image-size", severity="error", path="A/9.dcm", message=message))
    assert one.remedy == "Take all sizes with --fit ROWSxCOLUMNS."


def test_a_code_of_many_patients_is_told_once():
    patients = [f"P{number}" for number in range(5)]
    found = [
        FindingRow("error", "contour-unreadable", f"{one}/x.txt", -1, "bad. Mend.", 1, -1, one, one)
        for one in patients
    ]
    (one,) = diagnose(found, MANIFEST, STRUCTURES)
    assert str(one) == ("5 patients: contour-unreadable, 5 times, such as P0/x.txt bad. Mend.")
    assert len(diagnose(found[:3], MANIFEST, STRUCTURES)) == 3


def test_rows_that_look_wrong_have_slices_and_the_command_that_shows_them():
    (one,) = diagnosed(*(finding("area-jump", row, "too large. Look.", 1) for row in (6, 7)))
    assert str(one) == (
        "C: area-jump, 2 times (slices 1, 2): C/6-i.txt too large. Look at them: dicom-etl report "
        "FILE --overlays DIR --code area-jump --patient C."
    )


def test_an_id_that_a_shell_would_split_is_quoted():
    manifest = MANIFEST | {"patient_id": texts(one.replace("A", "A 1;") for one in PATIENTS)}
    found = [
        one._replace(patient_id="A 1;", original_id="a") for one in copies([0], [3], is_told=True)
    ]
    (one,) = diagnose(found, manifest, STRUCTURES)
    assert one.remedy == "Exclude with --exclude-flagged 'identical-contour:A 1;'."


def test_a_finding_without_row_is_whose_id_its_path_has():
    patients = Patients(["A", "B", "7", "8"], ["a", "b", "8", "7"])
    assert patients.of(-1, "contourfiles/b/x.txt") == Patient("B", "b")
    assert patients.of(-1, "dicoms/A/b.dcm") == Patient("A", "a")
    assert patients.of(-1, "dicoms/7/1.dcm") == Patient()  # two patients have it
    assert patients.of(-1, "dicoms/A/b/1.dcm") == Patient()
    assert patients.of(2, "dicoms/A/1.dcm") == Patient("7", "8")
    assert [str(one) for one in patients.of_rows] == ["A (a)", "B (b)", "7 (8)", "8 (7)"]
    assert str(Patient("C", "C")) == "C"


def test_near_duplicates_of_two_patients_are_one_diagnosis_which_tells_the_leak():
    leak = "They are on two sides of the split: 'A' train, 'B' test. Scores will be too good."
    message = f"shows what B/3, x.dcm of patient 'B' shows. Is it a copy? {leak}"
    (one,) = diagnosed(
        finding("near-duplicate", 0, message, other=3),
        finding("near-duplicate", 1, message, other=3),
        finding("near-duplicate", 3, message, other=0),
    )
    assert one.text == (
        "A (a) and B (b): 2 images of one show the same as the other's; both may be one person. "
        "They are on two sides of the split: 'A' train, 'B' test."
    )
    assert one.remedy == "Exclude with --exclude-flagged near-duplicate:A."
    assert (one.rows, one.n_findings) == ((0, 1, 3), 3)


def test_a_finding_of_a_damaged_file_with_an_unknown_severity_is_told():
    (one,) = diagnosed(finding("area-jump", 0, severity="severe"))
    assert (one.severity, one.rows) == ("severe", (0,))
