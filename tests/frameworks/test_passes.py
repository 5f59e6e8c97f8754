"""The count of passes, without processes: workers begin in any order."""

import itertools
import random

import pytest

pytest.importorskip("torch")

from loader.errors import LoaderError
from loader.torch.passes import Passes


def begin(passes, order, n_workers):
    return {worker: passes.begin_in_worker(worker, n_workers)[0] for worker in order}


@pytest.mark.parametrize("seed", range(20))
def test_workers_of_a_pass_agree_in_whatever_order_they_begin(seed):
    rng = random.Random(seed)  # noqa: S311  no secret
    passes = Passes()
    for epoch in range(30):
        n_workers = rng.choice([0, 1, 2, 2, 3, 5])
        if n_workers == 0:
            assert passes.begin() == (epoch, 0)
            continue
        order = rng.sample(range(n_workers), n_workers)
        assert set(begin(passes, order, n_workers).values()) == {epoch}


def test_workers_that_run_ahead_stay_with_their_own_count():
    passes = Passes()
    begin(passes, [1, 0], 2)
    found = [passes.begin_in_worker(worker, 2)[0] for worker in (0, 0, 0, 1, 1, 0, 1)]
    assert found == [1, 2, 3, 1, 2, 4, 3]


def test_a_setting_begins_all_counts_anew():
    passes = Passes()
    begin(passes, [0, 1, 2], 3)
    passes.go_to((7, 4))
    assert passes.coming() == (7, 4)
    assert [passes.begin_in_worker(worker, 2) for worker in (1, 0)] == [(7, 4)] * 2
    assert [passes.begin_in_worker(worker, 2) for worker in (0, 1)] == [(8, 0)] * 2
    assert passes.is_ahead
    assert passes.begin() == (9, 0)
    assert not passes.is_ahead


def test_workers_count_on_from_where_they_were_told_to_begin():
    passes = Passes()
    found = [passes.begin_in_worker(worker, 2, loaded=(5, 3 + worker)) for worker in (1, 0)]
    assert found == [(5, 4), (5, 3)]
    assert set(begin(passes, [1, 0], 2).values()) == {6}


def test_too_many_workers_are_refused():
    with pytest.raises(LoaderError, match="2000 workers, expected at most 1024"):
        Passes().begin_in_worker(0, 2000)


def test_all_orders_of_three_passes_of_three_workers():
    orders = list(itertools.permutations(range(3)))
    for first, second in itertools.product(orders, orders):
        passes = Passes()
        assert set(begin(passes, first, 3).values()) == {0}
        assert set(begin(passes, second, 3).values()) == {1}
