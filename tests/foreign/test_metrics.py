"""`stats()` as metrics of Prometheus and OpenTelemetry, and progress by tqdm and rich."""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import io
import threading

import pytest
from helpers import LIMIT

import boundedexec


@pytest.fixture
def stalled():
    """A service with one slot: a body that runs, two submissions that wait, one is done."""
    service = boundedexec.Service(1)
    service.submit(int).result(LIMIT)
    begun, gate = threading.Event(), threading.Event()

    def body():
        begun.set()
        gate.wait(LIMIT)

    service.submit(body)
    assert begun.wait(LIMIT)
    futures = [service.submit(pow, 2, n) for n in range(2)]
    yield service
    gate.set()
    assert [future.result(LIMIT) for future in futures] == [1, 2]
    service.shutdown()


def test_prometheus_client_scrapes_stats(stalled):
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    for name in ("queued", "running", "threads"):
        gauge = prometheus.Gauge(f"jobs_{name}", f"{name} now", registry=registry)
        gauge.set_function(lambda name=name: getattr(stalled.stats(), name))
    scraped = prometheus.generate_latest(registry).decode()
    assert "jobs_queued 2.0" in scraped
    assert "jobs_running 1.0" in scraped


def test_opentelemetry_observes_stats(stalled):
    metrics = pytest.importorskip("opentelemetry.metrics")
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    reader = export.InMemoryMetricReader()
    meter = sdk.MeterProvider([reader]).get_meter("jobs")

    def observe(name):
        return [lambda _: [metrics.Observation(getattr(stalled.stats(), name))]]

    meter.create_observable_gauge("queued", observe("queued"))
    meter.create_observable_counter("completed", observe("completed"))
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    values = {metric.name: metric.data.data_points[0].value for metric in scope.metrics}
    assert values == {"queued": 2, "completed": 1}


def test_tqdm_counts_what_is_completed():
    tqdm = pytest.importorskip("tqdm")
    out = io.StringIO()
    with boundedexec.Service(2) as service:
        futures = [service.submit(pow, n, 2) for n in range(10)]
        done = list(tqdm.tqdm(boundedexec.as_completed(futures), total=10, file=out))
        squares = list(tqdm.tqdm(service.map(pow, range(10), [2] * 10), total=10, file=out))
    assert len(done) == 10
    assert squares == [n * n for n in range(10)]
    assert out.getvalue().count("10/10") >= 2


def test_rich_tracks_what_is_completed():
    rich_console = pytest.importorskip("rich.console")
    progress = pytest.importorskip("rich.progress")
    console = rich_console.Console(file=io.StringIO(), force_terminal=True)
    with boundedexec.Service(2) as service:
        results = service.map(pow, range(10), [2] * 10)
        assert sum(progress.track(results, total=10, console=console)) == 285
    assert "100%" in console.file.getvalue()


def test_block_till_done_in_a_loop_prints_stats(stalled):
    lines = []
    for _ in range(2):
        if stalled.block_till_done(0.01):
            break
        lines.append(f"{stalled.stats().completed} of {stalled.stats().submitted}")
    assert lines == ["1 of 4", "1 of 4"]
