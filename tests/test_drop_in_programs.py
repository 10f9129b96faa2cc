"""Programs that documentation shows for the stdlib's pool: the import is all that changes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any, Self

import pytest
from helpers import LIMIT, run_script

from boundedexec import DeadlockError, ThreadPoolExecutor


class Page:
    """What `urlopen` gives, without a network."""

    def __init__(self, url: str, timeout: float) -> None:
        if "nowhere" in url:
            raise OSError("no such host")
        self._text = url.encode() * 3

    def read(self) -> bytes:
        return self._text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_a_program_that_fetches_pages_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", Page)
    urls = [f"http://{name}/" for name in ("here", "there", "elsewhere", "nowhere")]

    def load(url: str, timeout: float) -> bytes:
        with urllib.request.urlopen(url, timeout=timeout) as page:
            return bytes(page.read())

    lengths: dict[str, int] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=5) as executor:
        loading = {executor.submit(load, url, 60): url for url in urls}
        for future in concurrent.futures.as_completed(loading):
            url = loading[future]
            try:
                data = future.result()
            except Exception as exception:
                failed[url] = str(exception)
            else:
                lengths[url] = len(data)
    assert failed == {"http://nowhere/": "no such host"}
    assert lengths == {url: 3 * len(url) for url in urls if url not in failed}


def test_a_program_that_copies_files(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"from{n}").write_text(str(n))
    with ThreadPoolExecutor(max_workers=4) as executor:
        for n in range(4):
            executor.submit(shutil.copy, tmp_path / f"from{n}", tmp_path / f"to{n}")
    assert [(tmp_path / f"to{n}").read_text() for n in range(4)] == list("0123")


def test_a_program_that_runs_programs() -> None:
    def run(word: str) -> str:
        command = [sys.executable, "-c", "import sys; print(sys.argv[1])", word]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    with ThreadPoolExecutor(max_workers=2) as executor:
        assert list(executor.map(run, ["one", "two"])) == ["one", "two"]


def test_a_program_that_blocks_beside_an_event_loop() -> None:
    def block() -> bytes:
        with open(os.devnull, "rb") as nothing:
            return nothing.read(100)

    async def main() -> tuple[bytes, bytes, int]:
        loop = asyncio.get_running_loop()
        default = await loop.run_in_executor(None, block)
        with ThreadPoolExecutor() as pool:
            own = await loop.run_in_executor(pool, block)
            summed = await loop.run_in_executor(pool, lambda: sum(n * n for n in range(1000)))
        return default, own, summed

    assert asyncio.run(main()) == (b"", b"", 332833500)


def test_a_program_whose_bodies_wait_for_each_other_raises() -> None:
    both = threading.Event()
    futures: list[concurrent.futures.Future[Any]] = []

    def wait_for(other: int) -> object:
        assert both.wait(LIMIT)
        return futures[other].result()

    executor = ThreadPoolExecutor(max_workers=2)
    futures += [executor.submit(wait_for, 1), executor.submit(wait_for, 0)]
    both.set()
    errors = [future.exception(LIMIT) for future in futures]
    assert any(isinstance(error, DeadlockError) for error in errors)
    executor.shutdown()


DOCUMENTED = """
    from boundedexec import ThreadPoolExecutor

    def wait_on_future():
        f = executor.submit(pow, 5, 2)
        print(f.result())

    executor = ThreadPoolExecutor(max_workers=1)
    executor.submit(wait_on_future)
"""


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="Python 3.12 starts no threads at exit")
def test_the_documented_program_that_hangs_prints_its_result() -> None:
    for _ in range(3):
        assert run_script(DOCUMENTED) == ["25"]
