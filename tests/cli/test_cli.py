import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import COLUMNS, ROWS, contour_path, write_contour, write_dicom, write_tree
from click.testing import CliRunner

import etl.commands.log
import etl.output.target
import etl.pipeline
import loader
from etl.cli import cli
from etl.errors import EtlError
from etl.findings import FLAG_CODES
from etl.options import BuildOptions
from loader import format as file_format
from loader import open_dataset

SIZE = ["--size", f"{ROWS}x{COLUMNS}", "--no-audit"]
LAYOUT = "Layout link: found link.csv.\n"  # said first, on stderr


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")])


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_version_and_help():
    assert run("--version").output == f"dicom-etl, version {file_format.VERSION}\n"
    for command in ([], ["check"], ["build"], ["report"], ["phantom"]):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.output


def test_commands_show_in_the_order_a_user_runs_them():
    text = run("--help").output
    places = [text.index(f"\n  {name} ") for name in ("check", "build", "report", "phantom")]
    assert places == sorted(places)


def test_build_then_report(root, tmp_path):
    out = tmp_path / "out.h5"
    write_dicom(root, "P1", "9.dcm")
    result = run("build", root, out, *SIZE)
    assert result.exit_code == 0, result.output
    assert "6 rows" in result.stdout
    assert "image-no-contour" in result.stdout
    assert result.stderr == LAYOUT  # no progress bar where stderr is no terminal
    result = run("report", out)
    assert result.exit_code == 0
    assert "6 of 2 patients" in result.stdout
    assert json.loads(run("report", out, "--json").stdout)["n_rows"] == 6
    result = run("report", out, "--csv", tmp_path / "f.csv", "--overlays", tmp_path / "pictures")
    assert result.exit_code == 0
    assert (tmp_path / "f.csv").read_text("utf-8-sig").count("\n") == 2
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6
    (tmp_path / "pictures/P1_slice0077.png").touch()
    result = run("report", out, "--overlays", tmp_path / "pictures", "--force")
    assert result.stderr == (
        f"Note: {tmp_path / 'pictures'} has other files, which were left as they are: 1 "
        "in all, such as P1_slice0077.png.\n"
    )


def test_check(root, tmp_path):
    write_dicom(root, "P1", "3.IMA", b"")
    result = run("check", root, *SIZE[:2], "--workers", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "A build would write 6 of 6 pairs, of 2 patients" in result.stdout
    result = run("check", root, *SIZE[:2], "--full", "--json", "--csv", tmp_path / "f.csv")
    assert json.loads(result.stdout)["is_full"]
    assert "file-misnamed" in (tmp_path / "f.csv").read_text("utf-8-sig")
    result = run("check", root, *SIZE[:2], "--csv", tmp_path / "f.csv")
    assert (result.exit_code, result.stdout) == (1, "")
    result = run("check", root, *SIZE[:2], "--csv", tmp_path / "f.csv", "--force")
    assert result.stdout.endswith(f"Findings written to {tmp_path / 'f.csv'}.\n")


def test_check_fails_where_a_build_would_have_no_row(root):
    result = run("check", root, "--contours", "i,o", "--partial")
    assert result.exit_code == 1
    assert "image-size" in result.stdout
    assert result.stderr == "Error: Nothing to build: no usable pair of image and contour.\n"
    assert run("check", root / "nowhere").exit_code == 1
    assert run("check", root, "--partial").exit_code == 2


def test_the_options_of_check_are_those_of_build_and_reach_it(monkeypatch):
    seen = {}

    def check(data, options, **keywords):
        seen.update(data=data, options=options, **keywords)
        raise EtlError("stop here")

    import etl.check

    monkeypatch.setattr(etl.check, "check", check)
    result = run(
        "check", "DATA", "--layout", "link", "--contours", "i,o", "--size", "12X34",
        "--contour-origin", "1", "--partial", "--full", "--workers", "3",
    )  # fmt: skip
    assert result.output == "Error: stop here\n"
    assert seen == {
        "data": Path("DATA"), "workers": 3, "full": True, "progress": True,
        "options": BuildOptions(("i", "o"), 12, 34, contour_origin=1, partial=True, layout="link"),
    }  # fmt: skip
    run("check", "DATA", "--structures", "b,a")
    assert seen["options"] == BuildOptions(structures=("b", "a"))
    mine, builds = ({p.name: p for p in cli.commands[name].params} for name in ("check", "build"))
    own = {"full", "as_json", "csv_file", "force", "data"}
    for name in mine.keys() - own:
        assert mine[name].to_info_dict() == builds[name].to_info_dict()


def test_a_number_that_json_cannot_say_is_told(root, tmp_path):
    out = tmp_path / "out.h5"
    run("build", root, out, *SIZE)
    with h5py.File(out, "r+") as file:
        file.attrs["image_mean"] = np.nan
    assert run("report", out).exit_code == 0
    result = run("report", out, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not finite" in result.stderr


def test_out_h5_is_what_report_looks_for(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("build", "data", "out.h5", *SIZE).exit_code == 0
    assert "6 rows" in run("build", "data", "out.h5", *SIZE, "--force").stdout
    assert run("report").exit_code == 0


def test_options_reach_the_build(monkeypatch, tmp_path):
    seen = {}

    def build(data, out, options, **keywords):
        seen.update(data=data, out=out, options=options, **keywords)
        raise EtlError("stop here")

    monkeypatch.chdir(tmp_path)
    Path("DATA").mkdir()
    Path("DATA/link.csv").touch()
    monkeypatch.setattr(etl.pipeline, "build", build)
    result = run(
        "build", "DATA", "OUT", "--contours", "o,i", "--size", "12X34", "--rasterizer", "pillow",
        "--contour-origin", "1", "--partial", "--split", "60/20/20", "--split-seed", "7",
        "--same-person", "separate", "--folds", "4", "--workers", "3", "--strict", "--force",
        "--quiet",
        "--audit-contours", "9", "--exclude-flagged", "image-constant, area-jump,area-jump",
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.output == "Error: stop here\n"
    seen.pop("on_layout")("Layout link: not said, for --quiet.")
    assert seen == {
        "data": Path("DATA"), "out": Path("OUT"), "workers": 3, "force": True, "strict": True,
        "progress": False, "executor": None, "update": False, "paranoid": False, "cache": True,
        "resume": False, "sha256": False, "file_seconds": 60.0,
        "options": BuildOptions(
            ("i", "o"), 12, 34, "pillow", 1, partial=True,
            split=(60, 20, 20), split_seed=7, folds=4, same_person="separate",
            audit_contours=9, exclude_flagged=("area-jump", "image-constant"),
        ),
    }  # fmt: skip
    for arguments, expected in [
        ([], BuildOptions()),
        (["--no-qc"], BuildOptions(qc=False)),
        (["--no-audit"], BuildOptions(audit=False)),
        (["--audit-contours", "all"], BuildOptions(audit_contours=None)),
    ]:
        run("build", "DATA", "OUT", *arguments)
        assert seen["options"] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-audit", "--audit-contours", "9"], ["--split-seed", "7"],
        ["--same-person", "separate"], ["--folds", "2", "--same-person", "some"],
        ["--size", "256"], ["--size", "0x5"], ["--size", "1_0x5"], ["--size", "70000x5"],
        ["--split", "70/15"], ["--split", "70/15/16"], ["--split", "a/b/c"],
        ["--split", "nan/50/50"], ["--split", "-10/60/50"], ["--folds", "1"], ["--workers", "0"],
        ["--contours", "x"], ["--contour-origin", "2"], ["--rasterizer", "x"], ["--partial"],
        ["--split", "70/15/15", "--split-file", "s.csv"], ["--quiet", "--verbose"],
        ["--log-file", "out.h5"], ["--workers", "2", "--scheduler", "tcp://x:1"],
        ["--exclude-flagged", "nonsense"], ["--exclude-flagged", "area-jump,"],
        ["--no-qc", "--exclude-flagged", "area-jump"],
        ["--audit-contours", "0"], ["--audit-contours", "some"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_status_2(root, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = run("build", root, "out.h5", *arguments)
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert not (tmp_path / "out.h5").exists()


def test_failures_are_status_1_with_one_message(root, tmp_path):
    out = tmp_path / "out.h5"
    for arguments, words in [
        (("build", tmp_path / "nowhere", out), "no such file or folder"),
        (("build", root, tmp_path / "no" / "out.h5"), "no folder"),
        (("build", root, out), "no usable pair"),
        (("build", root, out, "--split-file", tmp_path / "no.csv"), "no such file"),
        (("build", root, out, "--log-file", tmp_path / "no" / "log"), "Log file"),
        (("report", tmp_path / "nothing.h5"), "no such file"),
        (("report", root / "link.csv"), "link.csv"),
        (("phantom", root), "exists|files|empty|phantom"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 1, arguments
        assert result.stdout == ""
        assert result.stderr.removeprefix(LAYOUT).startswith("Error: ")
        assert any(word in result.stderr for word in words.split("|")), result.stderr
        assert not out.exists()


def test_the_log_has_every_finding(root, tmp_path):
    write_contour(root, "A1", 2, text="broken")
    write_dicom(root, "P1", "9.dcm")
    log = tmp_path / "build.log"
    run("build", root, tmp_path / "out.h5", *SIZE, "--log-file", log)
    lines = log.read_text().splitlines()
    path = contour_path("A1", 2)
    assert lines[0] == f"dicom-etl {file_format.VERSION} build {root} {tmp_path / 'out.h5'}"
    assert re.fullmatch(r"started 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", lines[1])
    options = json.loads(lines[2].removeprefix("options "))
    assert (options["rows"], options["columns"], options["strict"]) == (ROWS, COLUMNS, False)
    assert lines[3] == LAYOUT.strip()
    assert lines[4].startswith(f"error: contour-unreadable: {path}: line 1")
    assert lines[5].startswith("info: image-no-contour: dicoms/P1/9.dcm")
    assert re.fullmatch(r"wrote 5 rows, 1 error, 1 info \(after \d+\.\d s\)", lines[6])
    run("build", root, tmp_path / "other.h5", "--log-file", log)  # of another size
    again = log.read_text().splitlines()
    assert again[: len(lines)] == lines
    assert sum("image-size" in line for line in again) == 6 + 1
    assert again[-1].startswith("stopped: Nothing to build: no usable pair")


@pytest.mark.parametrize("name", ["link.csv", "dicoms/P1/1.dcm", "link"])
def test_a_log_never_grows_in_a_file_that_is_none(root, tmp_path, name):
    (root / "link").symlink_to(root / "dicoms/P1/1.dcm")
    before = (root / name).read_bytes()
    result = run("build", root, tmp_path / "out.h5", *SIZE, "--log-file", root / name)
    assert result.exit_code == 1
    assert "is no log of dicom-etl" in result.stderr
    assert (root / name).read_bytes() == before
    assert not (tmp_path / "out.h5").exists()


def test_a_log_that_is_empty_is_filled(root, tmp_path):
    (tmp_path / "log").touch()
    assert (
        run("build", root, tmp_path / "out.h5", *SIZE, "--log-file", tmp_path / "log").exit_code
        == 0
    )
    assert (tmp_path / "log").read_text().startswith("dicom-etl ")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "long"])
def test_a_log_that_is_no_file_is_refused_at_once(root, tmp_path, kind):
    path = (
        Path(os.devnull)
        if kind == "device"
        else tmp_path / ("x" * 300 if kind == "long" else "log")
    )
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    result = run("build", root, tmp_path / "out.h5", *SIZE, "--log-file", path)
    assert result.exit_code == (2 if kind == "folder" else 1)
    assert "Error: " in result.stderr
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("when", ["write", "close"])
def test_a_log_that_fails_late_is_a_note(root, tmp_path, monkeypatch, when):
    class Full(io.StringIO):
        pass

    def fail(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Full()
    monkeypatch.setattr(etl.commands.log, "_open_log", lambda _path: log)
    monkeypatch.setattr(Full, when, fail)
    result = run("build", root, tmp_path / "out.h5", *SIZE, "--log-file", tmp_path / "log")
    assert result.exit_code == 0
    lines = result.stderr.splitlines(keepends=True)
    note = "Note: the log file is not whole: no space left on device.\n"
    assert sorted(lines) == [LAYOUT, note]
    assert open_dataset(tmp_path / "out.h5").images.shape[0] == 6
    monkeypatch.undo()


def test_no_path_steers_the_terminal(root, tmp_path):
    out, log = tmp_path / "o\x1b[2J\n.h5", tmp_path / "log"
    write_dicom(root, "P1", "9.dcm")
    result = run("build", root, out, *SIZE, "--log-file", log)
    assert result.exit_code == 0
    assert "o\\x1b[2J\\n.h5: 6 rows." in result.stdout
    again = run("build", root, out, *SIZE, "--log-file", log)
    assert again.exit_code == 1
    for text in (result.output, again.output, log.read_text()):
        assert "\x1b" not in text
        assert all("\n" not in line and line.isprintable() for line in text.splitlines())
    assert len(again.stderr.splitlines()) == 1  # OUT is checked before DATA is looked at


def test_a_name_that_the_terminal_lacks_is_shown_escaped(root, tmp_path):
    out = tmp_path / "Ж.h5"
    command = [sys.executable, "-m", "etl", "build", root, out, *SIZE, "--workers", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "1"}
    for status, words in ((0, b"\\u0416.h5: 6 rows."), (1, b"\\u0416.h5: exists already")):
        result = subprocess.run(
            command, env=environment, check=False, capture_output=True, timeout=600
        )
        assert result.returncode == status, result.stderr
        assert words in result.stdout + result.stderr


def test_verbose_lists_findings_and_quiet_prints_nothing(root, tmp_path):
    write_contour(root, "A1", 2, text="broken")
    result = run("build", root, tmp_path / "a.h5", *SIZE, "--verbose")
    assert "contour-unreadable" in result.stderr
    result = run("build", root, tmp_path / "b.h5", *SIZE, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_strict_fails_and_writes_nothing(root, tmp_path):
    write_contour(root, "A1", 2, text="broken")
    result = run("build", root, tmp_path / "out.h5", *SIZE, "--strict")
    assert result.exit_code == 1
    assert "contour-unreadable" in result.stderr
    assert not (tmp_path / "out.h5").exists()


def test_codes_that_flag_no_row_cannot_leave_any_out(root, tmp_path):
    for code in ("alignment-patient", "image-size", "no-such-code"):
        result = run("build", root, tmp_path / "out.h5", "--exclude-flagged", f"area-jump,{code}")
        assert result.exit_code == 2
        assert f"found '{code}'" in result.stderr
        assert ", ".join(FLAG_CODES) in result.stderr
    with pytest.raises(ValueError, match="image-size"):
        BuildOptions(exclude_flagged=("image-size",))


def test_rows_left_out_by_their_flags_are_listed(root, tmp_path):
    write_contour(root, "A1", 1, text="-5.5 0\n4.5 0\n4.5 5\n-5.5 5\n")
    out = tmp_path / "out.h5"
    result = run("build", root, out, *SIZE, "--exclude-flagged", "contour-partly-outside")
    assert result.exit_code == 0
    assert "5 rows" in result.stdout
    assert "row-excluded" in result.stdout
    words = " ".join(result.stdout.split())  # lines are wrapped
    assert "left out by --exclude-flagged contour-partly-outside: 50.0% of its area" in words


def test_a_report_fails_on_the_findings_it_is_told_to(root, tmp_path):
    write_contour(root, "A1", 2, text="broken")
    out = tmp_path / "out.h5"
    run("build", root, out, *SIZE)
    plain = run("report", out)
    for codes, status in (
        ("image-size", 0), ("contour-unreadable", 1), ("image-size,contour-unreadable", 1),
        ("no-such-code", 2),
    ):  # fmt: skip
        result = run("report", out, "--fail-on", codes)
        assert result.exit_code == status
        assert result.stdout == ("" if status == 2 else plain.stdout)
        assert ("contour-unreadable" in result.stderr) == (status > 0)
    result = run("report", out, "--json", "--fail-on", "contour-unreadable")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["n_rows"] == 5


@pytest.mark.parametrize(
    ("option", "line", "code"),
    [
        ("--no-qc", "  Checks    none: built with --no-qc", "area-jump"),
        ("--no-qc", "  Checks    none: built with --no-qc", "alignment-patient"),
        (
            "--no-audit",
            "  Alignment not measured: --no-audit, or all structures are masks",
            "alignment-patient",
        ),
    ],
)
def test_a_report_says_what_was_not_looked_for(root, tmp_path, option, line, code):
    out = tmp_path / "out.h5"
    run("build", root, out, *SIZE, option)
    assert line in run("report", out).stdout.splitlines()
    assert code in json.loads(run("report", out, "--json").stdout)["unchecked"]
    result = run("report", out, "--fail-on", f"image-size,{code}")
    assert result.exit_code == 1
    assert f"was built without the checks for {code}. Build it again" in result.stderr
    assert run("report", out, "--fail-on", "contour-partly-outside").exit_code == 0


def test_an_interrupt_is_status_130(root, tmp_path, monkeypatch):
    def interrupt(*_arguments, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(etl.pipeline, "build", interrupt)
    result = run("build", root, tmp_path / "out.h5")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted: nothing was written.\n"
    monkeypatch.setattr(loader, "open_dataset", interrupt)
    result = run("report", tmp_path / "out.h5")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "Interrupted: nothing was written.\n"),
        (signal.SIGTERM, 143, "Stopped by SIGTERM: nothing was written.\n"),
        (signal.SIGHUP, 129, "Stopped by SIGHUP: nothing was written.\n"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_real_signal_leaves_nothing_behind(tmp_path, number, status, message, workers):
    # However busy the machine is, the signal comes when rows are written and others are not.
    code = (
        "import time\n"
        "from etl import render\n"
        "from etl.cli import main\n"
        "from etl.workers import chunks\n"
        "def wait_for_signal(first, *_):\n"
        "    print('at row', first, flush=True)\n"
        "    time.sleep(600)\n"
        "shown = render._shown\n"
        "render._shown = lambda parts, bar, _: shown(parts, bar, wait_for_signal)\n"
        "chunks.MAX_PAIRS = 2\n"
        "main()\n"
    )
    root, out = write_tree(tmp_path / "data", slices=range(1, 20)), tmp_path / "out.h5"
    command = [sys.executable, "-c", code, "build", root, out, *SIZE, "--workers", workers]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "at row 0\n"
        assert len(list(tmp_path.glob(".out.h5.*"))) >= 2
        process.send_signal(number)
        _, messages = process.communicate()
    assert process.returncode == status, messages
    assert messages.endswith(message)
    assert "Traceback" not in messages
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_phantom_builds_without_a_finding_but_info(tmp_path):
    result = run(
        "phantom", tmp_path / "data", "--patients", 2, "--slices", 3, "--phases", 3, "--seed", 4
    )
    assert result.exit_code == 0, result.output
    assert "2 patients, 18 DICOM files" in result.stdout
    result = run("build", tmp_path / "data", tmp_path / "out.h5", "--contours", "i,o", "--partial")
    assert result.exit_code == 0, result.output
    findings = open_dataset(tmp_path / "out.h5").findings
    assert set(findings["severity"].tolist()) == {"info"}


def test_a_message_names_the_folder_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("build", "nowhere", "out.h5").stderr.startswith(
        "Error: Input not usable: nowhere: no such file or folder."
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the platform has no /dev/full")
def test_a_full_stdout_is_an_error_in_words(root, tmp_path):
    out = tmp_path / "out.h5"
    run("build", root, out, *SIZE)
    command = [sys.executable, "-m", "etl", "report", out]
    with open("/dev/full", "w") as full:
        run_ = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run_.returncode == 1
    assert run_.stderr == "Error: Not all was printed: stdout: no space left on device.\n"


def test_the_help_shows_each_command_on_its_line():
    assert "\n  dicom-etl report out.h5 " in run("--help").stdout


def test_quiet_prints_nothing_where_the_build_succeeds(root, tmp_path):
    write_contour(root, "A1", 2, text="broken")
    result = run("build", root, tmp_path / "out.h5", *SIZE, "--quiet", "--split", "70/15/15")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="the platform closes streams otherwise")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_costs_no_row(root, tmp_path, closed):
    out = tmp_path / "out.h5"
    command = f"{sys.executable} -m etl build {root} {out} --size {SIZE[1]} {closed}"
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0
    assert len(open_dataset(out)) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the platform has no /dev/full")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("options", [[], ["--verbose"], ["--quiet"]])
def test_a_file_that_is_whole_is_a_success_whatever_cannot_be_printed(
    root, tmp_path, stream, options
):
    write_contour(root, "A1", 2, text="broken")
    out = tmp_path / "out.h5"
    command = [sys.executable, "-m", "etl", "build", root, out, *SIZE, *options]
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            command, **{stream: full, other: subprocess.PIPE}, text=True, check=False
        )
    assert found.returncode == 0
    assert len(open_dataset(out)) == 5
    if stream == "stdout" and options != ["--quiet"]:
        note = f"{out} is written, but not all was printed: no space left on device."
        assert found.stderr.endswith(f"Note: {note}\n")
    elif stream == "stderr":
        assert ("Wrote" in found.stdout) == (options != ["--quiet"])


def test_a_reader_that_has_gone_makes_no_failure_of_a_file_that_is_whole(root, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "etl", "build", root, tmp_path / "out.h5", *SIZE]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert found.returncode == 0
    assert "is written, but not all was printed: broken pipe" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_file_is_whole_changes_nothing(root, tmp_path, number):
    code = (
        "import os, sys, etl.cli, etl.commands.build as command\n"
        "list_findings = command._list_findings\n"
        "def listed(*arguments, **keywords):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    list_findings(*arguments, **keywords)\n"
        "command._list_findings = listed\n"
        "etl.cli.main()\n"
    )
    out = tmp_path / "out.h5"
    out.write_bytes(b"")
    command = [sys.executable, "-c", code, "build", root, out, *SIZE, "--force"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0
    assert "Interrupted" not in found.stderr
    assert "Stopped" not in found.stderr
    assert "Wrote" in found.stdout
    assert len(open_dataset(out)) == 6


def test_a_second_build_to_one_file_is_refused(root, tmp_path):
    out = tmp_path / "out.h5"
    with etl.output.target.replacing(out, force=True) as partial:
        result = run("build", root, out, *SIZE)
        partial.write_bytes(b"")
    assert result.exit_code == 1
    assert f"process {os.getpid()} on " in result.stderr
    assert "is writing it. Wait for it, or give another name." in result.stderr
