"""What admitting costs: `Service.over` beside the executor that it is over.

Prints the throughput for bodies of a millisecond, in pairs, and what it costs, in time and
memory, to have more and more submissions pending: here, and with the engine alone.
"""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from boundedexec import Service

PAIRS = 15
BODIES = 1000


def nap():
    time.sleep(0.001)


def seconds(executor):
    start = time.perf_counter()
    for future in [executor.submit(nap) for _ in range(BODIES)]:
        future.result()
    return time.perf_counter() - start


def compare(name, executor, bound):
    """The throughput here as a share of the executor's own."""
    seconds(executor)
    shares = []
    with Service.over(executor, bound) as service:
        for turn in range(PAIRS):
            if turn % 2:
                bare, here = seconds(executor), seconds(service)
            else:
                here, bare = seconds(service), seconds(executor)
            shares.append(bare / here)
    low, middle, high = statistics.quantiles(shares, n=4)
    print(f"{name}, bound {bound}: throughput {middle:.2f} of it bare ({low:.2f} to {high:.2f})")


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def admit(executor, number):
    """Seconds, and bytes of this process, for `number` pending submissions."""
    gc.collect()
    before, start = resident(), time.perf_counter()
    futures = [executor.submit(nap) for _ in range(number)]
    took = time.perf_counter() - start
    gc.collect()
    grown = resident() - before
    print(
        f"{number:>9,}: {took:8.2f} s, {took / number * 1e6:7.1f} us and "
        f"{grown / number:7.0f} bytes each",
        flush=True,
    )
    return futures


def processes():
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))


def admit_to(engine, where, number):
    """In a process of its own, so that nothing was allocated before."""
    if engine == "processes":
        with processes() as pool:
            _admit(pool, where, number)
    else:
        import distributed  # noqa: PLC0415

        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):  # fmt: skip
            _admit(client.get_executor(pure=False), where, number)


def _admit(executor, where, number):
    executor.submit(nap).result()
    if where == "alone":
        for future in admit(executor, number):
            future.cancel()
    else:
        with Service.over(executor, 50) as service:
            admit(service, number)
            service.shutdown(cancel_futures=True)


def measure(engine):
    # Alone on a cluster, more of them take minutes, and gigabytes.
    alone = [1_000, 10_000, 100_000] if engine == "processes" else [1_000, 3_000, 10_000, 30_000]
    sizes = {"here": [10_000, 100_000, 1_000_000], "alone": alone}
    for where, numbers in sizes.items():
        print(f"pending {where}, {'over' if where == 'here' else 'with'} {engine}:")
        for number in numbers:
            done = subprocess.run(
                [sys.executable, __file__, "--admit", engine, where, str(number)],
                check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            print(done.stdout or f"{number:>9,}: failed", end="\n" if not done.stdout else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--admit", nargs=3, help=argparse.SUPPRESS)
    admitted = parser.parse_args().admit
    if admitted:
        admit_to(admitted[0], admitted[1], int(admitted[2]))
        return
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with processes() as pool:
        compare("two processes", pool, 16)
    for engine in "processes", "cluster":
        measure(engine)


if __name__ == "__main__":
    main()
