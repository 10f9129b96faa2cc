"""Programs of real use, with libraries that make pools, take them, or run in their bodies.

Each is run with a Service and with the drop-in, and unchanged under `run`, where the
library's own pools are this package's as well.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign_helpers import every_form, library, run_program

# Each starts programs, on machines that may do more than that.
pytestmark = pytest.mark.timeout(120)

# starlette and uvicorn

STARLETTE = """
import asyncio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

pool = Pool(2)
noted = []

def square(request):
    n = int(request.path_params["n"])
    return JSONResponse(pool.submit(pow, n, 2).result(), background=BackgroundTask(noted.append, n))

async def nested(request):
    loop = asyncio.get_running_loop()
    inner = lambda: pool.submit(pow, 2, 5).result()
    return JSONResponse([await loop.run_in_executor(pool, inner), await asyncio.to_thread(inner)])

async def echo(websocket):
    await websocket.accept()
    async for text in websocket.iter_text(): await websocket.send_text(text[::-1])

routes = [Route("/square/{n}", square), Route("/nested", nested), WebSocketRoute("/echo", echo)]
app = Starlette(routes=routes)
with TestClient(app) as client:
    print([client.get(f"/square/{n}").json() for n in range(5)], noted)
    print(client.get("/nested").json())
    with client.websocket_connect("/echo") as socket:
        socket.send_text("abc")
        print(socket.receive_text())

def ask(n):
    with TestClient(app) as own: return own.get(f"/square/{n}").json()

with Pool(3) as clients: print(list(clients.map(ask, range(9))))
print(asyncio.run(asyncio.to_thread(ask, 9)), sorted(noted[5:]))
pool.shutdown()
"""


@every_form
def test_starlettes_test_client_in_the_main_thread_and_in_bodies(tmp_path: Path, form: str) -> None:
    library("starlette.testclient")
    assert run_program(tmp_path, form, STARLETTE) == [
        "[0, 1, 4, 9, 16] [0, 1, 2, 3, 4]",
        "[32, 32]",
        "cba",
        "[0, 1, 4, 9, 16, 25, 36, 49, 64]",
        "81 [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
    ]


UVICORN = """
import asyncio, socket, sys, time
import httpx, uvicorn

async def app(scope, receive, send):
    n = int(scope["path"].lstrip("/"))
    loop = asyncio.get_running_loop()
    inner = lambda: bodies.submit(pow, n, 2).result()
    answer = await loop.run_in_executor(bodies, inner) + await asyncio.to_thread(pow, n, 1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % answer})

def wsgi(environ, start_response):  # uvicorn makes a pool for these.
    n = int(environ["PATH_INFO"].lstrip("/"))
    start_response("200 OK", [])
    return [b"%d" % (bodies.submit(pow, n, 2).result() + n)]

with Pool(2) as bodies, Pool(8) as pool:
    for served, interface in ((app, "asgi3"), (wsgi, "wsgi")):
        config = uvicorn.Config(
            served, interface=interface, lifespan="off", log_level="critical", ws="none"
        )
        server = uvicorn.Server(config)
        listening = socket.create_server(("127.0.0.1", 0))
        running = pool.submit(server.run, [listening])
        while not server.started: time.sleep(0.001)
        url = "http://127.0.0.1:%d/" % listening.getsockname()[1]
        with httpx.Client(timeout=30) as client:
            print(list(pool.map(lambda n: int(client.get(url + str(n)).text), range(12))))
        server.should_exit = True
        running.result()
"""


@every_form
def test_a_uvicorn_server_runs_in_a_body_and_its_clients_in_others(
    tmp_path: Path, form: str
) -> None:
    library("uvicorn")
    answers = str([n * n + n for n in range(12)])
    assert run_program(tmp_path, form, UVICORN) == [answers, answers]


# SQLAlchemy

SQLALCHEMY = """
import threading
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

class Base(DeclarativeBase): pass

class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

engine = create_engine("sqlite:///items.db", connect_args={"timeout": 30})
Base.metadata.create_all(engine)
Session = scoped_session(sessionmaker(engine))

def add(n):
    try:
        Session.add(Item(name=f"item {n}"))
        Session.commit()
    finally:
        Session.remove()

def own_session(_):
    session = Session()
    together.wait()
    try: return id(session), session is Session()
    finally: Session.remove()

def count(_):
    return pool.submit(lambda: Session.scalar(select(func.count()).select_from(Item))).result()

with Pool(4) as pool:
    list(pool.map(add, range(60)))
    print(list(pool.map(count, range(8))))
    together = threading.Barrier(4)
    sessions = list(pool.map(own_session, range(4)))
    print(len(dict(sessions)), all(dict(sessions).values()))

# A connection for each thread, as an initializer makes them.
local, opened = threading.local(), []
def connect():
    local.connection = engine.connect()
    opened.append(local.connection)

with Pool(3, initializer=connect) as pool:
    def name(n): return local.connection.scalar(select(Item.name).filter_by(id=n))
    names = pool.map(name, range(1, 61))
    print(sorted(names) == sorted(f"item {n}" for n in range(60)), 1 <= len(opened) <= 3)
for connection in opened: connection.detach()
"""


@every_form
def test_sqlalchemy_has_a_session_for_each_thread(tmp_path: Path, form: str) -> None:
    library("sqlalchemy")
    assert run_program(tmp_path, form, SQLALCHEMY) == [str([60] * 8), "4 True", "True True"]


# Django and asgiref

DJANGO = """
import asyncio, os, threading
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
import django
from django.conf import settings

settings.configure(
    CACHES={
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "files": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "c"
        },
    },
    DATABASES={"default": {
        "ENGINE": "django.db.backends.sqlite3", "NAME": "items.db", "OPTIONS": {"timeout": 30}
    }},
)
django.setup()
from asgiref.sync import async_to_sync, sync_to_async
from django.core.cache import cache, caches
from django.db import connection, connections

cache.set("count", 0)
def count(n):
    caches["files"].set(f"key-{n}", n)
    return cache.incr("count")

def own(_):
    found = id(caches["default"]), id(connections["default"])
    together.wait()
    return found

def query(n):
    try:
        with connection.cursor() as cursor:
            cursor.execute("select ? * ?".replace("?", "%s"), [n, n])
            return cursor.fetchone()[0]
    finally:
        connection.close()

with Pool(4) as pool:
    print(sorted(pool.map(count, range(50))) == list(range(1, 51)), caches["files"].get("key-7"))
    together = threading.Barrier(4)
    found = list(pool.map(own, range(4)))
    print(*(len(set(each)) for each in zip(*found)))
    print(list(pool.map(query, range(5))))
    print(list(pool.map(async_to_sync(lambda n: cache.aget_or_set(n, n + 1)), range(3))))

    async def main():
        run = lambda fn: sync_to_async(fn, thread_sensitive=False, executor=pool)
        await cache.aset("async", 1)
        return [await run(query)(n) for n in range(5)], await run(cache.get)("async")
    print(asyncio.run(main()))
"""


@every_form
def test_djangos_caches_and_connections_with_asgiref(tmp_path: Path, form: str) -> None:
    library("django")
    assert run_program(tmp_path, form, DJANGO) == [
        "True 7",
        "4 4",
        "[0, 1, 4, 9, 16]",
        "[1, 2, 3]",
        "([0, 1, 4, 9, 16], 1)",
    ]


# celery

CELERY = """
import threading
from celery import Celery, chord, group
from celery.contrib.testing.worker import start_worker

app = Celery("program", broker="memory://", backend="cache+memory://")
app.conf.update(worker_hijack_root_logger=False)

@app.task
def square(n):
    names.add(type(threading.current_thread()).__module__)
    return n * n

@app.task
def add(numbers): return sum(numbers)

@app.task
def fail(): raise ValueError("no")

@app.task
def nested(n):
    with Pool(1) as pool: return pool.submit(lambda: pool.submit(pow, n, 2).result()).result()

names = set()
threads = {"pool": "threads", "concurrency": 3}
with start_worker(app, **threads, perform_ping_check=False, loglevel="CRITICAL"):
    squares = group(square.s(n) for n in range(20)).delay()
    print(squares.get(timeout=30) == [n * n for n in range(20)])
    print(chord(group(square.s(n) for n in range(5)), add.s()).delay().get(timeout=30))
    print(nested.delay(5).get(timeout=30), repr(fail.delay().get(timeout=30, propagate=False)))
print(names)
"""


def test_a_celery_worker_of_threads_runs_unchanged(tmp_path: Path) -> None:
    # It makes the pool itself.
    library("celery")
    assert run_program(tmp_path, "run", CELERY) == [
        "True",
        "30",
        "25 ValueError('no')",
        "{'boundedexec._core.state'}",
    ]


# streamlit

STREAMLIT = """
import logging
logging.disable(logging.CRITICAL)  # It warns of the main thread, which has no context.
from streamlit.testing.v1 import AppTest

def app():
    import threading
    import streamlit
    from streamlit.runtime.scriptrunner import add_script_run_ctx, get_script_run_ctx
    from program import Pool

    streamlit.session_state.factor = 3
    context = get_script_run_ctx()

    @streamlit.cache_data
    def cube(n): return n ** 3

    def has_context(_):
        ready.wait()
        return get_script_run_ctx() is context

    ready = threading.Event()
    with Pool(4) as pool:
        futures = [pool.submit(has_context, n) for n in range(8)]
        for thread in pool._threads: add_script_run_ctx(thread, context)
        ready.set()
        streamlit.write(str(sum(future.result() for future in futures)))

    def join_the_script(): add_script_run_ctx(threading.current_thread(), context)
    def body(n): streamlit.metric("cubes", streamlit.session_state.factor + cube(n))
    # Of one thread: what bodies write at the same time, streamlit may lose.
    with Pool(1, initializer=join_the_script) as pool: list(pool.map(body, range(3)))

if __name__ == "__main__":
    for _ in range(3):
        tried = AppTest.from_function(app, default_timeout=60).run()
        print([each.value for each in tried.exception], tried.markdown[0].value)
        print(sorted(each.value for each in tried.metric))
"""


@every_form
def test_streamlits_recipe_gives_the_threads_the_scripts_context(tmp_path: Path, form: str) -> None:
    library("streamlit")
    lines = run_program(
        tmp_path, form, STREAMLIT, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}"
    )
    assert lines == ["[] 8", "['11', '3', '4']"] * 3


# langchain-core

LANGCHAIN = """
import asyncio, contextvars
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough

request = contextvars.ContextVar("request", default=None)
square = RunnableLambda(lambda n: n * n)

def squares(n):
    return sum(square.batch(list(range(n)), config={"max_concurrency": 2}))

def fail(n):
    if n == 1: raise ValueError("no")
    return request.get(), n

chain = RunnableParallel(square=square, sum=RunnableLambda(squares), same=RunnablePassthrough())
request.set("mine")
one_at_a_time = chain.batch(list(range(8)), {"max_concurrency": 1})
print(chain.invoke(5), [each["sum"] for each in one_at_a_time])
print(RunnableLambda(fail).batch([0, 1, 2], return_exceptions=True))
print(sorted(square.batch_as_completed([1, 2, 3])), list(chain.stream(2))[-1] is not None)
print([each["sum"] for each in asyncio.run(chain.abatch([3, 4]))])
with Pool(2) as pool:
    print([each["sum"] for each in pool.map(chain.invoke, range(6))])
    print(pool.submit(lambda: asyncio.run(chain.ainvoke(3))).result()["square"])
"""


@every_form
def test_langchain_runs_chains_in_pools_of_its_own_and_in_bodies(tmp_path: Path, form: str) -> None:
    library("langchain_core.runnables")
    sums = [sum(n * n for n in range(m)) for m in range(8)]
    assert run_program(tmp_path, form, LANGCHAIN) == [
        f"{{'square': 25, 'sum': 30, 'same': 5}} {sums}",
        "[('mine', 0), ValueError('no'), ('mine', 2)]",
        "[(0, 1), (1, 4), (2, 9)] True",
        str(sums[3:5]),
        str(sums[:6]),
        "9",
    ]


# huggingface_hub

HUB = """
import os, threading
from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars
from tqdm.contrib.concurrent import thread_map

disable_progress_bars()
folder = snapshot_download("owner/model", local_dir="model", max_workers=4)
files = sorted(name for name in os.listdir(folder) if not name.startswith("."))
print(len(files), all(open(os.path.join(folder, name)).read() == name * 9 for name in files))

with Pool(2) as pool:
    again = [pool.submit(snapshot_download, "owner/model", local_dir=f"copy {n}") for n in range(3)]
    print([len(os.listdir(future.result())) - 1 for future in again])
    quiet = {"disable": True, "max_workers": 2}
    print(thread_map(lambda n: pool.submit(pow, n, 2).result(), range(5), **quiet))
    print(thread_map(lambda n: sum(thread_map(abs, range(n), **quiet)), range(5), **quiet))
"""


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub with one model of twenty files."""
    files = [f"part-{n}.txt" for n in range(20)]
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].rpartition("/")[2]
            body = (name * 9).encode()
            self.send_response(200)
            if self.path.startswith("/api/"):
                entries = [{"type": "file", "path": f, "size": 9 * len(f), "oid": f} for f in files]
                siblings = [{"rfilename": f} for f in files]
                model = {"id": "owner/model", "sha": commit, "siblings": siblings}
                body = json.dumps(entries if "/tree/" in self.path else model).encode()
            self.send_header("ETag", f'"{name}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@every_form
def test_huggingface_hub_maps_downloads_over_threads(tmp_path: Path, hub: str, form: str) -> None:
    library("huggingface_hub")
    told = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    assert run_program(tmp_path, form, HUB, HF_HUB_DISABLE_TELEMETRY="1", **told) == [
        "20 True",
        "[20, 20, 20]",
        "[0, 1, 4, 9, 16]",
        "[0, 0, 1, 3, 6]",
    ]


# moto and s3transfer

MOTO = """
import io, os
import boto3
from boto3.s3.transfer import TransferConfig
from moto import mock_aws
from s3transfer.manager import TransferManager

data = os.urandom(1 << 20) * 11
config = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=4)

@mock_aws
def main():
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    options = {} if FORM == "run" else {"executor_cls": Pool}
    with TransferManager(client, config, **options) as transfers:
        transfers.upload(io.BytesIO(data), "bucket", "big").result()
        small = [transfers.upload(io.BytesIO(b"%d" % n), "bucket", f"small/{n}") for n in range(30)]
        for future in small: future.result()
        transfers.download("bucket", "big", "big").result()
        missing = transfers.download("bucket", "none", "none")
        try: missing.result()
        except Exception as error: print(type(error).__name__)
    parts = client.head_object(Bucket="bucket", Key="big")["ETag"][-2]
    print(open("big", "rb").read() == data, parts)
    client.upload_file("big", "bucket", "again", Config=config)
    client.download_file("bucket", "again", "twice", Config=config)
    print(open("twice", "rb").read() == data)
    with Pool(4) as pool:
        get = lambda n: client.get_object(Bucket="bucket", Key=f"small/{n}")["Body"].read()
        print(list(pool.map(get, range(30))) == [b"%d" % n for n in range(30)])

main()
"""


@every_form
def test_moto_takes_what_s3transfer_sends(tmp_path: Path, form: str) -> None:
    library("moto")
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    assert run_program(tmp_path, form, MOTO, **keys) == ["ClientError", "True 3", "True", "True"]


# joblib

JOBLIB = """
from joblib import Parallel, delayed, parallel_config

def squares(n):
    return sum(Parallel(n_jobs=2, backend="threading")(delayed(pow)(i, 2) for i in range(n)))

with Pool(3) as pool:
    print(list(pool.map(squares, range(8))))
    with parallel_config(backend="threading", n_jobs=4):
        print(Parallel()(delayed(lambda n: pool.submit(pow, n, 2).result())(n) for n in range(8)))
        lazily = Parallel(return_as="generator")(delayed(pool.submit)(squares, n) for n in range(8))
        print([future.result() for future in lazily])
    nested = delayed(lambda n: pool.submit(lambda: pool.submit(squares, n).result()).result())
    print(Parallel(n_jobs=4, require="sharedmem")(nested(n) for n in range(8)))
"""


@every_form
def test_joblibs_threads_submit_and_bodies_use_joblibs_threads(tmp_path: Path, form: str) -> None:
    library("joblib")
    sums = str([sum(n * n for n in range(m)) for m in range(8)])
    squares = str([n * n for n in range(8)])
    assert run_program(tmp_path, form, JOBLIB) == [sums, squares, sums, sums]
