import pickle

import numpy as np
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


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="needs NumPy 2")
def test_text_is_looked_up_among_strings_of_any_length(ids):
    wanted = np.array(["P1", "Zoë"], np.dtypes.StringDType())
    assert np.isin(ids, wanted).tolist() == [True, False, True]
    assert (ids == wanted[:1]).tolist() == [True, False, False]


def test_text_is_an_array_of_bytes_otherwise(ids):
    assert ids.tolist() == [id_.encode() for id_ in IDS]
    assert (ids[:2].astype(str) == "P1").tolist() == [True, False]
    assert np.isin(ids, []).tolist() == [False] * 3
    assert np.isin(ids, "P2").tolist() == [False, True, False]
    assert np.unique(ids[[1, 0, 1]]).tolist() == [b"P1", b"P2"]
    assert np.concatenate([ids, ids]).tolist() == 2 * ids.tolist()
    assert np.char.startswith(ids, b"P").tolist() == [True, True, False]
    copy = pickle.loads(pickle.dumps(ids))
    assert isinstance(copy, Text)
    assert (copy == "P1").tolist() == [True, False, False]


def test_columns_name_what_there_is(columns):
    assert list(columns) == ["patient_id", "slice"]
    assert "slice" in columns
    assert "x" not in columns
    assert repr(columns) == "<manifest: 3 rows of patient_id, slice>"
    with pytest.raises(KeyError, match=r"manifest: no column 'x'; there are patient_id, slice\."):
        columns["x"]
    with pytest.raises(TypeError):
        columns["slice"] = np.arange(3)
