import os
import shutil

import h5py
import numpy as np
import pytest
from builders import (
    COLUMNS,
    ROWS,
    SQUARE,
    contour_path,
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
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.output import hdf5_file, target
from etl.update import journal, memory, sources
from loader import format as file_format
from loader import open_dataset
from loader.format import VERSION

SIZE = {"rows": ROWS, "columns": COLUMNS, "audit": False, "contours": ("i", "o"), "partial": True}
N_ROWS = 120
SLICES = range(1, N_ROWS // 2 + 1)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Note 8 rows at a time, and trust stamps of files that were written just now."""
    from etl.workers import chunks

    monkeypatch.setattr(chunks, "MAX_PAIRS", 8)
    monkeypatch.setattr(sources, "SETTLED_NS", 0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = write_tree(
        tmp_path_factory.mktemp("tree") / "data", [("P1", "A1"), ("P2", "A2")], SLICES
    )
    write_contour(root, "A1", 3, text=f"{SQUARE}2 3.25\n")  # a warning: the same everywhere else
    return root


@pytest.fixture
def root(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "data")


def build(root, out, **keywords):
    options = BuildOptions(**SIZE | keywords.pop("options", {}))
    return etl.build(root, out, options, **keywords)


def names(out):
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith("."))


def kill(root, out, n_rows, monkeypatch, **keywords):
    """Stop a build when that many rows are decoded, as a kill would; return its partial file."""
    read_frame, n_read = render.read_frame, iter(range(n_rows))

    def die_at_last(*arguments):
        if next(n_read, None) is None:
            raise KeyboardInterrupt
        return read_frame(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(render, "read_frame", die_at_last)
        with pytest.raises(KeyboardInterrupt):
            build(root, out, resume=True, **keywords)
    (partial,) = (path for path in out.parent.iterdir() if path.suffix == ".partial")
    return partial


@pytest.fixture
def parsed(monkeypatch):
    """Return the list of images that are parsed from now on."""
    paths = []
    header = examine.read_header

    def note(root, ref, *more):
        paths.append(ref.path)
        return header(root, ref, *more)

    monkeypatch.setattr(examine, "read_header", note)
    return paths


@pytest.fixture(scope="module")
def full(tree, tmp_path_factory):
    """Return the bytes of an uninterrupted build."""
    out = tmp_path_factory.mktemp("full") / "out.h5"
    build(tree, out)
    return out.read_bytes()


@pytest.mark.parametrize("n_rows", [8, 50, N_ROWS - 1])
def test_a_killed_build_goes_on_and_parses_only_the_rest(
    root, tmp_path, monkeypatch, parsed, full, n_rows
):
    out = tmp_path / "out.h5"
    partial = kill(root, out, n_rows, monkeypatch)
    n_noted = n_rows - n_rows % 8
    assert journal.count_rows(partial) == (n_noted, N_ROWS)
    parsed.clear()
    result = build(root, out, resume=True)
    assert out.read_bytes() == full
    assert len(parsed) == N_ROWS - n_noted
    assert result.notes[-1] == (
        f"{n_noted} of {N_ROWS} rows were taken over from {partial.name}; "
        f"{N_ROWS - n_noted} pairs parsed."
    )
    assert names(out) == []


@pytest.mark.parametrize("options", [{"size": "fit", "rows": ROWS + 4}, {"size": "most"}])
def test_a_killed_build_of_other_sizes_goes_on(root, tmp_path, monkeypatch, options):
    out, full = tmp_path / "out.h5", tmp_path / "full.h5"
    kill(root, out, 100, monkeypatch, options=options)
    frames = []
    monkeypatch.setattr(
        render, "read_frame", lambda *a, real=render.read_frame: (frames.append(1), real(*a))[1]
    )
    build(root, out, resume=True, options=options)
    assert len(frames) == N_ROWS - 96
    build(root, full, options=options)
    assert out.read_bytes() == full.read_bytes()


def test_the_partial_file_itself_becomes_the_new_one(root, tmp_path, monkeypatch, full):
    out = tmp_path / "out.h5"
    partial = kill(root, out, 100, monkeypatch)
    inode = partial.stat().st_ino
    build(root, out, resume=True)
    assert out.stat().st_ino == inode
    assert out.read_bytes() == full


def test_a_resumed_build_that_is_killed_loses_no_row(root, tmp_path, monkeypatch, parsed, full):
    out = tmp_path / "out.h5"
    kill(root, out, 50, monkeypatch)
    kill(root, out, 20, monkeypatch)
    partial = kill(root, out, 20, monkeypatch)
    assert journal.count_rows(partial) == (48 + 16 + 16, N_ROWS)
    parsed.clear()
    build(root, out, resume=True)
    assert len(parsed) == N_ROWS - 80
    assert out.read_bytes() == full
    assert names(out) == []


def test_a_kill_between_the_two_journals_loses_no_row(root, tmp_path, monkeypatch, parsed, full):
    out = tmp_path / "out.h5"
    kill(root, out, 50, monkeypatch)
    for moment in ("replace", "reserve"):
        with monkeypatch.context() as patch:
            patch.setattr(memory.os if moment == "replace" else hdf5_file, moment, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                build(root, out, resume=True)
    parsed.clear()
    build(root, out, resume=True)
    assert len(parsed) == N_ROWS - 48
    assert out.read_bytes() == full
    assert names(out) == []


def _interrupt(*_arguments, **_keywords):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["image", "mask", "vertex"])
def test_a_flipped_bit_in_the_partial_file_costs_its_row(
    root, tmp_path, monkeypatch, parsed, full, where
):
    out = tmp_path / "out.h5"
    partial = kill(root, out, N_ROWS - 1, monkeypatch)
    plan = journal.read_begun(partial).plan
    name = {"image": "images", "mask": "masks", "vertex": "contours/y"}[where]
    place = plan.offsets[name] + 17 * plan.row_bytes[name] + 3
    data = bytearray(partial.read_bytes())
    data[place] ^= 4
    partial.write_bytes(data)
    parsed.clear()
    build(root, out, resume=True)
    assert len(parsed) == 1 + 8
    assert out.read_bytes() == full


@pytest.mark.parametrize("how", ["cut", "flipped", "other magic", "gone"])
def test_of_a_damaged_journal_what_is_whole_is_used(root, tmp_path, monkeypatch, parsed, full, how):
    out = tmp_path / "out.h5"
    partial = kill(root, out, N_ROWS - 1, monkeypatch)
    place = target.journal_path(partial)
    data = bytearray(place.read_bytes())
    if how == "cut":
        place.write_bytes(data[:-7])
    elif how == "flipped":
        data[-4000] ^= 1
        place.write_bytes(data)
    elif how == "other magic":
        place.write_bytes(b"x" + data[1:])
    else:
        place.unlink()
    parsed.clear()
    result = build(root, out, resume=True)
    n_lost = {"cut": 8, "flipped": 8}.get(how, 112)
    assert len(parsed) == 8 + n_lost
    assert out.read_bytes() == full
    if n_lost == 112:
        assert "there was nothing to resume from" in result.notes[-1]
    assert names(out) == []


def test_a_cut_partial_file_costs_the_rows_that_it_lacks(root, tmp_path, monkeypatch, full):
    out = tmp_path / "out.h5"
    partial = kill(root, out, N_ROWS - 1, monkeypatch)
    os.truncate(partial, 100_000)
    build(root, out, resume=True)
    assert out.read_bytes() == full


CHANGES = {
    "a contour": 1,
    "an image": 1,
    "a new pair": 1,
    "a pair less": 0,
    "a file's time": 0,
    "another type of values": N_ROWS,
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_meanwhile_is_parsed_again(root, tmp_path, monkeypatch, parsed, what):
    out = tmp_path / "out.h5"
    kill(root, out, N_ROWS - 1, monkeypatch)
    n_more = 0
    if what == "a contour":
        write_contour(root, "A1", 5, text=f"{SQUARE}2 5.5\n")
    elif what == "an image":
        write_dicom(root, "P1", "5.dcm", instance(gradient(seed=999), uid="1.9"))
    elif what == "a new pair":
        write_dicom(root, "P1", "0.dcm", instance(gradient(seed=998), uid="1.8"))
        write_contour(root, "A1", 0)
    elif what == "a pair less":
        (root / "dicoms/P1/5.dcm").unlink()
    elif what == "a file's time":
        os.utime(root / "dicoms/P1/5.dcm", (5, 5))
    else:
        wide = instance(gradient(seed=5), RescaleSlope=1, RescaleIntercept=40000)
        write_dicom(root, "P1", "5.dcm", wide)
        n_more = 9  # once to learn of it
    parsed.clear()
    build(root, out, resume=True)
    assert len(parsed) == CHANGES[what] + 8 * (what != "another type of values") + n_more
    build(root, tmp_path / "full.h5")
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


@pytest.mark.parametrize("what", ["options", "version"])
def test_rows_of_other_options_or_of_another_version_are_parsed_again(
    root, tmp_path, monkeypatch, parsed, what
):
    out = tmp_path / "out.h5"
    partial = kill(root, out, 100, monkeypatch)
    options = {}
    if what == "options":
        options = {"rasterizer": "pillow"}
    else:
        monkeypatch.setattr(file_format, "VERSION", "9.9.9")
    parsed.clear()
    result = build(root, out, resume=True, options=options)
    assert len(parsed) == N_ROWS
    how = "with other options (--rasterizer)" if what == "options" else f"by version {VERSION}"
    assert result.notes[-1] == f"no row of {partial.name} could be used: it was built {how}."
    build(root, tmp_path / "full.h5", options=options)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_options_that_choose_or_divide_rows_may_change(root, tmp_path, monkeypatch, parsed):
    out, options = tmp_path / "out.h5", {"split": (50, 50, 0), "folds": 2}
    kill(root, out, 100, monkeypatch)
    parsed.clear()
    build(root, out, resume=True, options=options)
    assert len(parsed) == N_ROWS - 96
    build(root, tmp_path / "full.h5", options=options)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_findings_on_rows_that_were_there_are_told_as_ever(root, tmp_path, monkeypatch):
    write_contour(root, "A1", 1, text="-3 2\n5 2\n5 6\n-3 6\n")  # partly outside
    write_contour(root, "A1", 2, text=f"{SQUARE}2 2\n")  # repeated points
    (root / contour_path("A1", 3)).write_text("1 2\nno number\n")
    out = tmp_path / "out.h5"
    kill(root, out, 100, monkeypatch)
    resumed = build(root, out, resume=True)
    expected = build(root, tmp_path / "full.h5")
    assert list(map(str, resumed.findings)) == list(map(str, expected.findings))
    assert {"contour-partly-outside", "contour-unreadable"} <= {
        one.code for one in resumed.findings
    }
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_rows_that_fail_late_leave_the_file_as_whole_as_ever(root, tmp_path, monkeypatch):
    path = root / "dicoms/P1/7.dcm"
    path.write_bytes(path.read_bytes()[:-40])  # its pixels are cut short
    write_contour(root, "A1", 9, text="2.2 2.2\n2.3 2.2\n2.3 2.3\n")  # no pixel centre inside
    out = tmp_path / "out.h5"
    kill(root, out, 100, monkeypatch)
    build(root, out, resume=True)
    build(root, tmp_path / "full.h5")
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_without_resume_the_partial_file_stays_until_out_is_written(
    root, tmp_path, monkeypatch, full
):
    out = tmp_path / "out.h5"
    partial = kill(root, out, 50, monkeypatch)
    useless = partial.with_name(".out.h5.0123456789abcdef.partial")
    useless.write_bytes(b"no journal")
    with monkeypatch.context() as patch:
        patch.setattr(render, "read_frame", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(root, out)
    assert partial.exists()
    assert not useless.exists()
    assert len(names(out)) == 2  # it and its journal
    build(root, out)
    assert out.read_bytes() == full
    assert names(out) == []


def test_with_nothing_there_it_is_an_ordinary_build_and_says_so(root, tmp_path, full):
    result = build(root, tmp_path / "out.h5", resume=True)
    assert result.notes == [
        "there was nothing to resume from: no killed build has left rows of out.h5."
    ]
    assert (tmp_path / "out.h5").read_bytes() == full


def test_the_file_does_not_tell_that_it_was_resumed(root, tmp_path, monkeypatch):
    kill(root, tmp_path / "out.h5", 50, monkeypatch)
    build(root, tmp_path / "out.h5", resume=True)
    assert "resume" not in open_dataset(tmp_path / "out.h5").attributes["options"]


def test_an_update_that_was_killed_is_resumed(root, tmp_path, monkeypatch, parsed):
    out = tmp_path / "out.h5"
    kill(root, out, 50, monkeypatch, update=True)
    parsed.clear()
    build(root, out, resume=True, update=True)
    assert len(parsed) == N_ROWS - 48
    for n in range(21, 61):  # the last rows of the file
        write_contour(root, "A2", n, text=f"{SQUARE}3 {5 + n / 1000}\n")
    parsed.clear()
    shutil.copy(out, tmp_path / "old.h5")
    partial = kill(root, out, 24, monkeypatch, update=True)
    assert journal.count_rows(partial)[0] == 80 + 24
    assert open_dataset(out)
    parsed.clear()
    build(root, out, resume=True, update=True)
    assert len(parsed) == 40 - 24
    build(root, tmp_path / "full.h5", options={"splits_from": str(tmp_path / "old.h5")})
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_the_audit_is_that_of_an_uninterrupted_build(tmp_path, monkeypatch):
    from etl.phantom.tree import write_phantom

    root, out, full = tmp_path / "data", tmp_path / "out.h5", tmp_path / "full.h5"
    write_phantom(root, patients=2, slices=8, phases=4)
    options = {"rows": 256, "columns": 256, "audit": True, "audit_contours": 3}
    kill(root, out, 20, monkeypatch, options=options)
    (root / "contourfiles/SYN-01/i-contours").joinpath(
        sorted(os.listdir(root / "contourfiles/SYN-01/i-contours"))[0]
    ).unlink()  # moves the choice of the contours that are audited, and all rows behind it
    build(root, out, resume=True, options=options)
    build(root, full, options=options)
    assert out.read_bytes() == full.read_bytes()


@pytest.mark.parametrize("kind", ["table", "rtstruct", "seg", "enhanced"])
def test_every_layout_is_resumed_to_the_bytes_of_a_full_build(tmp_path, monkeypatch, kind, parsed):
    from etl.phantom.objects import write_shapes

    root, out = tmp_path / "data", tmp_path / "out.h5"
    write_shapes(root, kind, patients=2, slices=12, seed=3)
    options = BuildOptions()
    with h5py.File(_built(root, tmp_path / "full.h5", options)) as file:
        n_rows = len(file["images"])
    size = {"rows": 256, "columns": 256, "contours": None, "partial": False, "audit": True}
    partial = kill(root, out, n_rows - 1, monkeypatch, options=size)
    n_noted, _ = journal.count_rows(partial)
    assert n_noted >= 8
    parsed.clear()
    build(root, out, resume=True, options=size)
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def _built(root, out, options):
    etl.build(root, out, options)
    return out


def test_a_journal_that_cannot_be_written_is_a_note(root, tmp_path, monkeypatch, full):
    real = os.write

    def fail(descriptor, data):
        if ".journal" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", fail)
    result = build(root, tmp_path / "out.h5")
    assert (tmp_path / "out.h5").read_bytes() == full
    assert "could not be written (no space left on device)" in result.notes[-1]


def test_a_journal_executes_nothing(root, tmp_path, monkeypatch):
    import pickle

    partial = kill(root, tmp_path / "out.h5", 50, monkeypatch)
    content = pickle.dumps(np.zeros)
    place = target.journal_path(partial)
    head = journal._FRAME.pack(len(content), 5, journal._digest(5, content))
    place.write_bytes(journal._MAGIC + head + content)
    with pytest.raises(pickle.UnpicklingError, match="expected plain values"):
        journal.read_begun(partial)


def test_the_journal_is_its_owners_and_holds_no_patient_id(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "data", [("P1", "A1")], range(1, 20), PatientID="4711")
    partial = kill(root, tmp_path / "out.h5", 16, monkeypatch)
    place = target.journal_path(partial)
    assert place.stat().st_mode & 0o777 == 0o600
    assert b"4711" not in place.read_bytes()


def test_the_command_says_what_is_left_and_goes_on(root, tmp_path, monkeypatch, full):
    out = tmp_path / "out.h5"
    arguments = ["build", str(root), str(out), "--size", f"{ROWS}x{COLUMNS}", "--workers", "1"]
    arguments += ["--contours", "i,o", "--partial", "--no-audit"]
    read_frame, n_read = render.read_frame, iter(range(50))
    with monkeypatch.context() as patch:
        patch.setattr(
            render,
            "read_frame",
            lambda *a: _interrupt() if next(n_read, None) is None else read_frame(*a),
        )
        stopped = CliRunner().invoke(cli, [*arguments, "--resume"])
    assert stopped.exit_code == 130
    assert "has 48 of 120 rows: --resume goes on with them." in stopped.stderr
    with monkeypatch.context() as patch:
        patch.setattr(render, "read_frame", _interrupt)
        other = CliRunner().invoke(cli, arguments)
    assert "has 48 of 120 rows: --resume goes on with them; this build removes it" in other.stderr
    done = CliRunner().invoke(cli, [*arguments, "--resume"])
    assert done.exit_code == 0, done.stderr
    assert "48 of 120 rows were taken over from .out.h5." in done.stderr
    assert open_dataset(out).manifest["row_xxh3"].size == N_ROWS
    assert names(out) == []


def test_a_build_with_resume_that_fails_leaves_its_rows(root, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    with monkeypatch.context() as patch:
        patch.setattr(hdf5_file, "finish", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(EtlError, match="no space left"):
            build(root, out, resume=True)
        assert len(names(out)) == 2
        patch.setattr(render, "read_frame", _interrupt)
        with pytest.raises(EtlError, match="no space left"):
            build(root, out, resume=True)  # every row is there
    assert build(root, out, resume=True).n_rows == N_ROWS
