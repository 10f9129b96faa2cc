"""Instrumentation that wraps the `submit` of the stdlib's pool, on the drop-in.

Each program runs in an interpreter of its own, for instrumentation stays. In the order
`before` it comes before the import of the package, in `after` when a pool is there already,
in `installed` when `install` has the stdlib's name be ours, and in `run` the program is run
by `python -m boundedexec run`.
"""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FREE_THREADED, LIMIT

import boundedexec

#: Those without a wheel for the newest Python, and for builds without a GIL.
NO_WHEEL = {"ddtrace"}
NO_WHEEL_HERE = sys.version_info >= (3, 15) or FREE_THREADED

OPENTELEMETRY = """
def instrument():
    global tracer
    from opentelemetry import trace
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(TracerProvider())
    ThreadingInstrumentor().instrument()
    tracer = trace.get_tracer("test")

def span(name):
    return tracer.start_as_current_span(name)

def number(span):
    return span.context.span_id

def parent(span):
    return span.parent and span.parent.span_id

WRAPPER = "wrapped_func"
"""

DDTRACE = """
import logging
logging.disable()
os.environ.update(DD_INSTRUMENTATION_TELEMETRY_ENABLED="0", DD_TRACE_AGENT_URL="http://127.0.0.1:9")

def instrument():
    global tracer
    import ddtrace
    from ddtrace.trace import tracer
    ddtrace.patch(futures=True)

def span(name):
    return tracer.trace(name)

def number(span):
    return span.span_id

def parent(span):
    return span.parent_id

WRAPPER = "_wrap_execution"
"""

SENTRY = """
import sentry_sdk
from sentry_sdk.transport import Transport

class Sink(Transport):
    events = []
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event:
            Sink.events.append((event["message"], (event.get("tags") or {}).get("who")))

def instrument():
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Sink)

WRAPPER = "wrapped_fn"
"""

# `pools`: one that was there before the instrumentation, where that is possible; a new one,
# and one of a subclass.
START = """
import os, sys, threading, traceback
{library}
ORDER = os.environ["ORDER"]
pools = []
if ORDER == "before":
    instrument()
import boundedexec
if ORDER == "installed":
    boundedexec.install()
from concurrent.futures import ThreadPoolExecutor
Pool = ThreadPoolExecutor if ORDER in ("installed", "run") else boundedexec.ThreadPoolExecutor
assert Pool is boundedexec.ThreadPoolExecutor
if ORDER != "before":
    pools.append(Pool(2))
    instrument()

class Sub(Pool):
    def submit(self, fn, /, *args, **kwargs):
        return super().submit(fn, *args, **kwargs)

pools += [Pool(2), Sub(2)]

def wrapped():
    return [frame.name for frame in traceback.extract_stack()].count(WRAPPER)

def end():
    # Not sooner: the libraries have threads and handlers of their own.
    for pool in pools:
        pool.shutdown()
    print("done", flush=True)
    os._exit(0)
"""

SPANS = (
    START
    + """
import asyncio

def body():
    with span("inner") as inner:
        return parent(inner), wrapped()

def check(pool):
    gate = threading.Event()
    held = [pool.submit(gate.wait) for _ in range(2)]
    with span("outer") as outer:
        future = pool.submit(body)
        nested = [pool.submit(lambda: pool.submit(body).result()) for _ in range(4)]
    without = pool.submit(body)
    with span("another") as another:
        last = pool.map(lambda _: body(), range(3))
    gate.set()
    assert isinstance(future, boundedexec.Future), future
    # The span was over before the body began, and is its parent.
    assert future.result() == (number(outer), 1)
    assert [each.result() for each in nested] == [(number(outer), 1)] * 4
    assert without.result() == (None, 1)
    assert list(last) == [(number(another), 1)] * 3

async def on_a_loop(pool):
    loop = asyncio.get_running_loop()
    with span("outer") as outer:
        assert await loop.run_in_executor(pool, body) == (number(outer), 1)

def check_coalescer(pool):
    runs = boundedexec.Coalescer(pool)
    gate, started = threading.Event(), threading.Event()
    with span("outer") as outer:
        queued = pool.submit(lambda: (started.set(), gate.wait())), runs.submit("key", body)
    started.wait()
    gate.set()
    assert queued[1].result() == (number(outer), 1)
    # A re-run has a wrapper, too.
    started.clear(), gate.clear()
    running = runs.submit("key", lambda: (started.set(), gate.wait()))
    started.wait()
    again = [runs.submit("key", body) for _ in range(5)]
    gate.set()
    assert again[0].result()[1] == 1

for pool in pools:
    check(pool)
    asyncio.run(on_a_loop(pool))
    check_coalescer(Pool(1))
with span("outer") as outer:
    # A Service passes the context on by itself, and nothing is wrapped round it.
    assert boundedexec.Service(1).submit(body).result() == (number(outer), 0)
end()
"""
)

SCOPES = (
    START
    + """
def job(both, user):
    sentry_sdk.set_tag("who", user)
    both.wait(10)
    sentry_sdk.capture_message("from " + user)
    both.wait(10)
    return wrapped()

for pool in pools:
    both = threading.Barrier(2)
    with sentry_sdk.isolation_scope() as scope:
        scope.set_tag("who", "submitter")
        futures = [pool.submit(job, both, user) for user in ("ada", "bob")]
        # Lent: it is of the scope of the body that submits it.
        nested = pool.submit(lambda: pool.submit(sentry_sdk.capture_message, "nested").result())
        sentry_sdk.capture_message("from the submitter")
    assert isinstance(futures[0], boundedexec.Future)
    assert [future.result() for future in futures] == [1, 1]
    nested.result()
    sentry_sdk.capture_message("from main")
    assert sorted(Sink.events, key=str) == [
        ("from ada", "ada"), ("from bob", "bob"), ("from main", None),
        ("from the submitter", "submitter"), ("nested", "submitter"),
    ], Sink.events
    Sink.events.clear()
end()
"""
)

PROGRAMS = {
    "opentelemetry.instrumentation.threading": SPANS.replace("{library}", OPENTELEMETRY),
    "ddtrace": SPANS.replace("{library}", DDTRACE),
    "sentry_sdk": SCOPES.replace("{library}", SENTRY),
}


@pytest.mark.parametrize("order", ["before", "after", "installed", "run"])
@pytest.mark.parametrize("library", PROGRAMS)
def test_it_takes_effect_once(library: str, order: str, tmp_path: Path) -> None:
    try:
        importlib.import_module(library)
    except ImportError:
        if NO_WHEEL_HERE and library in NO_WHEEL:
            pytest.skip(f"{library} has no wheel for this Python")
        raise
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[library])
    command = ["-m", "boundedexec", "run"] if order == "run" else []
    root = str(Path(boundedexec.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *command, str(program)],
        env={**os.environ, "ORDER": order, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=6 * LIMIT,
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, ["done"]), done.stdout + done.stderr
