"""Transforms of the user's own: what they get, and checks of what they return."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from loader.channels import HandedOut
from loader.columns import Columns
from loader.dataset import Dataset, Images
from loader.errors import LoaderError
from loader.sampler import GOLDEN, Indices, keys_of, mix

Array: TypeAlias = npt.NDArray[np.generic]
SampleTransform: TypeAlias = Callable[
    [Array, HandedOut, Mapping[str, object], np.random.Generator], tuple[object, object]
]
BatchTransform: TypeAlias = Callable[
    [Array, HandedOut, Mapping[str, object], list[np.random.Generator]], tuple[object, object]
]

_KEY_NUMBER: Final = 12  # of `keys_of`
_N_NAMED: Final = 3  # rows of a batch, in a message
_NUMBERS: Final = "biuf"  # kinds of NumPy types


@dataclass(frozen=True)
class PerBatch:
    """A transform that changes all samples of a batch at once, given to `Batches`.

    Parameters
    ----------
    function : callable
        Called with the images of a batch, (n, rows, columns); its masks of the same shape; the
        manifest of its rows, a mapping of column to array of shape (n,); and a list of n
        generators, one for each sample. It returns images and masks.

    Raises
    ------
    TypeError
        Not a function.
    """

    function: BatchTransform

    def __post_init__(self) -> None:
        """Check the argument."""
        if not callable(self.function):
            raise TypeError(f"PerBatch: expected a function, found {self.function!r}.")


Transform: TypeAlias = SampleTransform | PerBatch


class ManifestRows(Mapping[str, object]):
    """What the manifest says of one row, or of several; read when it is asked for.

    Parameters
    ----------
    manifest : Columns
    rows : int or int64 array
        One row gives plain values of Python, several give arrays.

    Attributes
    ----------
    rows : int or int64 array
        The rows of the file.
    """

    def __init__(self, manifest: Columns, rows: int | Indices) -> None:
        self._manifest = manifest
        self.rows = rows

    def __getitem__(self, column: str) -> object:
        """Return the value of a column, or the values."""
        stored = self._manifest.stored
        # A column that there is not: the manifest's own error names those that there are.
        values = stored[column] if column in stored else self._manifest[column]
        if isinstance(self.rows, int):
            # Only this row's text is decoded: the whole column would take memory for ever.
            value = values[self.rows]
            if isinstance(value, bytes):
                return value.decode("utf-8", "backslashreplace")
            return value.item()
        return Columns("manifest", {column: values[self.rows]})[column]

    def __iter__(self) -> Iterator[str]:
        """Return the names of the columns."""
        return iter(self._manifest)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._manifest)

    def __repr__(self) -> str:
        """Return the rows, and the names of the columns."""
        return f"<manifest of {self.rows}: {', '.join(self)}>"


def check_transform(transform: object) -> None:
    """Refuse what is no transform."""
    if transform is not None and not callable(transform) and not isinstance(transform, PerBatch):
        raise TypeError(
            f"transform: expected a function, loader.PerBatch or None, found {transform!r}."
        )


def transform_samples(
    transform: Transform,
    dataset: Dataset,
    images: Images,
    masks: HandedOut,
    *,
    seed: int,
    epoch: int,
    rows: Indices,
    copies: Indices,
) -> tuple[Images, HandedOut]:
    """Return the samples of a batch as a transform leaves them, of the types that they had.

    Parameters
    ----------
    transform : callable or PerBatch
    dataset : Dataset
    images : array, shape (n, ..., rows, columns)
        The transform may change them in place.
    masks : array, shape (n, ..., rows, columns)
        As above.
    seed, epoch : int
    rows, copies : int64 array, shape (n,)
        What the generators depend on, and nothing else.

    Returns
    -------
    images, masks : arrays
        With other rows and columns where the transform changes them.

    Raises
    ------
    LoaderError
        The transform raised an error, or did not return an image and a mask that fit each other
        and those of the other samples.
    """
    generators = _generators(seed, epoch, rows, copies)
    if isinstance(transform, PerBatch):
        where = _Place(dataset, rows)
        manifest = ManifestRows(dataset.manifest, rows)
        found = _called(transform.function, where, images, masks, manifest, generators)
        if any(len(one) != len(rows) for one in found if one.ndim):
            why = f"it returned {len(found[0])} images and {len(found[1])} masks"
            raise where.refused(f"{why} (expected {len(rows)} of each)", "Return all samples.")
        _check_shapes(where, *found, n_axes=(images.ndim, masks.ndim))
        return (
            cast("Images", _as_type(where, "images", found[0], images.dtype)),
            cast("HandedOut", _as_type(where, "masks", found[1], masks.dtype)),
        )
    changed: tuple[Images, HandedOut] = images, masks
    for i, row in enumerate(rows.tolist()):
        where = _Place(dataset, rows[i : i + 1])
        manifest = ManifestRows(dataset.manifest, row)
        found = _called(transform, where, images[i], masks[i], manifest, generators[i])
        _check_shapes(where, *found, n_axes=(images.ndim - 1, masks.ndim - 1))
        shapes = found[0].shape, found[1].shape
        if i == 0 and shapes != (images.shape[1:], masks.shape[1:]):
            changed = (
                np.empty((len(rows), *shapes[0]), images.dtype),
                np.empty((len(rows), *shapes[1]), masks.dtype),
            )
        elif shapes != (changed[0].shape[1:], changed[1].shape[1:]):
            why = f"it returned an image of {shapes[0]}, and {changed[0].shape[1:]} for the first"
            raise where.refused(f"{why} sample of the batch", "Return one shape for all samples.")
        changed[0][i] = _as_type(where, "image", found[0], images.dtype)
        changed[1][i] = _as_type(where, "mask", found[1], masks.dtype)
    return changed


def _generators(seed: int, epoch: int, rows: Indices, copies: Indices) -> list[np.random.Generator]:
    """Return a generator for each sample.

    With `mix`, G and key[12] as in `loader.sampler`, the seed of a generator is the key(row, copy)
    that `loader.augment.parameters` makes of its own key.
    """
    words = keys_of(seed, epoch, np.array([_KEY_NUMBER], np.uint64))
    for number in (rows, copies):
        words = mix(words + (number.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return [np.random.default_rng(word) for word in words.tolist()]


class _Place:
    """The rows that a transform was called for, for messages."""

    def __init__(self, dataset: Dataset, rows: Indices) -> None:
        self._dataset = dataset
        self._rows = rows

    def refused(self, why: str, what_to_do: str) -> LoaderError:
        named = []
        for row in self._rows[:_N_NAMED].tolist():
            manifest = ManifestRows(self._dataset.manifest, row)
            named.append(f"row {row} (patient {manifest['patient_id']}, slice {manifest['slice']})")
        more = len(self._rows) - len(named)
        words = ", ".join(named) + (f" and {more} more" if more else "")
        return LoaderError(
            f"Sample not transformed: {self._dataset.path}, {words}: transform: {why}. {what_to_do}"
        )


def _called(
    function: Callable[..., object],
    where: _Place,
    images: Array,
    masks: HandedOut,
    manifest: ManifestRows,
    generators: object,
) -> tuple[Array, Array]:
    try:
        found = function(images, masks, manifest, generators)
        if isinstance(found, tuple | list) and len(found) == len(("image", "mask")):
            return np.asarray(found[0]), np.asarray(found[1])
    except Exception as error:
        why = f"it raised {type(error).__name__}: {error}"
        raise where.refused(
            why, "Mend the transform, or leave such rows out with where."
        ) from error
    what = f"{len(found)} values" if isinstance(found, tuple | list) else f"{type(found).__name__}"
    raise where.refused(
        f"it returned {'nothing' if found is None else what} (expected image and mask)",
        "Return both, also where only one of them changes.",
    )


def _check_shapes(where: _Place, image: Array, mask: Array, n_axes: tuple[int, int]) -> None:
    if (image.ndim, mask.ndim) != n_axes:
        raise where.refused(
            f"it returned an image of {image.shape} and a mask of {mask.shape} (expected as many "
            f"axes as it was given: {n_axes[0]} and {n_axes[1]})",
            "Remove the axes that it added.",
        )
    if image.shape[-2:] != mask.shape[-2:]:
        raise where.refused(
            f"it changed one of the two shapes (expected equal rows and columns, found an image of "
            f"{image.shape} and a mask of {mask.shape})",
            "Change both in the same way.",
        )


def _as_type(where: _Place, name: str, values: Array, dtype: np.dtype[np.generic]) -> Array:
    """Return values as the type of a batch; whole numbers only where each stays as it is."""
    if values.dtype == dtype:
        return values
    if values.dtype.kind in _NUMBERS:
        with np.errstate(invalid="ignore"):  # the comparison tells
            converted = values.astype(dtype)
        if dtype.kind == "f" or np.array_equal(converted, values):
            return converted
    is_mask = name.startswith("mask")
    expected = (
        f"values that {dtype} holds exactly" if is_mask else f"{dtype}, as the file stores images"
    )
    raise where.refused(
        f"it returned a {name} of {values.dtype} (expected {expected})",
        "Move masks by the nearest pixel." if is_mask else 'Give dtype="float32".',
    )
