from pathlib import Path

import pytest

from etl.errors import EtlError
from etl.findings import SampleKey
from etl.labels import cardiac_scheme
from etl.model import AnnotationRef, FrameRef, Link
from etl.options import BuildOptions
from etl.sources.row_list import COLUMNS, exclude_listed, read_row_list
from etl.sources.source import Discovery

HEADER = ",".join(COLUMNS)


@pytest.fixture
def listed(tmp_path):
    """Write a row list and return its path."""

    def write(*lines, header=HEADER):
        path = tmp_path / "rows.csv"
        path.write_text("\n".join([header, *lines]), encoding="utf-8-sig")
        return path

    return write


def link(patient="P1", number=1, series="", frame=1, codes=(1, 2)):
    key = SampleKey(patient, series, number, frame)
    annotations = tuple(AnnotationRef(code, f"{patient}/{number}/{code}.txt") for code in codes)
    return Link(key, "A1", FrameRef(f"{patient}/{number}.dcm"), annotations)


def excluded(path, links, **options):
    """Return what is left, (code, path, message) of the findings, and the notes."""
    scheme = cardiac_scheme(("i", "o"))
    found = Discovery(Path("data"), "link.csv", scheme, list(links), [], {})
    found = exclude_listed(found, BuildOptions(exclude_file=str(path), **options))
    findings = [(one.code, one.path, one.label, one.message) for one in found.findings]
    return found.links, findings, list(found.notes)


def test_a_line_with_slice_leaves_its_row_out_and_accept_keeps_it(listed):
    path = listed("P1,,1,1,,,", "P1,,2,1,,Accept,fine", "P1,,3,1,i-contour,redraw,too small")
    links, findings, notes = excluded(path, [link(number=n) for n in (1, 2, 3, 4)])
    assert [one.key.slice for one in links] == [2, 4]
    assert findings == [
        ("row-excluded", "P1/1.dcm", 0, "left out by --exclude-file, line 2 (exclude)."),
        ("row-excluded", "P1/3.dcm", 0, "left out by --exclude-file, line 4 (redraw: too small)."),
    ]
    assert notes == []


def test_only_patient_and_slice_are_needed(listed):
    path = listed("2.0,P1,x", header="slice,PATIENT_ID,further")
    assert [one.key.slice for one in excluded(path, [link(number=n) for n in (1, 2)])[0]] == [1]


def test_lines_without_slice_and_about_no_row_are_counted(listed):
    path = listed("P1,,,,,,", "P1,,,,,,", *(f"P9,,{n},,,," for n in range(1, 6)))
    links, findings, notes = excluded(path, [link()])
    assert (len(links), findings) == (1, [])
    assert notes == [
        "--exclude-file: 2 lines without slice skipped.",
        "--exclude-file: 5 lines name no row of the build: line 4: patient 'P9', slice 1, "
        "line 5: patient 'P9', slice 2, line 6: patient 'P9', slice 3, ....",
    ]


@pytest.mark.parametrize(
    ("line", "left"),
    [("P1,,1,,,,", []), ("P1,,1,2,,,", [("s", 1), ("t", 1)]), ("P1,s,1,,,,", [("t", 1)])],
)
def test_an_empty_series_or_frame_means_every_one(listed, line, left):
    links = [link(series="s"), link(series="s", frame=2), link(series="t")]
    found, _, notes = excluded(listed(line), links)
    assert [(one.key.series, one.key.frame_number) for one in found] == left
    assert notes == []


def test_only_the_structure_is_left_out_where_that_is_wanted(listed):
    path = listed(
        "P1,,1,1,o-contour,,", "P1,,2,1,i-contour,,", "P1,,2,1,o-contour,redraw,", "P1,,3,1,,,",
        "P1,,4,1,o-contour,,", "P1,,5,1,heart,,",
    )  # fmt: skip
    options = {"exclude_structures": True, "partial": True, "contours": ("i", "o")}
    links = [link(number=n) for n in (1, 2, 3)] + [link(number=n, codes=(1,)) for n in (4, 5)]
    found, findings, notes = excluded(path, links, **options)
    assert [(one.key.slice, [a.code for a in one.annotations]) for one in found] == [
        (1, [1]), (4, [1]), (5, [1]),
    ]  # fmt: skip
    assert [finding[:3] for finding in findings] == [
        ("structure-excluded", "P1/1/2.txt", 2),
        ("structure-excluded", "P1/2/1.txt", 1),
        ("structure-excluded", "P1/2/2.txt", 2),
        ("row-excluded", "P1/2.dcm", 0),
        ("row-excluded", "P1/3.dcm", 0),
    ]
    assert findings[3][3].endswith("line 4 (redraw); it was the row's last structure.")
    assert "2 lines name no row of the build: line 6: patient 'P1', slice 4, line 7" in notes[0]
    assert notes[1] == (
        "--exclude-file: unknown structures: 'heart'; the structures are 'i-contour', 'o-contour'."
    )


def test_the_quote_before_what_looks_like_a_formula_is_no_part_of_an_id(listed):
    path = listed("'=P 2,,1,,,,'-fine", "'P3,,1,,,,")
    (line, other) = read_row_list(path).lines
    assert (line.patient_id, line.comment, other.patient_id) == ("=P 2", "-fine", "'P3")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("P1,,one,,,,", "line 2: expected a whole number as slice, found 'one'"),
        ("P1,,1.5,,,,", "expected a whole number as slice"),
        ("P1,,1,x,,,", "expected a whole number as frame_number"),
        (f"P1,,{'9' * 5000},,,,", "expected a whole number as slice"),
        ("P1,,1,,,drop,", "expected a decision of accept, exclude, redraw or none, found 'drop'"),
    ],
)
def test_a_line_that_means_nothing_stops_the_build(listed, line, words):
    with pytest.raises(EtlError, match=words):
        read_row_list(listed(line))


def test_a_table_without_slices_is_no_row_list(listed):
    with pytest.raises(EtlError, match="patient_id,slice once"):
        read_row_list(listed("P1", header="patient_id"))
