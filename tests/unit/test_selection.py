import json
import pickle

import numpy as np
import pandas as pd
import pytest
from dataset_builder import write_dataset

import loader
from loader.format import Structure

SPLIT = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]
FOLD = [0, 0, 1, 1, 2, 2, 0, 1, -1, -1]
PATIENTS = [b"a", b"a", b"b", b"b", b"b", b"b", b"c", b"c", b"d", b"d"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("selection") / "out.h5"
    labels = {"n_pixels_1": [3] * 8 + [0, 0], "n_pixels_2": [0, 5] * 5}
    write_dataset(path, n=10, split=SPLIT, manifest={"patient_id": PATIENTS} | labels)
    return path


def rows_of(batches):
    return sorted(row for _ in batches for row in batches.indices.tolist())


def rows_drawn(path, n_epochs=1, **options):
    """Return how often each row comes up in some epochs."""
    batches = loader.Batches(path, batch_size=1, **options)
    counts = np.zeros(len(batches.dataset), int)
    for _ in range(n_epochs):
        for _ in batches:
            counts[batches.indices] += 1
    return counts


# where


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"where": np.arange(10) % 3 == 0}, [0, 3, 6, 9]),
        ({"where": lambda manifest: manifest["n_pixels_2"] > 0}, [1, 3, 5, 7, 9]),
        ({"where": lambda manifest: manifest["slice"] > 3, "split": "train"}, [4, 5]),
        ({"where": np.ones(10, bool)}, range(10)),
        ({"where": np.ma.masked_array(np.ones(10, bool), np.arange(10) > 3)}, [0, 1, 2, 3]),
        ({"where": lambda manifest: manifest["patient_id"] == "c"}, [6, 7]),
        ({"where": lambda manifest: np.isin(manifest["patient_id"], ["a", "d"])}, [0, 1, 8, 9]),
        (
            {"where": lambda manifest: [p not in {"a", "b"} for p in manifest["patient_id"]]},
            [6, 7, 8, 9],
        ),
        (
            {"where": lambda manifest: ~pd.DataFrame(manifest)["patient_id"].isin(["b"])},
            [0, 1, 6, 7, 8, 9],
        ),
        ({"where": lambda manifest: np.asarray(manifest["patient_id"]) != "b"}, [0, 1, 6, 7, 8, 9]),
        (
            {"where": lambda manifest: ~np.isin(manifest["patient_id"], {"b": 1, "c": 2})},
            [0, 1, 8, 9],
        ),
        (
            {"where": lambda manifest: ~np.isin(manifest["patient_id"], (p for p in "bc"))},
            [0, 1, 8, 9],
        ),
    ],
)
def test_where_chooses_rows_of_the_file(path, options, rows):
    assert rows_of(loader.Batches(path, batch_size=1, **options)) == list(rows)


def test_where_that_does_not_fit(path):
    with pytest.raises(loader.LoaderError, match=r"where does not fit .* \(10,\), found \(9,\)"):
        loader.Batches(path, batch_size=1, where=np.ones(9, bool))
    with pytest.raises(loader.LoaderError, match=r"no row has split='test' and True in where"):
        loader.Batches(path, batch_size=1, split="test", where=np.arange(10) < 8)
    with pytest.raises(loader.LoaderError, match=r"no row has True in where \(found rows: "):
        loader.Batches(path, batch_size=1, where=lambda m: m["patient_id"] == "A")
    with pytest.raises(KeyError, match=r"manifest: no column 'patient'; there are patient_id, "):
        loader.Batches(path, batch_size=1, where=lambda m: m["patient"] == "a")
    with pytest.raises(TypeError, match=r"apart_from: expected Batches or .* found str"):
        loader.Batches(path, batch_size=1, apart_from=str(path), allow_shared_patients=True)
    with pytest.raises(TypeError, match=r"where: expected an array of booleans, .* found int64"):
        loader.Batches(path, batch_size=1, where=np.arange(10))
    with pytest.raises(TypeError, match=r"found NoneType\. Of row numbers, make it with np\.isin"):
        loader.Batches(path, batch_size=1, where=lambda _: None)


def test_rows_are_those_that_take_part(path):
    batches = loader.Batches(path, batch_size=1, split="train", where=np.arange(10) % 2 == 0)
    assert batches.rows.tolist() == [0, 2, 4]
    assert batches.rows.dtype == np.int64
    assert loader.Batches(path, batch_size=2).rows.tolist() == list(range(10))


def test_a_function_of_the_manifest_leaves_no_text_in_memory(path):
    seen = []

    def where(manifest):
        seen.append(manifest)
        return manifest["patient_id"] == "c"

    batches = loader.Batches(path, batch_size=2, where=where, weights=lambda m: m["slice"])
    assert seen[0] is not batches.dataset.manifest
    assert seen[0].stored["patient_id"] is batches.dataset.manifest.stored["patient_id"]


def test_description_says_what_is_chosen(path):
    batches = loader.Batches(
        path, batch_size=2, split="train", where=np.ones(10, bool), balance="patient"
    )
    assert repr(batches) == (
        f"<Batches of {str(path)!r}, split='train', where=..., weighted: 6 rows, "
        "3 batches of 2, at batch 0 of epoch 0>"
    )


def test_copy_has_the_rows_of_a_function_that_does_not_pickle(path):
    batches = loader.Batches(path, batch_size=1, where=lambda manifest: manifest["slice"] > 6)
    assert rows_of(pickle.loads(pickle.dumps(batches))) == [7, 8, 9]


# The selection belongs to the state


def test_state_of_other_rows_is_refused(path):
    state = loader.Batches(path, batch_size=1, where=np.arange(10) < 5).state_dict()
    other = loader.Batches(path, batch_size=1, where=np.arange(10) > 4)
    with pytest.raises(loader.LoaderError, match="it differs in selection"):
        other.load_state_dict(json.loads(json.dumps(state)))


def test_same_rows_chosen_another_way_take_the_state(path):
    state = loader.Batches(path, batch_size=1, where=np.arange(10) < 5).state_dict()
    same = loader.Batches(path, batch_size=1, where=lambda manifest: manifest["slice"] < 5)
    same.load_state_dict(state)


def test_file_built_anew_with_another_split_is_noticed(tmp_path):
    write_dataset(tmp_path / "out.h5", n=10, split=SPLIT)
    batches = loader.Batches(tmp_path / "out.h5", batch_size=1, split="train")
    state, pickled = batches.state_dict(), pickle.dumps(batches)
    (tmp_path / "out.h5").unlink()
    write_dataset(tmp_path / "out.h5", n=10, split=SPLIT[::-1])
    assert batches.dataset.dataset_id == loader.open_dataset(tmp_path / "out.h5").dataset_id
    again = loader.Batches(tmp_path / "out.h5", batch_size=1, split="train")
    with pytest.raises(loader.LoaderError, match="it differs in selection"):
        again.load_state_dict(state)
    with pytest.raises(loader.LoaderError, match="built anew with another split or other folds"):
        pickle.loads(pickled)


# Weights


def test_rows_are_drawn_in_proportion_to_their_weights(path):
    weights = np.array([0, 1, 2, 3, 4, 0, 0, 5, 5, 0])
    counts = rows_drawn(path, 500, weights=weights, seed=7)
    assert counts.sum() == 5000
    assert not counts[weights == 0].any()
    np.testing.assert_allclose(counts / 250, weights, rtol=0.2)


def test_weights_are_those_of_the_selected_rows(path):
    counts = rows_drawn(path, 500, split="train", weights=lambda manifest: manifest["slice"])
    assert not counts[0]
    assert not counts[6:].any()
    np.testing.assert_allclose(counts[1:6] / 200, [1, 2, 3, 4, 5], rtol=0.2)


def test_what_a_mask_hides_is_never_drawn(path):
    weights = np.ma.masked_array(np.ones(10), np.arange(10) < 6)
    assert not rows_drawn(path, weights=weights)[:6].any()
    hidden = rows_drawn(path, weights=lambda m: np.ma.masked_where(m["slice"] > 3, np.ones(10)))
    assert not hidden[4:].any()


@pytest.mark.parametrize("name", ["where", "weights"])
def test_a_sorted_column_of_pandas_is_refused(path, name):
    def chosen(manifest):
        table = pd.DataFrame(manifest).sort_values("patient_id", ascending=False)
        return table["patient_id"] == "a" if name == "where" else table["n_pixels_1"]

    def in_order(manifest):
        return chosen(manifest).sort_index()

    with pytest.raises(TypeError, match=rf"{name}: expected the order of the file.*sort_index"):
        loader.Batches(path, batch_size=1, **{name: chosen})
    loader.Batches(path, batch_size=1, **{name: in_order})
    by_patient = lambda m: pd.DataFrame(m).set_index("patient_id")["n_pixels_1"] > 0  # noqa: E731
    assert rows_of(loader.Batches(path, batch_size=1, where=by_patient)) == list(range(8))


def test_weights_of_other_rows_may_be_anything(path):
    weights = np.array([1.0] * 6 + [np.inf, np.nan, -1, 0])
    assert rows_drawn(path, split="train", weights=weights).sum() == 6
    with pytest.raises(loader.LoaderError, match=r"row 6 and 1 others .* found inf"):
        loader.Batches(path, batch_size=1, split="validation", weights=weights)


def test_each_patient_is_drawn_equally_often(path):
    counts = rows_drawn(path, 400, balance="patient", seed=7)
    np.testing.assert_allclose(np.bincount([0, 0, 1, 1, 1, 1, 2, 2, 3, 3], counts), 1000, rtol=0.1)
    np.testing.assert_allclose(counts[2:6], 250, rtol=0.25)


def test_each_set_of_labels_is_drawn_equally_often(path):
    counts = rows_drawn(path, 400, balance="label", seed=7)
    np.testing.assert_allclose(np.bincount([0, 1] * 4 + [2, 3], counts), 1000, rtol=0.1)


def test_weighted_epochs_differ_and_are_decided_by_the_seed(path):
    def epochs(seed):
        batches = loader.Batches(path, batch_size=5, balance="patient", seed=seed)
        return [[batches.indices.tolist() for _ in batches] for _ in range(3)]

    assert epochs(7) == epochs(7)
    assert epochs(7) != epochs(8)
    assert len({str(epoch) for epoch in epochs(7)}) == 3
    assert epochs(7)[0] == [[7, 8, 3, 2, 5], [1, 2, 9, 3, 7]]


def test_ranks_share_weighted_draws(path):
    options = {"balance": "patient", "seed": 7}
    whole = loader.Batches(path, batch_size=4, remainder="pad", **options)
    ranks = [
        loader.Batches(path, batch_size=2, rank=r, world_size=2, remainder="pad", **options)
        for r in (0, 1)
    ]
    for _ in range(5):
        for batches in (whole, *ranks):
            batches.next_batch()
        together = np.concatenate([rank.indices for rank in ranks])
        assert together.tolist() == whole.indices.tolist()


def test_weighted_draws_resume_and_belong_to_their_weights(path):
    batches = loader.Batches(path, batch_size=4, balance="patient")  # warns of no row left out
    batches.next_batch()
    copy = pickle.loads(pickle.dumps(batches))
    again = loader.Batches(path, batch_size=4, balance="patient")
    again.load_state_dict(batches.state_dict())
    for _ in range(5):
        for other in (batches, copy, again):
            other.next_batch()
        assert batches.indices.tolist() == again.indices.tolist() == copy.indices.tolist()
    other = loader.Batches(path, batch_size=4, balance="label")
    with pytest.raises(loader.LoaderError, match="it differs in weights"):
        other.load_state_dict(batches.state_dict())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 9, r"weights does not fit the file .*\(10,\), found \(9,\)"),
        ([1.0] * 9 + [-1.0], "row 9 .*found -1.0"),
        ([float("nan")] * 2 + [1.0] * 8, "row 0 and 1 others .*found nan"),
        (np.array(["1e4000"] * 10, np.longdouble), "row 0 and 9 others .*found inf"),
        ([float("inf")] + [1.0] * 9, "row 0 .*found inf"),
        ([0] * 10, "all of the selected rows have weight 0"),
    ],
)
def test_weights_that_cannot_be_used(path, weights, message):
    with pytest.raises(loader.LoaderError, match=f"Weights not usable.*{message}"):
        loader.Batches(path, batch_size=1, weights=weights)


def test_weights_that_are_never_right(path):
    with pytest.raises(TypeError, match="weights: expected an array of numbers"):
        loader.Batches(path, batch_size=1, weights=["a"] * 10)
    with pytest.raises(TypeError, match=r"weights: expected an array of numbers, .* found bool"):
        loader.Batches(path, batch_size=1, weights=np.ones(10, bool))
    with pytest.raises(ValueError, match="either weights or balance"):
        loader.Batches(path, batch_size=1, weights=np.ones(10), balance="label")
    with pytest.raises(ValueError, match="shuffle: weighted draws"):
        loader.Batches(path, batch_size=1, balance="label", shuffle=False)
    with pytest.raises(ValueError, match="balance: expected one of patient, label, found 'class'"):
        loader.Batches(path, batch_size=1, balance="class")


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e308])
def test_scale_of_the_weights_does_not_matter(path, scale):
    weights = np.array([0, 1, 2, 3, 4, 0, 0, 5, 1, 0]) / 5
    expected = loader.Batches(path, batch_size=10, weights=weights)
    scaled = loader.Batches(path, batch_size=10, weights=weights * scale)
    for batches in (expected, scaled):
        batches.next_batch()
    assert scaled.indices.tolist() == expected.indices.tolist()


# Patients in training and validation


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    """Return a file whose patient b is in training and validation, and in two folds."""
    path = tmp_path_factory.mktemp("leaking") / "out.h5"
    split = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    write_dataset(path, n=10, split=split, fold=FOLD, manifest={"patient_id": PATIENTS})
    return path


@pytest.mark.parametrize(
    "selection",
    [
        {"split": "train"},
        {"split": "validation"},
        {"fold": 1},
        {"fold": 1, "fold_role": "validation"},
        {"fold": 0, "split": "train"},
    ],
)
def test_patient_in_training_and_validation_is_refused(leaking, selection):
    with pytest.raises(
        loader.LoaderError, match=r"would share patients \(expected none, found [12]"
    ):
        loader.Batches(leaking, batch_size=1, **selection)
    assert len(loader.Batches(leaking, batch_size=1, allow_shared_patients=True, **selection))


def test_selection_without_the_shared_patient_is_not_refused(leaking):
    for options in ({"split": "test"}, {"split": "train", "where": np.arange(10) < 2}, {}):
        assert len(loader.Batches(leaking, batch_size=1, **options))


def test_apart_from_refuses_shared_patients(path):
    def rows(*wanted):
        return np.isin(np.arange(10), wanted)

    training = loader.Batches(path, batch_size=1, where=rows(0, 2, 3))
    for shared in ({"where": rows(1, 6)}, {"where": rows(5)}, {"split": "train"}, {}):
        with pytest.raises(loader.LoaderError, match=r"found [12] of this selection among the row"):
            loader.Batches(path, batch_size=1, apart_from=training, **shared)
        options = shared | {"apart_from": training, "allow_shared_patients": True}
        assert len(loader.Batches(path, batch_size=1, **options))
    assert len(loader.Batches(path, batch_size=1, where=rows(6, 9), apart_from=training)) == 2


def test_apart_from_holds_between_files(path, tmp_path):
    write_dataset(tmp_path / "b.h5", n=3, manifest={"patient_id": [b"c", b"d", b"e"]})
    training = loader.Batches(path, batch_size=1, split="train")
    assert len(loader.Batches(tmp_path / "b.h5", batch_size=1, apart_from=training)) == 3
    everything = loader.Batches(path, batch_size=1)
    with pytest.raises(loader.LoaderError, match="found 2 of this selection"):
        loader.Batches(tmp_path / "b.h5", batch_size=1, apart_from=everything)


def test_patient_in_several_runs_of_rows_is_one_patient(tmp_path):
    patients = [b"a", b"b", b"a", b"b"]
    write_dataset(tmp_path / "out.h5", n=4, split=[0, 0, 1, 1], manifest={"patient_id": patients})
    with pytest.raises(loader.LoaderError, match="found 2 of this selection"):
        loader.Batches(tmp_path / "out.h5", batch_size=1, split="train")


def test_no_identifier_of_a_patient_is_in_the_message(leaking):
    with pytest.raises(loader.LoaderError) as caught:
        loader.Batches(leaking, batch_size=1, split="train")
    assert "'b'" not in str(caught.value)


def test_balance_by_label_tells_all_of_many_labels_apart(tmp_path):
    """Each set of labels comes equally often, the twelfth label of a file counting as the first."""
    structures = [Structure(f"part {n}", n, f"part {n}", f"label{n}") for n in range(1, 13)]
    counts = {f"n_pixels_{n}": np.zeros(40, int) for n in range(1, 13)}
    counts["n_pixels_1"][:] = 5
    counts["n_pixels_12"][:4] = 5  # four of forty rows show the last label too
    path = tmp_path / "twelve.h5"
    write_dataset(path, n=40, structures=structures, manifest=counts)
    batches = loader.Batches(path, batch_size=40, balance="label")
    drawn = np.concatenate([batches.indices for _ in range(50) for _ in batches])
    assert np.mean(drawn < 4) == pytest.approx(0.5, abs=0.05)
