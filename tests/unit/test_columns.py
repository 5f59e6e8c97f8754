import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest

from loader.columns import Columns

IDS = ["P1", "P2", "Zoë"]


@pytest.fixture
def columns():
    return Columns(
        "manifest", {"patient_id": np.array([id_.encode() for id_ in IDS]), "slice": np.arange(3)}
    )


@pytest.fixture
def ids(columns):
    return columns["patient_id"]


def test_text_is_a_plain_array_of_str(ids):
    assert ids.dtype.kind == "U"
    assert ids.tolist() == IDS
    assert f"{ids[2]}" == "Zoë"
    assert json.loads(json.dumps(ids[0])) == "P1"


@pytest.mark.parametrize("other", ["P1", np.str_("P1"), np.array("P1"), ["P1", "x", "P2"]])
def test_text_compares_with_text(ids, other):
    for found in (ids == other, ~(ids != other)):
        assert found.tolist() == [True, False, False]
    assert "P1" in ids
    assert "P9" not in ids
    assert (ids < "P2").tolist() == [True, False, False]


WANTED = [
    ["P1", "Zoë"],
    np.array(["P1", "Zoë"]),
    pd.Series(["P1", "Zoë"]),
    {"P1", "Zoë"},
    {"P1": 1, "Zoë": 2},
    {1: "P1", 2: "Zoë"}.values(),
]


@pytest.mark.parametrize("wanted", WANTED)
def test_text_is_looked_up_in_whatever_holds_text(ids, wanted):
    assert np.isin(ids, wanted).tolist() == [True, False, True]
    assert np.isin(ids, test_elements=wanted, invert=True).tolist() == [False, True, False]
    assert [id_ in set(wanted) for id_ in ids] == [True, False, True]


def test_text_is_decoded_when_it_is_asked_for_and_once(columns):
    assert columns["patient_id"] is columns["patient_id"]
    assert columns.stored["patient_id"].dtype.kind == "S"
    assert columns.copy()["patient_id"] is not columns["patient_id"]
    with pytest.raises(ValueError, match="read-only"):
        columns["patient_id"][0] = "x"


def test_text_that_is_no_utf8_is_shown_as_it_can_be():
    assert Columns("t", {"x": np.array([b"a\xff", b"b"])})["x"].tolist() == [r"a\xff", "b"]


@pytest.mark.parametrize(
    "table",
    [
        dict,
        lambda columns: {**columns},
        lambda columns: dict(columns.items()),
        lambda columns: dict(zip(columns, columns.values(), strict=True)),
        lambda columns: columns | {},
        lambda columns: {name: columns.get(name) for name in columns},
        pd.DataFrame,
    ],
)
def test_all_that_copies_the_columns_has_text(columns, table):
    copied = table(columns)
    assert list(copied) == ["patient_id", "slice"]
    assert list(copied["patient_id"]) == IDS
    assert list(copied["slice"]) == [0, 1, 2]


def test_columns_in_pandas(columns):
    table = pd.DataFrame(columns)
    assert table["patient_id"].isin(["P1"]).tolist() == [True, False, False]
    assert (pd.Series(columns["patient_id"]) == "P1").tolist() == [True, False, False]
    assert pd.Series(IDS).isin(columns["patient_id"]).all()
    clinical = pd.DataFrame({"patient_id": ["Zoë", "P1"], "age": [40, 50]})
    assert table.merge(clinical, on="patient_id")["age"].tolist() == [50, 40]
    assert np.isin(columns["patient_id"], clinical["patient_id"]).tolist() == [True, False, True]
    assert list(columns["patient_id"] == pd.Series(IDS)) == [True] * 3


def test_columns_name_what_there_is(columns):
    assert list(columns) == ["patient_id", "slice"]
    assert "slice" in columns
    assert "x" not in columns
    assert repr(columns) == "<manifest: 3 rows of patient_id, slice>"
    with pytest.raises(KeyError, match=r"manifest: no column 'x'; there are patient_id, slice\."):
        columns["x"]
    assert columns.get("x") is None
    assert columns.get("x", 3) == 3
    uneven = Columns("contours", {"x": np.arange(5), "row": np.arange(2)})
    assert repr(uneven) == "<contours: x (5), row (2)>"


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns.__setitem__("slice", np.arange(3)),
        lambda columns: columns.__delitem__("slice"),
        lambda columns: columns.update(slice=0),
        lambda columns: columns.__ior__({"slice": 0}),
        lambda columns: columns.pop("slice"),
        lambda columns: columns.popitem(),
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
