import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import worker_tasks
from builders import COLUMNS, ROWS, write_tree

import etl
from etl import examine, render
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.workers import cores, engine, local_pool
from etl.workers.engine import Work, local_engine

OPTIONS = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
TASKS = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(40)]
EXPECTED = [number * number for task in TASKS for number in task]


def work(run):
    return Work(
        run=run,
        divide=lambda task: [[number] for number in task],
        give_up=lambda task, _why: [("given up", number) for number in task],
        names=lambda task: [f"file {number}" for number in task],
    )


def results(found):
    return [value for part in found for value in part]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return an input folder with pairs for some tasks a worker."""
    return write_tree(tmp_path_factory.mktemp("many") / "data", slices=range(1, 200))


@pytest.fixture(scope="module")
def expected(many, tmp_path_factory):
    """Return the digest of the file that one worker makes of them."""
    path = tmp_path_factory.mktemp("expected") / "out.h5"
    etl.build(many, path, OPTIONS)
    return digest(path)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(n_workers):
    with local_engine(n_workers) as found:
        assert results(found.run(work(worker_tasks.square), TASKS)) == EXPECTED


def test_only_a_few_tasks_are_taken_ahead():
    taken = []

    def tasks():
        for task in TASKS:
            taken.append(task)
            yield task

    with local_engine(1) as found:
        next(found.run(work(worker_tasks.square), tasks()))
    assert len(taken) <= 4


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_exception_of_the_work_ends_the_run(n_workers):
    with pytest.raises(ZeroDivisionError), local_engine(n_workers) as found:
        list(found.run(work(worker_tasks.fail), TASKS))
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_costs_no_result(tmp_path):
    run = functools.partial(worker_tasks.square_or_die_once, tmp_path / "marker")
    with local_engine(2) as found:
        assert results(found.run(work(run), TASKS)) == EXPECTED
    assert (tmp_path / "marker").exists()
    assert multiprocessing.active_children() == []


def test_a_pair_that_kills_every_worker_is_given_up_and_no_other():
    tasks = [*TASKS[:10], [30, -1, 32], *TASKS[10:20], [-5], *TASKS[20:]]
    with local_engine(2) as found:
        values = results(found.run(work(worker_tasks.square_or_die), tasks))
    given_up = [value for value in values if isinstance(value, tuple)]
    assert given_up == [("given up", -1), ("given up", -5)]
    numbers = [number for task in tasks for number in task]
    expected = [n * n if n >= 0 else ("given up", n) for n in numbers]
    assert values == expected


def test_a_worker_that_dies_in_the_middle_of_its_answer_costs_no_other():
    tasks = [*TASKS[:5], [-1], *TASKS[5:10]]
    with local_engine(2) as found:
        values = results(found.run(work(worker_tasks.square_or_die_answering), tasks))
    assert values == [*EXPECTED[:15], ("given up", -1), *EXPECTED[15:30]]
    assert multiprocessing.active_children() == []


def test_of_a_callers_own_executor_the_error_names_what_was_in_flight():
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        found = engine.Engine(pool, 2, goes_on=False)
        with pytest.raises(EtlError, match=r"file -1"):
            list(found.run(work(worker_tasks.square_or_die), [[1], [-1], [2]]))


@pytest.mark.parametrize("n_messages", [1, 3, 6, 11])
def test_a_killed_worker_of_a_build_leaves_the_same_bytes(
    many, expected, tmp_path, monkeypatch, n_messages
):
    receive, number, killed = local_pool.LocalPool._receive, itertools.count(1), []

    def receive_and_kill(pool, worker):
        receive(pool, worker)
        if next(number) == n_messages:
            killed.append(pool._workers[0].process.pid)
            pool._workers[0].process.kill()

    monkeypatch.setattr(local_pool.LocalPool, "_receive", receive_and_kill)
    result = etl.build(many, tmp_path / "out.h5", OPTIONS, workers=2)
    assert killed
    assert not [one for one in result.findings if one.severity == "error"]
    assert digest(tmp_path / "out.h5") == expected


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_gives_the_same_bytes(many, expected, tmp_path, kind):
    options = {"mp_context": multiprocessing.get_context("forkserver")}
    with kind(3, **(options if kind is ProcessPoolExecutor else {})) as executor:
        etl.build(many, tmp_path / "out.h5", OPTIONS, workers=3, executor=executor)
    assert digest(tmp_path / "out.h5") == expected


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"version": "0.0.0"}, "runs dicom-etl 0.0.0"),
        ({"probe": None}, "does not see the folder .*data"),
        ({"probe": b"other"}, "does not see the folder .*data"),
        ({"out": None}, "does not see the folder .*results"),
    ],
)
def test_workers_that_see_other_folders_stop_the_build_before_any_work(
    tmp_path, monkeypatch, seen, words
):
    root = write_tree(tmp_path / "data")
    (tmp_path / "results").mkdir()
    view = engine.view
    monkeypatch.setattr(engine, "view", lambda *paths: view(*paths)._replace(**seen))
    monkeypatch.setattr(examine, "examine", None)  # would fail if it were called
    with ThreadPoolExecutor(2) as executor, pytest.raises(EtlError, match=words):
        etl.build(root, tmp_path / "results" / "out.h5", OPTIONS, executor=executor)
    assert list((tmp_path / "results").iterdir()) == []


def test_cores_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CGROUP_LIMIT", limit)
    assert cores.available_cores() == 3
    for text, expected in (("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1)):
        limit.write_text(text)
        assert cores.available_cores() == expected


def test_a_script_that_is_run_again_by_every_worker_is_told_so(tmp_path):
    write_tree(tmp_path / "data", [(f"P{n}", f"C{n}") for n in range(40)], outer=False)
    script = tmp_path / "script.py"
    script.write_text(
        "import etl\n"
        f"options = etl.BuildOptions(rows={ROWS}, columns={COLUMNS})\n"
        "etl.build('data', 'out.h5', options, workers=2)\n"
    )
    command = [sys.executable, script.name]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    last = run.stderr.splitlines()[-1]
    assert "no worker process starts" in last, run.stderr
    assert "__main__" in last
    assert "died" not in last  # no file is blamed
    assert not list(tmp_path.glob("*.h5*"))
    script.write_text(
        script.read_text().replace("etl.build", "if __name__ == '__main__': etl.build")
    )
    subprocess.run(command, cwd=tmp_path, check=True)


def test_one_worker_that_starts_is_enough(monkeypatch):
    start, number = local_pool.LocalPool._start, itertools.count()

    def start_some(pool):
        worker = start(pool)
        if next(number) < 3:
            worker.process.kill()
            worker.process.join()
        else:
            assert worker.pipe.poll(300)
        return worker

    monkeypatch.setattr(local_pool.LocalPool, "_start", start_some)
    work = Work(run=abs, divide=lambda n: [n], give_up=lambda _: None, names=str)
    with local_engine(4) as engine:
        assert list(engine.run(work, range(-8, 0))) == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_worker_killed_while_it_starts_blames_no_file(monkeypatch, tmp_path):
    root = write_tree(tmp_path / "data", [(f"P{n}", f"C{n}") for n in range(40)], outer=False)

    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(multiprocessing.get_context("forkserver").Process, "start", broken)
    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", broken)
    with pytest.raises(EtlError, match="no worker process starts"):
        etl.build(root, tmp_path / "out.h5", OPTIONS, workers=2)


needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no such timer")


def work_and_reasons(run):
    """Return work, and the list of why its parts were given up."""
    reasons = []

    def give_up(task, why):
        reasons.append(why)
        return [("given up", number) for number in task]

    return dataclasses.replace(work(run), give_up=give_up), reasons


@needs_timer
def test_a_file_that_takes_too_long_is_given_up_and_no_other():
    tasks = [*TASKS[:10], [30, -1, 32], *TASKS[11:20]]
    what, reasons = work_and_reasons(worker_tasks.square_or_hang)
    with local_engine(2, file_seconds=600) as found:
        values = results(found.run(what, tasks))
    assert [value for value in values if isinstance(value, tuple)] == [("given up", -1)]
    assert len(values) == 60
    assert found.n_timed_out == 1
    assert reasons[0].startswith("it took a worker longer than 600 s")
    assert multiprocessing.active_children() == []


@needs_timer
@pytest.mark.parametrize("limit", [600, 0])
def test_the_time_is_that_of_one_file_not_of_a_task_and_not_of_waiting(limit):
    what, _ = work_and_reasons(worker_tasks.seconds_left)
    with local_engine(2, file_seconds=limit) as found:
        times = list(found.run(what, TASKS))
    for waiting, *files in times:
        assert waiting == (0 if limit else pytest.approx(0, abs=10**6))
        assert all(0 < left <= (limit or 10**6) for left in files)
    assert found.n_timed_out == 0


@needs_timer
def test_a_build_in_which_the_limit_strikes_says_that_it_is_not_reproducible(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "data", slices=range(1, 50))
    make_work = render._work

    def slow_work(*arguments):
        made = make_work(*arguments)
        run = functools.partial(worker_tasks.render_or_hang, made.run, root / "dicoms/P1/7.dcm")
        return dataclasses.replace(made, run=run)

    monkeypatch.setattr(render, "_work", slow_work)
    result = etl.build(root, tmp_path / "out.h5", OPTIONS, workers=2, file_seconds=600)
    assert result.n_rows == 48
    assert [(one.code, one.path) for one in result.findings if one.severity == "error"] == [
        ("image-unreadable", "dicoms/P1/7.dcm")
    ]
    assert "1 pair took longer than 600 s: this build is not reproducible" in result.notes[-1]
