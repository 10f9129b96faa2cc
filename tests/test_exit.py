"""At interpreter exit everything accepted is finished first, and a daemon's is abandoned."""

from __future__ import annotations

import sys
import time

import pytest
from helpers import LIMIT, run_script

EXIT = """
    import atexit, gc, sys, threading, time
    from boundedexec import Service

    def say(*words):
        sys.stdout.write(" ".join(map(str, words)) + "\\n")

    def later(*words):
        time.sleep(0.01)
        say(*words)

    def try_to_submit(who, service):
        try:
            service.submit(int)
        except RuntimeError as error:
            say(who + ":", error)
"""

WORDS = "cannot schedule new futures after interpreter shutdown"


@pytest.mark.parametrize(
    "end",
    [
        "",
        "service.shutdown(wait=False)",
        "del service; gc.collect()",
        "sys.exit(0)",
        "service.submit(sys.exit, 3).exception()",
    ],
)
@pytest.mark.parametrize("bound", [1, 3, 0])
def test_at_exit_everything_accepted_is_finished(bound: int, end: str) -> None:
    lines = run_script(
        EXIT
        + f"""
    service = Service({bound}, idle_timeout=None)
    for i in range(10):
        service.submit(later, str(i)).add_done_callback(lambda _: say("called"))
    {end}
"""
    )
    assert sorted(lines) == sorted([str(i) for i in range(10)] + ["called"] * 10)


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="Python 3.12 starts no threads at exit")
def test_at_exit_bodies_that_lend_and_yield_are_finished() -> None:
    lines = run_script(
        EXIT
        + """
    def body():
        inner = service.submit(int, "5")
        other = service.submit(int, "6")
        submitted.set()
        at_exit.wait()
        say(inner.result(), service.yield_slot(other.result))

    service = Service(1)
    submitted, at_exit = threading.Event(), threading.Event()
    service.submit(body)
    submitted.wait()
    threading.Timer(0.1, at_exit.set).start()
"""
    )
    assert lines == ["5 6"]


def test_at_exit_a_failed_program_finishes_what_it_accepted() -> None:
    lines = run_script(
        EXIT
        + """
    service = Service(1)
    service.submit(later, "done")
    sys.excepthook = lambda *_: None
    atexit.register(lambda: (sys.stdout.flush(), __import__("os")._exit(0)))
    raise ValueError
"""
    )
    assert lines == ["done"]


def test_at_exit_submit_raises_in_the_standard_words() -> None:
    lines = run_script(
        EXIT
        + """
    def body():
        try:
            while True:
                service.submit(int)
                time.sleep(0.001)
        except RuntimeError as error:
            say("body:", error)

    service, unused = Service(2), Service(2)
    late = lambda: (try_to_submit("atexit", service), try_to_submit("unused", unused))
    atexit.register(late)
    atexit.register(lambda: try_to_submit("new", Service(1)))
    atexit.register(lambda: say(service.block_till_done(), service.shutdown()))
    service.submit(body)
"""
    )
    assert sorted(lines) == sorted(
        [
            "True None",
            f"body: {WORDS}",
            f"atexit: {WORDS}",
            f"unused: {WORDS}",
            f"new: {WORDS}",
        ]
    )


def test_idle_threads_do_not_hold_up_the_exit() -> None:
    begin = time.monotonic()
    run_script(
        """
        from boundedexec import Service
        services = [Service(2, idle_timeout=timeout) for timeout in (None, 1000)]
        print([service.submit(int).result() for service in services])
        """
    )
    assert time.monotonic() - begin < LIMIT / 2


@pytest.mark.parametrize(
    "stuck",
    ["threading.Event().wait", "lambda: time.sleep(1000)", "lambda: watch()"],
)
def test_a_daemon_service_does_not_keep_a_program_alive(stuck: str) -> None:
    lines = run_script(
        EXIT
        + f"""
    def watch():
        while True:
            time.sleep(0.001)

    service = Service(1, daemon=True)
    running = service.submit({stuck})
    queued = service.submit(say, "never")
    queued.add_done_callback(lambda f: say("cancelled", f.cancelled()))
    while not running.running():
        time.sleep(0.001)
    atexit.register(lambda: try_to_submit("atexit", service))
"""
    )
    assert lines == ["cancelled True", f"atexit: {WORDS}"]


def test_a_daemon_service_abandons_bodies_that_yield_or_wait() -> None:
    lines = run_script(
        EXIT
        + """
    entered = threading.Semaphore(0)

    def stuck():
        entered.release()
        threading.Event().wait()

    service = Service(2, daemon=True)
    service.submit(service.yield_slot, stuck)
    service.submit(lambda: service.submit(stuck).result())
    entered.acquire()
    entered.acquire()
    other = Service(1)
    other.submit(later, "finished")
"""
    )
    assert lines == ["finished"]


def test_an_idle_daemon_service_finishes_what_is_waited_for_before() -> None:
    lines = run_script(
        EXIT
        + """
    with Service(1, daemon=True) as service:
        service.submit(later, "finished")
    service = Service(1, daemon=True)
    service.submit(later, "finished")
    say(service.block_till_done())
"""
    )
    assert lines == ["finished", "finished", "True"]
