"""The pixels of structures in masks, each found by its number."""

import mmap
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from loader.dataset import Dataset, Masks
from loader.format import MAX_CODE, Structure
from loader.sampler import Indices, Table

_FEW: Final = 8  # codes that are compared one by one, which takes less than a table


class Foreground:
    """The pixels of some structures, numbered in the order of each mask.

    The first time that a row is asked for, its whole mask is read, to count these pixels up to the
    end of each line. Later, one line of the mask is enough. The counts take four bytes a line, in
    memory that forked processes share, so that the workers of a later epoch have them too.

    Parameters
    ----------
    dataset : Dataset
    structures : sequence of Structure
    """

    def __init__(self, dataset: Dataset, structures: Sequence[Structure]) -> None:
        self._file = dataset.file
        self._masks = dataset.masks
        n, n_lines, self._n_columns = self._masks.shape
        codes = self._codes = [structure.code for structure in structures]
        bits = [structure.bit for structure in structures if structure.bit is not None]
        self._bits = self._masks.dtype.type(sum(1 << bit for bit in bits))
        self._is_wanted = np.zeros(MAX_CODE + 2, np.bool_)
        self._is_wanted[codes] = True
        memory = mmap.mmap(-1, max(1, 4 * n * n_lines))
        # One more than the count, for 0 is a line that nobody has counted. Each number is written
        # at once, so that another process never takes a row for known that is half written.
        self._ends = np.frombuffer(memory, np.uint32, n * n_lines).reshape(n, n_lines)

    def pixels(self, rows: Indices, shares: Table) -> tuple[Indices, Indices]:
        """Return a pixel of each row that has any.

        Parameters
        ----------
        rows : int64 array, shape (n,)
        shares : float64 array, shape (n,)
            Which of a row's m pixels, in [0, 1): number floor(share * m).

        Returns
        -------
        found : int64 array, shape (k,)
            Where in `rows` those with such pixels are.
        pixels : int64 array, shape (k, 2)
            Line and column.

        Raises
        ------
        LoaderError
            The file was written to or cut short: the counts are of other masks.
        """
        self._file.check()
        ends = self._ends_of(rows)
        totals = ends[:, -1].astype(np.int64) - 1
        found = np.flatnonzero(totals)
        if len(found) < len(rows):
            rows, shares, ends, totals = rows[found], shares[found], ends[found], totals[found]
        numbers = (shares * totals).astype(np.int64)
        # The first line that ends behind the pixel; of booleans, argmin is the first False.
        sought = (numbers + 1).astype(np.uint32)[:, np.newaxis]  # as ends, or NumPy converts these
        lines = (ends <= sought).argmin(axis=1) if len(rows) else rows
        # The pixels of these lines one after the other, and how many of them come before.
        places = np.flatnonzero(self._find(self._masks[rows, lines]))
        each = np.arange(len(rows))
        before = np.where(lines > 0, ends[each, lines - 1], 1) - np.int64(1)
        n_of_lines = ends[each, lines] - 1 - before
        starts = np.cumsum(n_of_lines) - n_of_lines
        columns = places[starts + numbers - before] % self._n_columns
        return found, np.stack([lines, columns], axis=1)

    def _ends_of(self, rows: Indices) -> npt.NDArray[np.uint32]:
        ends = self._ends[rows]
        if not ends.min(initial=1):  # many times faster than all()
            unknown = np.flatnonzero(~ends.all(axis=1))
            for i in unknown.tolist():
                ends[i] = self._count(self._masks[rows[i]])
            self._ends[rows[unknown]] = ends[unknown]
        return ends

    def _count(self, mask: Masks) -> npt.NDArray[np.uint32]:
        is_found = self._find(mask)
        flags = is_found.tobytes()
        first, last = flags.find(1) // self._n_columns, flags.rfind(1) // self._n_columns
        counts = np.zeros(len(mask), np.uint32)
        lines = slice(first, last + 1)  # adding up all of them would take most of the time
        np.add.reduce(is_found[lines].view(np.uint8), axis=1, dtype=np.uint32, out=counts[lines])
        counts[0] += 1
        return np.cumsum(counts, dtype=np.uint32)

    def _find(self, masks: Masks) -> npt.NDArray[np.bool_]:
        if self._bits:
            is_shown: npt.NDArray[np.bool_] = (masks & self._bits) != 0
            return is_shown
        if len(self._codes) > _FEW:
            return self._is_wanted[masks]
        found: npt.NDArray[np.bool_] = masks == self._codes[0]
        for code in self._codes[1:]:
            found |= masks == code
        return found
