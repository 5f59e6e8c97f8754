"""Columns of a table of the file, and text in them."""

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Set, ValuesView
from typing import Any, Final, Never, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Column: TypeAlias = npt.NDArray[Any]

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
    """An array of `str` that also compares with bytes, and is looked up in sets and dicts.

    In NumPy, ``ids == b"P1"``, as h5py reads it from the same file, and ``np.isin(ids, {"P1"})``
    would be False everywhere, and nobody left out who should be.
    """

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: object,
        out: tuple[object, ...] = (),
        **options: object,
    ) -> object:
        """Call the function, a comparison say, with text for bytes; it returns plain arrays."""
        plain = [_as_text(_plain(value)) for value in inputs]
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
        """Call the function; one of two sets, such as `numpy.isin`, with text for bytes."""
        if function in _OF_SETS:
            arguments = tuple(_as_text(_listed(value)) for value in arguments)
            options = {k: v if k == "kind" else _as_text(_listed(v)) for k, v in options.items()}
        return super().__array_function__(function, types, arguments, options)


class Columns(dict[str, Column]):
    """The columns of a table by name; read-only.

    A `dict`, because that is what pandas makes a table of.

    Parameters
    ----------
    name : str
        Of the table, for messages.
    stored : mapping of name to array
        The columns as the file has them.

    Attributes
    ----------
    stored : dict of name to array
        The columns as the file has them: text as UTF-8 bytes, a quarter of the memory that `str`
        takes.
    """

    def __init__(self, name: str, stored: Mapping[str, Column]) -> None:
        super().__init__(stored)
        self._name = name
        self.stored = dict(stored)

    def __getitem__(self, column: str) -> Column:
        """Return a column; text is decoded when it is first asked for."""
        values = super().__getitem__(column)
        if values.dtype.kind == "S":
            values = _decoded(values)
            super().__setitem__(column, values)
        return values

    def __missing__(self, column: str) -> Never:
        """Name the columns there are."""
        raise KeyError(f"{self._name}: no column {column!r}; there are {', '.join(self)}.")

    def __iter__(self) -> Iterator[str]:
        """Return the names. Where a class has its own, dict(...) asks it for each value too."""
        return super().__iter__()

    def get(self, column: str, default: object = None) -> object:  # type: ignore[override]
        """Return a column, or the default where there is none of the name."""
        try:
            return self[column]
        except KeyError:
            return default

    def values(self) -> ValuesView[Column]:  # type: ignore[override]
        """Return all columns."""
        return dict(self).values()

    def items(self) -> ItemsView[str, Column]:  # type: ignore[override]
        """Return all columns with their names."""
        return dict(self).items()

    def copy(self) -> "Columns":
        """Return the same table, with no text decoded yet."""
        return Columns(self._name, self.stored)

    def __or__(self, other: Mapping[str, object]) -> dict[str, object]:  # type: ignore[override]
        """Return a dict with the columns of both."""
        return {**self, **other}

    def __repr__(self) -> str:
        """Return the columns, with their lengths where these differ."""
        lengths = [len(values) for values in self.stored.values()]
        if len(set(lengths)) == 1:
            return f"<{self._name}: {lengths[0]} rows of {', '.join(self)}>"
        named = (f"{name} ({length})" for name, length in zip(self, lengths, strict=True))
        return f"<{self._name}: {', '.join(named)}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle as what it was made from."""
        return Columns, (self._name, self.stored)

    def _refuse(self, *_: object, **__: object) -> Never:
        raise TypeError(f"{self._name}: the columns are read-only; change a copy, dict(...).")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


def _decoded(encoded: Column) -> Text:
    try:
        texts = encoded.astype(np.str_)  # ASCII alone, and quick
    except UnicodeDecodeError:
        texts = np.char.decode(encoded, "utf-8", "backslashreplace")
    texts.flags.writeable = False
    return cast("Text", texts.view(Text))


def _plain(value: object) -> object:
    return value.view(np.ndarray) if isinstance(value, Text) else value


def _listed(value: object) -> object:
    """Return what NumPy would take for a single object as a list."""
    is_one = isinstance(value, Set | Mapping | ValuesView | Iterator)
    return list(cast("Iterable[object]", value)) if is_one else value


def _as_text(value: object) -> object:
    """Return bytes, one or many of them, as text; and anything else as it is."""
    if isinstance(value, bytes):
        return value.decode()
    array = np.asarray(value)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if array.dtype.kind == "O":  # as pandas has text, or has read bytes
        texts = [text.decode() if isinstance(text, bytes) else text for text in array.flat]
        return np.array(texts, object).reshape(array.shape)
    return value
