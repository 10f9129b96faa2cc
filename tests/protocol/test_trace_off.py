"""A trace that is off has left nothing: a submission does again what it did before."""

from __future__ import annotations

import pytest
from helpers import LIMIT, NewService

from boundedexec import Trace, debug
from boundedexec._core.debugging import debugging
from boundedexec._core.recording import SILENT, recording
from boundedexec.service import slots_of


def test_a_service_is_checked_while_it_is_recorded_and_no_longer(new_service: NewService) -> None:
    service, other = new_service(1), new_service(1)
    slots = slots_of(service)
    before = slots.checked
    with Trace(service), Trace():
        assert slots.checked
        with Trace(service):
            pass
        assert slots.recorder is not SILENT
        service.submit(pow, 2, 3).result(LIMIT)
    for each in slots, slots_of(other):
        assert (each.checked, each.recorder) == (before, SILENT)
    assert recording.recorder is SILENT


def test_what_else_is_checked_is_checked_on(
    new_service: NewService, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded, closed, debugged = new_service(1, max_queued=3), new_service(1), new_service(1)
    with Trace():
        closed.shutdown()
        monkeypatch.setattr(debugging, "on", True)
        debug()
        assert slots_of(debugged).checked is True
    for service in bounded, closed, debugged:
        assert slots_of(service).checked is True
