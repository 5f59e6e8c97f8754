import io
import re
import struct

import numpy as np
import pydicom
import pytest
from builders import (
    COLUMNS,
    ROWS,
    dicom_bytes,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)
from click.testing import CliRunner
from pydicom.dataset import Dataset

import etl
import loader
from etl.check import check
from etl.cli import cli
from etl.dicom import pydicom_scan
from etl.dicom.facts import image_facts
from etl.dicom.instance import read_instance
from etl.dicom.quick_scan import scan_meta
from etl.dicom.segmentation import Segmentation
from etl.dicom.structure_set import read_structure_set
from etl.errors import LIMITS, EtlError, ImageError, SourceError, limited, most
from etl.phantom.objects import write_shapes
from etl.sources.csv_table import read_csv

ITEM = b"\xfe\xff\0\xe0"
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def with_sequence(content, syntax="explicit"):
    """Return an image with a sequence of undefined length before its attributes."""
    data = dicom_bytes(instance(), syntax)
    start = scan_meta(data, 132, [])[1]
    header = struct.pack("<HH", 7, 2) + b"SQ\0\0" * (syntax == "explicit") + b"\xff" * 4
    return data[:start] + header + content + END + data[start:]


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_too_many_items_are_refused_before_pydicom_reads_one(monkeypatch, syntax):
    walk = pydicom_scan._walk

    def walk_only_meta(file, *, meta, **how):
        assert meta, "pydicom reads the items, which takes it seconds"
        return walk(file, meta=meta, **how)

    monkeypatch.setattr(pydicom_scan, "_walk", walk_only_meta)
    data = with_sequence((ITEM + bytes(4)) * 1_200_000, syntax)
    with pytest.raises(ImageError, match="has 1200000 items of sequences, expected 500000"):
        read_instance(io.BytesIO(data))


def test_some_thousand_items_are_read():
    data = with_sequence((ITEM + bytes(4)) * 20_000)
    assert read_instance(io.BytesIO(data)).pixel_format.rows == ROWS


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_items_are_counted_across_blocks(monkeypatch, cut):
    monkeypatch.setattr(pydicom_scan, "_BLOCK_BYTES", 8 + cut)
    with limited((("items", 10),)):
        for n_items in (10, 11):
            file = io.BytesIO((ITEM + bytes(4)) * n_items)
            if n_items == 10:
                pydicom_scan._require_few_items(file, 8 * n_items)
                assert file.tell() == 0
            else:
                with pytest.raises(ImageError, match="has 11 items of sequences, expected 10 at"):
                    pydicom_scan._require_few_items(file, 8 * n_items)


@pytest.mark.parametrize("depth", [10, 17, 100_000])
def test_sequences_in_sequences_end_in_an_image_or_in_our_error(depth):
    header = b"\x40\0\x75\2SQ\0\0" + b"\xff" * 4
    inner = (ITEM + b"\xff" * 4 + header) * depth + (END + b"\xfe\xff\x0d\xe0\0\0\0\0") * depth
    data = with_sequence(inner)
    if depth < 1000:
        assert read_instance(io.BytesIO(data)).pixel_format.rows == ROWS
    else:
        with pytest.raises(ImageError, match="cannot be read"):
            read_instance(io.BytesIO(data))


@pytest.mark.parametrize("read", [read_structure_set, Segmentation])
def test_annotations_with_too_many_items_are_refused_unread(monkeypatch, read):
    monkeypatch.setattr(pydicom, "dcmread", None)
    with pytest.raises(SourceError, match="has 500001 items"):
        read(bytes(128) + b"DICM" + (ITEM + bytes(4)) * 500_001)


def test_a_table_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "link.csv"
    with path.open("wb") as file:
        file.truncate(most("table-bytes") + 1)
    with pytest.raises(
        EtlError, match=r"expected 268435456 at most.* --limit table-bytes=268435457"
    ):
        list(read_csv(path, ("patient_id",)))


@pytest.mark.parametrize("name", ["dicoms/P1/2.dcm", "contourfiles/A1/i-contours"])
def test_a_file_too_large_is_a_finding_and_is_not_read(tmp_path, name):
    root = write_tree(tmp_path / "data")
    path = root / name
    path = sorted(path.iterdir())[1] if path.is_dir() else path
    with path.open("r+b") as file:
        file.truncate(most("image-bytes") + 1)
    result = etl.build(root, tmp_path / "out.h5", etl.BuildOptions(rows=ROWS, columns=COLUMNS))
    assert result.n_rows == 2
    assert any("--limit " in one.message for one in result.findings)


# ------------------------------------------------------------------------------ limits by option


def files_beyond_a_limit(root, name):
    """Write a tree whose second pair exceeds a low limit; return that limit."""
    write_tree(root)
    if name.startswith("contour-") or name == "polygons":
        corners = [(1, 1), (6, 1), (1, 6), (6, 6)]
        polygons = "\n\n".join(
            f"{x} {y}\n{x + 3} {y}\n{x + 3} {y + 3}\n{x} {y + 3}" for x, y in corners
        )
        write_contour(root, "A1", 2, text=polygons)
        return {"contour-bytes": 40, "contour-points": 10, "polygons": 3}[name]
    if name == "image-bytes":
        path = root / "dicoms/P1/2.dcm"
        path.write_bytes(path.read_bytes() + bytes(5000))
        return path.stat().st_size - 1000
    if name == "table-bytes":
        return (root / "link.csv").stat().st_size - 1
    many = instance(uid="1.2.3.1.2")
    syntax = "explicit"
    if name == "elements":
        for n in range(80):
            many.add_new(0x00091001 + n, "LO", "x")
        syntax = "big"
    elif name == "items":
        many.ReferencedImageSequence = [Dataset() for _ in range(40)]
        syntax = "big"
    elif name == "inflated-header-bytes":
        many.add_new(0x00091001, "OB", np.random.default_rng(1).bytes(1 << 20))
        syntax = "deflated"
    elif name == "inflated-bytes":
        many.add_new(0x00091001, "UN", b"x" * 300_000)
        many.add_new(0x7FE10010, "OW", b"")
        many.ReferencedImageSequence = [Dataset()]
        syntax = "deflated"
    write_dicom(root, "P1", "2.dcm", dicom_bytes(many, syntax))
    return {
        "elements": 50,
        "items": 30,
        "inflated-header-bytes": 1 << 17,
        "inflated-bytes": 1 << 17,
    }[name]


BUILT = [
    *("contour-bytes", "contour-points", "polygons", "image-bytes", "table-bytes", "elements"),
    *("items", "inflated-header-bytes"),
]


def said(result):
    """Return the limit that a message says to give."""
    found = re.findall(r"--limit ([a-z-]+)=([0-9]+)\.", result)
    assert found, result
    return {name: int(value) for name, value in found}


def options(limits):
    return etl.BuildOptions(rows=ROWS, columns=COLUMNS, limits=limits)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", BUILT)
def test_a_build_with_the_limit_that_the_message_says_takes_the_file(tmp_path, name, workers):
    root, out = tmp_path / "data", tmp_path / "out.h5"
    low = files_beyond_a_limit(root, name)
    if name == "table-bytes":
        with pytest.raises(EtlError, match="Table not usable") as caught:
            etl.build(root, out, options({name: low}), workers=workers)
        message = str(caught.value)
    else:
        refused = etl.build(root, out, options({name: low}), workers=workers)
        assert refused.n_rows == 2
        assert refused.findings == check(root, options({name: low}), workers=workers).findings
        [message] = [one.message for one in refused.findings if "--limit" in one.message]
    for _ in range(5):  # where counting stopped at the limit, the advice is to double it
        allowed = said(message)
        assert list(allowed) == [name]
        assert allowed[name] > low
        result = etl.build(root, out, options(allowed), workers=workers, force=True)
        if result.n_rows == 3:
            break
        low = allowed[name]
        [message] = [one.message for one in result.findings if "--limit" in one.message]
    assert result.n_rows == 3
    assert loader.open_dataset(out).attributes["options"]["limits"] == allowed
    assert not [one for one in check(root, options(allowed)).findings if one.severity == "error"]


def test_a_changed_limit_is_recorded_and_the_default_is_not(tmp_path):
    root = write_tree(tmp_path / "data")
    files = []
    for number, limits in enumerate([(), {"polygons": 500}, {"polygons": 600}]):
        out = tmp_path / f"{number}.h5"
        etl.build(root, out, options(limits))
        files.append(out.read_bytes())
    assert files[0] == files[1] != files[2]
    assert "limits" not in loader.open_dataset(tmp_path / "1.h5").attributes["options"]


def test_an_update_and_a_verification_agree_with_the_build(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out.h5"
    low = {"contour-points": files_beyond_a_limit(root, "contour-points")}
    etl.build(root, out, options(low), update=True)
    first = out.read_bytes()
    etl.build(root, out, options(low), update=True)
    assert out.read_bytes() == first
    etl.build(root, tmp_path / "full.h5", options({}))
    etl.build(root, out, options({}), update=True)  # the row of the file that is now taken
    assert len(loader.open_dataset(out)) == 3
    for data in (["--source", str(root)], ["--source", str(root), "--rebuild-check"]):
        found = CliRunner().invoke(cli, ["verify", str(out), *data])
        assert found.exit_code == 0, found.output


def test_a_verification_finds_the_sources_with_the_limits_of_the_build(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out.h5"
    write_tree(root)
    lines = ["patient_id,original_id", "P1,A1", *["#" * 1000] * 10]
    (root / "link.csv").write_text("\n".join(lines))
    arguments = ["--size", f"{ROWS}x{COLUMNS}", "--limit", "table-bytes=20KiB"]
    found = CliRunner().invoke(cli, ["build", str(root), str(out), *arguments])
    assert found.exit_code == 0, found.output
    with limited((("table-bytes", 10),)):  # whatever holds here
        found = CliRunner().invoke(cli, ["verify", str(out), "--source", str(root)])
    assert found.exit_code == 0, found.output


def test_limits_hold_in_the_block_only():
    assert most("polygons") == LIMITS["polygons"].value
    with limited((("polygons", 7),)):
        assert most("polygons") == 7
        with limited(()):
            assert most("polygons") == LIMITS["polygons"].value
        assert most("polygons") == 7
    assert most("polygons") == LIMITS["polygons"].value


def test_a_file_that_is_kept_under_one_limit_is_judged_anew_under_another(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out.h5"
    write_shapes(root, "rtstruct", patients=1, slices=2, seed=1)
    n_rows = [
        etl.build(root, out, etl.BuildOptions(limits=limits), force=True).n_rows
        for limits in ({}, {"contour-points": 3}, {})
        if not (limits and reject(root, limits))
    ]
    assert n_rows[0] == n_rows[1] > 0


def reject(root, limits):
    with pytest.raises(etl.EtlError):
        etl.build(root, root / "no.h5", etl.BuildOptions(limits=limits))
    return True


@pytest.mark.parametrize("n_frames", ["2000000", "99999999"])
def test_more_frames_than_the_limit_are_refused(n_frames):
    data = dicom_bytes(instance(NumberOfFrames=n_frames))
    with pytest.raises(ImageError, match=f"--limit frames={n_frames}"):
        read_instance(io.BytesIO(data), 1)
    with pytest.raises(ImageError, match=f"--limit frames={n_frames}"):
        image_facts(io.BytesIO(data))
    with (
        limited((("frames", int(n_frames)),)),
        pytest.raises(ImageError, match="PixelData has 336 bytes"),
    ):
        read_instance(io.BytesIO(data), 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("polygon=7", "expected some of image-bytes"),
        ("polygons", "expected a whole number after polygons="),
        ("polygons=0", "polygons is 1 to"),
        ("polygons=7MiB", "expected a whole number"),
        ("polygons=-7", "expected a whole number"),
        ("image-bytes=4gb", "with KiB, MiB, GiB or without"),
        ("image-bytes=9999999999GiB", "image-bytes is 1 to"),
        ("image-bytes=" + "9" * 100, "expected a whole number"),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["build", "OUT"]])
def test_a_limit_that_is_none_is_a_usage_error(command, value, words):
    arguments = [command[0], "DATA", *command[1:], "--limit", value]
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 2
    assert words in " ".join(found.output.split())


def test_a_limit_given_twice_is_a_usage_error():
    twice = ["--limit", "polygons=7", "--limit", "polygons=8"]
    found = CliRunner().invoke(cli, ["build", "DATA", "OUT", *twice])
    assert (found.exit_code, "--limit polygons is given twice" in found.output) == (2, True)
