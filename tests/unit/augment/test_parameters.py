import dataclasses
import math

import numpy as np
import pytest

from loader import Augment
from loader.augment import draw_parameters
from loader.augment.parameters import N_NORMALS, kept_pixels, normals, power_basis, spline_basis
from loader.augment.settings import PARTS

GOLDEN, WORD = 0x9E3779B97F4A7C15, 2**64 - 1
SHAPE = (48, 40)
ROWS = np.arange(5000)


def slow_mix(z):
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 & WORD
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def slow_uniform(seed, epoch, row, copy, counter):
    """Return a number as the page has it, with Python's whole numbers."""
    key = slow_mix((slow_mix(seed + 10 * GOLDEN & WORD) + epoch) & WORD)
    key = slow_mix(key + (row + 1) * GOLDEN & WORD)
    key = slow_mix(key + (copy + 1) * GOLDEN & WORD)
    return (slow_mix(key + (counter + 1) * GOLDEN & WORD) >> 11) / 2**53


def parts_of(augment, shape=SHAPE, rows=ROWS, seed=7, epoch=2, copies=None):
    drawn = draw_parameters(augment, shape, seed=seed, epoch=epoch, rows=rows, copies=copies)
    return drawn.parts()


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 1, 9)])
def test_numbers_are_those_that_the_documentation_has(seed, epoch):
    augment = Augment.none(gamma=(0.5, 0.7, 1.5), noise=(1, 0, 2))
    rows, copies = np.array([0, 3, 2**40]), np.array([0, 5, 1])
    parts = parts_of(augment, rows=rows, seed=seed, epoch=epoch, copies=copies)
    for i, (row, copy) in enumerate(zip(rows.tolist(), copies.tolist(), strict=True)):

        def uniform(name, value, key=(seed, epoch, row, copy)):
            return slow_uniform(*key, 256 * list(PARTS).index(name) + value)

        happens = uniform("gamma", 0) < 0.5
        assert parts["gamma"][i] == (0.7 + (1.5 - 0.7) * uniform("gamma", 1) if happens else 1)
        start, stride = (math.floor(uniform("noise", i) * N_NORMALS) for i in (2, 3))
        assert parts["noise"][i].tolist() == [2 * uniform("noise", 1), start, stride]


def test_the_first_numbers_of_a_fixed_seed_never_change():
    parts = parts_of(Augment.none(gamma=(1, 0.5, 1.5)), rows=ROWS[:3])
    assert parts["gamma"].tolist() == [0.6766004406107052, 0.5467606042666057, 1.3937899250246797]


def test_a_sample_has_the_same_parameters_in_every_batch():
    whole = draw_parameters(Augment.cardiac_mr(), SHAPE, seed=7, epoch=2, rows=ROWS).table
    chosen = np.array([4000, 3, 3, 77])
    some = draw_parameters(Augment.cardiac_mr(), SHAPE, seed=7, epoch=2, rows=chosen).table
    np.testing.assert_array_equal(some, whole[chosen])


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 3}, {"copies": ROWS + 1}])
def test_seed_epoch_and_copy_each_give_other_parameters(other):
    augment = Augment.none(gamma=(1, 0.5, 1.5))
    one, another = parts_of(augment)["gamma"], parts_of(augment, **other)["gamma"]
    assert not (one == another).any()
    assert abs(np.corrcoef(one, another)[0, 1]) < 0.05


def test_a_part_does_not_change_the_draws_of_another():
    one = parts_of(Augment.none(gamma=(0.5, 0.5, 1.5)))
    with_others = parts_of(Augment.cardiac_mr(gamma=(0.5, 0.5, 1.5)))
    np.testing.assert_array_equal(one["gamma"], with_others["gamma"])


@pytest.mark.parametrize(
    "name", [name for name in PARTS if name in {"gamma", "brightness", "contrast"}]
)
def test_values_are_uniform_in_their_range_and_neutral_otherwise(name):
    values = parts_of(Augment.none(**{name: (0.3, 1.5, 2.5)}))[name]
    happens = values != PARTS[name].neutral
    assert happens.mean() == pytest.approx(0.3, abs=0.03)
    shares, _ = np.histogram(values[happens], 5, (1.5, 2.5))
    assert shares.sum() == happens.sum()
    np.testing.assert_allclose(shares / happens.sum(), 0.2, atol=0.05)


def test_turns_are_drawn_each_as_often():
    turn = parts_of(Augment.none(flip_rows=0.5, quarter_turns=0.6), shape=(8, 8))["turn"]
    shares = [(turn[:, 2] == n).mean() for n in range(4)]
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.2, 0.2], atol=0.03)
    assert turn[:, 0].mean() == pytest.approx(0.5, abs=0.03)
    assert not turn[:, 1].any()
    assert abs(np.corrcoef(turn[:, 0], turn[:, 2])[0, 1]) < 0.05


def test_images_that_are_not_square_turn_by_180_degrees():
    turn = parts_of(Augment.none(quarter_turns=1))["turn"]
    assert (turn == [0, 0, 2]).all()


def test_parts_that_cannot_happen_have_no_parameters():
    assert parts_of(Augment.none()).keys() == set()
    assert parts_of(Augment.none(blur=(0, 1, 2), gamma=(1, 0.5, 2))).keys() == {"gamma"}


def forwards(affine):
    """Return where a point from the centre goes, (column, row, 1) → (column, row)."""
    whole = np.eye(3)
    whole[:2] = affine
    return np.linalg.inv(whole)[:2]


@pytest.mark.parametrize(
    ("parts", "point", "expected"),
    [
        ({"rotate": (1, 90, 90)}, (1, 0), (0, -1)),  # anticlockwise: right goes up, rows down
        ({"scale": (1, 2, 2)}, (3, 4), (6, 8)),
        ({"shift": (1, 0.25, 0.25)}, (0, 0), (10, 12)),  # of 40 columns, 48 rows
        ({"shear": (1, 30, 30)}, (1, 0), (1, math.tan(math.pi / 6))),
        ({"shear": (1, 30, 30)}, (0, 1), (math.tan(math.pi / 6), 1)),
        ({"rotate": (1, 90, 90), "scale": (1, 2, 2), "shift": (1, 0.5, 0.5)}, (1, 0), (20, 22)),
    ],
)
def test_points_go_where_the_parts_say(parts, point, expected):
    affine = parts_of(Augment.none(**parts), rows=ROWS[:2])["affine"]
    for one in affine:
        np.testing.assert_allclose(forwards(one) @ (*point, 1), expected, atol=1e-12)


def test_rows_and_columns_shift_apart():
    affine = parts_of(Augment.none(shift=(1, -0.5, 0.5)))["affine"]
    assert abs(np.corrcoef(affine[:, 0, 2], affine[:, 1, 2])[0, 1]) < 0.05


def test_control_points_stay_within_the_range():
    parts = parts_of(Augment.none(elastic=(0.5, 0.02, 0.05)))
    moved, happens = parts["elastic"], parts["is_resampled"] > 0
    assert happens.mean() == pytest.approx(0.5, abs=0.03)
    assert not moved[~happens].any()
    most = np.abs(moved[happens]).max((2, 3)) / (SHAPE[1], SHAPE[0])
    assert most.max() <= 0.05
    assert most.min() > 0.01


@pytest.mark.parametrize("side", [2, 7, 64])
def test_the_spline_keeps_what_is_even(side):
    basis = spline_basis(side)
    np.testing.assert_allclose(basis.sum(1), 1, atol=1e-12)
    assert (basis >= 0).all()
    # Control points on a line give that line: those of the borders stand one interval outside.
    line = basis @ (np.arange(7) - 1)
    np.testing.assert_allclose(line, np.arange(side) * 4 / (side - 1), atol=1e-12)


def test_the_bias_field_has_no_constant_and_no_high_powers():
    coefficients = parts_of(Augment.none(bias_field=(1, 0.1, 0.3)))["bias_field"]
    powers = np.add.outer(range(4), range(4))
    assert ((coefficients != 0).all(0) == ((powers > 0) & (powers < 4))).all()
    assert np.abs(coefficients).max() <= 0.3
    assert power_basis(5)[:, 1].tolist() == [-1, -0.5, 0, 0.5, 1]


def test_kernels_are_gaussians_cut_off_at_three_deviations():
    kernels = parts_of(Augment.none(blur=(0.5, 0.5, 2)))["blur"]
    assert kernels.shape[1] == 7
    np.testing.assert_allclose(2 * kernels.sum(1) - kernels[:, 0], 1)
    assert (kernels[:, 0] == 1).mean() == pytest.approx(0.5, abs=0.03)
    fixed = parts_of(Augment.none(blur=(1, 1, 1)), rows=ROWS[:1])["blur"][0]
    expected = np.exp(-0.5 * np.arange(4) ** 2)
    np.testing.assert_allclose(fixed, expected / (2 * expected.sum() - 1))


def test_kept_pixels_are_those_of_a_slow_version():
    side = 10
    for n_kept in range(1, side + 1):
        low, high, share = kept_pixels(np.arange(side, dtype=float), np.array([float(n_kept)]))
        for i in range(side):
            place = (i + 0.5) * n_kept / side - 0.5
            before = math.floor(place + 1e-12)
            sources = [
                math.floor((min(max(k, 0), n_kept - 1) + 0.5) * side / n_kept + 1e-12)
                for k in (before, before + 1)
            ]
            assert [low[i], high[i]] == sources
            assert share[i] == pytest.approx(place - before)


def test_low_resolution_keeps_whole_pixels():
    kept = parts_of(Augment.none(low_resolution=(0.5, 0.5, 1)))["low_resolution"]
    assert (kept == np.rint(kept)).all()
    assert kept.min(0).tolist() == [24, 20]
    assert kept.max(0).tolist() == [48, 40]


def test_noise_is_normal():
    table = normals()
    assert (table.dtype, table.shape) == (np.float32, (N_NORMALS,))
    assert abs(table.mean()) < 0.003
    assert table.std() == pytest.approx(1, abs=0.003)
    assert (np.abs(table) < 1.959964).mean() == pytest.approx(0.95, abs=0.001)
    assert (np.abs(table) < 3.290527).mean() == pytest.approx(0.999, abs=0.0002)
    assert abs(np.corrcoef(table[:-1], table[1:])[0, 1]) < 0.003


def test_parameters_cannot_be_exchanged():
    drawn = draw_parameters(Augment(), SHAPE, seed=0, epoch=0, rows=ROWS[:2])
    assert len(drawn) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        drawn.shape = (1, 1)
