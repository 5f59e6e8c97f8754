import os
import shutil
from collections import Counter

import pytest
from builders import contour_path, write_contour, write_dicom, write_tree

from etl.errors import EtlError, limited
from etl.options import BuildOptions
from etl.sources import link_csv


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")], slices=(1, 2))


def discover(root, kinds, *, partial):
    return link_csv.discover(root, BuildOptions(contours=kinds, partial=partial))


def codes(found):
    return Counter(finding.code for finding in found.findings)


def slices(found):
    return [(link.key.patient_id, link.key.slice) for link in found.links]


ALL = [("P1", 1), ("P1", 2), ("P2", 1), ("P2", 2)]


def test_a_clean_folder_gives_its_pairs_in_order(root):
    write_dicom(root, "P1", "10.dcm")
    write_contour(root, "A1", 10)
    found = discover(root, ("i",), partial=False)
    assert slices(found) == [("P1", 1), ("P1", 2), ("P1", 10), ("P2", 1), ("P2", 2)]
    assert found.findings == []
    link = found.links[0]
    assert link.original_id == "A1"
    assert link.frame == ("dicoms/P1/1.dcm", None)
    path = "contourfiles/A1/i-contours/IM-0001-0001-icontour-manual.txt"
    assert link.annotations == ((1, path, ""),)
    assert found.counts == {
        "patients": 2, "dicoms": 5, "icontours": 5, "ocontours": 4, "ignored_files": 0, "pairs": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "table",
    [
        "\ufeffpatient_id,original_id\r\nP1,A1\r\nP2,A2\r\n",
        "patient_id,original_id\n\n  P1 ,\tA1\n,\n\nP2 , A2  \n\n",
        "original_id,patient_id\nA1,P1\nA2,P2",
        "note,patient_id,age,original_id\nx,P1,,A1,,\n,P2,7,A2\n",
        'Patient_ID,"Original_ID"\n"P1","A1"\n"P2",A2\n',
        "patient_id,original_id\rP1,A1\rP2,A2\rP1,A1\r",
        "\ufeffsep=;\r\npatient_id;original_id\r\nP1;A1\r\nP2;A2\r\n",
        "SEP=,\npatient_id,original_id\nP1,A1\nP2,A2\n",
        '"sep=\t"\npatient_id\toriginal_id\tnote\nP1\t A1\t\n\t\t\nP2\tA2\n',
        "sep=\t\nnote\tpatient_id\toriginal_id\n\tP1\tA1\nx\tP2\tA2\n",
        'patient_id,original_id\n="P1",="A1"\n"=""P2""","=""A2"""\n',
    ],
)
def test_link_csv_is_read_as_people_write_it(root, table):
    (root / "link.csv").write_bytes(table.encode())
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL
    assert found.findings == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "expected each of the columns"),
        (
            b"patient_id;original_id\nP1;A1\n",
            "separated by commas.*Put a line sep= with ';' behind",
        ),
        (b"patient_id\toriginal_id\n", "Put a line sep= with a tab behind it"),
        (b"sep=;\npatient_id,original_id\nP1,A1\n", "line 2.*separated by semicolons"),
        (b"sep=;\n", "line 2: expected each of the columns"),
        (b"patient_id,patient_id,original_id\n", "patient_id"),
        (b"\xff\xfep\0a\0t\0", "not text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not text"),
        (b"patient_id,original_id\nP1,\0\n", "not text"),
    ],
)
def test_a_table_of_no_use_is_refused_with_the_reason(root, content, words):
    (root / "link.csv").unlink()
    if content is not None:
        (root / "link.csv").write_bytes(content)
    with pytest.raises(EtlError, match=words):
        discover(root, ("i",), partial=False)


def test_no_such_folder(tmp_path):
    with pytest.raises(EtlError, match="no such folder"):
        discover(tmp_path / "nowhere", ("i",), partial=False)


@pytest.mark.parametrize("line", [",A9", "P9,", "..,A9", ".,A9", "P9,a/b", "P9,a\\b", "P9"])
def test_an_id_that_is_no_folders_name_is_invalid_and_the_rest_goes_on(root, line):
    with (root / "link.csv").open("a") as table:
        table.write(f"{line}\n")
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL
    assert codes(found) == {"link-invalid": 1}
    assert "line 4" in found.findings[0].message


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\u202e", "\u200b"])
def test_an_id_that_a_terminal_would_obey_is_invalid_and_shown_escaped(root, character):
    with (root / "link.csv").open("a", encoding="utf-8") as table:
        table.write(f"P{character}9,A9\nP8,A{character}8\n")
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL
    assert codes(found) == {"link-invalid": 2}
    for finding in found.findings:
        assert finding.message.isprintable()
        assert character.encode("unicode_escape").decode() in finding.message


def test_an_id_too_long_for_a_name_stops_nothing(root):
    with (root / "link.csv").open("a") as table:
        table.write(f"{'P' * 300},A8\nP8,{'A' * 300}\n")
    with limited((("name-characters", 300),)):
        for kinds in (("i",), ("i", "o")):
            found = discover(root, kinds, partial=False)
            assert slices(found) == ALL
            assert codes(found) == {"link-unknown-patient": 4}
            folder = f"dicoms/{'P' * 300}"
            message = (
                f"line 4: patient {'P' * 300!r} has no folder {folder}. Add it or remove the line."
            )
            assert message in {finding.message for finding in found.findings}


@pytest.mark.parametrize(
    ("kind", "words"), [("folder", "is a folder"), ("fifo", "is a device, pipe")]
)
def test_a_table_that_is_no_file_is_told_as_what_it_is(root, kind, words):
    (root / "link.csv").unlink()
    (root / "link.csv").mkdir() if kind == "folder" else os.mkfifo(root / "link.csv")
    with pytest.raises(EtlError, match=words):
        discover(root, ("i",), partial=False)


def test_an_id_linked_to_two_others_rejects_all_of_its_pairs(root):
    (root / "link.csv").write_text("patient_id,original_id\nP1,A1\nP1,A7\nP2,A2\n")
    found = discover(root, ("i",), partial=False)
    assert slices(found) == [("P2", 1), ("P2", 2)]
    # Nothing is lost silently: the files of the rejected link are listed as well.
    assert codes(found) == {"link-duplicate": 2, "image-no-contour": 2, "contour-no-image": 2}
    (root / "link.csv").write_text("patient_id,original_id\nP1,A2\nP2,A2\n")
    assert codes(discover(root, ("i",), partial=False))["link-duplicate"] == 2


def test_a_patient_without_folders(root):
    with (root / "link.csv").open("a") as table:
        table.write("P9,A9\n")
    write_contour(root, "A9", 4)
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL
    assert codes(found) == {"link-unknown-patient": 1, "contour-no-image": 1}


def test_what_link_csv_does_not_name_is_listed(root):
    write_dicom(root, "P7", "1.dcm")
    write_contour(root, "A8", 1)
    found = discover(root, ("i",), partial=False)
    assert {(f.code, f.path) for f in found.findings} == {
        ("image-no-contour", "dicoms/P7/1.dcm"),
        ("contour-no-image", contour_path("A8", 1)),
    }


def test_what_has_no_counterpart_is_listed(root):
    write_dicom(root, "P1", "5.dcm")
    write_contour(root, "A2", 6)
    found = discover(root, ("i",), partial=False)
    assert {(f.code, f.path, f.severity) for f in found.findings} == {
        ("image-no-contour", "dicoms/P1/5.dcm", "info"),
        ("contour-no-image", contour_path("A2", 6), "warning"),
    }


@pytest.mark.parametrize("name", ["048.dcm", "48.DCM", "0048.Dcm"])
def test_two_files_that_mean_one_slice_are_both_left_out(root, name):
    write_contour(root, "A1", 48)
    write_dicom(root, "P1", "48.dcm")
    write_dicom(root, "P1", name)
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL
    assert codes(found) == {"slice-ambiguous": 2}


@pytest.mark.parametrize("name", ["048.dcm", "48.DCM"])
def test_one_file_with_another_spelling_is_its_slice(root, name):
    write_contour(root, "A1", 48)
    write_dicom(root, "P1", name)
    assert ("P1", 48) in slices(discover(root, ("i",), partial=False))


def test_two_contours_that_mean_one_slice_are_both_left_out(root):
    path = root / contour_path("A1", 1)
    shutil.copy(path, path.with_name("IM-0001-00001-icontour-manual.txt"))
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL[1:]
    assert codes(found) == {"slice-ambiguous": 2}


def test_litter_is_counted_and_no_finding(root):
    litter = ("._1.dcm", ".DS_Store", "1.dcm.swp", "Thumbs.db", "desktop.ini", "3.dcm~", "#3.dcm#")
    for name in litter:
        write_dicom(root, "P1", name, b"junk")
        (root / "contourfiles/A1/o-contours" / name).write_text("x")
        (root / "contourfiles/A2" / name).write_text("x")
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL
    assert found.findings == []
    assert found.counts["ignored_files"] == 3 * len(litter)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(("i",), [(1, 1)]), (("o",), [(1, 2)]), (("i", "o"), [(2, 2), (1, 1)])],
)
def test_structures_in_paint_order_with_code_and_label(root, kinds, expected):
    scheme = discover(root, kinds, partial=False).scheme
    assert [(one.code, one.label) for one in scheme.structures] == expected


def test_findings_name_their_sample_and_structure(root):
    (root / contour_path("A1", 1, "o")).unlink()
    write_dicom(root, "P1", "5.dcm")
    write_contour(root, "A2", 6, "o")
    found = discover(root, ("i", "o"), partial=False)
    assert {(f.code, f.key, f.label) for f in found.findings} == {
        ("contour-missing", ("P1", "", 1, 1), 2),
        ("image-no-contour", ("P1", "", 5, 1), 0),
        ("contour-no-image", ("P2", "", 6, 1), 2),
    }


def test_both_kinds_need_both_contours_unless_partial(root):
    (root / contour_path("A1", 1, "o")).unlink()
    (root / contour_path("A2", 2, "i")).unlink()
    found = discover(root, ("i", "o"), partial=False)
    assert slices(found) == [("P1", 2), ("P2", 1)]
    assert codes(found) == {"contour-missing": 2}
    found = discover(root, ("i", "o"), partial=True)
    assert slices(found) == ALL
    assert codes(found) == {"contour-missing": 2}
    codes_drawn = [[annotation.code for annotation in link.annotations] for link in found.links]
    assert codes_drawn == [[1], [1, 2], [1, 2], [2]]


def test_a_patient_without_one_of_the_contour_folders_is_told(root):
    shutil.rmtree(root / "contourfiles/A2/o-contours")
    found = discover(root, ("i", "o"), partial=False)
    assert slices(found) == ALL[:2]
    assert codes(found) == {"contour-missing": 3}  # the folder, and its two pairs


def test_one_kind_does_not_look_at_the_other(root):
    shutil.rmtree(root / "contourfiles/A2/o-contours")
    found = discover(root, ("i",), partial=False)
    assert slices(found) == ALL
    found = discover(root, ("o",), partial=False)
    assert slices(found) == ALL[:2]
    assert codes(found) == {"image-no-contour": 2}


@pytest.mark.parametrize("kinds", [("i",), ("o",), ("i", "o")])
def test_contours_of_both_kinds_are_counted_whichever_are_paired(root, kinds):
    (root / contour_path("A1", 2, "o")).unlink()
    (root / contour_path("A1", 1, "o")).with_name("notes.txt").write_text("x")
    write_contour(root, "A8", 1, "i")
    write_contour(root, "A8", 1, "o")
    counts = discover(root, kinds, partial=False).counts
    assert (counts["icontours"], counts["ocontours"]) == (5, 4)
    assert counts["ignored_files"] == 1


def test_a_folder_that_may_not_be_looked_into_stops_nothing(root, monkeypatch):
    def refuse(path, *arguments, stat=os.stat, **keywords):
        if "P1" in str(path):
            raise PermissionError(13, "Permission denied")
        return stat(path, *arguments, **keywords)

    monkeypatch.setattr(os, "stat", refuse)
    found = discover(root, ("i",), partial=False)
    assert codes(found)["link-unknown-patient"] == 1
    assert ("P2", 1) in slices(found)


def test_a_folder_that_cannot_be_listed_is_told(root, monkeypatch):
    def refuse(folder, listdir=os.listdir):
        if folder == root / "dicoms/P1":
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    found = discover(root, ("i",), partial=False)
    assert codes(found) == {"link-unknown-patient": 1, "contour-no-image": 2}
    assert "permission denied" in found.findings[0].message
