import csv
import io
import json

import h5py
import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_contour, write_dicom, write_tree
from click.testing import CliRunner

from etl.cli import cli
from etl.report.text import Terminal, findings_text
from loader import open_dataset

SIZE = ["--size", f"{ROWS}x{COLUMNS}", "--no-audit"]
BOTH = ["--contours", "i,o", "--partial"]
OUTSIDE = "-5.5 0\n4.5 0\n4.5 5\n-5.5 5\n"


@pytest.fixture
def root(tmp_path):
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")])
    write_contour(root, "A1", 2, text="broken")
    write_contour(root, "A2", 1, text=OUTSIDE)
    return root


@pytest.fixture
def out(root, tmp_path):
    run("build", root, tmp_path / "out.h5", *SIZE)
    return tmp_path / "out.h5"


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def words(text):
    return " ".join(text.split())  # lines are wrapped


def test_build_and_report_begin_with_what_is_wrong(root, tmp_path):
    built = run("build", root, tmp_path / "out.h5", *SIZE)
    reported = run("report", tmp_path / "out.h5").stdout
    for text in (built.stdout, reported):
        heading = text.index("What is wrong, most harmful first")
        assert heading < text.index("Errors:")
        assert "1. P1 (A1): contour-unreadable: contourfiles/A1/" in words(text)
        assert (
            "2. P2 (A2): contour-partly-outside (slice 1): contourfiles/A2/i-contours/"
            "IM-0001-0001-icontour-manual.txt 50.0% of its area lies outside the 12x14 image and "
            "is cut off. Look at it: dicom-etl report FILE --overlays DIR --code "
            "contour-partly-outside --patient P2."
        ) in words(text)
    diagnoses = json.loads(run("report", tmp_path / "out.h5", "--json").stdout)["diagnoses"]
    assert [(one["code"], one["patient_id"], one["rows"]) for one in diagnoses] == [
        ("contour-unreadable", "P1", []), ("contour-partly-outside", "P2", [2]),
    ]  # fmt: skip


def test_where_nothing_is_wrong_nothing_is_said_of_it(tmp_path):
    root = write_tree(tmp_path / "data")
    result = run("build", root, tmp_path / "out.h5", *SIZE)
    assert "What is wrong" not in result.stdout
    assert "What is wrong" not in run("report", tmp_path / "out.h5").stdout


def test_a_row_list_on_stdout_is_all_that_is_printed(out):
    result = run("report", out, "--csv", "-", "--severity", "warning")
    assert result.exit_code == 0
    (line,) = csv.DictReader(io.StringIO(result.stdout))
    assert (line["patient_id"], line["slice"], line["code"]) == (
        "P2",
        "1",
        "contour-partly-outside",
    )
    assert result.stderr == ""
    assert run("report", out, "--csv", "-", "--json").exit_code == 2


def test_filters_choose_what_text_and_json_show(out):
    text = run("report", out, "--severity", "error").stdout
    assert "contour-unreadable" in text
    assert "contour-partly-outside" not in text
    assert "Shown     findings of severity error" in text
    assert "5 of 2 patients" in text
    plain = json.loads(run("report", out, "--patient", "A2", "--json").stdout)
    assert [group["code"] for group in plain["findings"]] == ["contour-partly-outside"]
    assert [one["patient_id"] for one in plain["diagnoses"]] == ["P2"]
    assert plain["selection"] == {"severities": [], "codes": [], "patients": ["A2"]}
    nothing = run("report", out, "--code", "area-jump").stdout
    assert "No such finding." in nothing
    for option, value in (("--severity", "bad"), ("--code", "bad")):
        assert run("report", out, option, value).exit_code == 2


def test_a_patient_who_is_not_in_the_file_is_told(out):
    """Their "No such finding." would else read as if nothing were wrong with them."""
    run = CliRunner().invoke(cli, ["report", str(out), "--patient", "P1", "--patient", "Q1"])
    assert run.exit_code == 0
    assert run.stderr == f"Note: --patient: {out} has no row and no finding of 'Q1'.\n"
    run = CliRunner().invoke(cli, ["report", str(out), "--patient", "P1", "--json"])
    assert run.stderr == ""


def test_a_filter_hides_nothing_from_fail_on(out):
    result = run("report", out, "--severity", "warning", "--fail-on", "contour-unreadable")
    assert result.exit_code == 1
    assert "has findings of contour-unreadable" in result.stderr


def test_overlays_and_contact_sheet_have_the_chosen_rows(out, tmp_path):
    folder, sheet = tmp_path / "pictures", tmp_path / "sheet.png"
    drawn = ["--overlays", folder, "--contact-sheet", sheet]
    result = run("report", out, *drawn, "--code", "contour-partly-outside")
    assert result.exit_code == 0, result.output
    assert [path.name for path in folder.iterdir()] == ["P2_slice0001.png"]
    assert f"Contact sheet written to {sheet}." in words(result.stdout)
    result = run("report", out, "--overlays", folder, "--patient", "P1", "--force")
    assert len(list(folder.iterdir())) == 3
    result = run("report", out, "--contact-sheet", tmp_path / "none.png", "--code", "area-jump")
    assert result.exit_code == 0
    assert result.stderr == "Note: no row is chosen; nothing is drawn.\n"
    assert not (tmp_path / "none.png").exists()
    assert "none.png" not in result.stdout


def test_compare_excludes_the_filters(out):
    result = run("report", out, "--compare", out, "--severity", "error")
    assert result.exit_code == 2
    assert "--compare excludes --severity" in result.stderr


# ------------------------------------------------------------------------------- terminals


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "has_colour"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_where_nobody_forbids_it(monkeypatch, environment, has_colour):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Terminal.of(Screen()) == Terminal(60, has_colour)
    assert Terminal.of(io.StringIO()) == Terminal()


def test_lines_are_as_wide_as_the_terminal(out):
    from etl.report.summary import summarise
    from etl.report.text import summary_text

    summary = summarise(open_dataset(out))
    for width in (60, 200):
        lines = list(summary_text(summary, Terminal(width)))[1:]
        long = [line for line in lines if len(line) > width]
        assert [
            line for line in long if not any(len(word) > width - 13 for word in line.split())
        ] == []
    narrow, wide = (len(list(summary_text(summary, Terminal(width)))) for width in (60, 200))
    assert narrow > wide


def test_errors_and_warnings_have_their_colours(out):
    from etl.report.findings import group_findings, read_findings

    groups = group_findings(read_findings(open_dataset(out)))
    lines = list(findings_text(groups, "out.h5", (), Terminal(80, has_colour=True)))
    assert lines[1].startswith("\x1b[31mErrors:")
    assert [line for line in lines if line.startswith("\x1b[33mWarnings:")]
    assert "\x1b" not in "".join(findings_text(groups, "out.h5", (), Terminal(80)))


# ------------------------------------------------------------------------------- what to leave out


def test_a_build_leaves_out_what_a_list_says(root, out, tmp_path):
    listed = tmp_path / "rows.csv"
    listed.write_text("patient_id,slice,decision\nP2,1,redraw\nP2,2,accept\nP7,1,\nP2,,\n")
    result = run("build", root, out, *SIZE, "--exclude-file", listed, "--force")
    assert result.exit_code == 0, result.output
    assert "4 rows." in result.stdout
    assert "left out by --exclude-file, line 2 (redraw)." in words(result.stdout)
    assert "Note: --exclude-file: 1 line without slice skipped." in result.stderr
    assert "line 4: patient 'P7', slice 1." in result.stderr
    (tmp_path / "rows.csv").write_text("patient_id,slice\nP2,x\n")
    result = run("build", root, tmp_path / "new.h5", *SIZE, "--exclude-file", listed)
    assert result.exit_code == 1
    assert "Row list not usable" in result.stderr
    assert not (tmp_path / "new.h5").exists()


def test_the_structures_of_a_list_are_left_out_of_rows_that_stay(root, out, tmp_path):
    listed = tmp_path / "rows.csv"
    listed.write_text("patient_id,slice,structure\nP2,1,i-contour\nP2,2,o-contour\n")
    options = [*SIZE, *BOTH, "--exclude-file", listed, "--exclude-structures", "--force"]
    assert run("build", root, out, *options).exit_code == 0
    data = open_dataset(out)
    assert data.manifest["drawn_1"].tolist() == [1, 1, 0, 1, 1]
    assert data.manifest["drawn_2"].tolist() == [1, 1, 1, 0, 1]
    assert (data.masks[2] == 1).sum() == 0
    assert sorted(label for label, _ in data.polygons(2)) == [2]
    assert run("verify", out).exit_code == 0


def test_of_one_patient_flagged_rows_are_left_out(root, out, tmp_path):
    write_contour(root, "A1", 1, text=OUTSIDE)
    code = "contour-partly-outside"
    for named, n_rows in ((code, 3), (f"{code}:P1", 4), (f"{code}:A2", 4), (f"{code}:P9", 5)):
        result = run("build", root, out, *SIZE, "--exclude-flagged", named, "--force")
        assert f"{n_rows} rows." in result.stdout
        note = "Note: --exclude-flagged: no row is of 'P9'." in result.stderr
        assert note == named.endswith("P9")
    result = run("build", root, out, *SIZE, "--exclude-flagged", f"{code}:", "--force")
    assert result.exit_code == 2
    assert "expected a patient after" in result.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--exclude-structures"], "--exclude-structures needs --exclude-flagged"),
        (
            ["--contours", "i,o", "--exclude-structures", "--exclude-flagged", "area-jump"],
            "give --partial as well",
        ),
    ],
)
def test_structures_are_left_out_only_where_that_can_be(root, tmp_path, options, problem):
    result = run("build", root, tmp_path / "new.h5", *SIZE, *options)
    assert result.exit_code == 2
    assert problem in result.stderr


# ------------------------------------------------------------------------------- numbers and names


def test_one_is_no_plural(tmp_path):
    root = write_tree(tmp_path / "data", slices=[1])
    write_dicom(root, "P1", "2.dcm")
    result = run("build", root, tmp_path / "out.h5", *SIZE)
    assert result.stdout.startswith(f"Wrote {tmp_path / 'out.h5'}: 1 row.\n")
    text = run("report", tmp_path / "out.h5").stdout
    assert "1 of 1 patient," in text
    assert "1 patient, 2 DICOM files, 1 i-contour, 1 o-contour, 0 other files" in text
    assert "in 1 row, 49 pixels" in text


def test_the_command_line_types_options_where_python_has_arguments(root, out):
    result = run("build", root, out, *SIZE)
    assert result.exit_code == 1
    assert "Use --force to replace it, or --update to take over its rows." in result.stderr
    result = run("build", root, out, *SIZE, "--strict", "--force")
    assert "Build stopped by --strict: 1 finding of severity error." in result.stderr
    assert "build without --strict" in result.stderr
    assert result.stderr.endswith("See all with --verbose or --log-file FILE.\n")


def test_the_split_of_a_file_is_written_as_a_build_reads_it(tmp_path):
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2"), ("-P3", "A3")])
    out, again = tmp_path / "out.h5", tmp_path / "again.h5"
    run("build", root, out, *SIZE, "--split", "40/30/30", "--folds", "2")
    printed = run("report", out, "--splits-csv", "-")
    assert printed.stdout.splitlines()[0] == "patient_id,split,fold"
    assert len(printed.stdout.splitlines()) == 4
    result = run("report", out, "--splits-csv", tmp_path / "split.csv")
    assert f"Splits written to {tmp_path / 'split.csv'}." in result.stdout
    run("build", root, again, *SIZE, "--split-file", tmp_path / "split.csv")
    for name in ("split", "fold"):
        one, other = (open_dataset(path).manifest[name].tolist() for path in (out, again))
        assert one == other
    kept = tmp_path / "kept.h5"
    result = run("build", root, kept, *SIZE, "--splits-from", out)
    assert "Note: 3 of 3 patients keep the split that they have in out.h5, new: 0;" in (
        result.stderr
    )
    assert open_dataset(kept).manifest["split"].tolist() == one_split(out)
    both = run("report", out, "--splits-csv", "-", "--csv", "-")
    assert both.exit_code == 2
    assert "both go to stdout" in both.stderr


def one_split(path):
    return open_dataset(path).manifest["split"].tolist()


def test_a_file_without_a_split_has_none_to_write(out):
    result = run("report", out, "--splits-csv", "-")
    assert result.exit_code == 1
    assert "Splits not listed" in result.stderr
    assert "--split" in result.stderr


@pytest.mark.parametrize("options", [("--gallery", "5"), ("--pseudonyms",)])
def test_options_of_the_page_need_the_page(out, options):
    found = CliRunner().invoke(cli, ["report", str(out), *options])
    assert found.exit_code == 2
    assert f"{options[0]}: only with --html." in found.output


def test_the_page_is_written_and_said(out, tmp_path):
    page = tmp_path / "page.html"
    found = CliRunner().invoke(cli, ["report", str(out), "--html", str(page), "--gallery", "1"])
    assert found.exit_code == 0
    assert f"Page written to {page}." in found.output
    assert page.read_text().count("data:image/jpeg") == 1


def test_checks_that_came_after_the_build_are_said_to_be_missing(out):
    with h5py.File(out, "r+") as file:
        known = json.loads(file.attrs["flag_codes"])
        older = json.dumps(known[: known.index("near-duplicate")])
        file.attrs["flag_codes"] = np.bytes_(older)
    assert "near-duplicate" in json.loads(run("report", out, "--json").stdout)["unchecked"]
    result = run("report", out, "--fail-on", "near-duplicate")
    assert "was built without the checks for near-duplicate" in result.stderr


def test_a_folder_of_pages_is_written_and_said(out, tmp_path):
    found = run("report", out, "--html", f"{tmp_path / 'pages'}/")
    assert f"Page written to {tmp_path / 'pages'}." in found.output
    assert (tmp_path / "pages/patient-0001.html").exists()


@pytest.mark.parametrize("pseudonyms", [False, True])
def test_pages_that_an_earlier_report_has_left_are_told(out, tmp_path, pseudonyms):
    """A page of a patient who is gone stays in the folder, with the id, whatever is written now."""
    folder = tmp_path / "pages"
    command = ["report", str(out), "--html", f"{folder}/", *["--pseudonyms"] * pseudonyms]
    run = CliRunner().invoke(cli, command)
    assert run.exit_code == 0, run.output
    assert "Note:" not in run.stderr
    left = folder / "patient-0009.html"
    left.write_text("P9")
    run = CliRunner().invoke(cli, [*command, "--force"])
    assert f"Note: {folder} has other files, which were left as they are: 1 in all, such as " in (
        run.stderr
    )
    assert "patient-0009.html" in run.stderr
    assert ("these may name patients" in run.stderr) == pseudonyms
    assert left.read_text() == "P9"


def test_the_comparison_is_printed_and_in_the_page(out, root, tmp_path):
    old, page = tmp_path / "old.h5", tmp_path / "page.html"
    run("build", root, old, *SIZE, "--rasterizer", "pillow")
    found = run("report", out, "--compare", old, "--html", page, "--gallery", "9")
    assert found.exit_code == 0
    assert "Differs   option rasterizer: 'pillow', now 'center'" in found.output
    assert "Nothing was rejected" not in found.output
    assert '"n_changed": ' in page.read_text()
    refused = run("report", out, "--compare", old, "--html", page, "--csv", "-")
    assert refused.exit_code == 2
    assert "--compare excludes --csv." in refused.output
