"""Masks → a channel of each structure."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from loader.format import Structure

MaskChannels: TypeAlias = Literal["bool", "uint8", "float32"]
Channels: TypeAlias = npt.NDArray[np.bool_ | np.uint8 | np.float32]
# Masks of a batch: as stored, or as channels.
HandedOut: TypeAlias = npt.NDArray[np.uint8 | np.uint16 | np.uint32 | np.bool_ | np.float32]


def in_channel_order(structures: Sequence[Structure]) -> tuple[Structure, ...]:
    """Return structures in the order of their bits, or in label maps of their codes."""
    return tuple(sorted(structures, key=lambda one: one.code if one.bit is None else one.bit))


class Unpacker:
    """Writes masks as channels of 1 inside a structure and 0 elsewhere; for one thread at a time.

    Parameters
    ----------
    structures : sequence of Structure
        Those of the file.
    dtype : "bool", "uint8" or "float32"
        Of the channels.
    shape : (int, int)
        Rows and columns of a mask.
    word : numpy.dtype
        Type of the masks.
    """

    def __init__(
        self,
        structures: Sequence[Structure],
        dtype: MaskChannels,
        shape: tuple[int, ...],
        word: "np.dtype[np.generic]",
    ) -> None:
        ordered = in_channel_order(structures)
        self._bits = [None if one.bit is None else word.type(1 << one.bit) for one in ordered]
        self._codes = [one.code for one in ordered]
        self._has_floats = dtype == "float32"
        # Of one mask: they stay in the processor's cache, so that only the channels cost memory.
        self._word = np.empty(shape, word)
        self._is_in = np.empty(shape, np.bool_)

    def write(self, mask: npt.NDArray[np.generic], out: Channels) -> None:
        """Write a mask, (rows, columns), as channels, (structures, rows, columns)."""
        for bit, code, channel in zip(self._bits, self._codes, out, strict=True):
            is_in = self._is_in if self._has_floats else channel.view(np.bool_)
            if bit is None:
                np.equal(mask, code, out=is_in)
            else:
                np.bitwise_and(mask, bit, out=self._word)
                np.not_equal(self._word, 0, out=is_in)
            if self._has_floats:
                np.copyto(channel, is_in)
