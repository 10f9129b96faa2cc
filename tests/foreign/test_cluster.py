"""`Service.over` on engines that execute elsewhere: a Dask cluster, loky, MPI."""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor
from pathlib import Path

import pytest
from helpers import LIMIT, wait_until

from boundedexec import Coalescer, Service, TaskGroup

pytestmark = pytest.mark.timeout(900)

MANY = 10_000
IN_HAND = 50


class Counted(Executor):
    """Passes on to another executor, and counts what that has in hand."""

    def __init__(self, executor):
        self.executor = executor
        self.peak = self._handed = 0
        self._over = []

    def submit(self, fn, /, *args, **kwargs):
        # Called on one thread; the end is counted where it is told.
        self._handed += 1
        self.peak = max(self.peak, self._handed - len(self._over))
        future = self.executor.submit(fn, *args, **kwargs)
        future.add_done_callback(self._over.append)
        return future


def nap(value):
    time.sleep(0.001)
    return value


def read(path):
    return Path(path).read_text()


def read_at_the_gate(path, gate):
    """What stands in a file, read before a gate opens; and says that it was read."""
    text = Path(path).read_text()
    Path(gate + ".begun").touch()
    while not Path(gate).exists():
        time.sleep(0.002)
    return text


def stay(path):
    """Say which process it is, and end once the file is gone."""
    Path(path + ".new").write_text(str(os.getpid()))
    os.rename(path + ".new", path)
    while os.path.exists(path):
        time.sleep(0.002)
    return os.getpid()


def check_a_key(service, folder):
    """It is in flight once, across all processes, and its re-run is fresh."""
    path, gate = folder / "input", folder / "gate"
    path.write_text("old")
    builds = Coalescer(service)
    first = builds.submit("key", read_at_the_gate, str(path), str(gate))
    wait_until(Path(f"{gate}.begun").exists)
    path.write_text("new")
    owed = {builds.submit("key", read_at_the_gate, str(path), str(gate)) for _ in range(100)}
    assert len(owed) == 1 and len(builds) == 1
    assert service.stats().running == 1
    assert not service.block_till_done(0)
    gate.touch()
    assert first.result(LIMIT) == "old"
    assert owed.pop().result(LIMIT) == "new"
    assert len(builds) == 0


def check_many(executor, meanwhile=lambda: None):
    counted = Counted(executor)
    with Service.over(counted, IN_HAND) as service:
        started = time.perf_counter()
        futures = [service.submit(nap, n) for n in range(MANY)]
        print(f"{MANY} submissions accepted in {time.perf_counter() - started:.3f} s")
        meanwhile()
        assert [future.result(10 * LIMIT) for future in futures] == list(range(MANY))
        print(f"done in {time.perf_counter() - started:.1f} s, in hand at most {counted.peak}")
        assert service.block_till_done(LIMIT)
        now = service.stats()
        assert (now.submitted, now.completed) == (MANY, MANY)
    assert 0 < counted.peak <= IN_HAND


# Dask


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_cluster_has_at_most_that_many_in_hand_and_loses_nothing_with_a_worker(client):
    def kill_one():
        wait_until(lambda: any(client.processing().values()))
        process = next(iter(client.run(os.getpid).values()))
        os.kill(process, signal.SIGKILL)

    check_many(client.get_executor(pure=False), kill_one)


def test_a_key_is_in_flight_once_across_the_cluster(client, tmp_path):
    with Service.over(client.get_executor(pure=False), IN_HAND) as service:
        check_a_key(service, tmp_path)


@pytest.mark.parametrize("pure, seen", [(False, "new"), (True, "old")])
def test_an_equal_call_is_fresh_unless_it_is_said_to_be_pure(client, tmp_path, pure, seen):
    path = tmp_path / "input"
    path.write_text("old")
    # Somebody else has the result of an equal call.
    held = client.submit(read, str(path), pure=pure)
    assert held.result(LIMIT) == "old"
    path.write_text("new")
    with Service.over(client.get_executor(pure=pure), IN_HAND) as service:
        assert Coalescer(service).submit("key", read, str(path)).result(LIMIT) == seen


def test_a_cluster_is_cancelled_grouped_and_asked(client):
    with Service.over(client.get_executor(pure=False), 4) as service:
        with TaskGroup(service, limit=3) as group:
            for n in range(20):
                group.submit(pow, n, 2)
        assert group.results() == [n**2 for n in range(20)]
        with pytest.raises(ZeroDivisionError):
            service.submit(divmod, 1, 0).result(LIMIT)
        naps = [service.submit(time.sleep, 0.05) for _ in range(100)]
        wait_until(lambda: service.stats().running == 4)
        assert naps[-1].cancel() and naps[1].cancel()
        service.shutdown(cancel_futures=True)
        now = service.stats()
        assert now.submitted == now.completed + now.failed + now.cancelled
        assert now.cancelled >= 90
    # The owner goes on with it.
    assert client.submit(pow, 2, 5, pure=False).result(LIMIT) == 32


# loky


@pytest.fixture
def loky():
    return pytest.importorskip("loky")


def test_loky_has_at_most_that_many_in_hand(loky, tmp_path):
    executor = loky.get_reusable_executor(2)
    check_many(executor)
    with Service.over(executor, IN_HAND) as service:
        check_a_key(service, tmp_path)
        assert service.submit(lambda: 5).result(LIMIT) == 5  # loky pickles that.
    executor.shutdown()


def test_what_a_killed_worker_of_loky_took_is_executed_again(loky, tmp_path):
    path = str(tmp_path / "a")
    with Service.over(lambda: loky.get_reusable_executor(2), 1, retries=1) as service:
        future = service.submit(stay, path)
        queued = [service.submit(pow, n, 2) for n in range(20)]
        wait_until(lambda: os.path.exists(path))
        killed = int(Path(path).read_text())
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: int(Path(path).read_text()) != killed)
        again = int(Path(path).read_text())
        os.unlink(path)
        assert future.result(LIMIT) == again
        assert [each.result(LIMIT) for each in queued] == [n**2 for n in range(20)]
    with Service.over(lambda: loky.get_reusable_executor(2), 1) as service:
        future = service.submit(stay, path)
        wait_until(lambda: os.path.exists(path))
        os.kill(int(Path(path).read_text()), signal.SIGKILL)
        assert isinstance(future.exception(LIMIT), BrokenExecutor)
        assert service.submit(pow, 2, 5).result(LIMIT) == 32


# MPI


@pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or shutil.which("mpiexec") is None,
    reason="mpi4py or mpiexec is not installed",
)
def test_mpi_has_at_most_that_many_in_hand(tmp_path):
    """In a program of its own: one rank hands over, two execute."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    more = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here.parents[1], here.parent, here)))
    done = subprocess.run(
        ["mpiexec", "-n", "3", sys.executable, "-m", "mpi4py.futures", __file__, str(tmp_path)],
        env={**os.environ, **root, **more, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(done.stdout, done.stderr[-3000:])
    assert done.returncode == 0
    assert "all is well" in done.stdout


def main():
    from mpi4py.futures import MPIPoolExecutor  # noqa: PLC0415

    with MPIPoolExecutor() as executor:
        check_many(executor)
        with Service.over(executor, IN_HAND) as service:
            check_a_key(service, Path(sys.argv[1]))
            assert service.submit(os.getpid).result(LIMIT) != os.getpid()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("_feeder")]
    print("all is well", flush=True)


if __name__ == "__main__":
    main()
