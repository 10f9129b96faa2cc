"""A small HTTP server for the row of real input and output.

It runs as a script, in a process of its own. It prints its port, answers every request
with the same page and closes the connection. It ends with its standard input, or after
five minutes. It has one thread and does not parse: the client's side is measured.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
from dataclasses import dataclass

LIFETIME = 300.0
PAGE = b"a small page\n" * 8
ANSWER = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n"
    b"\r\n"
    b"%s"
) % (len(PAGE), PAGE)


def end_with_input() -> None:
    """End the process when its standard input ends."""
    sys.stdin.read()
    os._exit(0)


def end_in_time() -> None:
    """End the process."""
    os._exit(1)


@dataclass
class Connection:
    """A client, and what it has sent so far."""

    client: socket.socket
    received: bytes = b""

    def answered(self) -> bool:
        """Read what has arrived; return True once the client has its answer or is gone."""
        try:
            more = self.client.recv(4096)
            self.received += more
            if more and b"\r\n\r\n" not in self.received:
                return False
            if more:
                self.client.sendall(ANSWER)
        except OSError:
            pass
        return True


def serve(listener: socket.socket) -> None:
    """Answer every client, for ever."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            connection: Connection | None = key.data
            if connection is None:
                client, _ = listener.accept()
                selector.register(client, selectors.EVENT_READ, Connection(client))
            elif connection.answered():
                selector.unregister(connection.client)
                connection.client.close()


def main() -> None:
    """Listen on a free port of this machine, print it, and serve."""
    threading.Thread(target=end_with_input, daemon=True).start()
    deadline = threading.Timer(LIFETIME, end_in_time)
    deadline.daemon = True
    deadline.start()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(listener)


if __name__ == "__main__":
    main()
