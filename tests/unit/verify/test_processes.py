import sys

import pytest

from etl.verify import processes


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(processes.local_pool, "start_early", lambda *call: calls.append(call))
    return calls


@pytest.mark.parametrize(
    ("n_bytes", "with_sources", "expected"),
    [
        (1 << 20, False, (1, "etl.verify.rows")),
        (256 << 20, False, (4, "etl.verify.rows")),
        (1 << 20, True, (4, "etl.verify.sources")),
    ],
)
def test_a_small_file_is_not_worth_the_start_of_workers(
    tmp_path, started, n_bytes, with_sources, expected
):
    path = tmp_path / "some.h5"
    with path.open("wb") as file:
        file.truncate(n_bytes)  # takes no room on the disk
    n_workers = processes.start(path, 4, with_sources=with_sources)
    assert n_workers == expected[0]
    assert started == [expected]


def test_no_worker_starts_for_a_file_that_is_not_there(tmp_path, started):
    assert processes.start(tmp_path / "none.h5", 4, with_sources=True) == 1
    assert started == []


def test_without_sources_no_parser_is_imported():
    """They take longer to import than a small file takes to check."""
    import subprocess

    code = (
        "import sys, etl.verify.file; print(sorted({'pydicom', 'PIL', 'etl.sources.layouts'} & "
        "set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
