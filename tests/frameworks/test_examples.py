"""The training example on a small file; skipped where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest
from dataset_builder import write_dataset

pytest.importorskip("torch")

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_unet.py"


def test_training_resumed_within_an_epoch_arrives_at_the_same_weights(tmp_path):
    write_dataset(tmp_path / "out.h5", n=30, rows=32, columns=32, split=[0] * 22 + [1] * 8)
    command = [sys.executable, EXAMPLE, tmp_path / "out.h5", "--epochs", "2", "--check-resume"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "epoch 2: validation Dice blood pool" in run.stdout
    assert "of the time waiting for data" in run.stdout
    assert "same weights: True" in run.stdout
