"""The data card: facts of the file, the owners' words, and what nobody has stated."""

import hashlib
import json

import pytest
from click.testing import CliRunner
from dataset_builder import write_dataset

import loader
from etl.cli import cli
from etl.errors import EtlError
from etl.report.card import Card, Creator, describe, read_card, sha256
from etl.report.croissant import croissant
from etl.report.summary import summarise

OPTIONS = {
    "contours": ["i"],
    "split_file": "/home/someone/split.csv",
    "exclude_file": "/home/someone/rows.csv",
    "exclude_flagged": ["area-jump:P7"],
}
WHOLE = """
name = "Hearts | of <b>phantoms</b>"
description = "Two\\nlines"
license = "CC0-1.0"
url = "https://example.org"
version = "1.0.0"
date_published = 2026-11-01
citation = "Nobody 2026"
collection = "computed"
annotation_protocol = "By one drawer"
intended_use = "tests"
limitations = "synthetic"
personal_information = "none"
keywords = ["a", "b"]
creators = ["A. Author", {name = "An Institute", kind = "organization", url = "https://i.org"}]
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(
        path, split=[0, 0, 0, 0, 1, 2, 2], attributes={"options": json.dumps(OPTIONS)}, n_findings=0
    )
    return path


@pytest.fixture
def card(tmp_path):
    file = tmp_path / "card.toml"
    file.write_text(WHOLE)
    return read_card(file)


def summary_of(path):
    return summarise(loader.open_dataset(path), [])


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_the_digest_is_that_of_the_files_bytes(path):
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256(loader.open_dataset(path)) == expected


def test_the_card_has_the_facts_and_the_owners_words(path, card):
    text = "\n".join(describe(summary_of(path), card, "abc123"))
    assert text.startswith("# Hearts \\| of \\<b\\>phantoms\\</b\\>\n\nTwo\nlines\n")
    for line in (
        "| SHA-256 | abc123 |",
        "| Rows | 7 of 7 patients |",
        "| Masks | the code of one structure in each pixel, uint8 |",
        "| train | 4 | 4 |",
        "| test | 2 | 2 |",
        "No patient is in two parts of the split.",
        "By one drawer",
        "- A. Author",
        "- An Institute (https://i.org)",
        "| Published | 2026-11-01 |",
        "| Keywords | a, b |",
    ):
        assert line in text.splitlines()
    assert "Not stated" not in text


def test_what_nobody_states_is_said_and_never_made_up(path):
    card = Card()
    text = "\n".join(describe(summary_of(path), card, "abc123"))
    for key in card.not_stated:
        if key != "name":  # the file's
            assert f"Not stated (`{key}` in the card file)." in text
    about = croissant(summary_of(path), card, "abc123")
    made_up = {"license", "creator", "url", "version", "citeAs", "datePublished", "keywords"}
    assert made_up & set(about) == set()
    assert about["name"] == "out"


def test_croissant_has_the_owners_words_the_digest_and_the_counts(path, card):
    about = croissant(summary_of(path), card, "abc123")
    (file,) = about["distribution"]
    assert (file["contentUrl"], file["sha256"]) == ("out.h5", "abc123")
    assert file["contentSize"] == f"{path.stat().st_size} B"
    assert about["license"] == "CC0-1.0"
    assert about["rai:dataAnnotationProtocol"] == "By one drawer"
    assert about["creator"][1] == {
        "@type": "sc:Organization",
        "name": "An Institute",
        "url": "https://i.org",
    }
    sets = {one["@id"]: one["data"] for one in about["recordSet"]}
    assert sets["splits"][0] == {
        "splits/name": "train",
        "splits/url": "cr:TrainingSplit",
        "splits/n_patients": 4,
        "splits/n_rows": 4,
    }
    assert [row["labels/code"] for row in sets["labels"]] == [1, 2]


def test_no_patient_and_no_path_of_the_builder_is_described(path):
    dataset = loader.open_dataset(path)
    summary = summarise(dataset)
    text = "\n".join(describe(summary, Card(), "")) + json.dumps(croissant(summary, Card(), ""))
    told = [*dataset.manifest["patient_id"].tolist(), *dataset.manifest["dicom_path"].tolist()]
    told += ["/home/someone", "P7", str(path.parent)]
    assert [one for one in told if one in text] == []
    assert "area-jump" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("licence = 'x'", "found 'licence'"),
        ("license = 3", "license: expected text, found int"),
        ("keywords = 'a'", "keywords: expected a list, found str"),
        ("creators = [{kind = 'person'}]", "with a name"),
        ("creators = [{name = 'a', orcid = '1'}]", "found 'orcid'"),
        ("creators = [{name = 'a', kind = 'group'}]", "person or organization"),
        ("date_published = 'soon'", "soon"),
        ("license", "Expected '=' after a key"),
    ],
)
def test_a_card_that_is_wrong_is_a_message(tmp_path, text, why):
    file = tmp_path / "card.toml"
    file.write_text(text)
    with pytest.raises(EtlError, match=why) as error:
        read_card(file)
    assert str(error.value).startswith(f"Card not usable: {file}: ")


def test_a_card_that_is_not_there_is_a_message(tmp_path):
    with pytest.raises(EtlError, match="no such file"):
        read_card(tmp_path / "card.toml")


def test_a_creator_is_a_person_unless_said():
    assert Creator("A").kind == "person"


def test_the_card_goes_to_stdout_and_what_is_missing_to_stderr(path):
    found = run("describe", path)
    assert found.exit_code == 0
    assert found.stdout.startswith("# out.h5\n")
    assert "Note: not stated: name, description, license" in found.stderr


def test_json_ld_alone_on_stdout_is_json(path):
    found = run("describe", path, "--json-ld", "-")
    assert json.loads(found.stdout)["@type"] == "sc:Dataset"


def test_both_are_written_and_kept_unless_forced(path, tmp_path):
    markdown, json_ld = tmp_path / "card.md", tmp_path / "croissant.json"
    options = ("describe", path, "--markdown", markdown, "--json-ld", json_ld)
    assert run(*options).stdout == ""
    assert json.loads(json_ld.read_text())["distribution"][0]["sha256"] in markdown.read_text()
    again = run(*options)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert run(*options, "--force").exit_code == 0


def test_one_stdout_takes_one_description(path):
    found = run("describe", path, "--markdown", "-", "--json-ld", "-")
    assert found.exit_code == 2
    assert "both go to stdout" in found.stderr
