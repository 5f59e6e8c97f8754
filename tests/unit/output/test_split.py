import numpy as np
import pytest

from etl.errors import EtlError
from etl.options import BuildOptions
from etl.output.split import assign, read_split_file

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
