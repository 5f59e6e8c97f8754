"""A build on a real Dask cluster of processes, one of which is killed half way."""

import hashlib
import os
import signal
import warnings

import pytest
from builders import COLUMNS, ROWS, write_contour, write_dicom, write_tree
from click.testing import CliRunner

import etl
from etl import render
from etl.cli import cli
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.workers.engine import dask_executor

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own

OPTIONS = BuildOptions(rows=ROWS, columns=COLUMNS, qc=False)  # its pairs are all alike
SIZE = ["--size", f"{ROWS}x{COLUMNS}", "--no-qc"]


@pytest.fixture(scope="module")
def cluster():
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    root = write_tree(folder / "data", slices=[1])
    content = (root / "dicoms/P1/1.dcm").read_bytes()
    for number in range(2, 2000):
        write_dicom(root, "P1", f"{number}.dcm", content)
        write_contour(root, "A1", number)
    etl.build(root, folder / "local.h5", OPTIONS)
    return root, digest(folder / "local.h5")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_command_line_gives_the_same_bytes(cluster, pairs, tmp_path):
    root, expected = pairs
    out = tmp_path / "out.h5"
    arguments = ["build", root, out, *SIZE, "--scheduler", cluster.scheduler_address]
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert digest(out) == expected


def test_a_worker_killed_half_way_costs_nothing(cluster, pairs, tmp_path, monkeypatch):
    root, expected = pairs
    out = tmp_path / "out.h5"
    with distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))
    killed, shown = [], render._shown

    def kill_when_rows_are_written(_first, _part):
        if not killed:
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    monkeypatch.setattr(
        render, "_shown", lambda parts, bar, _: shown(parts, bar, kill_when_rows_are_written)
    )
    with dask_executor(cluster.scheduler_address) as (executor, n_workers):
        result = etl.build(root, out, OPTIONS, workers=n_workers, executor=executor)
    assert killed
    assert not [one for one in result.findings if one.severity == "error"]
    assert digest(out) == expected


def test_no_scheduler_is_told(monkeypatch):
    monkeypatch.setattr("etl.workers.engine._CONNECT_SECONDS", 1)
    with pytest.raises(EtlError, match="no answer"), dask_executor("tcp://127.0.0.1:9"):
        pass
