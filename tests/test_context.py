"""A body runs in its submitter's context, and nothing that it sets reaches another."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from contextvars import Context, ContextVar

import pytest
from helpers import LIMIT, Oops, holding, run_script

from boundedexec import Service

variable: ContextVar[str] = ContextVar("variable", default="unset")


# The context


def test_a_body_sees_the_context_of_its_submitter_as_it_was_at_submit() -> None:
    def here() -> Future[str]:
        variable.set("before")
        future = service.submit(variable.get)
        variable.set("after")
        return future

    with Service(1) as service:
        with holding(service):
            future = Context().run(here)
        assert future.result(LIMIT) == "before"


def test_a_body_submitted_by_a_body_sees_what_that_body_set() -> None:
    def outer() -> str:
        variable.set("outer")
        return service.submit(variable.get).result()

    with Service(1) as service:
        assert service.submit(outer).result(LIMIT) == "outer"
        assert variable.get() == "unset"


@pytest.mark.parametrize("context", [Context(), None], ids=["empty", "with values"])
def test_nothing_that_a_body_sets_reaches_another(context: Context | None) -> None:
    other: ContextVar[str] = ContextVar("other", default="unset")

    def body(count: int) -> str:
        found = other.get()
        other.set(f"set by {count}")
        return found

    def here() -> list[Future[str]]:
        if context is None:
            variable.set("a value")
        return [service.submit(body, i) for i in range(20)]

    with Service(1) as service:
        futures = (context or Context()).run(here)
        assert {future.result(LIMIT) for future in futures} == {"unset"}
        assert other.get() == "unset"


def test_nothing_that_a_done_callback_sets_reaches_another_body() -> None:
    with Service(1) as service:
        for _ in range(3):
            with holding(service):
                first = Context().run(service.submit, int)
                first.add_done_callback(lambda _: variable.set("by a callback"))
                second = Context().run(service.submit, variable.get)
            assert second.result(LIMIT) == "unset"


def test_nothing_that_a_failing_body_sets_reaches_another() -> None:
    def body() -> None:
        variable.set("by a failure")
        raise Oops

    with Service(1) as service:
        failing = Context().run(service.submit, body)
        assert Context().run(service.submit, variable.get).result(LIMIT) == "unset"
        assert isinstance(failing.exception(LIMIT), Oops)


def test_a_reused_thread_does_not_show_its_first_submitters_context() -> None:
    with Service(1) as service:
        with_value = Context()
        with_value.run(variable.set, "of the first")
        assert with_value.run(service.submit, variable.get).result(LIMIT) == "of the first"
        assert Context().run(service.submit, variable.get).result(LIMIT) == "unset"


def test_map_calls_see_the_context_of_its_caller() -> None:
    def look(_: int) -> str:
        return variable.get()

    def here() -> list[str]:
        variable.set("mapper")
        return list(service.map(look, range(3)))

    with Service(2) as service:
        assert Context().run(here) == ["mapper"] * 3


# The context of threads, where Python would have it inherited


@pytest.mark.skipif(not hasattr(sys.flags, "thread_inherit_context"), reason="not in this Python")
@pytest.mark.parametrize("inherit", ["0", "1"])
def test_a_thread_does_not_inherit_the_context_that_started_it(inherit: str) -> None:
    lines = run_script(
        """
        from contextvars import Context, ContextVar
        from boundedexec import Service
        variable = ContextVar("variable", default="unset")
        variable.set("of the first")
        for initializer in (None, lambda: print("initializer", variable.get())):
            with Service(1, initializer=initializer) as service:
                print(service.submit(variable.get).result())
                print(Context().run(service.submit, variable.get).result())
        """,
        "-X",
        f"thread_inherit_context={inherit}",
    )
    assert [line for line in lines if "initializer" not in line] == ["of the first", "unset"] * 2
