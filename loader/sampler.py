"""The order of an epoch and each rank's share of it; pure.

The order is a keyed bijection on [0, n), computed where it is needed: no permutation is stored, and
it is the same with every version of NumPy and on every platform. All arithmetic is on unsigned
64-bit integers, modulo 2**64. The row at position p of an epoch is `permute(p)`:

    G = 0x9E3779B97F4A7C15
    mix(z):  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB
             z ^= z >> 31                                           (the finaliser of splitmix64)
    key[i] = mix(mix(seed + (i + 1) * G) + epoch)                   for the rounds i = 0 ... 7
    k = max(6, number of bits of n - 1),  b = k // 2,  a = k - b

    encrypt(x): left, right = x >> b, x & (2**b - 1)                (a and b bits)
                for i = 0, 2, 4, 6:
                    left  ^= mix(right + key[i]) >> (64 - a)
                    right ^= mix(left + key[i + 1]) >> (64 - b)
                return (left << b) | right

    permute(p): x = encrypt(p); while x >= n: x = encrypt(x); return x

`encrypt` is a Feistel network, hence a bijection on [0, 2**k) whatever `mix` does; walking its
cycle until it comes back below n makes it one on [0, n).

With weights, every position is a draw of its own, with replacement. Where cumulative[i] is the
share of the weights of the samples 0 to i, the sample at position p is the first i with

    cumulative[i] > (mix(key + (p + 1) * G) >> 11) * 2**-53,    key = mix(mix(seed + 9 * G) + epoch)

References
----------
Black, Rogaway: Ciphers with Arbitrary Finite Domains, CT-RSA 2002 (cycle walking).
Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014 (splitmix64).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.int64]
Table: TypeAlias = npt.NDArray[np.float64]
Remainder: TypeAlias = Literal["sample", "keep", "pad", "error"]

Words: TypeAlias = npt.NDArray[np.uint64]
_Round: TypeAlias = Callable[[Indices], Indices]

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))
_N_ROUNDS: Final = 8
_MIN_BITS: Final = 6  # with fewer, some orders of a few samples would come up more than others
_TABLE_BITS: Final = 8
_TABLE_BITS_OF_HALF: Final = 12
DROP_TO_53: Final = np.uint64(11)  # a float64 holds 53 bits


@dataclass(frozen=True)
class EpochPlan:
    """How the positions of one epoch are shared out to ranks and batches.

    Batch b of all ranks together takes the positions from b * batch_size * world_size on; rank r
    takes the r-th run of batch_size of them. So many ranks draw what one process with a batch as
    large as theirs together draws.

    Attributes
    ----------
    n_samples, batch_size, world_size : int
        At least 1; batch_size is for one rank.
    remainder : "sample", "keep", "pad" or "error"
        What happens to the samples that fill no batch.
    """

    n_samples: int
    batch_size: int
    world_size: int
    remainder: Remainder

    @property
    def n_per_step(self) -> int:
        """Positions that one batch on every rank takes."""
        return self.batch_size * self.world_size

    @cached_property
    def n_positions(self) -> int:
        """Positions handed out in an epoch, over all ranks."""
        if self.remainder == "pad":
            return -(-self.n_samples // self.n_per_step) * self.n_per_step
        unit = self.world_size if self.remainder == "keep" else self.n_per_step
        return self.n_samples - self.n_samples % unit

    @property
    def n_left_out(self) -> int:
        """Samples that an epoch does not hand out."""
        return max(0, self.n_samples - self.n_positions)

    @cached_property
    def n_batches(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return -(-self.n_positions // self.n_per_step)

    def positions(self, rank: int, first: int, stop: int) -> Indices:
        """Return the positions of a rank's batches first to stop - 1, one after the other.

        Each batch has batch_size of them, but for the last of an epoch under "keep".
        """
        n_full = self.n_positions // self.n_per_step
        starts = np.arange(first, min(stop, n_full), dtype=np.int64) * self.n_per_step
        size = self.batch_size if len(starts) else 0  # it may be far more than there are samples
        within = np.arange(size, dtype=np.int64) + rank * self.batch_size
        full = (starts[:, np.newaxis] + within).reshape(-1)
        if not first <= n_full < stop:
            return full
        share = self.n_positions % self.n_per_step // self.world_size
        start = n_full * self.n_per_step + rank * share
        return np.concatenate([full, np.arange(start, start + share, dtype=np.int64)])


def draw(plan: EpochPlan, positions: Indices, *, seed: int, epoch: int, shuffle: bool) -> Indices:
    """Return the samples at some positions of an epoch.

    Parameters
    ----------
    plan : EpochPlan
        Where the positions come from.
    positions : int64 array, shape (m,)
        From 0 to `plan.n_positions` - 1. A position p beyond the samples, as padding has, stands
        for position p mod n_samples.
    seed : int
        From 0 to 2**64 - 1.
    epoch : int
        At least 0; taken modulo 2**64.
    shuffle : bool
        False keeps the order of the file. Under "sample" the samples left out are then still those
        that the shuffled order has last, another random set in each epoch.

    Returns
    -------
    int64 array, shape (m,)
        From 0 to n_samples - 1.
    """
    n_samples = plan.n_samples
    if shuffle:
        return permute(positions % n_samples, n_samples, seed, epoch)
    if plan.remainder != "sample":
        return positions % n_samples
    last = np.arange(plan.n_positions, n_samples, dtype=np.int64)
    left_out = np.sort(permute(last, n_samples, seed, epoch))
    # left_out[i] - i kept samples come before the i-th one left out.
    n_skipped = np.searchsorted(left_out - np.arange(len(left_out)), positions, side="right")
    return positions + n_skipped


def draw_weighted(
    plan: EpochPlan, positions: Indices, table: Table, *, seed: int, epoch: int
) -> Indices:
    """Return the samples at some positions of an epoch of draws with replacement.

    Parameters
    ----------
    plan, positions, seed, epoch
        As for `draw`.
    table : float64 array, shape (n_samples,)
        Cumulative share of the weights; the last one is 1.

    Returns
    -------
    int64 array, shape (m,)
        From 0 to n_samples - 1; never a sample of weight 0.
    """
    key = keys_of(seed, epoch, np.array([_N_ROUNDS + 1], np.uint64))
    counters = (positions % plan.n_samples + 1).astype(np.uint64) * GOLDEN
    uniform = (mix(counters + key) >> DROP_TO_53) * 2.0**-53
    return np.searchsorted(table, uniform, side="right")


def permute(positions: Indices, n_samples: int, seed: int, epoch: int) -> Indices:
    """Return the images of some positions under the bijection on [0, n_samples) of (seed, epoch).

    Parameters
    ----------
    positions : int64 array, shape (m,)
        From 0 to n_samples - 1.
    n_samples : int
        At least 1.
    seed, epoch : int
        The key, as for `draw`.

    Returns
    -------
    int64 array, shape (m,)
        From 0 to n_samples - 1; distinct where the positions are.
    """
    n_bits = max(_MIN_BITS, (n_samples - 1).bit_length())
    rounds = _rounds(seed, epoch, n_bits)
    encrypt: _Round = partial(_encrypt, n_bits=n_bits, rounds=rounds)
    if n_bits <= _TABLE_BITS:  # few samples walk many steps: look each step up
        encrypt = encrypt(np.arange(2**n_bits, dtype=np.int64)).take
    values = encrypt(positions)
    outside = np.flatnonzero(values >= n_samples)
    while outside.size:
        again = encrypt(values[outside])
        values[outside] = again
        outside = outside[again >= n_samples]
    return values


def keys_of(seed: int, epoch: int, numbers: Words) -> Words:
    """Return keys of an epoch by their numbers: 1 to 8 the rounds, 9 weights, 10 and 11 images."""
    return mix(mix(numbers * GOLDEN + np.uint64(seed)) + np.uint64(epoch % 2**64))


def _encrypt(values: Indices, n_bits: int, rounds: tuple[_Round, ...]) -> Indices:
    n_right = n_bits // 2
    left, right = values >> n_right, values & (2**n_right - 1)
    for i in range(0, _N_ROUNDS, 2):
        left ^= rounds[i](right)
        right ^= rounds[i + 1](left)
    whole: Indices = (left << n_right) | right
    return whole


@lru_cache(4)  # of the epochs that are drawn from at a time
def _rounds(seed: int, epoch: int, n_bits: int) -> tuple[_Round, ...]:
    """Return the function of each round: half of the bits → what changes the other half.

    Half of the bits have few values, so each function is a table; of many samples it is not.
    """
    keys = keys_of(seed, epoch, np.arange(1, _N_ROUNDS + 1, dtype=np.uint64))
    sizes = n_bits - n_bits // 2, n_bits // 2  # of left and right
    rounds: list[_Round] = []
    for i, key in enumerate(keys):
        changed, other = sizes[i % 2], sizes[1 - i % 2]
        scramble = partial(_scramble, key=key, n_bits=changed)
        is_small = other <= _TABLE_BITS_OF_HALF
        rounds.append(scramble(np.arange(2**other, dtype=np.int64)).take if is_small else scramble)
    return tuple(rounds)


def _scramble(half: Indices, key: np.uint64, n_bits: int) -> Indices:
    words = mix(half.astype(np.uint64) + key)
    np.right_shift(words, np.uint64(64 - n_bits), out=words)
    return words.astype(np.int64)


def mix(words: Words) -> Words:
    """Scramble 64-bit words in place (the finaliser of splitmix64) and return them."""
    for shift, multiplier in zip(_SHIFTS[:2], _MULTIPLIERS, strict=True):
        words ^= words >> shift
        words *= multiplier
    words ^= words >> _SHIFTS[2]
    return words
