import numpy as np
import pytest
from click.testing import CliRunner
from dataset_builder import write_dataset
from PIL import Image

from etl.cli import cli
from loader import Augment

TILE = 388  # with the gap


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("preview") / "out.h5"
    write_dataset(path, n=9, rows=32, columns=32)
    return path


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def tiles_of(path):
    """Return the tiles of a sheet by row and place, without their captions."""
    pixels = np.asarray(Image.open(path))
    starts = [range(4, side - 4, TILE) for side in pixels.shape[:2]]
    return [[pixels[y + 40 : y + 384, x : x + 384] for x in starts[1]] for y in starts[0]]


def test_a_sheet_has_rows_as_they_are_and_in_five_epochs(out, tmp_path):
    pytest.importorskip("cv2")
    sheet = tmp_path / "sheet.png"
    result = run("preview", out, "--augment", "cardiac-mr", "--png", sheet, "--n-rows", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{Augment.cardiac_mr().describe()}\nPreview: {sheet}: 3 rows.\n"
    tiles = tiles_of(sheet)
    assert [len(line) for line in tiles] == [6, 6, 6]
    for first, *others in tiles:
        assert all((first != other).any() for other in others)


def test_without_a_part_all_tiles_are_alike(out, tmp_path):
    settings, sheet = tmp_path / "augment.json", tmp_path / "sheet.png"
    settings.write_text(Augment.none().to_json())
    result = run("preview", out, "--augment", settings, "--png", sheet, "--n-rows", 30)
    assert result.stdout == f"nothing\nPreview: {sheet}: 9 rows.\n"
    for first, *others in tiles_of(sheet):
        assert all((first == other).all() for other in others)


def test_the_seed_decides(out, tmp_path):
    settings = tmp_path / "augment.json"
    settings.write_text(Augment.none(flip_rows=0.5, gamma=(1, 0.5, 2)).to_json())
    sheets = [tmp_path / f"{n}.png" for n in range(3)]
    for sheet, seed in zip(sheets, (1, 1, 2), strict=True):
        arguments = ["--augment", settings, "--png", sheet, "--seed", seed, "--n-rows", 1]
        assert run("preview", out, *arguments).exit_code == 0
    first, again, other = (sheet.read_bytes() for sheet in sheets)
    assert first == again != other


def test_what_is_there_is_replaced_by_force_only(out, tmp_path):
    sheet, settings = tmp_path / "sheet.png", tmp_path / "augment.json"
    settings.write_text(Augment.none().to_json())
    sheet.write_text("mine")
    arguments = ["preview", out, "--augment", settings, "--png", sheet]
    result = run(*arguments)
    assert result.exit_code == 1
    assert "sheet.png" in result.stderr
    assert sheet.read_text() == "mine"
    assert run(*arguments, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (None, 2, "--augment: expected default, cardiac-mr, ct or a file with JSON"),
        ("{}", 1, "Augmentation not read"),
    ],
)
def test_settings_that_are_none(out, tmp_path, text, status, message):
    settings = tmp_path / "augment.json"
    if text is not None:
        settings.write_text(text)
    result = run("preview", out, "--augment", settings, "--png", tmp_path / "sheet.png")
    assert result.exit_code == status
    assert message in " ".join(result.stderr.split())
