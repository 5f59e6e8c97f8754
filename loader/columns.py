"""Columns of a table of the file, and text in them."""

from collections.abc import Callable, Iterable, Mapping, Set, ValuesView
from typing import Any, Final, Never, TypeAlias

import numpy as np
import numpy.typing as npt

Column: TypeAlias = npt.NDArray[np.generic]

# NumPy's functions of two sets, which compare without its operators.
_OF_SETS: Final = (
    np.isin,
    np.array_equal,
    np.array_equiv,
    np.setdiff1d,
    np.intersect1d,
    np.union1d,
    np.setxor1d,
)


class Text(np.ndarray):
    """UTF-8 strings as bytes, as the file has them, that NumPy also compares with `str`.

    Without this, ``ids == "P1"`` would be False everywhere: bytes never equal text. As `str`, a
    column would take four times the memory. Its elements are bytes.
    """

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: object,
        out: tuple[object, ...] = (),
        **options: object,
    ) -> object:
        """Call the function, a comparison say, with bytes for text; it returns plain arrays."""
        plain = [_plain(value) for value in inputs]
        if any(isinstance(value, np.ndarray) and value.dtype.kind in "SO" for value in plain):
            plain = [_as_bytes(value) for value in plain]
        if out:
            options["out"] = tuple(_plain(value) for value in out)
        return getattr(ufunc, method)(*plain, **options)

    def __array_function__(
        self,
        function: Callable[..., object],
        types: Iterable[type],
        arguments: Iterable[Any],
        options: Mapping[str, Any],
    ) -> object:
        """Call the function; one of two sets, such as `numpy.isin`, with bytes for text."""
        if function in _OF_SETS:
            arguments = tuple(_as_bytes(value) for value in arguments)
            options = {k: v if k == "kind" else _as_bytes(v) for k, v in options.items()}
        return super().__array_function__(function, types, arguments, options)


class Columns(dict[str, Column]):
    """The columns of a table by name, all of one length; read-only.

    A `dict`, because that is what pandas makes a table of.

    Parameters
    ----------
    name : str
        Of the table, for messages.
    columns : mapping of name to array
    """

    def __init__(self, name: str, columns: Mapping[str, Column]) -> None:
        super().__init__(
            (column, values.view(Text) if values.dtype.kind == "S" else values)
            for column, values in columns.items()
        )
        self._name = name

    def __missing__(self, column: str) -> Never:
        """Name the columns there are."""
        raise KeyError(f"{self._name}: no column {column!r}; there are {', '.join(self)}.")

    def __repr__(self) -> str:
        """Return the number of rows, and the columns."""
        n_rows = len(next(iter(self.values()), ()))
        return f"<{self._name}: {n_rows} rows of {', '.join(self)}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle as what it was made from."""
        return Columns, (self._name, dict(self))

    def _refuse(self, *_: object, **__: object) -> Never:
        raise TypeError(f"{self._name}: the columns are read-only; change a copy, dict(...).")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


def _plain(value: object) -> object:
    return value.view(np.ndarray) if isinstance(value, Text) else value


def _as_bytes(value: object) -> object:
    """Return text, one string or many of them, as bytes; and anything else as it is."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Set | ValuesView):  # NumPy takes one for a single object
        value = list(value)
    array = np.asarray(value)
    kind = array.dtype.kind
    if kind not in "UTO":  # NumPy's strings of fixed and of any length, and objects, as pandas has
        return value
    texts = [text.encode() if isinstance(text, str) else text for text in array.flat]
    return np.array(texts, "O" if kind == "O" else "S").reshape(array.shape)
