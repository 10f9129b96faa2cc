"""Libraries that take an executor, on real input: with a Service, and with the drop-in.

The tox environment `clients` installs them; the ordinary run does not collect this. A
library that is missing is an error, unless it has no wheel for this Python.
"""

# What has no types here, or differs from release to release.
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportMissingModuleSource=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import contextvars
import http.server
import inspect
import io
import os
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_helpers import library
from helpers import LIMIT, holding, wait_until

from boundedexec import Service, ThreadPoolExecutor

every_executor = pytest.mark.parametrize(
    "make", [Service, ThreadPoolExecutor], ids=["service", "drop-in"]
)
Make = Callable[[int], Service]


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers every request with its path, and keeps what was put."""

    kept: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        body = self.kept.get(self.path, self.path.encode())
        status = 200
        start, end = 0, len(body) - 1
        if "Range" in self.headers:
            status = 206
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        self.send_response(status)
        self.send_header("ETag", '"tag"')
        self.send_header("Last-Modified", "Tue, 24 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : end + 1])

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"tag"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()
    Hello.kept.clear()


def name_of_thread() -> str:
    return threading.current_thread().name


# dask


@every_executor
def test_dask_computes_a_graph_on_it(make: Make) -> None:
    dask = library("dask")
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(1)
    # The drop-in leaves bodies in the context of their thread, as the stdlib's pool.
    seen = 0 if make is ThreadPoolExecutor else 1

    @dask.delayed
    def square(n: int) -> int:
        return n * n + variable.get()

    total = dask.delayed(sum)([square(n) for n in range(200)])
    with make(4) as pool:
        expected = sum(n * n + seen for n in range(200))
        assert total.compute(scheduler="threads", pool=pool) == expected
        with dask.config.set(pool=pool, scheduler="threads"):
            assert total.compute() == expected
            (threads,) = dask.compute([dask.delayed(name_of_thread)() for _ in range(20)])
        assert {name.rpartition("-")[0] for name in threads} <= {"Service", "ThreadPoolExecutor"}
        threaded = library("dask.threaded")
        graph = {"x": 1, "y": (lambda x: x + 1, "x"), "z": (divmod, "y", 0)}
        assert threaded.get(graph, "y", pool=pool) == 2
        with pytest.raises(ZeroDivisionError):
            threaded.get(graph, "z", pool=pool)


def test_dask_computes_in_a_body_of_the_same_pool() -> None:
    dask = library("dask")
    with Service(1) as pool:

        def nested() -> int:
            inner = dask.delayed(sum)([dask.delayed(pow)(n, 2) for n in range(10)])
            # dask waits on a queue of its own, which no executor can see.
            return pool.yield_slot(inner.compute, scheduler="threads", pool=pool)

        assert pool.submit(nested).result(LIMIT) == 285


# requests-futures


@every_executor
def test_requests_futures_fetches_pages_on_it(make: Make, url: str) -> None:
    sessions = library("requests_futures.sessions")
    with make(4) as executor, sessions.FuturesSession(executor=executor) as session:
        futures = [session.get(f"{url}/{n}") for n in range(40)]
        assert [future.result(LIMIT).text for future in futures] == [f"/{n}" for n in range(40)]
        failed = session.get("http://127.0.0.1:1/")
        assert isinstance(failed.exception(LIMIT), library("requests").ConnectionError)


# grpcio


@every_executor
def test_a_grpc_server_answers_on_it(make: Make) -> None:
    grpc = library("grpc")
    names: set[str] = set()

    def answer(request: bytes, context: Any) -> bytes:
        names.add(name_of_thread().rpartition("-")[0])
        if request == b"fail":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return request[::-1]

    def stream(request: bytes, context: Any) -> Iterator[bytes]:
        for n in range(5):
            yield request + str(n).encode()

    handlers = {
        "answer": grpc.unary_unary_rpc_method_handler(answer),
        "stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    with make(4) as executor:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/test/answer")
            futures = [call.future(str(n).encode(), timeout=LIMIT) for n in range(100)]
            assert [future.result() for future in futures] == [
                str(n)[::-1].encode() for n in range(100)
            ]
            with pytest.raises(grpc.RpcError) as caught:
                call(b"fail", timeout=LIMIT)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            streamed = channel.unary_stream("/test/stream")(b"n", timeout=LIMIT)
            assert list(streamed) == [b"n0", b"n1", b"n2", b"n3", b"n4"]
        server.stop(None).wait(LIMIT)
    assert names <= {"Service", "ThreadPoolExecutor"} and names


# tornado


@every_executor
def test_tornado_runs_blocking_calls_on_it(make: Make) -> None:
    ioloop, concurrent = library("tornado.ioloop"), library("tornado.concurrent")

    class Worker:
        executor = make(2)

        @concurrent.run_on_executor
        def square(self, n: int) -> int:
            return n * n

    async def main() -> None:
        loop = ioloop.IOLoop.current()
        worker = Worker()
        assert await loop.run_in_executor(worker.executor, pow, 2, 10) == 1024
        assert [await worker.square(n) for n in range(10)] == [n * n for n in range(10)]
        if isinstance(worker.executor, ThreadPoolExecutor):
            loop.set_default_executor(worker.executor)
            assert "Pool" in await loop.run_in_executor(None, name_of_thread)
        resolver = library("tornado.netutil").DefaultExecutorResolver()
        assert (socket.AF_INET, ("127.0.0.1", 80)) in await resolver.resolve("127.0.0.1", 80)

    asyncio.run(main())
    Worker.executor.shutdown()


# aiohttp, aiofiles, asgiref, uvloop


def test_aiohttp_looks_names_up_on_the_drop_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    aiohttp = library("aiohttp")
    threads: list[str] = []
    look_up = socket.getaddrinfo

    def noting(host: Any, *args: Any, **kwargs: Any) -> Any:
        threads.append(name_of_thread())
        return look_up("127.0.0.1" if host == "a.name" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", noting)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2, "names"))
        connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(url.replace("127.0.0.1", "a.name") + "/page") as response:
                assert await response.text() == "/page"

    asyncio.run(main())
    assert threads and all(name.startswith("names_") for name in threads)


@every_executor
def test_aiofiles_reads_and_writes_on_it(make: Make, tmp_path: Path) -> None:
    aiofiles = library("aiofiles")
    path = tmp_path / "lines"

    async def main() -> None:
        with make(2) as executor:
            async with aiofiles.open(path, "w", executor=executor) as file:
                await file.write("one\ntwo\n")
            async with aiofiles.open(path, executor=executor) as file:
                assert [line async for line in file] == ["one\n", "two\n"]
            with pytest.raises(FileNotFoundError):
                async with aiofiles.open(tmp_path / "none", executor=executor):
                    pass

    asyncio.run(main())


@every_executor
def test_asgiref_runs_synchronous_code_on_it(make: Make) -> None:
    sync = library("asgiref.sync")
    variable = contextvars.ContextVar("variable", default=0)

    def work(n: int) -> int:
        variable.set(n)
        return n + 1

    async def main() -> None:
        with make(1) as executor:
            call = sync.sync_to_async(work, thread_sensitive=False, executor=executor)
            assert [await call(n) for n in range(10)] == list(range(1, 11))
            assert variable.get() == 9  # asgiref carries it back.
            if "executor" not in inspect.signature(sync.ThreadSensitiveContext).parameters:
                return  # Not before asgiref 3.13.
            async with sync.ThreadSensitiveContext(executor=executor):
                names = {await sync.sync_to_async(name_of_thread)() for _ in range(10)}
                assert len(names) == 1 and threading.current_thread().name not in names

    asyncio.run(main())


def test_uvloop_runs_here() -> None:
    """Its loop runs all of tests/test_asyncio.py, where it is installed."""
    uvloop = library("uvloop")

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert type(loop).__module__.startswith("uvloop")
        loop.set_default_executor(ThreadPoolExecutor(2))
        with Service(2) as service:
            await loop.run_in_executor(service, int)
            assert await service.async_block_till_done()
        return await asyncio.to_thread(pow, 2, 10)

    loop = uvloop.new_event_loop()
    assert loop.run_until_complete(main()) == 1024
    loop.close()


# s3transfer and boto3


def s3_client(url: str) -> Any:
    config = library("botocore.config").Config(
        retries={"max_attempts": 0},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return library("boto3").client(
        "s3",
        endpoint_url=url,
        region_name="nowhere",
        aws_access_key_id="id",
        aws_secret_access_key="key",
        config=config,
    )


@every_executor
def test_s3transfer_moves_files_on_it(make: Make, url: str, tmp_path: Path) -> None:
    manager = library("s3transfer.manager")
    client = s3_client(url)
    data = bytes(range(256)) * 4096
    settings = manager.TransferConfig(multipart_threshold=1 << 30, max_request_concurrency=4)

    def executor(max_workers: int) -> Service:
        # s3transfer makes three: for requests, for what it submits to them, for files.
        return make(max_workers)

    with manager.TransferManager(client, settings, executor_cls=executor) as transfers:
        futures = [transfers.upload(io.BytesIO(data[n:]), "bucket", f"key{n}") for n in range(20)]
        for future in futures:
            future.result()
        for n in range(20):
            transfers.download("bucket", f"key{n}", str(tmp_path / str(n))).result()
    assert [(tmp_path / str(n)).read_bytes() for n in range(20)] == [data[n:] for n in range(20)]


@every_executor
def test_boto3_downloads_a_file_in_ranges_on_it(make: Make, url: str, tmp_path: Path) -> None:
    s3 = library("boto3.s3.transfer")
    data = bytes(range(256)) * 8192
    Hello.kept["/bucket/big"] = data
    manager = library("s3transfer.manager").TransferManager
    client = s3_client(url)
    config = s3.TransferConfig(multipart_threshold=1 << 18, multipart_chunksize=1 << 18)
    transfers = manager(client, config, executor_cls=lambda max_workers: make(max_workers))
    with s3.S3Transfer(manager=transfers) as transfer:
        transfer.download_file("bucket", "big", str(tmp_path / "big"))
    assert (tmp_path / "big").read_bytes() == data


# APScheduler


@every_executor
def test_apscheduler_runs_jobs_on_it(make: Make) -> None:
    pool = library("apscheduler.executors.pool")
    background = library("apscheduler.schedulers.background")
    ran: list[int] = []

    class OnService(pool.BasePoolExecutor):
        def __init__(self) -> None:
            super().__init__(make(2))

    def job(n: int) -> None:
        ran.append(n)

    scheduler = background.BackgroundScheduler(executors={"default": OnService()})
    scheduler.start()
    for n in range(10):
        scheduler.add_job(job, args=[n], misfire_grace_time=None)
    wait_until(lambda: len(ran) == 10)
    scheduler.shutdown()
    assert sorted(ran) == list(range(10))


# tqdm


@every_executor
def test_tqdm_counts_what_map_gives(make: Make) -> None:
    # `thread_map` makes the stdlib's pool itself; this is what it does with it.
    tqdm = library("tqdm").tqdm
    shown = io.StringIO()
    with make(4) as executor:
        squares = executor.map(pow, range(100), [2] * 100)
        assert list(tqdm(squares, total=100, file=shown)) == [n * n for n in range(100)]
    assert "100/100" in shown.getvalue()


def test_tqdm_takes_the_class_where_it_takes_one() -> None:
    concurrent = library("tqdm.contrib.concurrent")
    assert concurrent._executor_map(
        ThreadPoolExecutor, pow, range(10), [2] * 10, max_workers=2, file=io.StringIO()
    ) == [n * n for n in range(10)]


# celery


@every_executor
def test_a_celery_worker_runs_tasks_on_it(make: Make) -> None:
    celery, thread = library("celery"), library("celery.concurrency.thread")

    class OnService(thread.TaskPool):
        """What its worker takes for a pool: it makes the stdlib's in one line."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.executor = make(self.limit)

    pool = OnService(2)
    results: list[int] = []

    def task(n: int) -> int:
        return n * n

    futures = [
        pool.on_apply(task, (n,), {}, callback=results.append, accept_callback=lambda *_: None)
        for n in range(20)
    ]
    for future in futures:
        future.wait(LIMIT)
    assert sorted(results) == [n * n for n in range(20)]
    info = pool._get_info()
    assert info["max-concurrency"] == 2 and 0 < info["threads"] <= 2
    pool.on_stop()
    assert celery.__version__


# temporalio


def test_temporalio_asks_for_the_standard_class_and_reads_its_number_of_workers() -> None:
    # A worker needs a server; these are the three places where it looks at the executor.
    worker = library("temporalio.worker._worker")
    activities = library("temporalio.worker._activity")
    activity, testing = library("temporalio.activity"), library("temporalio.testing")
    warn = worker._warn_if_activity_executor_max_workers_is_inconsistent
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        warn({"activity_executor": pool, "max_concurrent_activities": 4})
        assert not caught
        warn({"activity_executor": pool, "max_concurrent_activities": 5})
        assert "max_workers is only 4" in str(caught[0].message)

    beats: list[object] = []

    def work(n: int) -> tuple[int, str]:
        activity.heartbeat(n)
        return n * n, activity.info().activity_id

    def work_until_cancelled() -> str:
        try:
            while True:
                started.set()
                activity.is_cancelled()
        except library("temporalio.exceptions").CancelledError:
            return "cancelled"

    started = threading.Event()
    raiser = activities._ThreadExceptionRaiser()
    stub = types.SimpleNamespace(
        _data_converter=library("temporalio.converter").default(),
        _worker_shutdown_event=types.SimpleNamespace(thread_event=threading.Event()),
        _shared_state_manager=None,
        cancelled_event=types.SimpleNamespace(thread_event=threading.Event()),
        cancel_thread_raiser=raiser,
    )
    execute = activities._ActivityInboundImpl(stub, stub).execute_activity

    async def main() -> None:
        with ThreadPoolExecutor(2) as pool:
            given = worker_input(work, [7], pool)
            assert await execute(given) == (49, "test")
            cancelled = asyncio.ensure_future(execute(worker_input(work_until_cancelled, [], pool)))
            while not started.is_set():
                await asyncio.sleep(0.001)
            raiser.raise_in_thread(library("temporalio.exceptions").CancelledError)
            assert await cancelled == "cancelled"
        with Service(1) as service, pytest.raises(AssertionError):
            await execute(worker_input(work, [7], service))

    def worker_input(fn: Any, args: list[Any], executor: Any) -> Any:
        make = library("temporalio.worker").ExecuteActivityInput
        return make(fn=fn, args=args, executor=executor, headers={})

    environment = testing.ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.extend(details)
    asyncio.run(environment.run(main))
    assert beats == [7]


# google-cloud-pubsub


@every_executor
def test_a_pubsub_scheduler_calls_back_on_it_and_gives_back_what_it_has_not(make: Make) -> None:
    scheduling = library("google.cloud.pubsub_v1.subscriber.scheduler")
    called: list[str] = []
    executor = make(1)
    scheduler = scheduling.ThreadScheduler(executor=executor)
    scheduler.schedule(called.append, "first")
    wait_until(lambda: called == ["first"])
    with holding(executor):
        for n in range(5):
            scheduler.schedule(called.append, f"message {n}")
        assert scheduler.shutdown() == [f"message {n}" for n in range(5)]
    with pytest.warns(RuntimeWarning, match="after executor shutdown"):
        scheduler.schedule(called.append, "late")
    executor.shutdown()
    assert called == ["first"]


# Their own tests, where their wheels have them


OWN_TESTS = {
    "dask": ["dask/tests/test_threaded.py"],
    "tornado": ["tornado/test/concurrent_test.py", "tornado/test/ioloop_test.py"],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", OWN_TESTS)
def test_its_own_tests_pass_with_the_drop_in_in_the_place_of_the_pool(
    name: str, tmp_path: Path
) -> None:
    folder = Path(library(name).__file__).parents[1]
    (tmp_path / "in_place.py").write_text(
        "import concurrent.futures, signal, boundedexec\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "concurrent.futures.ThreadPoolExecutor = boundedexec.ThreadPoolExecutor\n"
    )
    files = [str(folder / file) for file in OWN_TESTS[name]]
    command = ["-m", "pytest", "-q", "-p", "in_place", "-p", "no:cacheprovider", "--timeout=120"]
    done = subprocess.run(
        [sys.executable, *command, f"--rootdir={tmp_path}", "-c", "/dev/null", *files],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    print(done.stdout[-5000:], done.stderr[-2000:])
    assert done.returncode == 0
