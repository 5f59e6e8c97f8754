import itertools
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from etl.workers import chunks

MOST = 3


@mock.patch.object(chunks, "MAX_KEPT", MOST)
@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_what_is_kept_comes_in_its_place_and_in_few_at_a_time(is_kept, length):
    worked = [place for place, flag in enumerate(is_kept) if not flag]
    of_kept = [place for place, flag in enumerate(is_kept) if flag]
    tasks = [
        list(range(begin, min(begin + length, stop)))
        for flag, first, stop in chunks.runs(is_kept)
        if not flag
        for begin in range(first, stop, length)
    ]

    def kept(first, stop, place):
        assert 0 < stop - first <= MOST
        assert of_kept[first] == place
        return of_kept[first:stop]

    parts = list(chunks.interleaved(tasks, len, is_kept, kept))
    assert [*itertools.chain(*tasks)] == worked
    assert [*itertools.chain(*parts)] == list(range(len(is_kept)))
