"""What `describe --json-ld` writes is Croissant, by the library of its authors."""

import json
import logging

import pytest
from click.testing import CliRunner
from dataset_builder import write_dataset

from etl.cli import cli

mlcroissant = pytest.importorskip(
    "mlcroissant",
    reason="mlcroissant is not installed: make test-page",
    exc_type=ImportError,
)

# rdflib, which it reads with, warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CARD = """
name = "Hearts"
description = "Synthetic."
license = "CC0-1.0"
url = "https://example.org"
version = "1.0.0"
date_published = 2026-11-01
citation = "Nobody 2026"
annotation_protocol = "By one drawer"
creators = ["A. Author"]
"""


def described(tmp_path, *options, **content):
    out, about = tmp_path / "out of hearts.h5", tmp_path / "croissant.json"
    write_dataset(out, n_findings=0, **content)
    command = ["describe", str(out), "--json-ld", str(about), *options]
    assert CliRunner().invoke(cli, command).exit_code == 0
    return mlcroissant.Dataset(about), json.loads(about.read_text())


def test_a_stated_card_is_valid_without_a_warning(tmp_path, caplog):
    (tmp_path / "card.toml").write_text(CARD)
    options = ("--card", str(tmp_path / "card.toml"))
    with caplog.at_level(logging.WARNING):
        dataset, _ = described(tmp_path, *options, split=[0, 0, 0, 0, 1, 2, 2])
    issues = dataset.metadata.ctx.issues
    assert (issues.errors, issues.warnings) == (set(), set())
    assert caplog.text == ""  # such as on a context that readers do not expect
    assert dataset.metadata.data_annotation_protocol == ["By one drawer"]
    (file,) = dataset.metadata.distribution
    assert len(file.sha256) == 64
    assert [row["splits/n_rows"] for row in dataset.records("splits")] == [4, 1, 2]
    assert [row["labels/code"] for row in dataset.records("labels")] == [1, 2]


def test_without_a_card_it_is_valid_and_its_warnings_are_what_is_not_stated(tmp_path):
    dataset, about = described(tmp_path, fold=[0, 1, 0, 1, 0, 1, 0])
    issues = dataset.metadata.ctx.issues
    assert issues.errors == set()
    assert len(issues.warnings) == 4
    assert all("is recommended, but does not exist" in str(one) for one in issues.warnings)
    assert "license" not in about
    assert [row["folds/n_rows"] for row in dataset.records("folds")] == [4, 3]
