import csv
import io
import json

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from dataset_builder import write_dataset

from etl.cli import cli
from etl.errors import EtlError
from etl.findings import FindingRow
from etl.report.predictions import agreement, disagreements, merged
from loader import open_dataset

N, SIDE = 12, 16


@pytest.fixture
def squares(tmp_path):
    """Write a file whose masks are a square of label 1 in a larger square of label 2."""
    return write_squares(tmp_path / "out.h5")


def write_squares(path, change=None, drawn=None):
    masks = np.zeros((N, SIDE, SIDE), np.uint8)
    masks[:, 3:13, 3:13] = 2
    masks[:, 5:11, 5:11] = 1
    if change is not None:
        change(masks)
    write_dataset(path, n=N, rows=SIDE, columns=SIDE, manifest=drawn, n_findings=0)
    with h5py.File(path, "r+") as file:
        file["masks"][...] = masks
        for code in (1, 2):
            file[f"manifest/n_pixels_{code}"][...] = (masks == code).sum((1, 2))
    return open_dataset(path)


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "model.npz", **arrays)
    return tmp_path / "model.npz"


def words_of(text):
    return " ".join(text.split())  # lines are wrapped


def slow_scores(mask, label, chances):
    """Return Dice and quality, pixel by pixel."""
    both = drawn = predicted = 0
    trust = []
    for place in np.ndindex(mask.shape):
        if mask[place] == 255:
            continue
        is_drawn, is_predicted = mask[place] == label, chances[place] >= 0.5
        both += is_drawn and is_predicted
        drawn += is_drawn
        predicted += is_predicted
        if is_drawn or is_predicted:
            trust.append(chances[place] if is_drawn else 1 - chances[place])
    return 2 * both / (drawn + predicted), sum(trust) / len(trust)


def test_scores_are_those_of_each_pixel_counted_one_by_one(tmp_path):
    def ignore(masks):
        masks[4, 10:, :] = 255

    data = write_squares(tmp_path / "out.h5", ignore)
    chances = np.random.default_rng(0).random((N, 2, SIDE, SIDE)).astype(np.float32)
    found = agreement(data, saved(tmp_path, probabilities=chances))
    assert len(found.scores) == 2 * N
    assert found.scores == sorted(found.scores, key=lambda one: one.quality)
    for score in found.scores:
        slow = slow_scores(data.masks[score.row], score.label, chances[score.row, score.label - 1])
        assert (score.dice, score.quality) == pytest.approx(slow)


def test_of_label_maps_quality_is_the_jaccard_index(squares, tmp_path):
    guess = squares.masks.copy()
    guess[5] = np.roll(guess[5], 3, axis=1)  # 36 pixels of label 1, 18 of them in both
    found = agreement(squares, saved(tmp_path, predictions=guess))
    worst = min((score for score in found.scores if score.label == 1), key=lambda one: one.dice)
    assert (worst.row, worst.n_drawn, worst.n_predicted) == (5, 36, 36)
    assert (worst.dice, worst.quality) == pytest.approx((0.5, 18 / 54))
    assert {score.quality for score in found.scores if score.row != 5} == {1.0}


def test_softmax_takes_the_likeliest_class_and_sigmoid_each_of_half(squares, tmp_path):
    sigmoid = np.full((N, 2, SIDE, SIDE), 0.4)
    softmax = np.stack([np.full((N, SIDE, SIDE), 0.2), *np.moveaxis(sigmoid, 1, 0)], axis=1)
    dice = [
        {score.label: score.dice for score in agreement(squares, path).scores if score.row == 0}
        for path in (saved(tmp_path, probabilities=p) for p in (sigmoid, softmax))
    ]
    assert dice[0] == {1: 0, 2: 0}
    assert dice[1][1] == pytest.approx(2 * 36 / (36 + SIDE * SIDE))  # the first of two equal ones
    assert dice[1][2] == 0


def test_rows_say_which_row_each_prediction_is_of(squares, tmp_path):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["predictions"] = squares.masks[[7, 2]]
        file["rows"] = [7, 2]
        file.attrs["dataset_id"] = squares.dataset_id
    found = agreement(squares, tmp_path / "model.h5")
    assert {score.row for score in found.scores} == {2, 7}
    assert found.n_rows == 2
    assert {score.dice for score in found.scores} == {1.0}


def test_structures_that_were_not_drawn_are_not_scored(tmp_path):
    drawn = {"drawn_1": [1] * N, "drawn_2": [0] + [1] * (N - 1)}
    data = write_squares(tmp_path / "out.h5", drawn=drawn)
    found = agreement(data, saved(tmp_path, predictions=data.masks))
    assert (0, 2) not in {(score.row, score.label) for score in found.scores}
    assert len(found.scores) == 2 * N - 1


def test_a_structure_that_is_nowhere_in_both_agrees(tmp_path):
    def without(masks):
        masks[0][masks[0] == 1] = 2

    data = write_squares(tmp_path / "out.h5", without, {"drawn_1": [1] * N, "drawn_2": [1] * N})
    found = agreement(data, saved(tmp_path, predictions=data.masks))
    (score,) = [one for one in found.scores if (one.row, one.label) == (0, 1)]
    assert score[2:] == (0, 0, 1.0, 1.0)


def test_only_rows_far_under_the_median_are_findings(squares, tmp_path):
    guess = np.stack([np.roll(mask, k % 2, axis=1) for k, mask in enumerate(squares.masks)])
    guess[5] = np.roll(squares.masks[5], 4, axis=1)
    found = agreement(squares, saved(tmp_path, predictions=guess))
    said = disagreements(squares, found)
    assert {(one.row, one.label) for one in said} == {(5, 1), (5, 2)}
    assert "has Dice 0.33 with the prediction (36 pixels in the mask, 36 predicted)" in next(
        one.message for one in said if one.label == 1
    )
    assert not found.is_weak


def test_of_a_fair_model_dice_under_a_half_is_always_a_finding(squares, tmp_path):
    guess = squares.masks.copy()
    for row in range(5):
        guess[row] = np.roll(guess[row], 4, axis=1)  # too many for the median deviation
    said = disagreements(squares, agreement(squares, saved(tmp_path, predictions=guess)))
    assert {one.row for one in said if one.label == 1} == set(range(5))


def test_the_report_lists_them_with_the_other_findings(squares, tmp_path):
    guess = squares.masks.copy()
    guess[5] = 0
    path = saved(tmp_path, predictions=guess)
    command = ["report", str(squares.path), "--predictions", str(path)]
    text = words_of(CliRunner().invoke(cli, command).stdout)
    assert "Dice with the masks of 12 rows, in the median: blood pool 1.00, muscle 1.00" in text
    assert "2 disagrees-with-model" in text
    plain = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    first = plain["predictions"]["scores"][0]
    assert (first["row"], first["dice"], first["quality"]) == (5, 0.0, 0.0)
    assert "disagrees-with-model" in {one["code"] for one in plain["diagnoses"]}
    listed = CliRunner().invoke(cli, [*command, "--code", "disagrees-with-model", "--csv", "-"])
    lines = list(csv.DictReader(io.StringIO(listed.stdout)))
    assert [line["structure"] for line in lines] == ["i-contour", "o-contour"]
    failed = CliRunner().invoke(cli, [*command, "--fail-on", "disagrees-with-model"])
    assert failed.exit_code == 1


@pytest.mark.parametrize("option", ["--code", "--fail-on"])
def test_the_code_without_predictions_is_refused(squares, option):
    command = ["report", str(squares.path), option, "disagrees-with-model"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert "give --predictions" in result.stderr


def test_a_weak_model_is_said_to_be_weak(squares, tmp_path):
    path = saved(tmp_path, predictions=np.roll(squares.masks, 4, axis=2))
    result = CliRunner().invoke(cli, ["report", str(squares.path), "--predictions", str(path)])
    assert "a model this weak tells little" in words_of(result.stdout)
    assert "disagrees-with-model" not in result.stdout


MAP = np.zeros((N, SIDE, SIDE), np.uint8)
HALVES = np.full((N, 2, SIDE, SIDE), 0.5)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "found nothing"),
        ({"masks": MAP}, "found 'masks'"),
        ({"predictions": MAP, "probabilities": HALVES}, "found both"),
        ({"predictions": MAP[:, :-1]}, "whole numbers of shape (12, 16, 16), found uint8"),
        ({"predictions": MAP.astype(float)}, "expected whole numbers"),
        ({"predictions": MAP + 7}, "row 0 has the label 7"),
        ({"predictions": np.uint8(0)}, "found one number"),
        ({"predictions": MAP[:3]}, "a prediction for each of 12 rows, found 3"),
        ({"predictions": MAP[:0], "rows": np.zeros(0, int)}, "it has no row"),
        ({"predictions": MAP[:2], "rows": [0, 12]}, "expected 0 to 11, found 0 to 12"),
        ({"predictions": MAP[:2], "rows": [-1, 1]}, "found -1 to 1"),
        ({"predictions": MAP[:2], "rows": [3, 3]}, "found one twice"),
        ({"predictions": MAP[:2], "rows": [0.0, 1.0]}, "rows: expected (k,) whole numbers"),
        ({"predictions": MAP, "dataset_id": "other"}, "predictions of another file"),
        ({"probabilities": HALVES[:, :1]}, "floating-point numbers of shape (12, 2, 16, 16) or"),
        ({"probabilities": HALVES * 3}, "not between 0 and 1"),
        ({"probabilities": HALVES * np.nan}, "not between 0 and 1"),
        ({"predictions": np.array([None])}, "cannot be read"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(squares, tmp_path, arrays, words):
    with pytest.raises(EtlError, match="Predictions not usable: ") as caught:
        agreement(squares, saved(tmp_path, **arrays))
    assert words in str(caught.value)


def test_the_array_that_is_missing_is_named_as_no_option(squares, tmp_path):
    """The command line makes options of names in backticks: there is no --rows."""
    path = saved(tmp_path, predictions=np.zeros((2, SIDE, SIDE), int))
    result = CliRunner().invoke(cli, ["report", str(squares.path), "--predictions", str(path)])
    assert result.exit_code == 1
    assert "found 2. Write an array 'rows': the row of each." in result.stderr


def test_a_file_of_another_kind_is_refused(squares, tmp_path):
    for content in (b"", b"no HDF5", b"PK nor a zip file"):
        (tmp_path / "model").write_bytes(content)
        with pytest.raises(EtlError, match=r"cannot be read as HDF5 or \.npz"):
            agreement(squares, tmp_path / "model")


def test_findings_are_merged_in_the_order_of_a_file():
    kinds = [("error", "b"), ("warning", "a"), ("warning", "z"), ("info", "a")]
    old = [FindingRow(severity, code, "", -1, "") for severity, code in kinds]
    new = FindingRow("warning", "m", "", -1, "")
    assert [one.code for one in merged(old, [new])] == ["b", "a", "m", "z", "a"]
