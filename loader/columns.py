"""Columns of a table of the file; text in them is `str`."""

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Set, ValuesView
from typing import Any, Never, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Column: TypeAlias = npt.NDArray[Any]


class Text(np.ndarray):
    """An array of `str`, for which `numpy.isin` takes sets, dicts and generators too.

    NumPy takes one of these as a single object, which no text equals: ``~np.isin(ids, {"P1"})``
    would keep the patient that it is to leave out, and say nothing.
    """

    def __array_function__(
        self,
        function: Callable[..., object],
        types: Iterable[type],
        arguments: Iterable[Any],
        options: Mapping[str, Any],
    ) -> object:
        """Call a function of NumPy."""
        if function is np.isin:
            arguments = tuple(map(_listed, arguments))
            options = {name: _listed(value) for name, value in options.items()}
        return super().__array_function__(function, types, arguments, options)


class Columns(dict[str, Column]):
    """The columns of a table by name; read-only.

    A `dict`, because pandas makes a table of one. Text is decoded when it is first asked for:
    an array of `str`, which compares with `str` and never equals bytes.

    Parameters
    ----------
    name : str
        Of the table, for messages.
    stored : mapping of name to array
        The columns as the file has them.
    check : callable, optional
        Raises where the file has changed; called whenever a column is asked for.

    Attributes
    ----------
    name : str
    """

    def __init__(
        self, name: str, stored: Mapping[str, Column], check: Callable[[], None] | None = None
    ) -> None:
        super().__init__(stored)
        self.name = name
        self._stored = dict(stored)
        self._check = check or _nothing

    @property
    def stored(self) -> dict[str, Column]:
        """The columns as the file has them: text as UTF-8 bytes, in a quarter of the memory."""
        self._check()
        return self._stored

    def __getitem__(self, column: str) -> Column:
        """Return a column."""
        self._check()
        values = super().__getitem__(column)
        if values.dtype.kind == "S":
            values = _decoded(values)
            super().__setitem__(column, values)
        return values

    def __missing__(self, column: str) -> Never:
        """Name the columns there are."""
        raise KeyError(f"{self.name}: no column {column!r}; there are {', '.join(self)}.")

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
        return Columns(self.name, self._stored, self._check)

    __copy__ = copy

    def __or__(self, other: Mapping[str, object]) -> dict[str, object]:  # type: ignore[override]
        """Return a dict with the columns of both."""
        return {**self, **other}

    def __repr__(self) -> str:
        """Return the columns, with their lengths where these differ."""
        lengths = [len(values) for values in self._stored.values()]
        if len(set(lengths)) == 1:
            return f"<{self.name}: {lengths[0]} rows of {', '.join(self)}>"
        named = (f"{name} ({length})" for name, length in zip(self, lengths, strict=True))
        return f"<{self.name}: {', '.join(named)}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as what it was made from; the values travel, so that nothing can change them."""
        return Columns, (self.name, self.stored)

    def _refuse(self, *_: object, **__: object) -> Never:
        raise TypeError(f"{self.name}: the columns are read-only; change a copy, dict(...).")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


def _nothing() -> None:
    """Check nothing: the columns are of no file."""


def _decoded(encoded: Column) -> Column:
    try:
        texts = encoded.astype(np.str_)  # ASCII only, and quick
    except UnicodeDecodeError:
        texts = np.char.decode(encoded, "utf-8", "backslashreplace")
    texts.flags.writeable = False
    return texts.view(Text)


def _listed(value: object) -> object:
    is_one = isinstance(value, Set | Mapping | ValuesView | Iterator)
    return list(cast("Iterable[object]", value)) if is_one else value
