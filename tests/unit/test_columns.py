import copy
import pickle

import numpy as np
import pandas as pd
import pytest

from loader.columns import Columns, Text

IDS = ["P1", "P2", "Zoë"]


@pytest.fixture
def columns():
    return Columns(
        "manifest", {"patient_id": np.array([id_.encode() for id_ in IDS]), "slice": np.arange(3)}
    )


@pytest.fixture
def ids(columns):
    return columns["patient_id"]


@pytest.mark.parametrize("other", ["P1", b"P1", np.str_("P1"), np.array("P1"), ["P1", "x", "P2"]])
def test_text_compares_with_text_and_bytes(ids, other):
    for found in (ids == other, other == ids, ~(ids != other), np.equal(ids, other)):
        assert type(found) is np.ndarray
        assert found.tolist() == [True, False, False]


def test_text_compares_beyond_ascii_and_in_order(ids):
    assert (ids == "Zoë").tolist() == [False, False, True]
    assert (ids < "P2").tolist() == [True, False, False]
    assert (ids[1:] == np.array(IDS[1:])).all()


@pytest.mark.parametrize(
    "wanted",
    [
        ["P1", "Zoë"],
        ("P1", "Zoë"),
        np.array(["P1", "Zoë"]),
        np.array(["P1", None, np.nan, "Zoë"], object),  # as pandas has them
        [b"P1", "Zoë".encode()],
    ],
)
def test_text_is_looked_up_among_text_and_bytes(ids, wanted):
    assert np.isin(ids, wanted).tolist() == [True, False, True]
    assert np.isin(ids, wanted, invert=True).tolist() == [False, True, False]
    assert np.isin(ids, test_elements=wanted, kind="sort").tolist() == [True, False, True]


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="needs NumPy 2")
def test_text_is_looked_up_among_strings_of_any_length(ids):
    wanted = np.array(["P1", "Zoë"], np.dtypes.StringDType())
    assert np.isin(ids, wanted).tolist() == [True, False, True]
    assert (ids == wanted[:1]).tolist() == [True, False, False]


def test_text_is_compared_as_sets(ids):
    assert np.array_equal(ids, IDS)
    assert not np.array_equal(ids, IDS[::-1])
    assert np.setdiff1d(ids, ["P1"]).tolist() == [b"P2", "Zoë".encode()]
    assert np.intersect1d(["P1", "x"], ids).tolist() == [b"P1"]
    assert (ids.astype(object) == "P1").tolist() == [True, False, False]


def test_text_is_an_array_of_bytes_otherwise(ids):
    assert np.char.replace(ids, b"P", b"Q").tolist() == [b"Q1", b"Q2", "Zoë".encode()]
    assert ids.tolist() == [id_.encode() for id_ in IDS]
    assert (ids[:2].astype(str) == "P1").tolist() == [True, False]
    assert np.isin(ids, []).tolist() == [False] * 3
    assert np.isin(ids, "P2").tolist() == [False, True, False]
    assert np.unique(ids[[1, 0, 1]]).tolist() == [b"P1", b"P2"]
    assert np.concatenate([ids, ids]).tolist() == 2 * ids.tolist()
    assert np.char.startswith(ids, b"P").tolist() == [True, True, False]
    other = pickle.loads(pickle.dumps(ids))
    assert isinstance(other, Text)
    assert (other == "P1").tolist() == [True, False, False]


def test_columns_are_a_table_in_pandas(columns):
    table = pd.DataFrame(columns)
    assert list(table) == ["patient_id", "slice"]
    assert table["patient_id"].tolist() == columns["patient_id"].tolist()
    wanted = pd.DataFrame({"patient_id": ["Zoë", "P1"]})["patient_id"]
    assert np.isin(columns["patient_id"], wanted).tolist() == [True, False, True]
    assert list(columns["patient_id"] == pd.Series(IDS)) == [True] * 3


def test_columns_name_what_there_is(columns):
    assert list(columns) == ["patient_id", "slice"]
    assert "slice" in columns
    assert "x" not in columns
    assert repr(columns) == "<manifest: 3 rows of patient_id, slice>"
    with pytest.raises(KeyError, match=r"manifest: no column 'x'; there are patient_id, slice\."):
        columns["x"]


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns.__setitem__("slice", np.arange(3)),
        lambda columns: columns.__delitem__("slice"),
        lambda columns: columns.update(slice=0),
        lambda columns: columns.__ior__({"slice": 0}),
        lambda columns: columns.pop("slice"),
        lambda columns: columns.clear(),
        lambda columns: columns.setdefault("x", 0),
    ],
)
def test_columns_are_read_only(columns, change):
    with pytest.raises(TypeError, match="read-only; change a copy"):
        change(columns)
    assert list(columns) == ["patient_id", "slice"]


def test_columns_are_copied_and_pickled(columns):
    for other in (copy.deepcopy(columns), pickle.loads(pickle.dumps(columns))):
        assert repr(other) == repr(columns)
        assert (other["patient_id"] == "P1").tolist() == [True, False, False]
    assert list(columns | {"x": 0}) == ["patient_id", "slice", "x"]
