"""How a running process is asked for its dump: by a signal, and by `python -m boundedexec ps`.

A Python handler runs on the main thread, which may be blocked in C. So the handler in C
writes to a pipe (`signal.set_wakeup_fd`), and a thread of ours reads it. Where somebody
else has that descriptor (asyncio, with signal handlers of its own), the Python handler
writes to the pipe instead.

A directory of the user's says which processes can be asked. `ps` leaves its question there,
sends the signal, and finds the answer there.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from typing import TextIO

from .dumping import dump

#: What the Python handler writes to the pipe. The handler in C writes the signal's number.
_BY_PYTHON = 0
#: How often `ask` looks for the answer, in seconds.
_INTERVAL = 0.01


class CannotAsk(Exception):
    """A process that cannot be asked; the message says why."""


class _Listener:
    """The thread that answers, and its pipe."""

    def __init__(self, number: int, file: TextIO | None) -> None:
        self.file = file
        self._number = number
        self._process = os.getpid()
        self._pipe, self._into = os.pipe()
        os.set_blocking(self._into, False)

    def start(self) -> None:
        signal.signal(self._number, self._handle)  # Raises outside the main thread.
        before = signal.set_wakeup_fd(self._into, warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before)
        threading.Thread(target=self._listen, name="boundedexec-dump", daemon=True).start()
        mark = _path(self._process, "signal")
        with open(mark, "w", encoding="ascii") as file:
            file.write(str(self._number))
        atexit.register(_remove, mark)

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            dump(self.file)  # A forked child: the thread is the parent's.
            return
        with contextlib.suppress(BlockingIOError):  # It is full of signals as it is.
            os.write(self._into, bytes([_BY_PYTHON]))

    def _listen(self) -> None:
        # Both handlers may write for one signal, the one in C first.
        by_c = False
        while received := os.read(self._pipe, 1):
            if received[0] == self._number or (received[0] == _BY_PYTHON and not by_c):
                self._answer()
            if received[0] in (self._number, _BY_PYTHON):
                by_c = received[0] == self._number

    def _answer(self) -> None:
        question = _path(self._process, "question")
        if not os.path.exists(question):
            dump(self.file)
            return
        _remove(question)
        write_answer(_path(self._process, "answer"))


def dump_on_signal(number: int | None = None, file: TextIO | None = None) -> None:
    """Have this process `dump` to `file` (standard error) when it gets a signal, SIGUSR1.

    `python -m boundedexec ps PID` can ask it then. The answer comes from a daemon thread of
    its own, also while the main thread is blocked. A second call replaces the file. Raises
    `ValueError` outside the main thread, and `RuntimeError` where there is no SIGUSR1 and
    no other signal is named.
    """
    number = number or getattr(signal, "SIGUSR1", None)
    if number is None:
        raise RuntimeError("this system has no SIGUSR1: name another signal")
    listener = _listeners.get(number)
    if listener is None:
        listener = _Listener(number, file)
        listener.start()
        _listeners[number] = listener
    listener.file = file


_listeners: dict[int, _Listener] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_listeners.clear)


def ask(process: int, seconds: float = 10.0) -> str:
    """The dump of a running process. Raises `CannotAsk`."""
    answer = _path(process, "answer")
    _remove(answer)
    if not _is_alive(process):
        raise CannotAsk(f"there is no process {process}")
    if not _ask_by_signal(process) and not _ask_from_outside(process, answer):
        raise CannotAsk(
            f"process {process} cannot be asked: it has not called"
            " boundedexec.dump_on_signal()" + _before_314()
        )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            with open(answer, encoding="utf-8") as file:
                text = file.read()
            _remove(answer)
            return text
        time.sleep(_INTERVAL)
    raise CannotAsk(f"process {process} has not answered within {seconds:.0f} s")


def _before_314() -> str:
    return "" if hasattr(sys, "remote_exec") else ", and this Python has no sys.remote_exec"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise CannotAsk(f"process {process} is another user's") from None
    return True


def _ask_by_signal(process: int) -> bool:
    """Where the process waits for a signal, send it."""
    try:
        with open(_path(process, "signal"), encoding="ascii") as mark:
            number = int(mark.read())
    except (FileNotFoundError, ValueError):
        return False
    # A process that has ended may have left its mark, and another may have its number.
    if not _catches(process, number):
        return False
    with open(_path(process, "question"), "w", encoding="ascii"):
        pass
    os.kill(process, number)
    return True


def _catches(process: int, number: int) -> bool:
    """Whether the signal would not end the process; True where the system does not say."""
    try:
        with open(f"/proc/{process}/status", encoding="ascii") as status:
            masks = [line.split()[1] for line in status if line.startswith("SigCgt:")]
    except OSError:
        return True
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def _ask_from_outside(process: int, answer: str) -> bool:
    """From Python 3.14 on, have the process write its dump, unprepared."""
    remote_exec = getattr(sys, "remote_exec", None)
    if remote_exec is None:
        return False
    script = _path(process, "script")
    with open(script, "w", encoding="utf-8") as file:
        file.write(f"import boundedexec.asking as a; a.write_answer({answer!r})\n")
    try:
        remote_exec(process, script)
    except (OSError, RuntimeError) as error:
        raise CannotAsk(f"process {process} cannot be asked: {error}") from None
    return True


def write_answer(path: str) -> None:
    """Write this process's dump to a file that is there when it is whole."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        dump(file)
    os.replace(path + ".part", path)


def _path(process: int, what: str) -> str:
    """A file about `process`, in a directory that is this user's alone."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    directory = os.path.join(tempfile.gettempdir(), f"boundedexec-{user}")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != user):
        raise CannotAsk(f"{directory} is not a directory of this user's")
    return os.path.join(directory, f"{process}.{what}")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
