"""The training example on a small file; skipped where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest
from dataset_builder import write_dataset

import loader
from etl.report.predictions import agreement

pytest.importorskip("torch")

PREDICT = Path(__file__).parents[2] / "examples" / "predict_folds.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_unet.py"


def test_training_resumed_within_an_epoch_arrives_at_the_same_weights(tmp_path):
    write_dataset(tmp_path / "out.h5", n=30, rows=32, columns=32, split=[0] * 22 + [1] * 8)
    command = [sys.executable, EXAMPLE, tmp_path / "out.h5", "--epochs", "2", "--check-resume"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "epoch 2: validation Dice blood pool" in run.stdout
    assert "of the time waiting for data" in run.stdout
    assert "same weights: True" in run.stdout


def test_each_row_is_predicted_by_a_model_of_other_folds(tmp_path):
    write_dataset(tmp_path / "out.h5", n=12, rows=32, columns=32, fold=[0, 1, 2] * 3 + [-1] * 3)
    command = [sys.executable, PREDICT, tmp_path / "out.h5", tmp_path / "predictions.h5"]
    subprocess.run([*command, "--epochs", "1"], check=True, timeout=300)
    dataset = loader.open_dataset(tmp_path / "out.h5")
    found = agreement(dataset, tmp_path / "predictions.h5")
    assert found.n_rows == 9
    assert {score.row for score in found.scores} == set(range(9))
