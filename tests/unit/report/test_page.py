"""The page of the report: its data, and the page in a browser where there is one."""

import csv
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from dataset_builder import write_dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import loader
from etl.findings import FLAG_CODES, FindingRow
from etl.report.page.contents import contents, mask_edge, spread, verdict
from etl.report.page.write import html as page_of
from etl.report.page.write import write_page
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
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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
    findings = findings_of(dataset)
    return contents(dataset, summarise(dataset, findings), findings, n_pictures, **options)


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
        ([1, 2, 5, 8], 2, [1, 8]),
        ([5], 100, list(range(10))),
        ([5], 0, []),
    ],
)
def test_flagged_rows_come_first_then_a_spread(first, n_wanted, expected):
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
    summary = summarise(dataset, [])
    assert verdict(summary).startswith("Yes")
    told = verdict(summarise(dataset, findings_of(dataset)))
    assert told == "Not yet: look at one cause below, about 1 of 7 rows."


def test_an_existing_file_is_kept_unless_forced(dataset, tmp_path):
    from etl.errors import EtlError

    path = tmp_path / "page.html"
    path.write_text("mine")
    findings = findings_of(dataset)
    arguments = (dataset, summarise(dataset, findings), findings, path)
    with pytest.raises(EtlError, match=r"page\.html"):
        write_page(*arguments, n_pictures=2)
    assert path.read_text() == "mine"
    write_page(*arguments, n_pictures=2, force=True)
    assert path.read_text().startswith("<!DOCTYPE html>")


@pytest.fixture
def browse(dataset, tmp_path):
    """Return a function that runs a script in the page, and returns what it leaves in the title."""
    if CHROMIUM is None:
        pytest.skip("no browser here: install Debian's chromium")

    def run(script):
        page = page_of(shown_of(dataset))
        done = (
            f"<script>try {{ {script} }} catch (e) {{ document.title = 'failed: ' + e; }}</script>"
        )
        # The page's own rule lets it in: it is inline, as its own script is.
        path = tmp_path / "page.html"
        path.write_text(page.replace("</body>", f"{done}</body>"), encoding="utf-8")
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        found = subprocess.run(
            [*command, profile, "--virtual-time-budget=2000", path.as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return found.stdout

    return run


def title_of(dom):
    return html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1])


def test_hostile_ids_show_as_text(browse, dataset):
    dom = browse("")
    assert title_of(dom) == "dicom-etl report: out.h5"
    shown = html.unescape(dom)
    for name in dataset.manifest["patient_id"].tolist():
        assert f"{name}, slice" in shown


def test_filters_filter_and_keys_decide(browse):
    dom = browse(
        """
        const chosen = document.getElementById("f-patient");
        chosen.value = "P7"; chosen.dispatchEvent(new Event("change"));
        const n = document.querySelectorAll(".tile").length;
        document.querySelector(".tile").focus();
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "e"}));
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "o"}));
        document.title = JSON.stringify([n, document.body.className, dicomEtl.rowList()]);
        """
    )
    n_tiles, mode, text = json.loads(title_of(dom))
    assert (n_tiles, mode) == (1, "bare")
    (line,) = csv.DictReader(io.StringIO(text))
    assert (line["patient_id"], line["decision"], line["structure"]) == ("P7", "exclude", "")


def test_decisions_go_out_and_come_in_again(browse, dataset):
    dom = browse(
        """
        const boxes = [...document.querySelectorAll(".tile")];
        for (const [box, key] of [[boxes[0], "a"], [boxes[1], "e"], [boxes[2], "r"]]) {
          const place = box.dataset.place;
          document.querySelector(`.tile[data-place="${place}"]`).focus();
          document.dispatchEvent(new KeyboardEvent("keydown", {key}));
        }
        const before = dicomEtl.rowList();
        localStorage.clear();
        dicomEtl.take(before.replaceAll("accept", "redraw"));
        document.title = JSON.stringify([before, dicomEtl.rowList()]);
        """
    )
    before, after = json.loads(title_of(dom))
    rows = list(csv.DictReader(io.StringIO(before)))
    assert [row["decision"] for row in rows] == ["accept", "exclude", "redraw"]
    assert [row["patient_id"] for row in rows] == dataset.manifest["patient_id"].tolist()[:3]
    again = list(csv.DictReader(io.StringIO(after)))
    assert [row["decision"] for row in again] == ["redraw", "exclude", "redraw"]


def test_a_file_without_findings_and_masks_has_a_page(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(path, n=2, n_findings=0, manifest={"icontour_area": np.full(2, np.nan)})
    dataset = loader.open_dataset(path)
    shown = contents(dataset, summarise(dataset, []), [], 2)
    assert shown["groups"] == []
    assert shown["rows"][0]["areas"]["1"] is None
    page_of(shown)
