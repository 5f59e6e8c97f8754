"""The page of the report: its data, and the page in a browser where there is one."""

import json
import re

import numpy as np
import pytest
from dataset_builder import write_dataset, write_sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import loader
from etl.findings import FLAG_CODES, FindingRow
from etl.report.compare import compare
from etl.report.page.contents import Subject, contents, patients, spread, verdict
from etl.report.page.drift import distance, drift
from etl.report.page.measures import displacement, intensities
from etl.report.page.pictures import box, drawn, mask_edge
from etl.report.page.places import neighbours, places
from etl.report.page.write import html as page_of
from etl.report.page.write import write_page, write_pages
from etl.report.summary import summarise
from loader.format import Attribute

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=document.title=1>",
    "\"'&quot;`${1}",
    "A,B\nC",
    "x" * 300,
    "\u202eright to left",
    "P7",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "out.h5"
    names = {"patient_id": [name.encode() for name in sorted(HOSTILE)]}
    sizes = {"n": len(HOSTILE), "rows": 24, "columns": 30, "n_findings": 0}
    known = {Attribute.FLAG_CODES: json.dumps(FLAG_CODES)}
    split = [0, 0, 0, 1, 1, 2, 2]
    write_dataset(path, **sizes, split=split, manifest=names, attributes=known)
    return loader.open_dataset(path)


def findings_of(dataset):
    names = dataset.manifest["patient_id"].tolist()
    return [
        FindingRow("warning", "area-jump", "secret/1.txt", 1, "is off", 1, patient_id=names[1]),
        FindingRow("info", "contour-missing", "secret/2.dcm", 2, "none", 0, patient_id=names[2]),
    ]


def shown_of(dataset, n_pictures=100, **options):
    return contents(subject_of(dataset, **options), n_pictures)


def subject_of(dataset, **options):
    findings = findings_of(dataset)
    return Subject(dataset, summarise(dataset, findings), findings, **options)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_the_edge_of_a_mask_is_every_side_between_in_and_out(mask):
    found = set()
    for x, y, way, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", mask_edge(mask)):
        for step in range(int(length)):
            place = (int(x) + step, int(y)) if way == "h" else (int(x), int(y) + step)
            assert (*place, way) not in found
            found.add((*place, way))
    rows, columns = mask.shape

    def is_in(row, column):
        return 0 <= row < rows and 0 <= column < columns and bool(mask[row, column])

    expected = {
        (x, y, "h")
        for y in range(rows + 1)
        for x in range(columns)
        if is_in(y, x) != is_in(y - 1, x)
    }
    expected |= {
        (x, y, "v")
        for y in range(rows)
        for x in range(columns + 1)
        if is_in(y, x) != is_in(y, x - 1)
    }
    assert found == expected


@pytest.mark.parametrize(
    ("first", "n_wanted", "expected"),
    [
        ([3, 7], 4, [0, 3, 7, 9]),
        ([], 3, [0, 4, 9]),
        ([8, 1, 2, 5], 2, [1, 8]),
        ([8, 1, 2, 5, 6, 7], 4, [0, 1, 2, 8]),
        ([5], 100, list(range(10))),
        ([5], 0, []),
    ],
)
def test_the_worst_rows_come_first_then_a_spread(first, n_wanted, expected):
    assert spread(first, 10, n_wanted) == expected


def test_what_it_shows_is_what_the_file_has(dataset):
    shown = shown_of(dataset)
    manifest = dataset.manifest
    assert [row["patient"] for row in shown["rows"]] == manifest["patient_id"].tolist()
    assert [row["slice"] for row in shown["rows"]] == manifest["slice"].tolist()
    assert [row["split"] for row in shown["rows"]][3] == "validation"
    assert {one["name"] for one in shown["structures"]} == {"i-contour", "o-contour"}
    assert set(shown["pictures"]) == {str(row) for row in range(len(dataset))}
    json.dumps(shown, allow_nan=False)


def test_pictures_are_bounded(dataset):
    assert len(shown_of(dataset, n_pictures=3)["pictures"]) == 3


def test_with_pseudonyms_no_id_path_or_message_is_in_the_page(dataset):
    shown = shown_of(dataset, pseudonyms=True)
    assert [row["patient"] for row in shown["rows"]] == [f"P{n:03d}" for n in range(1, 8)]
    page = page_of(shown)
    told = {*HOSTILE[:5], *dataset.manifest["dicom_path"].tolist(), str(dataset.path)}
    told |= {one.path for one in findings_of(dataset)}
    assert [text for text in told if text and json.dumps(text)[1:-1] in page] == []


def test_nothing_of_the_data_is_markup_and_nothing_is_asked_of_the_network(dataset):
    page = page_of(shown_of(dataset))
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "onerror=document" not in page.partition('id="data">')[0]
    outside = page.partition('id="data">')[0] + page.partition("</script>")[2]
    links = [one for one in re.findall(r"https?://[^\s\"']+", outside) if "w3.org" not in one]
    assert links == []


def test_the_verdict_counts_causes(dataset):
    assert verdict(Subject(dataset, summarise(dataset, []), [])).startswith("Yes")
    told = verdict(subject_of(dataset))
    assert told == "Not yet: look at one cause below, about 1 of 7 rows."


def test_an_existing_file_is_kept_unless_forced(dataset, tmp_path):
    from etl.errors import EtlError

    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(EtlError, match=r"page\.html"):
        write_page(subject_of(dataset), path, n_pictures=2)
    assert path.read_text() == "mine"
    write_page(subject_of(dataset), path, n_pictures=2, force=True)
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_a_file_without_findings_and_masks_has_a_page(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(path, n=2, n_findings=0, manifest={"icontour_area": np.full(2, np.nan)})
    dataset = loader.open_dataset(path)
    shown = contents(Subject(dataset, summarise(dataset, []), []), 2)
    assert shown["groups"] == []
    assert shown["rows"][0]["areas"]["1"] is None
    page_of(shown)


def test_many_rows_list_and_draw_no_more_than_there_is_room_for(tmp_path):
    path = tmp_path / "out.h5"
    write_sparse(path, 100_000, rows=4, columns=5)
    dataset = loader.open_dataset(path)
    subject = Subject(dataset, summarise(dataset, []), [])
    shown = contents(subject, 300)
    assert (len(shown["rows"]), len(shown["pictures"]), shown["n_rows"]) == (5000, 300, 100_000)
    # Of 256 x 256 pixels a picture has about 20 kB: 300 of them 6 MB.
    assert len(page_of(shown)) < 14e6


def test_neighbours_are_those_in_slice_and_phase(tmp_path):
    path = tmp_path / "out.h5"
    # Two patients; three slices of two phases each, in no order.
    places_of = [(0, 10), (8, 10), (0, 300), (16, 10), (8, 320), (16, 290), (0, 10)]
    flat = {"image_orientation_row_x": np.ones(7), "image_orientation_column_y": np.ones(7)}
    for axis in ("row_y", "row_z", "column_x", "column_z"):
        flat[f"image_orientation_{axis}"] = np.zeros(7)
    write_dataset(
        path,
        n_findings=0,
        manifest={
            "patient_id": [b"P1"] * 6 + [b"P2"],
            "series": [b""] * 7,
            "image_position_z": [height for height, _ in places_of],
            "trigger_time": [time for _, time in places_of],
            **flat,
        },
    )
    found = neighbours(places(loader.open_dataset(path)), range(7))
    assert found[0] == {"above": 1, "after": 2}
    assert found[4] == {"below": 2, "above": 5, "before": 1}
    assert found[3] == {"below": 1, "after": 5}
    assert found[6] == {}


def test_without_geometry_slices_are_ordered_by_number(tmp_path):
    path = tmp_path / "out.h5"
    unknown = np.full(7, np.nan)
    manifest = {"patient_id": [b"P"] * 7, "series": [b""] * 7, "frame_number": [1] * 7}
    manifest |= {"slice": [9, 3, 5, 1, 2, 8, 7]}
    names = ("image_position_x", "slice_location", "trigger_time")
    write_dataset(path, n_findings=0, manifest=manifest | dict.fromkeys(names, unknown))
    found = neighbours(places(loader.open_dataset(path)), [2])
    assert found == {2: {"below": 1, "above": 6}}


def test_intensities_are_means_inside_and_outside(dataset):
    found = intensities(dataset, 2)
    image, mask = dataset[2]
    for code in (1, 2):
        assert found["inside"][str(code)] == pytest.approx(image[mask == code].mean(), rel=1e-4)
    assert found["outside"] == pytest.approx(image[mask == 0].mean(), rel=1e-4)


def test_a_row_without_a_contour_has_no_displacement(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(path, n=1, n_findings=0, manifest={"icontour_area": [np.nan]})
    dataset = loader.open_dataset(path)
    assert displacement(dataset, 0) is None


@given(arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_the_part_that_is_shown_close_up_has_all_that_is_drawn(mask):
    found = box(mask)
    rows, columns = mask.shape
    x, y, wide, high = found or (0, 0, columns, rows)
    assert 0 <= x <= x + wide <= columns
    assert 0 <= y <= y + high <= rows
    assert mask.sum() == mask[y : y + high, x : x + wide].sum()


def test_the_distance_of_two_samples_is_that_of_kolmogorov_and_smirnov():
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert distance(one, one[::-1]) == 0
    assert distance(one, one + 10) == 1
    assert distance(one, np.array([2.5, 3.5])) == 0.5  # at 2 a half against none


def test_drift_compares_patients_part_by_part(tmp_path):
    path = tmp_path / "out.h5"
    # Eight patients of two rows each; those of the test part are brighter.
    means = np.repeat([1.0, 2, 3, 4, 11, 12, 13, 14], 2)
    ids = [f"P{number // 2}".encode() for number in range(16)]
    manifest = {"patient_id": ids, "mean": means, "std": np.ones(16)}
    write_dataset(path, n=16, n_findings=0, split=[0] * 8 + [2] * 8, manifest=manifest)
    found = drift(loader.open_dataset(path))
    assert found["parts"] == ["train", "test"]
    by_name = {one["name"]: one for one in found["properties"]}
    mean = by_name["mean value of the image"]
    assert mean["quartiles"][0] == [1.75, 2.5, 3.25]
    assert mean["distances"] == [{"ks": 1.0, "is_far": True}]  # 0.96 is its limit of 4 and 4
    assert by_name["deviation of the image"]["distances"] == [{"ks": 0.0, "is_far": False}]
    assert [one["structure"] for one in found["maps"]] == ["o-contour", "i-contour"]
    assert [one["rows"] for one in found["maps"][0]["images"]] == [8, 8]


def test_without_a_split_there_is_no_drift(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(path, n_findings=0)
    assert drift(loader.open_dataset(path)) == {}


def test_pairs_that_show_the_same_come_with_both_rows_those_across_splits_first(dataset):
    same = [
        FindingRow("warning", "near-duplicate", "a", 0, "looks like b", 0, other_row=1),
        FindingRow("warning", "near-duplicate", "b", 1, "looks like a", 0, other_row=0),
        FindingRow("warning", "near-duplicate", "c", 2, "looks like d", 0, other_row=3),
    ]
    shown = contents(Subject(dataset, summarise(dataset, same), same), 6)
    assert [(one["rows"], one["is_across"]) for one in shown["pairs"]] == [
        ([2, 3], True),
        ([0, 1], False),
    ]
    assert {"2", "3"} <= set(shown["pictures"])


def test_a_folder_has_an_index_and_a_page_for_each_patient_with_all_rows(dataset, tmp_path):
    folder = tmp_path / "pages"
    write_pages(subject_of(dataset), folder, n_pictures=2)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["index.html", *(f"patient-{number:04d}.html" for number in range(1, 8))]
    index = data_of(folder / "index.html")
    assert len(index["pictures"]) == 2
    assert [line[1] for line in index["patients"]] == names[1:]
    for number, (name, rows) in enumerate(patients(subject_of(dataset)), 1):
        page = data_of(folder / f"patient-{number:04d}.html")
        assert {row["patient"] for row in page["rows"]} == {name}
        assert [row["row"] for row in page["rows"]] == rows
        assert set(page["pictures"]) == set(map(str, rows))


def test_a_folder_that_has_files_is_kept_unless_forced(dataset, tmp_path):
    from etl.errors import EtlError

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(EtlError, match="the folder has files in it"):
        write_pages(subject_of(dataset), tmp_path, n_pictures=2)
    write_pages(subject_of(dataset), tmp_path, n_pictures=2, force=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_comparison_shows_the_edges_that_masks_had(dataset, tmp_path):
    path = tmp_path / "old.h5"
    names = {"patient_id": dataset.manifest.stored["patient_id"]}
    names |= {"row_xxh3": dataset.manifest["row_xxh3"] + np.uint64(1)}
    write_dataset(path, n=7, rows=24, columns=30, n_findings=0, seed=1, manifest=names)
    old = loader.open_dataset(path)
    found = compare(old, dataset)
    shown = contents(Subject(dataset, summarise(dataset, []), [], older=(old, found)), 5)
    changed = shown["changes"]["changed"]
    assert shown["changes"]["n_changed"] == 7
    assert len(changed) == 5  # as many as have a picture
    worst = [min(one["dice"].values()) for one in changed]
    assert worst == sorted(worst)
    for one in changed:
        before = {edge["structure"]: edge["d"] for edge in one["before"]}
        for structure in old.structures:
            assert before[structure.name] == mask_edge(drawn(old, one["row"], structure))
    hidden = Subject(dataset, summarise(dataset, []), [], pseudonyms=True, older=(old, found))
    page = page_of(contents(hidden, 5))
    assert str(path) not in page


def test_a_cause_of_the_whole_data_set_has_pictures_of_it(dataset):
    whole = [FindingRow("warning", "alignment-dataset", "", -1, "the contours lie off.")]
    shown = contents(Subject(dataset, summarise(dataset, whole), whole), 7)
    (one,) = shown["diagnoses"]
    assert (one["pictures"], one["good"]) == ([0, 3, 6], None)
    assert shown["verdict"] == "Not yet: look at one cause below, about 7 of 7 rows."


def test_a_cause_that_left_out_a_pair_has_no_rows_of_others(dataset):
    found = [FindingRow("error", "image-unreadable", "dicoms/P7/9.dcm", -1, "no DICOM.")]
    shown = contents(Subject(dataset, summarise(dataset, found), found), 7)
    (one,) = shown["diagnoses"]
    assert (one["pictures"], one["rows"], one["good"]) == ([], [], None)


def test_a_cause_of_one_patient_has_the_patients_rows(dataset):
    row = dataset.manifest["patient_id"].tolist().index("P7")
    found = [FindingRow("warning", "alignment-patient", "dicoms/P7", -1, "off.", patient_id="P7")]
    shown = contents(Subject(dataset, summarise(dataset, found), found), 7)
    (one,) = shown["diagnoses"]
    assert (one["pictures"], one["rows"]) == ([row], [row])
    assert one["good"] is not None
