"""Trace: what services do is recorded, and can be looked at."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers import LIMIT, NewService, Oops, Thing, fail, holding, run_script, switching_often

import boundedexec
from boundedexec import Coalescer, Service, Trace

SVG = "{http://www.w3.org/2000/svg}"

Events = list[dict[str, Any]]


def shown(trace: Trace, kind: str) -> str:
    """What a notebook shows."""
    text: str = getattr(trace, f"_repr_{kind}_")()
    return text


def saved(trace: Trace, directory: Path) -> Events:
    """What viewers read, after it was held against the rules of the format."""
    path = directory / "trace.json"
    trace.save(path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert whole["displayTimeUnit"] in ("ms", "ns")
    events: Events = whole["traceEvents"]
    check_fields(events)
    check_names(events)
    check_nesting(events)
    check_arrows(events)
    return events


def check_fields(events: Events) -> None:
    required: dict[str, dict[str, Any]] = {
        "M": {"name": str, "args": dict},
        "X": {"name": str, "cat": str, "dur": (int, float)},
        "s": {"name": str, "cat": str, "id": int},
        "f": {"name": str, "cat": str, "id": int, "bp": str},
    }
    for event in events:
        fields: dict[str, Any] = {"pid": int, "tid": int, "ts": (int, float)}
        for name, kind in (fields | required[event["ph"]]).items():
            assert isinstance(event[name], kind), event
        assert event["ts"] >= 0, event
        assert event.get("dur", 0) >= 0, event


def check_names(events: Events) -> None:
    named = [event for event in events if event["ph"] == "M"]
    assert "process_name" in {event["name"] for event in named}
    threads = {event["tid"] for event in named if event["name"] == "thread_name"}
    assert {event["tid"] for event in events if event["ph"] != "M"} <= threads
    assert {event["pid"] for event in events} == {os.getpid()}


def nanoseconds(microseconds: float) -> int:
    return round(microseconds * 1000)


def spans(events: Events) -> dict[int, list[tuple[int, int, str]]]:
    """Of each thread: begins, negative ends, names; outer ones first."""
    found: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            start = nanoseconds(event["ts"])
            end = start + nanoseconds(event["dur"])
            found[event["tid"]].append((start, -end, event["name"]))
    return {thread: sorted(each) for thread, each in found.items()}


def check_nesting(events: Events) -> None:
    for each in spans(events).values():
        open_until: list[int] = []
        for start, minus_end, name in each:
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or -minus_end <= open_until[-1], name
            open_until.append(-minus_end)


def check_arrows(events: Events) -> None:
    by_thread = spans(events)
    ends: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in "sf":
            ends[event["id"]].append(event)
            time = nanoseconds(event["ts"])
            assert any(start <= time <= -end for start, end, _ in by_thread[event["tid"]]), event
    for first, second in ends.values():
        assert (first["ph"], second["ph"], second["bp"]) == ("s", "f", "e")
        assert (first["cat"], first["name"]) == (second["cat"], second["name"])
        assert first["ts"] <= second["ts"]


def called(events: Events, kind: str) -> list[str]:
    return [event["name"] for event in events if event.get("cat") == kind and event["ph"] == "X"]


def bodies(events: Events) -> list[str]:
    """`name outcome`, each once."""
    return sorted(
        f"{event['name'].rpartition('.')[2]} {event['args']['outcome']}"
        for event in events
        if event.get("cat") == "body"
    )


def inside(events: Events, name: str) -> list[str]:
    """The kinds of spans in the body of that name, in the order in which they begin."""
    (body,) = [e for e in events if e.get("cat") == "body" and e["name"].endswith(name)]
    found = [
        event
        for event in events
        if event["ph"] == "X"
        and event["tid"] == body["tid"]
        and event is not body
        and body["ts"] <= event["ts"] < body["ts"] + body["dur"]
    ]
    return [event["cat"] for event in sorted(found, key=lambda event: (event["ts"], -event["dur"]))]


def everything(service: Service) -> None:
    """A program with nested waits, a yield, a re-run, a cancel and a failure."""

    def leaf() -> int:
        return 1

    def asks() -> int:
        return service.submit(leaf).result() + service.submit(leaf).result(LIMIT)

    def yields() -> None:
        answered = threading.Event()
        service.submit(answered.set)
        service.yield_slot(answered.wait, LIMIT)

    def key(begun: threading.Event, gate: threading.Event) -> None:
        begun.set()
        gate.wait(LIMIT)

    def raises() -> None:
        raise ValueError

    def never() -> None:
        raise AssertionError

    assert service.submit(asks).result(LIMIT) == 2
    service.submit(yields).result(LIMIT)
    coalescer: Coalescer[str] = Coalescer(service)
    begun, gate = threading.Event(), threading.Event()
    coalescer.submit("key", key, begun, gate)
    assert begun.wait(LIMIT)
    again = coalescer.submit("key", key, begun, gate)
    doomed = service.submit(never)
    assert doomed.cancel()
    gate.set()
    again.result(LIMIT)
    assert isinstance(service.submit(raises).exception(LIMIT), ValueError)
    assert service.block_till_done(LIMIT)


def test_everything_that_a_submission_goes_through_is_recorded(
    new_service: NewService, tmp_path: Path
) -> None:
    service = new_service(1)
    with Trace(service) as trace:
        everything(service)
    events = saved(trace, tmp_path)
    assert bodies(events) == [
        "asks returned", "key returned", "key returned", "leaf returned", "leaf returned",
        "raises raised", "set returned", "yields returned",
    ]  # fmt: skip
    lends = ["submit", "waits", "lends"]
    assert inside(events, "asks") == lends * 2
    assert inside(events, "yields")[:2] == ["submit", "yielded"]
    assert [name.rpartition(".")[2] for name in called(events, "cancel")] == ["never"]
    assert [name.rpartition(".")[2] for name in called(events, "re-run")] == ["key"]
    # Each that has started, by its submit; each that a body waited for, by that and the lend.
    arrows = [event["cat"] for event in events if event["ph"] == "s"]
    assert {kind: arrows.count(kind) for kind in arrows} == {"submit": 8, "wait": 2, "lend": 2}
    assert trace.dropped == 0


def test_an_arrow_leads_from_the_body_that_waits_to_what_it_waits_for(
    new_service: NewService, tmp_path: Path
) -> None:
    service = new_service(2)
    begun = threading.Event()

    def awaited() -> None:
        begun.set()
        time.sleep(0.01)  # So that it is waited for; it decides no more than that.

    def waiting() -> None:
        future = service.submit(awaited)
        assert begun.wait(LIMIT)
        wait([future])

    with Trace(service) as trace:
        service.submit(waiting).result(LIMIT)
    events = saved(trace, tmp_path)
    (body,) = [e for e in events if e.get("cat") == "body" and e["name"].endswith("awaited")]
    arrows = [e for e in events if e["ph"] == "f" and e["cat"] == "wait"]
    if "waits" in inside(events, "waiting"):
        assert [arrow["tid"] for arrow in arrows] == [body["tid"]]


def test_what_is_not_over_is_shown_up_to_the_end(new_service: NewService, tmp_path: Path) -> None:
    service = new_service(1)
    with Trace(service) as trace, holding(service):
        service.submit(pow, 2, 3)
        service.submit(pow, 2, 4)
        path = tmp_path / "now.json"
        trace.save(path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    events: Events = whole["traceEvents"]
    check_nesting(events)
    assert [body.split()[-1] for body in bodies(events)] == ["running"]
    assert len(called(events, "submit")) == 3
    assert whole["otherData"] == {"dropped": 0, "queued": 2}
    assert service.block_till_done(LIMIT)


def test_what_was_submitted_before_is_recorded_from_its_start_on(
    new_service: NewService, tmp_path: Path
) -> None:
    service = new_service(1)
    trace = Trace(service)
    with holding(service):
        futures = [service.submit(pow, 2, n) for n in range(5)]
        trace.__enter__()
    wait(futures, LIMIT)
    trace.__exit__(None, None, None)
    events = saved(trace, tmp_path)
    assert bodies(events) == ["pow returned"] * 5
    assert called(events, "submit") == []


def test_the_latest_are_kept_and_the_others_counted(new_service: NewService) -> None:
    service = new_service(1)
    with Trace(service, limit=10) as trace:
        for number in range(25):
            service.submit(pow, 2, number).result(LIMIT)
        assert service.block_till_done(LIMIT)
        assert trace.dropped == 15
    assert trace.dropped == 15
    assert "15 earlier events dropped" in shown(trace, "html")


def test_waits_that_are_dropped_are_counted_too(new_service: NewService, tmp_path: Path) -> None:
    service = new_service(1)

    def asks() -> None:
        for number in range(100):
            service.submit(pow, 2, number).result()

    with Trace(service, limit=30) as trace:
        service.submit(asks).result(LIMIT)
        assert service.block_till_done(LIMIT)
    # A hundred and one bodies; of each wait its begin, a lend and its end.
    assert trace.dropped == 101 + 300 - 30 - 30
    saved(trace, tmp_path)


def test_of_very_many_the_latest_are_kept(new_service: NewService, tmp_path: Path) -> None:
    service = new_service(2)
    with Trace(service, limit=1_500) as trace:
        for number in range(20_000):
            service.submit(pow, 2, number)
        service.submit(fail, ValueError())
        assert service.block_till_done(LIMIT)
        assert trace.dropped == 20_001 - 1_500
    events = saved(trace, tmp_path)
    assert trace.dropped == 20_001 - 1_500
    numbers = [event["args"]["number"] for event in events if event.get("cat") == "body"]
    assert len(numbers) == 1_500
    assert bodies(events)[0] == "fail raised"


def test_a_queue_that_is_longer_than_the_limit_drops_nothing(new_service: NewService) -> None:
    service = new_service(1)
    with Trace(service, limit=10) as trace, holding(service):
        futures = [service.submit(pow, 2, number) for number in range(50)]
        assert trace.dropped == 0
        assert all(future.cancel() for future in futures[9:])
    assert trace.dropped == 31


def test_without_a_service_all_are_recorded(tmp_path: Path) -> None:
    with Service(2, "before") as before, Trace() as trace:
        with boundedexec.ThreadPoolExecutor(2, "meanwhile") as meanwhile:
            before.submit(pow, 2, 3).result(LIMIT)
            meanwhile.submit(pow, 2, 3).result(LIMIT)
    events = saved(trace, tmp_path)
    threads = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert {"before_0", "meanwhile_0"} <= set(threads)
    assert bodies(events) == ["pow returned"] * 2


def test_another_service_is_not_recorded(new_service: NewService, tmp_path: Path) -> None:
    service, other = new_service(1), new_service(1)
    with Trace(service) as trace:
        other.submit(pow, 2, 3).result(LIMIT)
        service.submit(len, "").result(LIMIT)
    assert bodies(saved(trace, tmp_path)) == ["len returned"]


def test_traces_may_overlap(new_service: NewService, tmp_path: Path) -> None:
    service = new_service(1)
    first, second, third = Trace(service), Trace(service), Trace()
    steps: list[tuple[Callable[[tuple[int]], object], Trace]]
    steps = [(len, first), (list, second), (min, third)]
    for step, trace in steps:
        trace.__enter__()
        service.submit(step, (1,)).result(LIMIT)
    for trace in first, second, third:
        service.submit(max, (1,)).result(LIMIT)
        trace.__exit__(None, None, None)
    service.submit(sum, ()).result(LIMIT)
    recorded = [bodies(saved(trace, tmp_path)) for trace in (first, second, third)]
    assert [[body.split()[0] for body in each] for each in recorded] == [
        ["len", "list", "max", "min"],
        ["list", "max", "max", "min"],
        ["max", "max", "max", "min"],
    ]


def test_a_trace_records_once(new_service: NewService) -> None:
    trace = Trace(new_service(1))
    with trace:
        pass
    with pytest.raises(RuntimeError, match="records once"):
        trace.__enter__()


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_at_least_one(limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        Trace(limit=limit)


def test_what_is_no_service_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="a Trace records services, not 3"):
        Trace(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_no_argument_is_shown_and_nothing_is_kept(new_service: NewService) -> None:
    class Silent(Thing):
        def __repr__(self) -> str:
            raise AssertionError("its repr was asked for")

    service = new_service(1)

    def submit() -> list[weakref.ref[Any]]:
        argument, fn = Silent(), Silent()
        future = service.submit(fn, argument, name=argument)
        result = future.result(LIMIT)
        return [weakref.ref(each) for each in (argument, fn, result, future)]

    with Trace(service) as trace:
        kept = submit()
        assert service.block_till_done(LIMIT)
        gc.collect()
        assert [reference() for reference in kept] == [None] * 4
    assert "Silent" in shown(trace, "html")


def test_what_was_recorded_keeps_no_service(tmp_path: Path) -> None:
    def record() -> tuple[Trace, weakref.ref[Service]]:
        with Service(1) as service, Trace(service) as trace:
            service.submit(pow, 2, 3).result(LIMIT)
        return trace, weakref.ref(service)

    trace, service = record()
    gc.collect()
    assert service() is None
    assert bodies(saved(trace, tmp_path)) == ["pow returned"]


class Hostile:
    def __getattr__(self, name: str) -> str:
        raise Oops

    def __call__(self) -> None:
        pass


def test_callables_of_every_kind_have_a_name(new_service: NewService, tmp_path: Path) -> None:
    service = new_service(1)
    odd: Callable[[], None] = lambda: None  # noqa: E731
    odd.__qualname__ = 'a <b> & "c"]]>'
    with Trace(service) as trace:
        for fn in Thing(), Hostile(), partial(partial(pow, 2), 3), "".upper, odd:
            service.submit(fn).result(LIMIT)
    names = called(saved(trace, tmp_path), "body")
    assert sorted(names) == sorted(["Thing", "Hostile", "pow", "str.upper", 'a <b> & "c"]]>'])
    assert 'a <b> & "c"]]>' in titles(trace)


# The picture


def titles(trace: Trace) -> str:
    root = ElementTree.fromstring(shown(trace, "svg"))
    return "\n".join(str(title.text) for title in root.iter(SVG + "title"))


def test_the_picture_has_a_title_for_each_span_and_both_colour_schemes(
    new_service: NewService, tmp_path: Path
) -> None:
    service = new_service(1, thread_name_prefix="drawn")
    with Trace(service) as trace:
        everything(service)
    path = tmp_path / "trace.svg"
    trace.save(os.fspath(path))
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    spans = titles(trace)
    for words in "asks", "raised", "waits for", "lends its slot to", "has given its slot away":
        assert words in spans
    assert {"drawn_0", "MainThread"} <= {element.text for element in root.iter(SVG + "text")}
    # A notebook shows it by itself.
    assert shown(trace, "html") == f'<div style="overflow-x:auto">{text}</div>'


def test_a_picture_of_very_much_is_small(new_service: NewService) -> None:
    service = new_service(4)
    with Trace(service) as trace:
        for number in range(5_000):
            service.submit(pow, 2, number)
        assert service.block_till_done(LIMIT)
    assert len(shown(trace, "svg")) < 300_000


def test_nothing_recorded_can_be_looked_at(new_service: NewService, tmp_path: Path) -> None:
    trace = Trace(new_service(1))
    with trace:
        assert saved(trace, tmp_path)
    assert "0 bodies" in shown(trace, "html")


def test_another_format_is_refused(new_service: NewService, tmp_path: Path) -> None:
    with Trace(new_service(1)) as trace:
        pass
    with pytest.raises(ValueError, match=r"\.json or \.svg"):
        trace.save(tmp_path / "trace.png")


# While others are at work


@contextlib.contextmanager
def at_work(service: Service) -> Generator[None]:
    """Threads that submit and wait all the time."""
    stop = threading.Event()

    def nested(depth: int) -> int:
        return depth and service.submit(nested, depth - 1).result()

    def submits() -> None:
        while not stop.is_set():
            wait([service.submit(nested, 3) for _ in range(5)])

    threads = [threading.Thread(target=submits) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT)


def test_it_is_turned_on_and_off_and_looked_at_while_services_work(
    new_service: NewService, tmp_path: Path
) -> None:
    service = new_service(2)
    with switching_often(), at_work(service):
        for _ in range(3):
            with Trace(service, limit=200) as trace, Trace(limit=50):
                for _ in range(5):
                    service.submit(pow, 2, 3).result(LIMIT)
                saved(trace, tmp_path)
            assert bodies(saved(trace, tmp_path))
            ElementTree.fromstring(shown(trace, "svg"))


def test_shutdown_and_refusals_are_as_ever_while_it_is_on_and_after(
    new_service: NewService,
) -> None:
    service = new_service(1, max_queued=1)
    with Trace(service):
        with holding(service):
            service.submit(pow, 2, 3)
            with pytest.raises(boundedexec.QueueFull):
                service.submit(pow, 2, 3)
        service.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            service.submit(pow, 2, 3)
    with pytest.raises(RuntimeError, match="after shutdown"):
        service.submit(pow, 2, 3)


def test_a_failing_initializer_breaks_the_service_while_it_is_on(new_service: NewService) -> None:
    service = new_service(1, initializer=partial(fail, ValueError()))
    with Trace(service) as trace:
        with pytest.raises(boundedexec.BrokenThreadPool):
            service.submit(pow, 2, 3).result(LIMIT)
    assert shown(trace, "html")


def test_a_program_can_be_recorded_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "program.json"
    run_script(
        f"""
        from boundedexec import Service
        from boundedexec.trace import record_until_exit

        record_until_exit({os.fspath(path)!r})
        service = Service(1)
        service.submit(lambda: service.submit(pow, 2, 3).result()).result()
        """
    )
    events: Events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    assert bodies(events) == ["<lambda> returned", "pow returned"]
