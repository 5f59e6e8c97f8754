"""Names nearly right: each kind of them, with the name that the finding says was expected."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from builders import contour_path, write_contour, write_dicom, write_tree

from etl.errors import EtlError
from etl.options import BuildOptions
from etl.sources import layouts, link_csv
from etl.sources.names import alike, home, is_litter

IMAGES = "dicoms/P1"
INNER = "contourfiles/A1/i-contours/IM-0001-{}-icontour-manual.txt"
OUTER = "contourfiles/A1/o-contours/IM-0001-{}-ocontour-manual.txt"


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data", slices=(1, 2))


def discover(root, kinds=("i",)):
    return link_csv.discover(root, BuildOptions(contours=kinds))


def strays(found):
    """Return path → (code, message) of the files that are not read."""
    return {
        finding.path: (finding.code, finding.message)
        for finding in found.findings
        if finding.code.startswith("file-")
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("3.IMA", "3.dcm"),
        ("3", "3.dcm"),
        ("003", "3.dcm"),
        ("3.dicom", "3.dcm"),
        ("3.dcm.dcm", "3.dcm"),
        ("3.dcm.gz", "3.dcm"),
        ("3.DCM.part", "3.dcm"),
        ("3 (1).dcm", "3.dcm"),
        ("3(2).dcm", "3.dcm"),
        ("3 - Copy.dcm", "3.dcm"),
        ("Copy of 3.dcm", "3.dcm"),
        ("+3.dcm", "3.dcm"),
        ("slice_0003.dcm", "3.dcm"),
        ("IM0003", "3.dcm"),
        ("IM-0001-0003.dcm", "3.dcm"),
        ("IM-0001-0003", "3.dcm"),
        ("1_0.dcm", "<n>.dcm"),
        ("x.dcm", "<n>.dcm"),
        (".dcm", "<n>.dcm"),
        ("٣.dcm", "<n>.dcm"),
        (f"{'9' * 19}.dcm", "<n>.dcm"),
        ("1.2.840.10008.3.dcm", "<n>.dcm"),
        ("1.2.840.10008.3", "<n>.dcm"),
        ("MR.1.2.840.10008.3", "<n>.dcm"),
        ("IM-0001-0003-icontour-manual.txt", INNER.format("0003")),
        ("notes.txt", ""),
        ("3.png", ""),
        ("3.1", ""),
        ("DICOMDIR", ""),
        ("report 3.pdf", ""),
        ("README", ""),
    ],
)
def test_what_an_image_of_another_name_should_be_called(name, expected):
    found = home("P1", "A1").expected(name)
    assert found == (f"{IMAGES}/{expected}" if expected.endswith(".dcm") else expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("IM-0001-0003-icontour-auto.txt", INNER.format("0003")),
        ("im-0001-0003-icontour-manual (1).txt", INNER.format("0003")),
        ("IM-0001-0003-icontour-manual copy 2.txt", INNER.format("0003")),
        ("IM-0001-0003-icontour-manual", INNER.format("0003")),
        ("IM-0001-0003-icontour-manual.txt.txt", INNER.format("0003")),
        ("IM-0001-0003-icontour-manual.txt.gz", INNER.format("0003")),
        ("IM_0001_0003_icontour_manual.txt", INNER.format("0003")),
        ("IM-0001-0003-contour-manual.txt", INNER.format("0003")),
        ("IM-0001-0003.txt", INNER.format("0003")),
        ("IM-0001-0003-auto.txt", INNER.format("0003")),
        ("IM-0001-12345-icontour.txt", INNER.format("12345")),
        ("IM-0007-0003-icontour-auto.txt", INNER.format("0003").replace("0001", "0007")),
        ("3.txt", INNER.format("0003")),
        ("icontour.txt", INNER.format("<nnnn>")),
        ("IM-0001-0003-ocontour-manual.txt", OUTER.format("0003")),
        ("3.dcm", f"{IMAGES}/3.dcm"),
        ("IM-0001-0003-p1contour-manual.txt", ""),
        ("IM-0001-0003-p2-contour-manual.txt", ""),
        ("notes.txt", ""),
        ("areas.csv", ""),
        ("2024-03.csv", ""),
    ],
)
def test_what_a_contour_of_another_name_should_be_called(name, expected):
    assert home("P1", "A1", "i").expected(name) == expected


@pytest.mark.parametrize("name", ["3.dcm", "3.IMA", "icontour.txt", "notes.txt", "3.dcm.part"])
def test_a_users_file_is_no_litter(name):
    assert not is_litter(name)


def test_upper_and_lower_case_do_not_matter(root):
    for number, name in [
        (1, "im-0001-0001-icontour-manual.TXT"),
        (2, "Im-7-2-ICONTOUR-Manual.txt"),
    ]:
        path = root / contour_path("A1", number)
        path.rename(path.with_name(name))
    found = discover(root)
    assert [link.key.slice for link in found.links] == [1, 2]
    assert (
        found.links[0].annotations[0].path.endswith("i-contours/im-0001-0001-icontour-manual.TXT")
    )
    assert found.findings == []


def test_every_other_file_of_a_linked_patient_is_named(root):
    for name in ("3.IMA", "2 (1).dcm", "notes.txt", ".DS_Store"):
        write_dicom(root, "P1", name, b"x")
    folder = root / "contourfiles/A1"
    (folder / "o-contours/IM-0001-0004-icontour-manual.txt").touch()
    (folder / "i-contours/areas.csv").touch()
    (folder / "IM-0001-0005-icontour-manual.txt").touch()
    found = discover(root)
    assert strays(found) == {
        f"{IMAGES}/3.IMA": (
            "file-misnamed",
            "not read: expected dicoms/P1/3.dcm. Rename or move it if it is that.",
        ),
        f"{IMAGES}/2 (1).dcm": (
            "file-misnamed",
            "not read: looks like a copy of dicoms/P1/2.dcm. Keep the right one there.",
        ),
        f"{IMAGES}/notes.txt": ("file-not-used", "is no image or contour by its name; not read."),
        "contourfiles/A1/o-contours/IM-0001-0004-icontour-manual.txt": (
            "file-misnamed",
            f"not read: expected {INNER.format('0004')}. Rename or move it if it is that.",
        ),
        "contourfiles/A1/i-contours/areas.csv": (
            "file-not-used",
            "is no image or contour by its name; not read.",
        ),
        "contourfiles/A1/IM-0001-0005-icontour-manual.txt": (
            "file-misnamed",
            f"not read: expected {INNER.format('0005')}. Rename or move it if it is that.",
        ),
    }
    assert found.counts["ignored_files"] == 7
    assert [link.key.slice for link in found.links] == [1, 2]


def test_a_folder_deeper_is_named_with_what_it_holds(root):
    deeper = root / "dicoms/P1/series/1"
    deeper.mkdir(parents=True)
    for name in ("7.dcm", "3.dcm", "notes.txt", ".DS_Store"):
        (deeper / name).touch()
    (root / "contourfiles/A1/empty/.Trash").mkdir(parents=True)
    (root / "contourfiles/A1/old").mkdir()
    (root / "contourfiles/A1/old/mail.eml").touch()
    (root / "contourfiles/A1/I-Contours").mkdir()
    (root / "contourfiles/A1/I-Contours/IM-0001-0003-icontour-manual.txt").touch()
    where = "the build does not look into this folder; it holds"
    assert strays(discover(root)) == {
        f"{IMAGES}/series": (
            "file-misnamed",
            f"{where} 3 files, such as 1/3.dcm. Expected dicoms/P1/3.dcm: move them there.",
        ),
        "contourfiles/A1/old": ("file-not-used", f"{where} 1 file, such as mail.eml."),
        "contourfiles/A1/I-Contours": (
            "file-misnamed",
            f"{where} 1 file, such as IM-0001-0003-icontour-manual.txt. Expected "
            f"{INNER.format('0003')}: move them there.",
        ),
    }


def test_a_folder_deeper_that_cannot_be_listed_is_told(root, monkeypatch):
    def refuse(folder, scandir=os.scandir):
        if "closed" in str(folder):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    (root / "dicoms/P1/closed").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    code, message = strays(discover(root))[f"{IMAGES}/closed"]
    assert code == "file-not-used"
    assert message.endswith("it holds 0 files, and a folder that cannot be listed.")


def test_a_hundred_thousand_strange_files_give_a_bounded_number_of_findings(root):
    folder = root / "dicoms/P1"
    for number in range(1000):
        (folder / f"{number:04d}.IMA").touch()
        (folder / f"{number:04d}.png").touch()
    found = discover(root).findings
    assert Counter(f.code for f in found) == {"file-misnamed": 21, "file-not-used": 21}
    many = [f for f in found if f.path == IMAGES]
    said = "980 more in this folder besides the 20 that are named, from"
    assert [(f.code, f.message) for f in many] == [
        ("file-misnamed", f"{said} '0020.IMA' to '0999.IMA'; not read."),
        ("file-not-used", f"{said} '0020.png' to '0999.png'; not read."),
    ]


def test_folders_that_no_line_links_are_counted_only(root):
    write_dicom(root, "P7", "3.IMA", b"x")
    (root / "contourfiles/A7/i-contours").mkdir(parents=True)
    (root / "contourfiles/A7/i-contours/3.txt").touch()
    found = discover(root)
    assert (found.findings, found.counts["ignored_files"]) == ([], 2)


@pytest.mark.parametrize(
    ("written", "there"),
    [("101", "00101"), ("sc-hf-i-1", "SC-HF-I-01"), ("SC HF I 1", "SC-HF-I-1"), ("p_1", "P1")],
)
def test_an_id_that_differs_a_little_is_told(tmp_path, written, there):
    root = write_tree(tmp_path / "data", [(there, "A1")])
    (root / "link.csv").write_text(f"patient_id,original_id\n{written},A1\n")
    message = next(f.message for f in discover(root).findings if f.code == "link-unknown-patient")
    assert f'There is dicoms/{there}: write its name, as ="{there}" where' in message
    (root / "link.csv").write_text(f'patient_id,original_id\n="{there}",A1\n')
    assert len(discover(root).links) == 3


@pytest.mark.parametrize(
    ("written", "there"),
    [("P1", "P1 "), ("r\u00e9gion", "re\u0301gion")],
    ids=["a blank at its end", "another form of Unicode"],
)
def test_a_folder_whose_name_no_cell_can_have_is_to_be_renamed(tmp_path, written, there):
    root = write_tree(tmp_path / "data", [(there, "A1")])
    (root / "link.csv").write_text(f"patient_id,original_id\n{written},A1\n", encoding="utf-8")
    message = next(f.message for f in discover(root).findings if f.code == "link-unknown-patient")
    assert f"There is a folder {there!a}: give it the name that link.csv has." in message


def test_alike_tells_apart_what_is_another_name():
    assert alike("P1", ["P2", "P01"]) == "P01"
    assert alike("P1", ["P10", "P11", "Q1"]) == ""


def test_nothing_to_build_shows_the_pattern_and_what_is_there(root):
    for number in (1, 2):
        path = root / contour_path("A1", number)
        path.rename(path.with_suffix(".roi"))
        (root / f"dicoms/P1/{number}.dcm").unlink()
    assert discover(root).missing == (
        "No i-contour file was found: expected contourfiles/<original_id>/i-contours/"
        "IM-0001-<nnnn>-icontour-manual.txt, found such as contourfiles/A1/i-contours/"
        "IM-0001-0001-icontour-manual.roi. "
        "No DICOM file was found: expected dicoms/<patient_id>/<n>.dcm, found none below dicoms."
    )
    shutil.rmtree(root / "dicoms")
    write_dicom(root.parent, "P1", "1.dcm")
    (root.parent / "dicoms").rename(root / "DICOM")
    assert discover(root).missing.endswith("found none below dicoms, but DICOM/P1/1.dcm.")
    write_contour(root, "A1", 1)
    assert discover(root).missing.startswith("No DICOM file")


@pytest.mark.parametrize("data", [".", "data/dicoms", "data/dicoms/P1", "nowhere/.."])
@pytest.mark.parametrize("layout", ["auto", "link"])
def test_a_wrong_folder_says_where_the_links_are(root, monkeypatch, data, layout):
    monkeypatch.chdir(root.parent)
    (root.parent / "nowhere").mkdir()
    with pytest.raises(EtlError, match=r"There is (one at )?data/link\.csv: give its folder"):
        choose_and_discover(data, layout)
    monkeypatch.chdir(root / "dicoms")
    with pytest.raises(EtlError, match=r"There is (one at )?\.\./link\.csv: give its folder"):
        choose_and_discover(".", layout)


def test_several_inputs_nearby_and_none(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    shutil.copytree(root, "second")
    with pytest.raises(EtlError, match=r"There is data/link\.csv and 1 more: give its folder"):
        layouts.choose(Path())
    (root.parent / "a/b/c").mkdir(parents=True)
    with pytest.raises(EtlError, match=r"or the table itself\.$"):
        layouts.choose(Path("a/b/c"))


def test_link_csv_itself_is_not_taken_for_a_table(root):
    with pytest.raises(EtlError, match=f"is a table of links.*Give the folder.*: {root}"):
        layouts.choose(root / "link.csv")


def choose_and_discover(data, layout):
    source, _ = layouts.choose(Path(data), layout)
    source.discover(Path(data), BuildOptions())
