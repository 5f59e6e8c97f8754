import re
from collections import Counter

import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_tree

import etl
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.output.split import assign, read_old_split, read_split_file
from loader import open_dataset

MANY = {f"P{i:04d}": 5 + i % 11 for i in range(400)}


def split_of(n_samples, **options):
    return {p: side[0] for p, side in assign(n_samples, BuildOptions(**options)).items()}


def fold_of(n_samples, **options):
    return {p: side[1] for p, side in assign(n_samples, BuildOptions(**options)).items()}


def test_nothing_asked_is_none():
    assert assign({"A": 3}, BuildOptions()) == {"A": (-1, -1)}


@pytest.mark.parametrize("seed", range(5))
def test_fractions_are_those_of_samples(seed):
    split = split_of(MANY, split=(70, 15, 15), split_seed=seed)
    total = sum(MANY.values())
    for code, share in enumerate((0.7, 0.15, 0.15)):
        n = sum(MANY[patient] for patient, found in split.items() if found == code)
        assert abs(n / total - share) < 0.005


def test_a_new_patient_moves_few_others():
    options = {"split": (70, 15, 15), "folds": 5}
    before = assign(MANY, BuildOptions(**options))
    for i in range(20):
        after = assign(MANY | {f"new{i}": 9}, BuildOptions(**options))
        assert sum(before[patient] != after[patient] for patient in MANY) <= 8


def test_the_order_of_the_patients_does_not_matter():
    backwards = dict(reversed(MANY.items()))
    options = BuildOptions(split=(60, 20, 20), folds=3)
    assert assign(MANY, options) == assign(backwards, options)


def test_another_seed_is_another_split():
    one, two = (split_of(MANY, split=(50, 25, 25), split_seed=seed) for seed in (0, 1))
    assert sum(one[patient] != two[patient] for patient in MANY) > 100


def test_the_split_of_a_fixed_seed_stays():
    names = dict.fromkeys("ABCDEFGHIJ", 10)
    assert list(split_of(names, split=(60, 20, 20)).values()) == [0, 2, 1, 0, 2, 1, 0, 0, 0, 0]
    assert list(fold_of(names, folds=3).values()) == [1, 2, 2, 0, 0, 1, 2, 1, 1, 0]


@pytest.mark.parametrize("n_patients", [3, 4, 7])
def test_each_part_has_a_patient_where_there_are_enough(n_patients):
    patients = {str(i): 10 for i in range(n_patients)}
    assert set(split_of(patients, split=(70, 15, 15)).values()) == {0, 1, 2}
    assert set(fold_of(patients, folds=n_patients).values()) == set(range(n_patients))


def test_a_share_of_zero_gets_nobody():
    assert set(split_of(MANY, split=(80, 20, 0)).values()) == {0, 1}
    assert set(split_of({"A": 1, "B": 1}, split=(0, 0, 100)).values()) == {2}


def test_too_few_patients_leave_parts_empty():
    assert set(split_of({"A": 3}, split=(70, 15, 15)).values()) <= {0, 1, 2}


def test_folds_are_near_equal_and_leave_out_the_test_patients():
    sides = assign(MANY, BuildOptions(split=(70, 15, 15), folds=4))
    assert all((fold == -1) == (split == 2) for split, fold in sides.values())
    samples = np.zeros(4)
    for patient, (_, fold) in sides.items():
        if fold >= 0:
            samples[fold] += MANY[patient]
    assert samples.max() / samples.min() < 1.03


def test_the_users_own_file(tmp_path):
    table = tmp_path / "split.csv"
    table.write_text("\ufeffSplit , patient_id,fold\r\ntrain,A,3\r\n\r\n test , B,\r\n", "utf-8")
    assert read_split_file(table) == {"A": (0, 3), "B": (2, -1)}
    sides = assign({"A": 1, "C": 1}, BuildOptions(split_file=str(table)))
    assert sides == {"A": (0, 3), "C": (-1, -1)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient_id\nA\n", "split"),
        ("patient_id,split\nA,training\n", "line 2"),
        ("patient_id,split\nA,train\n,test\n", "line 3"),
        ("patient_id,split\nA,train\nA,test\n", "two sides"),
        ("patient_id,split,fold\nA,train,1_0\n", "fold"),
        ("patient_id,split,fold\nA,train,-1\n", "fold"),
        ("patient_id,split,fold\nA,test,1\n", "test patient"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path, text, words):
    table = tmp_path / "split.csv"
    table.write_text(text)
    with pytest.raises(EtlError, match=words):
        read_split_file(table)


PEOPLE = [(f"P{i:04d}", f"P{i + 200:04d}", f"P{i + 300:04d}") for i in range(0, 60, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_one_person_under_several_ids_is_on_one_side_and_shares_stay(seed):
    options = BuildOptions(split=(70, 15, 15), folds=4, split_seed=seed)
    sides = assign(MANY, options, people=PEOPLE)
    assert all(len({sides[one] for one in ids}) == 1 for ids in PEOPLE)
    apart = assign(MANY, options)
    assert sum(len({apart[one] for one in ids}) > 1 for ids in PEOPLE) > 20  # else it shows nothing
    total = sum(MANY.values())
    for code, share in enumerate((0.7, 0.15, 0.15)):
        n = sum(MANY[patient] for patient, (found, _) in sides.items() if found == code)
        assert abs(n / total - share) < 0.01


def test_people_move_few_others():
    options = BuildOptions(split=(70, 15, 15))
    sides, apart = assign(MANY, options, people=PEOPLE[:3]), assign(MANY, options)
    known = {one for ids in PEOPLE[:3] for one in ids}
    assert sum(sides[one] != apart[one] for one in MANY.keys() - known) <= 8


def test_a_person_whose_ids_have_no_rows_changes_nothing():
    options = BuildOptions(split=(50, 25, 25))
    assert assign(MANY, options, people=[("A", "P0003"), ("B", "C")]).keys() == MANY.keys()


def test_what_the_user_or_the_input_says_wins_over_people(tmp_path):
    table = tmp_path / "split.csv"
    table.write_text("patient_id,split\nA,train\nB,test\nC,train\nD,train\n")
    n_samples = dict.fromkeys("ABCD", 5)
    options = BuildOptions(split_file=str(table), folds=2)
    sides = assign(n_samples, options, people=[("A", "B"), ("C", "D")])
    assert [sides[one][0] for one in "ABCD"] == [0, 2, 0, 0]
    assert sides["B"][1] == -1
    assert sides["C"][1] == sides["D"][1] != sides["A"][1]
    given = {"A": (0, 1), "B": (0, 0), "C": (1, -1), "D": (2, -1)}
    assert assign(n_samples, BuildOptions(), given, [("A", "B"), ("C", "D")]) == given


@pytest.fixture
def old(tmp_path):
    """Return the path of a file of six patients with a split and folds, and its sides."""
    root = write_tree(tmp_path / "data", [(f"P{n}", f"A{n}") for n in range(6)])
    options = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False, split=(50, 25, 25), folds=2)
    etl.build(root, tmp_path / "old.h5", options)
    manifest = open_dataset(tmp_path / "old.h5").manifest
    columns = (manifest[name].tolist() for name in ("patient_id", "split", "fold"))
    return tmp_path / "old.h5", {one: side for one, *side in zip(*columns, strict=True)}


def test_patients_of_an_older_file_keep_their_sides_and_new_ones_fill_the_shares(old):
    path, before = old
    n_samples = dict.fromkeys([*before, *(f"N{n}" for n in range(6))], 3)
    for options in ({"split": (50, 25, 25), "folds": 2}, {}):  # alone: the shares of the older file
        after = assign(n_samples, BuildOptions(splits_from=str(path), **options))
        assert {one: list(after[one]) for one in before} == before
        assert [Counter(side for side, _ in after.values())[code] for code in range(3)] == [6, 3, 3]
        folds = Counter(fold for _, fold in after.values())
        assert abs(folds[0] - folds[1]) <= 1
        assert all((fold == -1) == (side == 2) for side, fold in after.values())


def test_fewer_folds_than_before_reassign_those_whose_fold_is_gone(tmp_path, old):
    _path, before = old
    root = tmp_path / "data"
    three = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False, folds=3)
    etl.build(root, tmp_path / "three.h5", three)
    fold_before = read_old_split(tmp_path / "three.h5").folds
    n_samples = dict.fromkeys(before, 3)
    after = assign(n_samples, BuildOptions(splits_from=str(tmp_path / "three.h5"), folds=2))
    kept = {one for one, fold in fold_before.items() if fold < 2}
    assert 0 < len(kept) < 6
    assert all(after[one][1] == fold_before[one] for one in kept)
    assert Counter(fold for _, fold in after.values()) == {0: 3, 1: 3}


def test_a_new_id_of_a_known_person_joins_its_side_and_what_is_apart_stays_apart(old):
    path, before = old
    one, other = next((a, b) for a in before for b in before if before[a][0] != before[b][0])
    n_samples = dict.fromkeys([*before, "N"], 3)
    options = BuildOptions(splits_from=str(path))
    for known in (one, other):
        after = assign(n_samples, options, people=[sorted(("N", known))])
        assert list(after["N"]) == before[known]
    after = assign(n_samples, options, people=[sorted(("N", one, other))])
    assert {patient: list(after[patient]) for patient in before} == before
    assert list(after["N"]) == before[min(one, other)]


def test_a_share_of_zero_gets_no_new_patient_either(old):
    path, before = old
    n_samples = dict.fromkeys([*before, *(f"N{n}" for n in range(30))], 3)
    after = assign(n_samples, BuildOptions(splits_from=str(path), split=(50, 0, 50)))
    assert {after[f"N{n}"][0] for n in range(30)} == {0, 2}


def test_a_build_says_what_it_kept_and_does_not_record_it(tmp_path, old):
    path, before = old
    root = write_tree(tmp_path / "more", [(f"P{n}", f"A{n}") for n in range(7)])
    size = {"rows": ROWS, "columns": COLUMNS}
    options = BuildOptions(**size, splits_from=str(path), split=(50, 25, 25))
    result = etl.build(root, tmp_path / "new.h5", options)
    assert re.fullmatch(
        r"6 of 7 patients keep the split that they have in old\.h5, new: 1; of the rows: "
        r"train [\d.]+%, validation [\d.]+%, test [\d.]+%\.",
        result.notes[0],
    )
    assert result.notes[1].startswith("4 of ")
    manifest = open_dataset(tmp_path / "new.h5").manifest
    after = dict(zip(manifest["patient_id"].tolist(), manifest["split"].tolist(), strict=True))
    assert {one: after[one] for one in before} == {one: side for one, (side, _) in before.items()}
    assert "splits_from" not in open_dataset(tmp_path / "new.h5").attributes["options"]


def test_an_older_file_without_a_split_keeps_nothing(tmp_path):
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")])
    size = {"rows": ROWS, "columns": COLUMNS}
    etl.build(root, tmp_path / "old.h5", BuildOptions(**size))
    old = str(tmp_path / "old.h5")
    result = etl.build(root, tmp_path / "new.h5", BuildOptions(**size, splits_from=old))
    assert result.notes == ["no patient of old.h5 has a split or a fold, so that none is kept."]
    same = {"split": (50, 50, 0), "folds": 2}
    n_samples = {"P1": 3, "P2": 3}
    assert assign(n_samples, BuildOptions(splits_from=old, **same)) == assign(
        n_samples, BuildOptions(**same)
    )


def test_what_is_no_file_of_ours_is_refused_before_the_work(tmp_path):
    (tmp_path / "old.h5").write_text("no HDF5")
    options = BuildOptions(splits_from=str(tmp_path / "old.h5"))
    with pytest.raises(EtlError, match="Dataset not opened"):
        etl.build(tmp_path / "missing", tmp_path / "new.h5", options)
    with pytest.raises(ValueError, match="splits_from"):
        BuildOptions(splits_from="old.h5", split_file="split.csv")
