"""The stall that README shows: bodies wait for a lock whose holder waits for a dead connection.

`python tests/stall.py` draws it in `tests/stall.svg`, and stays for `python -m boundedexec ps`.
"""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from boundedexec import Service, Trace, dump_on_signal

LOCK = threading.Lock()
PICTURE = Path(__file__).with_suffix(".svg")
DEAD = "dead.example"


def fetch(host: str, dead: tuple[str, int]) -> None:
    time.sleep(0.02)
    store(host, dead)


def store(host: str, dead: tuple[str, int]) -> None:
    with LOCK:
        if host == DEAD:
            with socket.create_connection(dead) as connection:
                connection.recv(1)  # Nobody answers.
        time.sleep(0.005)


def main() -> None:
    dump_on_signal()
    silent = socket.create_server(("127.0.0.1", 0))
    hosts = [f"host{number}.example" for number in range(4_210)]
    hosts.insert(9, DEAD)
    service = Service(3, "jobs", daemon=True)
    with Trace(service) as trace:
        for host in hosts:
            service.submit(fetch, host, silent.getsockname())
        time.sleep(0.6)
    trace.save(PICTURE)
    service.dump()
    time.sleep(60)


if __name__ == "__main__":
    main()
