"""The training example on a small file; skipped where torch is not installed."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from dataset_builder import write_dataset

import loader
from etl.report.predictions import agreement

torch = pytest.importorskip("torch")

PREDICT = Path(__file__).parents[2] / "examples" / "predict_folds.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_unet.py"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def example():
    spec = spec_from_file_location("train_unet", EXAMPLE)
    module = module_from_spec(spec)
    sys.modules["train_unet"] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options", [["--augment", "none"], ["--augment", "cardiac-mr", "--patch", "16"]]
)
def test_training_resumed_within_an_epoch_arrives_at_the_same_weights(tmp_path, options, device):
    if "none" not in options:
        pytest.importorskip("cv2")
    write_dataset(tmp_path / "out.h5", n=30, rows=32, columns=32, split=[0] * 22 + [1] * 8)
    command = [sys.executable, EXAMPLE, tmp_path / "out.h5", "--epochs", "2", "--check-resume"]
    command += ["--device", device, *options]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert "epoch 2: validation Dice blood pool" in run.stdout
    assert "of the time waiting for data" in run.stdout
    assert "same weights: True" in run.stdout


def test_each_row_is_predicted_by_a_model_of_other_folds(tmp_path):
    write_dataset(tmp_path / "out.h5", n=12, rows=32, columns=32, fold=[0, 1, 2] * 3 + [-1] * 3)
    command = [sys.executable, PREDICT, tmp_path / "out.h5", tmp_path / "predictions.h5"]
    subprocess.run([*command, "--epochs", "1"], check=True, timeout=600)
    dataset = loader.open_dataset(tmp_path / "out.h5")
    found = agreement(dataset, tmp_path / "predictions.h5")
    assert found.n_rows == 9
    assert {score.row for score in found.scores} == set(range(9))


def test_a_fold_is_left_out(tmp_path):
    write_dataset(tmp_path / "out.h5", n=12, rows=32, columns=32, fold=[0, 1, 2] * 4)
    module = example()
    training = module.Training(str(tmp_path / "out.h5"), 3, 4, "cpu", 1, None, None, fold=1)
    assert training.batches.rows.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert training.rows_for("validation").rows.tolist() == [1, 4, 7, 10]


def test_the_loss_is_cross_entropy_and_one_minus_dice():
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    masks = torch.randint(0, 3, (2, 1, 8, 8), dtype=torch.uint8)
    masks[0, 0, :2] = 255
    labels = masks[:, 0].long()
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    is_known = labels != 255
    chances = logits.softmax(1).movedim(1, -1)[is_known]
    for code in (1, 2):
        is_true = (labels[is_known] == code).double()
        overlap, total = (chances[:, code] * is_true).sum(), (chances[:, code] + is_true).sum()
        expected += (1 - (2 * overlap + 1) / (total + 1)) / 2
    torch.testing.assert_close(example().loss_of(logits, masks), expected)


def test_pixels_are_halved_as_by_pooling():
    values = torch.randn(2, 3, 4, 6)
    assert torch.equal(example().halved(values), torch.nn.functional.max_pool2d(values, 2))


def test_pixels_are_doubled_as_by_interpolation():
    values = torch.randn(2, 3, 4, 5)
    expected = torch.nn.functional.interpolate(values, scale_factor=2.0)
    assert torch.equal(example().doubled(values), expected)
