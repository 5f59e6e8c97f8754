import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from loader.sampler import EpochPlan, draw, draw_weighted, permute

GOLDEN = 0x9E3779B97F4A7C15


def order(n_samples, seed, epoch):
    return permute(np.arange(n_samples), n_samples, seed, epoch)


def slow_mix(z):
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 % 2**64
    z ^= z >> 27
    z = z * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def slow_permute(position, n_samples, seed, epoch):
    """Follow the module's description word for word, one sample at a time, in Python's integers."""
    mix, word = slow_mix, 2**64 - 1
    key = [mix(mix(seed + (i + 1) * GOLDEN & word) + epoch & word) for i in range(8)]
    k = max(6, (n_samples - 1).bit_length())
    b = k // 2
    a = k - b

    def encrypt(x):
        left, right = x >> b, x & 2**b - 1
        for i in 0, 2, 4, 6:
            left ^= mix(right + key[i] & word) >> 64 - a
            right ^= mix(left + key[i + 1] & word) >> 64 - b
        return left << b | right

    x = encrypt(position)
    while x >= n_samples:
        x = encrypt(x)
    return x


def excess(counts, expected, n_free):
    """Return how many standard deviations Pearson's chi-square lies above its mean."""
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return (chi_square - n_free) / math.sqrt(2 * n_free)


def test_first_orders_of_a_fixed_seed():
    assert order(10, 7, 0).tolist() == [5, 3, 0, 4, 9, 8, 2, 1, 6, 7]
    assert order(10, 7, 1).tolist() == [6, 2, 0, 7, 9, 4, 1, 5, 3, 8]
    assert order(10, 8, 0).tolist() == [7, 2, 6, 0, 4, 8, 5, 3, 1, 9]
    assert order(5, 0, 0).tolist() == [3, 4, 2, 0, 1]
    assert permute(np.arange(4), 10**12, 2**64 - 1, 3).tolist() == [
        932017677468,
        227052052886,
        463117838523,
        695528996975,
    ]


@pytest.mark.parametrize("n_samples", [1, 2, 3, 5, 64, 65, 256, 257, 1000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**64 - 1, 2**64 - 1), (1, 10**30)])
def test_order_is_the_one_described(n_samples, seed, epoch):
    described = [slow_permute(p, n_samples, seed, epoch % 2**64) for p in range(n_samples)]
    assert order(n_samples, seed, epoch).tolist() == described
    assert sorted(described) == list(range(n_samples))


@pytest.mark.parametrize("n_samples", [2**20 + 1, 2**31, 2**32 + 1, 2**62 + 1])
def test_large_ranges_are_drawn_in_pieces(n_samples):
    positions = np.array([0, 1, n_samples // 2, n_samples - 2, n_samples - 1])
    drawn = permute(positions, n_samples, 7, 0)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == [slow_permute(int(p), n_samples, 7, 0) for p in positions]
    assert 0 <= drawn.min() <= drawn.max() < n_samples


@pytest.mark.parametrize("n_samples", [2, 3, 4])
def test_every_order_of_a_few_samples_comes_up_equally_often(n_samples):
    n_epochs = 4000
    seen = Counter(tuple(order(n_samples, 7, epoch).tolist()) for epoch in range(n_epochs))
    counts = np.array([seen[o] for o in itertools.permutations(range(n_samples))])
    assert excess(counts, n_epochs / len(counts), len(counts) - 1) < 5


@pytest.mark.parametrize("n_samples", [2, 3, 5, 10, 100])
def test_every_sample_comes_to_every_position_equally_often(n_samples):
    n_epochs = 3000
    counts = np.zeros((n_samples, n_samples))
    for epoch in range(n_epochs):
        counts[np.arange(n_samples), order(n_samples, 3, epoch)] += 1
    assert excess(counts, n_epochs / n_samples, (n_samples - 1) ** 2) < 5


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((5, 7), (6, 6)), ((0, 1), (1, 0)), ((0, 0), (2**63, 0))],
)
def test_neighbouring_seeds_and_epochs_have_unlike_orders(one, other):
    n_samples = 10_007
    a, b = order(n_samples, *one), order(n_samples, *other)
    assert (a == b).sum() < 10  # 1 expected
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(n_samples)


def test_neighbouring_positions_are_unlike():
    a = order(10_007, 7, 0)
    for b in (np.arange(10_007), np.roll(a, 1), np.roll(a, 2)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(10_007)


@pytest.mark.parametrize(
    ("n_samples", "batch_size", "world_size", "remainder", "n_batches", "n_left_out"),
    [
        (56, 8, 1, "sample", 7, 0),
        (60, 8, 1, "sample", 7, 4),
        (60, 8, 2, "sample", 3, 12),
        (7, 8, 1, "sample", 0, 7),
        (60, 8, 1, "keep", 8, 0),
        (61, 8, 2, "keep", 4, 1),
        (7, 8, 1, "keep", 1, 0),
        (1, 8, 2, "keep", 0, 1),
        (60, 8, 1, "pad", 8, 0),
        (60, 8, 3, "pad", 3, 0),
        (1, 8, 3, "pad", 1, 0),
        (64, 8, 2, "error", 4, 0),
        (65, 8, 2, "error", 4, 1),
    ],
)
def test_batches_of_an_epoch(n_samples, batch_size, world_size, remainder, n_batches, n_left_out):
    plan = EpochPlan(n_samples, batch_size, world_size, remainder)
    assert plan.n_batches == n_batches
    assert plan.n_left_out == n_left_out


def test_positions_of_ranks_lie_side_by_side():
    plan = EpochPlan(20, 3, 2, "keep")
    assert plan.positions(0, 0, 4).tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18]
    assert plan.positions(1, 0, 4).tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17, 19]
    assert plan.positions(1, 2, 3).tolist() == [15, 16, 17]
    assert plan.positions(1, 3, 4).tolist() == [19]


def test_padding_repeats_the_start_of_the_epoch():
    plan = EpochPlan(3, 4, 2, "pad")
    positions = np.concatenate([plan.positions(rank, 0, 1) for rank in (0, 1)])
    drawn = draw(plan, positions, seed=7, epoch=0, shuffle=True).tolist()
    assert drawn[:3] == order(3, 7, 0).tolist()
    assert drawn == [*drawn[:3], *drawn[:3], *drawn[:2]]


def test_file_order_leaves_out_the_rows_that_the_shuffled_order_has_last():
    plan = EpochPlan(10, 4, 1, "sample")
    for epoch in range(20):
        drawn = draw(plan, plan.positions(0, 0, 2), seed=7, epoch=epoch, shuffle=False)
        assert drawn.tolist() == sorted(order(10, 7, epoch)[:8].tolist())


@pytest.mark.parametrize("remainder", ["keep", "pad"])
def test_file_order(remainder):
    plan = EpochPlan(5, 3, 1, remainder)
    drawn = draw(plan, plan.positions(0, 0, 2), seed=7, epoch=4, shuffle=False)
    assert drawn.tolist() == [0, 1, 2, 3, 4, 0][: plan.n_positions]


def slow_draw_weighted(position, weights, seed, epoch):
    """Draw as the module describes it, with Python's exact numbers."""
    key = slow_mix((slow_mix((seed + 9 * GOLDEN) % 2**64) + epoch) % 2**64)
    uniform = Fraction(slow_mix((key + (position + 1) * GOLDEN) % 2**64) >> 11, 2**53)
    shares = itertools.accumulate(Fraction(weight, sum(weights)) for weight in weights)
    return next(i for i, share in enumerate(shares) if share > uniform)


def weighted(weights, n_draws, seed, epoch=0):
    table = np.cumsum(weights) / np.sum(weights)
    plan = EpochPlan(len(weights), 1, 1, "keep")
    draws = [
        draw_weighted(plan, np.arange(len(weights)), table, seed=seed, epoch=epoch + i)
        for i in range(-(-n_draws // len(weights)))
    ]
    return np.concatenate(draws)[:n_draws]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**64 - 1, 2**64 - 1)])
@pytest.mark.parametrize("weights", [[1], [0, 1, 0], [1, 1, 1, 1], [5, 0, 3, 1, 0, 7, 100]])
def test_weighted_draws_are_the_ones_described(weights, seed, epoch):
    described = [slow_draw_weighted(p, weights, seed, epoch) for p in range(len(weights))]
    assert weighted(weights, len(weights), seed, epoch).tolist() == described


def test_weighted_draws_follow_the_weights_and_not_each_other():
    weights = np.array([1, 2, 0, 3, 4])
    drawn = weighted(weights, 50_000, 7)
    counts = np.bincount(drawn, minlength=5)
    assert counts[2] == 0
    expected = weights[weights > 0] * 5000
    assert excess(counts[weights > 0], expected, 3) < 5
    pairs = np.bincount(drawn[:-1] * 5 + drawn[1:], minlength=25).reshape(5, 5)
    alike = np.outer(weights, weights) * 500
    assert excess(pairs[alike > 0], alike[alike > 0], 15) < 5


def test_padding_repeats_weighted_draws():
    plan = EpochPlan(3, 4, 2, "pad")
    table = np.array([0.2, 0.7, 1.0])
    drawn = draw_weighted(plan, np.arange(8), table, seed=7, epoch=0).tolist()
    assert drawn == [*drawn[:3], *drawn[:3], *drawn[:2]]
