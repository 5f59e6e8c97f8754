"""Names and ids as no program should write them: nothing is silent, and all output stays usable."""

import io
import json
import re

import h5py
import numpy as np
import pydicom
import pytest
from builders import COLUMNS, ROWS, write_tree
from click.testing import CliRunner
from dataset_builder import write_dataset

import etl
import loader
from etl.cli import cli
from etl.errors import most
from etl.findings import shortened
from etl.phantom.objects import write_shapes

LONG = "x" * 100_000
TEXTS = {
    "long": LONG,
    "nul": "a\0b",
    "lines": "a\nb\r\nc\u2028d",
    "escape": "\x1b]0;title\x07\x9b2J",
    "bidirectional": "abc\u202egnp\u202c\u200f",
    "surrogate": "a\udc80b",
    "markup": "<script>alert(1)</script>&\"'--><!--",
}
# What steers a terminal or turns the order of a line; a line end is checked by the lines.
STEERS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def run(*arguments):
    """Run a command; return its status and all that it printed, checked."""
    found = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert not STEERS.search(found.output), ascii(found.output[:2000])
    return found.exit_code, found.output


def hostile(root, kind, text, patient_id=None):
    """Write shapes whose names, labels and ids are a text, byte by byte whatever DICOM allows."""
    write_shapes(root, kind, patients=1, slices=2, rows=64, columns=64, seed=1)
    value = text.encode("utf-8", "surrogateescape")
    value += b" " * (len(value) % 2)
    of_patient = (patient_id or text).encode("utf-8", "surrogateescape")
    of_patient += b" " * (len(of_patient) % 2)
    place, of_patient_place = "@" * len(value), "%" * len(of_patient)
    [path] = (root / "annotations").iterdir()
    for one in [path, *sorted((root / "images").rglob("*.dcm"))]:
        dataset = pydicom.dcmread(one)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        if one == path and kind == "rtstruct":
            dataset.StructureSetLabel = dataset.StructureSetROISequence[0].ROIName = place
        elif one == path:
            dataset.ContentLabel = dataset.SegmentSequence[0].SegmentLabel = place
        dataset.PatientID = dataset.SeriesDescription = of_patient_place
        file = io.BytesIO()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"  # whose lengths have 4 bytes
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True)
        data = file.getvalue().replace(place.encode(), value)
        one.write_bytes(data.replace(of_patient_place.encode(), of_patient))
    return root


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["rtstruct", "seg"])
def test_no_text_of_a_header_spoils_any_output(tmp_path, kind, name):
    root = hostile(tmp_path / "data", kind, TEXTS[name])
    out, page = tmp_path / "out.h5", tmp_path / "page.html"
    size = ["--size", "64x64", "--keep-tags", "SeriesDescription", "--keep-tags-anyway"]
    status, checked = run("check", root, "--size", "64x64")
    assert status == 0
    status, built = run("build", root, out, *size, "--verbose")
    assert status == 0
    for command in (
        ["report", out],
        ["report", out, "--html", page],
        ["describe", out],
        ["verify", out, "--source", root, "--rebuild-check"],
    ):
        assert run(*command)[0] == 0
    for output in (checked, built, *(run(*one)[1] for one in (["report", out], ["describe", out]))):
        assert max(map(len, output.splitlines())) < 1500
    html = page.read_text(encoding="utf-8")  # and so no surrogate is in it
    assert not STEERS.search(html.replace("\x1f", ""))
    assert "<script>alert" not in html
    assert LONG not in html
    assert json.loads(run("report", out, "--json")[1])
    codes = {
        one.code
        for one in etl.build(root, out, etl.BuildOptions(rows=64, columns=64), force=True).findings
    }
    assert ("structure-name-too-long" in codes) == (name == "long")
    assert ("patient-id-unusable" in codes) == (name != "markup")
    data = loader.open_dataset(out)
    assert data.manifest.stored["patient_id"].dtype.itemsize <= 4 * most("name-characters")


@pytest.mark.filterwarnings("ignore")
def test_the_message_on_a_long_name_says_how_to_take_it(tmp_path):
    root, out = hostile(tmp_path / "data", "rtstruct", "y" * 300), tmp_path / "out.h5"
    status, built = run("build", root, out, "--size", "64x64", "--verbose")
    assert status == 0
    assert set(re.findall(r"--limit (\S+=\d+)", built)) == {"name-characters=300"}
    short = len(loader.open_dataset(out).structures)
    limit = ["--limit", "name-characters=300"]
    status, built = run("build", root, out, "--size", "64x64", "--verbose", "--force", *limit)
    assert "--limit" not in built
    data = loader.open_dataset(out)
    assert len(data.structures) == short + 1
    assert set(data.manifest["patient_id"].tolist()) == {"y" * 300}
    assert run("verify", out, "--source", root, "--rebuild-check")[0] == 0


@pytest.mark.parametrize("column", ["patient_id", "label", "image", "contour"])
def test_a_line_of_a_table_with_a_text_too_long_is_refused(tmp_path, column):
    root = write_tree(tmp_path / "data")
    good = [
        "P1",
        "dicoms/P1/1.dcm",
        "pool",
        "contourfiles/A1/i-contours/IM-0001-0001-icontour-manual.txt",
    ]
    columns = ["patient_id", "image", "label", "contour"]
    bad = [LONG if one == column else value for one, value in zip(columns, good, strict=True)]
    (root / "table.csv").write_text("\n".join(map(",".join, [columns, good, bad])))
    result = etl.build(
        root / "table.csv", tmp_path / "out.h5", etl.BuildOptions(rows=ROWS, columns=COLUMNS)
    )
    [found] = [one for one in result.findings if one.code == "link-invalid"]
    assert found.message.startswith("line 3: ")
    assert "has 100000 characters" in found.message
    assert ("--limit name-characters=100000" in found.message) == (
        column in {"patient_id", "label"}
    )
    assert len(found.message) < 400


def test_a_line_of_link_csv_with_a_text_too_long_is_refused(tmp_path):
    root = write_tree(tmp_path / "data")
    with (root / "link.csv").open("a") as file:
        file.write(f"{LONG},A2\nP2,{LONG}\n")
    result = etl.build(root, tmp_path / "out.h5", etl.BuildOptions(rows=ROWS, columns=COLUMNS))
    messages = [one.message for one in result.findings if one.code == "link-invalid"]
    assert len(messages) == 2
    assert all("--limit name-characters=100000" in one and len(one) < 400 for one in messages)


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"a\nb", b"\x1b]0;x\x07", "\u202eb".encode(), b"<b>\"'&"]
)
def test_no_name_of_a_file_spoils_any_output(tmp_path, raw):
    root, out = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")]), tmp_path / "out.h5"
    for folder, end in (
        ("contourfiles/A1/i-contours", b"-icontour-manual.txt"),
        ("dicoms/P1", b".dcm"),
    ):
        path = bytes(root / folder) + b"/IM-0001-0001" + raw + end
        with open(path, "wb") as file:
            file.write(b"1 2\n")
    size = ["--size", f"{ROWS}x{COLUMNS}"]
    assert run("check", root, *size)[0] == 0
    assert run("build", root, out, *size, "--verbose")[0] == 0
    page = tmp_path / "page.html"
    for more in ([], ["--json"], ["--csv", tmp_path / "rows.csv"], ["--html", page]):
        assert run("report", out, *more)[0] == 0
    assert not STEERS.search(page.read_text(encoding="utf-8"))
    assert run("verify", out, "--source", root)[0] == 0


def test_the_report_of_a_file_with_an_endless_name_stays_readable(tmp_path):
    """Other programs may write such files, and earlier versions did."""
    path = tmp_path / "a.h5"
    write_dataset(path)
    with h5py.File(path, "r+") as file:
        structures = json.loads(file.attrs["structures"])
        labels = {str(one["code"]): LONG for one in structures}
        for one in structures:
            one |= {"name": LONG, "meaning": LONG}
        for name, value in (("structures", structures), ("labels", labels)):
            file.attrs[name] = np.bytes_(json.dumps(value))
    for command in (["report", path], ["describe", path]):
        status, output = run(*command)
        assert status == 0, output
        assert LONG not in output
        assert re.search(r"\(10000\d\s+characters\)", output)


def test_a_short_text_is_not_shortened():
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "abc... (4 characters)"
