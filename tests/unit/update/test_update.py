import dataclasses
import json
import os
import shutil

import h5py
import numpy as np
import pydicom
import pytest
import xxhash
from builders import (
    COLUMNS,
    ROWS,
    SQUARE,
    contour_path,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)
from click.testing import CliRunner

import etl
from etl import examine, render
from etl.cli import cli
from etl.errors import EtlError, ReuseError
from etl.labels import LabelScheme
from etl.options import BuildOptions
from etl.output import target
from etl.update import cache, sources
from etl.update.seal import Seal
from loader import LoaderError, open_dataset
from loader import format as file_format

# Noise has no edges: the audit would read sources again to find out why contours fit none.
SIZE = {"rows": ROWS, "columns": COLUMNS, "audit": False}
PATIENTS = [("P1", "A1"), ("P2", "A2"), ("P3", "A3")]


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data", PATIENTS)


@pytest.fixture
def out(root, tmp_path):
    """Return a file that was built, its cache beside it."""
    build(root, tmp_path / "out.h5")
    return tmp_path / "out.h5"


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Trust stamps of files that were written just now, as the tests' are."""
    monkeypatch.setattr(sources, "SETTLED_NS", 0)


def build(root, out, *, update=True, paranoid=False, **options):
    keywords = {"update": update} | ({"paranoid": True} if paranoid else {})
    return etl.build(root, out, BuildOptions(**SIZE | options), **keywords)


@pytest.fixture
def parsed(monkeypatch):
    """Return the list of images that are parsed from now on: of headers and of pixels."""
    names = []
    header, frame = examine.read_header, render.read_frame

    def note_header(root, ref, kept):
        names.append(ref.path)
        return header(root, ref, kept)

    def note_frame(*arguments):
        names.append("pixels")
        return frame(*arguments)

    monkeypatch.setattr(examine, "read_header", note_header)
    monkeypatch.setattr(render, "read_frame", note_frame)
    return names


@pytest.fixture
def opened(monkeypatch):
    """Return the list of sources that are opened from now on."""
    paths = []
    real = os.open

    def note(path, *arguments, **keywords):
        if "/data/dicoms/" in str(path) or "/data/contourfiles/" in str(path):
            paths.append(str(path).split("/data/")[1])
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", note)
    return paths


def test_no_unchanged_source_is_opened(root, out, parsed, opened):
    before = out.read_bytes()
    result = build(root, out)
    assert parsed == []
    sealing = list(cache.read_cache(cache.cache_path(out)).seal.sealed)
    assert opened == [sealing[0], *sealing]  # the key is opened with one and sealed anew
    assert out.read_bytes() == before
    assert result.notes[-1] == "9 of 9 rows were taken over from the older file; 0 pairs parsed."


def test_only_what_changed_is_parsed(root, out, parsed, opened, tmp_path):
    write_contour(root, "A2", 2, text=f"{SQUARE}2 5.5\n")
    write_dicom(root, "P3", "9.dcm", instance(gradient(seed=9), uid="9"))
    write_contour(root, "A3", 9, text=f"{SQUARE}2 6.5\n")
    (root / "dicoms/P1/1.dcm").unlink()
    result = build(root, out)
    assert parsed == ["dicoms/P2/2.dcm", "dicoms/P3/9.dcm", "pixels", "pixels"]
    assert {path.split("/")[1] for path in opened} - {"P1"} == {"P2", "A2", "P3", "A3"}
    assert result.notes[-1] == "7 of 9 rows were taken over from the older file; 2 pairs parsed."
    build(root, tmp_path / "full.h5", update=False)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


WITHOUT_A_CACHE = {
    "no cache": "there is no out.h5.cache",
    "damaged cache": "out.h5.cache is damaged, or of another version",
    "cache of another OUT": "out.h5.cache belongs to another file",
}


@pytest.mark.parametrize("what", WITHOUT_A_CACHE)
def test_without_a_cache_digests_decide(root, out, parsed, opened, tmp_path, what):
    """Only the header of one image of each person is read again: OUT says who shares an id."""
    place = cache.cache_path(out)
    if what == "no cache":
        place.unlink()
    elif what == "damaged cache":
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        place.write_bytes(data)
    else:
        data = place.read_bytes()
        etl.build(root, out, BuildOptions(**SIZE, split=(50, 50, 0)), force=True)
        place.write_bytes(data)
    write_contour(root, "A2", 2, text=f"{SQUARE}2 5.5\n")
    split = (50, 50, 0) if what == "cache of another OUT" else None
    shutil.copy(out, tmp_path / "old.h5")
    parsed.clear()
    opened.clear()
    result = build(root, out, split=split)
    assert parsed == ["dicoms/P2/2.dcm", "pixels"]
    assert {path for path in opened if path.startswith("contourfiles")} == {
        contour_path(original_id, n) for _, original_id in PATIENTS for n in (1, 2, 3)
    }
    assert result.notes[-2:] == [
        f"every source was read to compare its digest, because {WITHOUT_A_CACHE[what]}.",
        "8 of 9 rows were taken over from the older file; 1 pair parsed.",
    ]
    build(root, tmp_path / "full.h5", update=False, split=split)
    if split is None:
        assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()
    opened.clear()
    build(root, out, split=split)  # which has a cache now
    assert len(opened) == len(SEALING) + 1


SEALING = [f"dicoms/{patient}/{n}.dcm" for patient, n in (("P1", 1), ("P1", 3), ("P2", 2))] + [
    f"dicoms/P3/{n}.dcm" for n in (1, 3)
]


def test_where_no_source_opens_the_seal_one_header_of_each_person_is_read(
    root, out, parsed, opened, tmp_path
):
    sealed = list(cache.read_cache(cache.cache_path(out)).seal.sealed)
    assert sealed == SEALING
    for path in sealed:
        with (root / path).open("ab") as file:
            file.write(bytes(2))
    opened.clear()
    parsed.clear()
    result = build(root, out)
    assert set(parsed) == {*sealed, "pixels"}
    assert "4 of 9 rows were taken over from the older file; 5 pairs parsed." in result.notes
    build(root, tmp_path / "full.h5", update=False)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


@pytest.mark.parametrize("how", ["changes", "goes"])
def test_a_source_that_is_lost_between_its_digest_and_its_header_is_parsed(
    root, out, tmp_path, monkeypatch, how
):
    """Its header would say whose all rows of a patient are."""
    cache.cache_path(out).unlink()
    read_header = sources.read_header

    def late(root, frame):
        monkeypatch.setattr(sources, "read_header", read_header)
        if how == "changes":
            other = instance(gradient(seed=1), uid="1.2.3.1.1", PatientID="another")
            (root / frame.path).write_bytes(dicom_bytes(other))
        else:
            (root / frame.path).unlink()
        return read_header(root, frame)

    monkeypatch.setattr(sources, "read_header", late)
    result = build(root, out)
    assert (
        "every source was parsed, because out.h5 cannot be updated: dicoms/P1/1.dcm changed "
        "meanwhile." in result.notes
    )
    build(root, tmp_path / "full.h5", update=False)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


@pytest.mark.parametrize("how", ["touched", "paranoid", "written lately", "moved"])
def test_where_stamps_cannot_tell_digests_do(root, out, parsed, opened, monkeypatch, how):
    before = out.read_bytes()
    if how == "touched":
        for path in root.rglob("*.*"):
            os.utime(path, (1, 1))
    if how == "written lately":
        monkeypatch.setattr(sources, "SETTLED_NS", 10**12)
    if how == "moved":
        shutil.copytree(root, root.with_name("copy"))
        shutil.rmtree(root)
        root.with_name("copy").rename(root)
    opened.clear()
    build(root, out, paranoid=how == "paranoid")
    assert parsed == []
    assert set(opened) == {
        str(path.relative_to(root)) for path in root.rglob("*.*") if "o-contours" not in str(path)
    } - {"link.csv"}
    assert out.read_bytes() == before


def test_a_stamp_of_a_file_that_was_written_lately_is_not_kept(root, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SETTLED_NS", 10**12)
    build(root, tmp_path / "out.h5")
    assert cache.read_cache(cache.cache_path(tmp_path / "out.h5")).stamps == {}


def test_the_split_is_kept_unless_another_is_given(root, tmp_path):
    out = tmp_path / "out.h5"
    build(root, out, split=(34, 33, 33))
    sides = open_dataset(out).manifest["split"].tolist()
    write_dicom(root, "P4", "1.dcm", instance(gradient(seed=77), uid="77"))
    write_contour(root, "A4", 1)
    with (root / "link.csv").open("a") as file:
        file.write("P4,A4\n")
    result = build(root, out, split=(34, 33, 33))
    assert open_dataset(out).manifest["split"].tolist()[:9] == sides
    assert result.notes[0].startswith("3 of 4 patients keep the split that they have in out.h5")
    table = tmp_path / "split.csv"
    table.write_text("patient_id,split\nP1,test\nP2,test\nP3,test\nP4,train\n")
    build(root, out, split_file=str(table))
    assert open_dataset(out).manifest["split"].tolist() == [2] * 9 + [0]


REASONS = {
    "other options": "it was built with other options (--limit, --rasterizer, --size)",
    "another version": f"it was built by version {file_format.VERSION}",
    "other structures": "it was built with other structures",
    "damaged row": "its row 4 is not what was written",
    "damaged column": "its manifest/mean is not what was written",
    "damaged reuse": "its reuse/lowest is not what was written",
    "no reuse": "it lacks the column reuse/row",
    "reuse of no row": "its /reuse contradicts itself",
    "other values": "the images need another type of values now",
}


DAMAGED = {
    "damaged row": ("masks", (4, 5, 5)),
    "damaged column": ("manifest/mean", 3),
    "damaged reuse": ("reuse/lowest", 3),
}


def change_reuse(out, change):
    """Let a function change /reuse, and the digests be right."""
    with h5py.File(out, "r+") as file:
        digests = json.loads(file.attrs["digests"])
        change(file)
        for name in file.get("reuse", ()):
            values = file["reuse"][name][:]
            data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
            digests[f"reuse/{name}"] = xxhash.xxh3_128_hexdigest(data.data.cast("B"))
        if "reuse" not in file:
            digests = {k: v for k, v in digests.items() if not k.startswith("reuse/")}
        file.attrs["digests"] = np.bytes_(json.dumps(digests))


def move_a_row(file):
    file["reuse/row"][-1] = 9


def drop_reuse(file):
    del file["reuse"]


@pytest.mark.parametrize("what", REASONS)
def test_what_cannot_be_trusted_makes_a_full_build_that_says_so(
    root, out, parsed, tmp_path, monkeypatch, what
):
    options = {}
    if what == "other options":
        options = {"rasterizer": "pillow", "rows": ROWS + 2, "size": "fit"}
        options["limits"] = {"contour-points": 1_200_000}
    elif what == "another version":
        monkeypatch.setattr(file_format, "VERSION", "9.9.9")
    elif what == "other structures":
        to_json = LabelScheme.to_json
        monkeypatch.setattr(
            LabelScheme, "to_json", lambda *a: [one | {"meaning": "pool"} for one in to_json(*a)]
        )
    elif what in DAMAGED:
        name, index = DAMAGED[what]
        with h5py.File(out) as file:
            dataset = file[name]
            place_in_file = dataset.id.get_offset() + dataset.dtype.itemsize * int(
                np.ravel_multi_index(np.atleast_1d(index), dataset.shape)
            )
        data = bytearray(out.read_bytes())
        data[place_in_file] ^= 1
        out.write_bytes(data)
    elif what == "no reuse":
        change_reuse(out, drop_reuse)
    elif what == "reuse of no row":
        change_reuse(out, move_a_row)
    else:
        wide = instance(gradient(seed=5), RescaleSlope=1, RescaleIntercept=40000)
        write_dicom(root, "P1", "1.dcm", wide)
    parsed.clear()
    result = build(root, out, **options)
    expected = f"every source was parsed, because out.h5 cannot be updated: {REASONS[what]}."
    assert expected in result.notes
    assert len({path for path in parsed if path != "pixels"}) == 9
    build(root, tmp_path / "full.h5", update=False, **options)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()
    parsed.clear()
    build(root, out, **options)
    assert parsed == []


def test_a_reuse_of_another_type_is_refused_and_no_reader_minds(root, out, tmp_path):
    def change(file):
        del file["reuse/row"]
        file["reuse"].create_dataset("row", data=np.arange(9, dtype="<f4"))

    before = open_dataset(out).dataset_id
    change_reuse(out, change)
    assert open_dataset(out).dataset_id == before
    with pytest.raises(LoaderError, match=r"/reuse/row: expected the type <i8, found another"):
        open_dataset(out, verify="columns")
    result = build(root, out)
    assert "cannot be updated: it cannot be read (Dataset not opened: " in result.notes[0]
    build(root, tmp_path / "full.h5", update=False)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_the_audit_measures_rows_that_it_takes_only_now(tmp_path, monkeypatch, parsed):
    """More slices move the choice of the contours that are audited."""
    from etl.phantom.tree import write_phantom

    root, out, full = tmp_path / "data", tmp_path / "out.h5", tmp_path / "full.h5"
    write_phantom(root, patients=2, slices=8, phases=4)
    options = BuildOptions(audit_contours=3)
    etl.build(root, out, options, update=True)
    first = open_dataset(out).attributes["alignment"]
    parsed.clear()
    for path in sorted(root.glob("contourfiles/*/i-contours/*.txt"))[:3]:
        path.unlink()
    etl.build(root, out, options, update=True)
    assert parsed == []
    assert open_dataset(out).attributes["alignment"] != first
    etl.build(root, full, options)
    assert out.read_bytes() == full.read_bytes()


def test_a_kept_row_that_loses_a_structure_makes_a_full_build(root, tmp_path):
    out, full = tmp_path / "out.h5", tmp_path / "full.h5"
    options = {
        "contours": ("i", "o"),
        "partial": True,
        "exclude_flagged": ("identical-contour",),
        "exclude_structures": True,
    }
    build(root, out, **options)
    shutil.copy(root / contour_path("A1", 1), root / contour_path("A2", 2))
    result = build(root, out, **options)
    assert any("a row that it has loses a structure" in note for note in result.notes)
    build(root, full, update=False, **options)
    assert out.read_bytes() == full.read_bytes()


@pytest.mark.parametrize("has_cache", [True, False])
def test_people_under_two_ids_are_found_between_kept_and_new_rows(tmp_path, has_cache):
    root = write_tree(tmp_path / "data", PATIENTS[:1], PatientID="4711", SeriesInstanceUID=None)
    write_dicom(root, "P2", "1.dcm", instance(gradient(seed=50), uid="50", PatientID="12"))
    write_contour(root, "A2", 1, text=f"{SQUARE}2 6.6\n")
    (root / "link.csv").write_text("patient_id,original_id\nP1,A1\nP2,A2\n")
    out, full = tmp_path / "out.h5", tmp_path / "full.h5"
    build(root, out, split=(50, 50, 0))
    stored = cache.cache_path(out)
    assert b"4711" not in stored.read_bytes()
    assert stored.stat().st_mode & 0o777 == 0o600
    if not has_cache:
        stored.unlink()
    old = tmp_path / "old.h5"
    shutil.copy(out, old)
    write_dicom(root, "P3", "1.dcm", instance(gradient(seed=60), uid="60", PatientID="4711"))
    write_contour(root, "A3", 1, text=f"{SQUARE}2 7.7\n")
    (root / "link.csv").write_text("patient_id,original_id\nP1,A1\nP2,A2\nP3,A3\n")
    result = build(root, out, split=(50, 50, 0))
    assert [one.code for one in result.findings if one.code == "same-person"] == ["same-person"]
    build(root, full, update=False, split=(50, 50, 0), splits_from=str(old))
    assert out.read_bytes() == full.read_bytes()


@pytest.mark.parametrize("options", [{}, {"split": (34, 33, 33)}, {"folds": 2}])
def test_of_a_split_that_is_not_there_only_who_asks_for_one_is_told(root, out, options):
    result = build(root, out, **options)
    told = [note for note in result.notes if "has a split or a fold" in note]
    assert len(told) == bool(options)


def test_an_update_says_what_nobody_may_have_meant(root, out, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text("patient_id,slice\nP2,3\n")
    (root / "dicoms/P1/1.dcm").unlink()
    result = build(root, out, exclude_file=str(listed), exclude_flagged=("area-jump",))
    assert result.notes[:2] == [
        "the older file was built with other options (--exclude-file, --exclude-flagged): give the "
        "same, unless you mean to change them.",
        "2 rows of the older file are not in the new one: an image or drawing is gone, or is among "
        "the findings.",
    ]
    assert len(open_dataset(out)) == 7
    result = build(root, out, exclude_file=str(listed), exclude_flagged=("area-jump",))
    assert result.notes == ["7 of 7 rows were taken over from the older file; 0 pairs parsed."]


def test_a_build_over_an_older_file_is_told_of_both_ways(root, out):
    with pytest.raises(EtlError, match=r"Use `force=True` to replace it, or `update=True` to take"):
        etl.build(root, out, BuildOptions(**SIZE))
    with pytest.raises(EtlError, match="take over its rows, together with `resume=True`"):
        etl.build(root, out, BuildOptions(**SIZE), resume=True)


def test_a_table_is_updated_too(root, tmp_path, monkeypatch):
    lines = ["patient_id,image,label,contour"]
    lines += [f"P1,dicoms/P1/{n}.dcm,pool,{contour_path('A1', n)}" for n in (1, 2, 3)]
    table = root / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    out, full = tmp_path / "out.h5", tmp_path / "full.h5"
    build(table, out)
    frames = []
    monkeypatch.setattr(
        render, "read_frame", lambda *a, real=render.read_frame: (frames.append(1), real(*a))[1]
    )
    table.write_text("\n".join([*lines, f"P2,dicoms/P2/1.dcm,pool,{contour_path('A2', 1)}"]) + "\n")
    build(table, out)
    assert frames == [1]
    build(table, full, update=False)
    assert out.read_bytes() == full.read_bytes()


def test_a_file_of_another_program_is_not_updated(root, tmp_path):
    out = tmp_path / "out.h5"
    with h5py.File(out, "w") as file:
        file["precious"] = np.arange(3)
    before = out.read_bytes()
    with pytest.raises(EtlError, match="cannot be updated"):
        build(root, out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("what", ["a folder", "another program's", "a full disk"])
def test_a_cache_that_cannot_be_written_is_a_note(root, tmp_path, monkeypatch, what):
    place = tmp_path / "out.h5.cache"
    if what == "a folder":
        place.mkdir()
    elif what == "another program's":
        place.write_text("precious")
    else:
        replacing = target.replacing

        def full(path, **keywords):
            if path == place:
                raise EtlError("Output not written: no space left.")
            return replacing(path, **keywords)

        monkeypatch.setattr(target, "replacing", full)
    result = build(root, tmp_path / "out.h5")
    assert len(open_dataset(tmp_path / "out.h5")) == 9
    assert "the next update reads every source" in result.notes[-1]
    assert what != "another program's" or place.read_text() == "precious"


@pytest.mark.parametrize("update", [False, True])
def test_no_cache_is_left_where_none_is_wanted(root, out, update):
    place = cache.cache_path(out)
    for name in (".lock", ".0123456789abcdef.partial"):  # of a build that was killed
        out.with_name(f".{place.name}{name}").write_bytes(b"")
    done = CliRunner().invoke(
        cli,
        ["build", str(root), str(out), "--no-cache", "--no-audit", "--size", f"{ROWS}x{COLUMNS}"]
        + (["--update"] if update else ["--force"]),
    )
    assert done.exit_code == 0
    assert ("9 of 9 rows were taken over" in done.stderr) is update
    left = sorted(path.name for path in out.parent.iterdir())
    assert left == [".out.h5.cache.lock", "data", "out.h5"]  # the lock, empty, may be another's


def test_without_a_cache_another_programs_file_stays(root, out):
    cache.cache_path(out).write_text("precious")
    result = etl.build(root, out, BuildOptions(**SIZE), force=True, cache=False)
    assert result.notes == [
        f"{out} is written. Not replaced: {out}.cache: is not a cache of dicom-etl. Give that file "
        "another name."
    ]
    assert cache.cache_path(out).read_text() == "precious"


@pytest.mark.parametrize("qc", [True, False])
def test_an_update_of_a_file_from_a_plain_build_parses_nothing(root, tmp_path, parsed, qc):
    out = tmp_path / "out.h5"
    build(root, out, update=False, qc=qc)
    before = out.read_bytes()
    parsed.clear()
    build(root, out, qc=qc)
    assert parsed == []
    assert out.read_bytes() == before


def test_a_file_and_its_cache_may_be_moved(root, out, tmp_path, parsed):
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "new.h5"
    cache.cache_path(out).rename(cache.cache_path(moved))
    out.rename(moved)
    build(root, moved)
    assert parsed == []


def test_the_cache_holds_its_key_for_those_who_have_a_source(root, out):
    stored = cache.read_cache(cache.cache_path(out))
    key = stored.seal.opened(root)
    data = cache.cache_path(out).read_bytes()
    assert key not in data
    assert key.hex().encode() not in data
    paths = list(stored.seal.sealed)
    assert len(paths) == 5  # every second image
    for path in paths[:-1]:
        (root / path).unlink()
    assert stored.seal.opened(root) == key
    with (root / paths[-1]).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ReuseError, match="gone or changed"):
        stored.seal.opened(root)


def test_a_seal_takes_few_sources_and_none_that_cannot_be_read(tmp_path):
    paths = [f"{n}.dcm" for n in range(100)]
    for path in paths[1:]:
        (tmp_path / path).write_text(path)
    seal = Seal.of(bytes(range(16)), tmp_path, paths * 2)
    assert list(seal.sealed) == paths[13::13]
    assert seal.opened(tmp_path) == bytes(range(16))
    other = Seal.of(bytes(range(16)), tmp_path, paths)
    assert not set(seal.sealed.values()) & set(other.sealed.values())


def test_the_file_tells_which_rows_share_an_id_and_nothing_more_of_people(tmp_path):
    root = write_tree(tmp_path / "data", PATIENTS[:2], PatientID="4711")
    write_dicom(root, "P2", "1.dcm", instance(gradient(seed=50), uid="50", PatientID="12"))
    write_dicom(root, "P2", "2.dcm", instance(gradient(seed=51), uid="51", PatientID=""))
    build(root, tmp_path / "out.h5", update=False)
    reuse = open_dataset(tmp_path / "out.h5").reuse
    assert reuse["same_patient"].tolist() == [0, 0, 0, 3, -1, 0]
    data = (tmp_path / "out.h5").read_bytes()
    assert b"4711" not in data
    assert xxhash.xxh3_64_intdigest(b"4711").to_bytes(8, "little") not in data


def test_the_file_does_not_tell_that_it_was_updated(root, out):
    build(root, out)
    recorded = open_dataset(out).attributes["options"]
    assert not {"update", "paranoid", "splits_from"} & recorded.keys()
    assert "cache" not in json.dumps(recorded)


def test_the_command_updates_without_force_from_several_workers(root, tmp_path):
    size = ["--size", f"{ROWS}x{COLUMNS}", "--split", "34/33/33"]

    def run(*arguments):
        return CliRunner().invoke(cli, ["build", str(root), *map(str, arguments), *size])

    out, full = tmp_path / "out.h5", tmp_path / "full.h5"
    assert run(out, "--update").exit_code == 0
    write_contour(root, "A2", 2, text=f"{SQUARE}2 5.5\n")
    shutil.copy(out, tmp_path / "old.h5")
    result = run(out, "--update", "--workers", "2")
    assert result.exit_code == 0
    assert "8 of 9 rows were taken over from the older file; 1 pair parsed." in result.stderr
    assert run(full, "--splits-from", tmp_path / "old.h5").exit_code == 0
    assert out.read_bytes() == full.read_bytes()
    assert run(out, "--paranoid").exit_code == 2


@pytest.mark.parametrize("kind", ["table", "rtstruct", "seg", "enhanced"])
def test_every_layout_is_updated_to_the_bytes_of_a_full_build(tmp_path, monkeypatch, kind):
    from etl.phantom.objects import write_shapes

    root, out, full = tmp_path / "data", tmp_path / "out.h5", tmp_path / "full.h5"
    write_shapes(root, kind, patients=3, slices=6, rows=64, columns=64)
    images = [path for path in sorted(root.rglob("*.dcm")) if modality(path) in {"CT", "MR"}]
    options = BuildOptions(rows=64, columns=64, split=(50, 25, 25))
    etl.build(root, out, options, update=True)
    n_rows = len(open_dataset(out))
    frames = []
    monkeypatch.setattr(
        render, "read_frame", lambda *a, real=render.read_frame: (frames.append(1), real(*a))[1]
    )
    before = out.read_bytes()
    etl.build(root, out, options, update=True)
    assert (out.read_bytes(), frames) == (before, [])
    data = bytearray(images[-1].read_bytes())
    data[-100] ^= 1
    images[-1].write_bytes(data)
    shutil.copy(out, tmp_path / "old.h5")
    shutil.copy(out, tmp_path / "moved.h5")  # without its cache
    for path in (out, tmp_path / "moved.h5"):
        frames.clear()
        etl.build(root, path, options, update=True)
        assert 0 < len(frames) < n_rows
    old = dataclasses.replace(options, splits_from=str(tmp_path / "old.h5"))
    etl.build(root, full, old)
    assert out.read_bytes() == full.read_bytes()
    assert (tmp_path / "moved.h5").read_bytes() == full.read_bytes()
    assert out.read_bytes() != before


def test_names_that_are_no_text_are_sorted_as_in_a_full_build(tmp_path):
    """OUT has such bytes as escapes, which come before letters; the names come after them."""
    from etl.phantom.objects import write_shapes

    root, out, full = tmp_path / "data", tmp_path / "out.h5", tmp_path / "full.h5"
    write_shapes(root, "rtstruct", patients=1, slices=4, rows=64, columns=64)
    images = [path for path in sorted(root.rglob("*.dcm")) if modality(path) in {"CT", "MR"}]
    for path, name in zip(images, (b"a\xff", b"ab", b"a\xb2", b"aa"), strict=True):
        dataset = pydicom.dcmread(path)
        dataset.LossyImageCompression = "01"
        dataset.save_as(path)
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/" + name))
    options = BuildOptions(rows=64, columns=64)
    etl.build(root, full, options)
    shutil.copy(full, out)
    for _ in range(2):  # without a cache, then with one
        result = etl.build(root, out, options, update=True)
        assert out.read_bytes() == full.read_bytes()
        lossy = [one.path for one in result.findings if one.code == "image-lossy"]
        names = [os.fsencode(path).rpartition(b"/")[2] for path in lossy]
        assert names == [b"aa", b"ab", b"a\xb2", b"a\xff"]


def test_a_resized_segmentation_is_not_parsed_for_the_audit_which_takes_no_mask(tmp_path, parsed):
    from etl.phantom.objects import write_shapes

    root, out = tmp_path / "data", tmp_path / "out.h5"
    write_shapes(root, "seg", patients=2, slices=6, rows=64, columns=64)
    options = BuildOptions(rows=60, columns=68, size="fit")
    etl.build(root, out, options)
    before = out.read_bytes()
    parsed.clear()
    etl.build(root, out, options, update=True)
    assert parsed == []
    assert out.read_bytes() == before


def modality(path):
    return pydicom.dcmread(path, stop_before_pixels=True).Modality
