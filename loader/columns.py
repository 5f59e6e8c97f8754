"""Columns of a table of the file, and text in them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Column: TypeAlias = npt.NDArray[np.generic]


class Text(np.ndarray):
    """UTF-8 strings as bytes, as the file has them, that NumPy also compares with `str`.

    Without this, ``ids == "P1"`` would be False everywhere: bytes never equal text. As `str`, a
    column would take four times the memory. Its elements are bytes.
    """

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: object, **options: object
    ) -> object:
        """Call the function, a comparison say, with bytes for text; it returns plain arrays."""
        plain = [value.view(np.ndarray) if isinstance(value, Text) else value for value in inputs]
        if any(isinstance(value, np.ndarray) and value.dtype.kind == "S" for value in plain):
            plain = [_as_bytes(value) for value in plain]
        return getattr(ufunc, method)(*plain, **options)

    def __array_function__(
        self,
        function: Callable[..., object],
        types: Iterable[type],
        arguments: Iterable[Any],
        options: Mapping[str, Any],
    ) -> object:
        """Call the function; `numpy.isin` with bytes for text."""
        if function is np.isin:
            arguments = tuple(_as_bytes(value) for value in arguments)
        return super().__array_function__(function, types, arguments, options)


class Columns(Mapping[str, Column]):
    """The columns of a table by name, all of one length; read-only.

    Parameters
    ----------
    name : str
        Of the table, for messages.
    columns : mapping of name to array
    """

    def __init__(self, name: str, columns: Mapping[str, Column]) -> None:
        self._name = name
        self._columns = {
            column: values.view(Text) if values.dtype.kind == "S" else values
            for column, values in columns.items()
        }

    def __getitem__(self, column: str) -> Column:
        """Return a column."""
        try:
            return self._columns[column]
        except KeyError:
            names = ", ".join(self)
            raise KeyError(f"{self._name}: no column {column!r}; there are {names}.") from None

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the columns."""
        return iter(self._columns)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._columns)

    def __repr__(self) -> str:
        """Return the number of rows, and the columns."""
        n_rows = len(next(iter(self._columns.values()), ()))
        return f"<{self._name}: {n_rows} rows of {', '.join(self)}>"


def _as_bytes(value: object) -> object:
    """Return text, one string or an array-like of strings, as bytes; and anything else as it is."""
    if isinstance(value, str):
        return value.encode()
    array = np.asarray(value)
    kind = array.dtype.kind
    if kind not in "UTO":  # NumPy's strings of fixed and of any length, and objects, as pandas has
        return value
    texts = [text.encode() if isinstance(text, str) else text for text in array.flat]
    return np.array(texts, "O" if kind == "O" else "S").reshape(array.shape)
