"""Tools that look into threads, on a program whose bodies they are to see."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from foreign_helpers import FORMS, command, every_form, library, python, run_program, write
from helpers import LIMIT
from run_helpers import ENVIRONMENT

BODIES = """
import threading

def in_a_body(n):
    square = n * n
    return inner.submit(in_another, square).result()

def in_another(n):
    if n < 0:
        return "never"
    return n + 1

with Pool(2, "outer") as outer, Pool(1, "inner") as inner:
    print(list(outer.map(in_a_body, range(5))))
"""
PRINTED = ["[1, 2, 5, 10, 17]"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", [*FORMS, "run in coverage"])
def test_coverage_sees_the_lines_of_bodies(tmp_path: Path, form: str) -> None:
    library("coverage")
    path = write(tmp_path, "run" if "coverage" in form else form, BODIES)
    ours = command("run" if "coverage" in form else form)
    measure = ["-m", "coverage", "run", "--branch", f"--include={path}"]
    order = [*measure, *ours] if "coverage" in form else [*ours, *measure]
    assert python(*order, path, cwd=tmp_path) == PRINTED
    python("-m", "coverage", "json", "-q", "-o", "measured.json", cwd=tmp_path)
    (measured,) = json.loads((tmp_path / "measured.json").read_text())["files"].values()
    source = path.read_text().splitlines()
    missing: list[int] = measured["missing_lines"]
    assert [source[n - 1].strip() for n in missing] == ['return "never"']
    assert len(measured["missing_branches"]) == 1


@every_form
def test_viztracer_sees_the_calls_of_bodies_on_their_threads(tmp_path: Path, form: str) -> None:
    library("viztracer")
    path = write(tmp_path, form, BODIES)
    trace = ["-m", "viztracer", "--quiet", "-o", "traced.json", "--"]
    assert python(*command(form), *trace, path, cwd=tmp_path) == PRINTED
    events = json.loads((tmp_path / "traced.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    calls = [(e["name"].partition(" ")[0], e["tid"]) for e in events if e["ph"] == "X"]
    outer = [thread for function, thread in calls if function == "in_a_body"]
    inner = [thread for function, thread in calls if function == "in_another"]
    assert (len(outer), len(inner)) == (5, 5)
    assert not set(outer) & set(inner)
    # From Python 3.12 on it asks for the names, the stdlib's threads' too, before they are known.
    assert "MainThread" not in {names[thread] for thread in (*outer, *inner)}


# debugpy


class Debugger:
    """A client of the debug adapter protocol."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self._file = self._connection.makefile("rwb")
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def send(self, command: str, **arguments: Any) -> int:
        self._number += 1
        message = {"seq": self._number, "type": "request", "command": command}
        body = json.dumps({**message, "arguments": arguments}).encode()
        self._file.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._file.flush()
        return self._number

    def _receive(self) -> dict[str, Any]:
        length = 0
        line: bytes = self._file.readline()
        while line.strip():
            name, _, value = line.partition(b":")
            length = int(value) if name == b"Content-Length" else length
            line = self._file.readline()
        message: dict[str, Any] = json.loads(self._file.read(length))
        return message

    def response(self, number: int) -> Any:
        while True:
            message = self._receive()
            if message["type"] == "response" and message["request_seq"] == number:
                assert message["success"], message
                return message.get("body")
            self._events.append(message)

    def request(self, command: str, **arguments: Any) -> Any:
        return self.response(self.send(command, **arguments))

    def event(self, *names: str) -> Any:
        """The body of the next that has one of these names."""
        while True:
            for message in self._events:
                if message.get("event") in names:
                    self._events.remove(message)
                    return message.get("body") or {}
            self._events.append(self._receive())

    def close(self) -> None:
        self._file.close()
        self._connection.close()


@pytest.mark.timeout(120)
@every_form
def test_debugpy_stops_in_a_body_and_names_its_thread(tmp_path: Path, form: str) -> None:
    library("debugpy")
    path = write(tmp_path, form, BODIES)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    debug = ["-Xfrozen_modules=off", "-m", "debugpy", "--listen", f"127.0.0.1:{port}"]
    how = [*debug, "--wait-for-client", *command(form), str(path)]
    with subprocess.Popen(
        [sys.executable, *how], env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            debugger = connected(port, process)
            debugger.request("initialize", adapterID="test", pathFormat="path")
            attached = debugger.send("attach", justMyCode=False)
            debugger.event("initialized")
            line = path.read_text().splitlines().index("    return n + 1") + 1
            places = {"source": {"path": str(path)}, "breakpoints": [{"line": line}]}
            debugger.request("setBreakpoints", **places)
            debugger.request("configurationDone")
            debugger.response(attached)
            stops = 0
            while "threadId" in (stopped := debugger.event("stopped", "terminated")):
                stops += 1
                thread = stopped["threadId"]
                names = {t["id"]: t["name"] for t in debugger.request("threads")["threads"]}
                assert names[thread].startswith("inner_")
                frames = debugger.request("stackTrace", threadId=thread)["stackFrames"]
                assert (frames[0]["name"], frames[0]["line"]) == ("in_another", line)
                debugger.request("continue", threadId=thread)
            assert stops == 5
            debugger.close()
            output, _ = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert (process.returncode, output.splitlines()) == (0, PRINTED)


def connected(port: int, process: subprocess.Popen[str]) -> Debugger:
    while True:
        assert process.poll() is None
        try:
            return Debugger(port)
        except ConnectionRefusedError:
            continue  # It is not listening yet.


# ipykernel

NOTEBOOK = """
from subprocess import DEVNULL
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="python3", stderr=DEVNULL)
try:
    for cell in CELLS:
        said = []
        client.execute_interactive(
            cell, timeout=60, output_hook=lambda message: said.append(message["content"])
        )
        print(sorted(
            line for content in said
            for line in (content.get("text") or content.get("ename") or "").splitlines()
        ), [content["data"]["text/plain"] for content in said if "data" in content])
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""
#: Installed in the first, as a notebook does it: a kernel is no program that `run` starts.
CELLS = {
    "service": "from boundedexec import Service as Pool",
    "drop-in": "from boundedexec import ThreadPoolExecutor as Pool",
    "installed": "import boundedexec; boundedexec.install()\n"
    "from concurrent.futures import ThreadPoolExecutor as Pool",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", CELLS)
def test_cells_of_a_notebook_use_a_pool(tmp_path: Path, form: str) -> None:
    library("ipykernel")
    cells = [
        CELLS[form],
        "pool = Pool(2)\n[*pool.map(pow, range(4), [2] * 4)]",
        "[*pool.map(lambda n: print(f'body {n}\\n', end=''), range(3))]",
        "def nested(n): return pool.submit(nested, n - 1).result() + 1 if n else 0\nnested(9)",
        "import asyncio\nawait asyncio.get_running_loop().run_in_executor(pool, print, 'awaited')",
        "pool.submit(lambda: 1 / 0).result()",
        "pool.shutdown(); pool.submit(print)",
    ]
    source = f"CELLS = {cells!r}\n{NOTEBOOK}"
    home = {name: str(tmp_path) for name in ("HOME", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    lines = run_program(tmp_path, "drop-in", source, JUPYTER_PLATFORM_DIRS="1", **home)
    assert lines == [
        "[] []",
        "[] ['[0, 1, 4, 9]']",
        "['body 0', 'body 1', 'body 2'] ['[None, None, None]']",
        "[] ['9']",
        "['awaited'] []",
        "['ZeroDivisionError'] []",
        "['RuntimeError'] []",
    ]
