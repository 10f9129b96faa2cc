"""How a running process is asked for its dump: by a signal, and by `python -m boundedexec ps`.

From Python 3.14 on, `ps` can have the main thread of any process write its dump
(`sys.remote_exec`), once that executes Python. Before, the process has to prepare.

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
import io
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
#: How often `ask` looks for the answer, and for how long, in seconds.
_INTERVAL = 0.01
_LONG = 3.0

_SCRIPT = """
import sys
if "boundedexec" in sys.modules:
    from boundedexec.asking import write_answer
    write_answer({answer!r})
else:
    open({answer!r}, "w").close()
"""


class CannotAsk(Exception):
    """A process that cannot be asked; the message says why."""


class NoAnswer(CannotAsk):
    """It was asked, and is alive."""


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
        _write(mark, str(self._number))
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
    """Have this process `dump` to `file` when it gets the signal `number`, and return at once.

    Without a `number` that is SIGUSR1, without a `file` standard error. `python -m boundedexec
    ps PID` can ask it then. The answer comes from a daemon thread of its own, also while the
    main thread is blocked. A second call for a signal replaces the file. To be called on the
    main thread: raises `ValueError` elsewhere, and for what is no signal's number; `OSError`
    for a signal that cannot be handled; `RuntimeError` where there is no SIGUSR1 and no other
    signal is named.
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


def ask(process: int) -> str:
    """The dump of a running process. Raises `CannotAsk`."""
    _check_alive(process)
    answer = _path(process, "answer")
    _remove(answer)
    script = None if _ask_by_signal(process) else _ask_from_outside(process, answer)
    text = _read(answer)
    if text is None:
        if script is not None:  # It may come to that later, and nobody waits for it then.
            _write(script, "")
        raise NoAnswer(f"process {process} has not answered within {_LONG:.0f} s")
    if not text:
        raise CannotAsk(f"process {process} has not imported boundedexec")
    return text


def _read(answer: str) -> str | None:
    """The text, once it is there; None where it does not come."""
    end = time.monotonic() + _LONG
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            with open(answer, encoding="utf-8") as file:
                text = file.read()
            _remove(answer)
            return text
        time.sleep(_INTERVAL)
    return None


def _check_alive(process: int) -> None:
    try:
        if process > 0:  # Others are groups of processes.
            os.kill(process, 0)
            return
    except ProcessLookupError:
        pass
    except PermissionError:
        raise CannotAsk(f"process {process} is another user's") from None
    raise CannotAsk(f"there is no process {process}")


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
    _write(_path(process, "question"), "")
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


def _ask_from_outside(process: int, answer: str) -> str:
    """From Python 3.14 on, have the process write its dump, unprepared; the script for that."""
    remote_exec = getattr(sys, "remote_exec", None)
    if remote_exec is None:
        raise CannotAsk(
            f"process {process} cannot be asked: it has not called"
            " boundedexec.dump_on_signal(), and this Python has no sys.remote_exec"
        )
    script = _path(process, "script")
    _write(script, _SCRIPT.format(answer=answer))
    try:
        remote_exec(process, script)
    except (OSError, RuntimeError) as error:
        raise CannotAsk(f"process {process} cannot be asked: {error}") from None
    return script


def write_answer(path: str) -> None:
    """Write this process's dump to a file that is there when it is whole."""
    text = io.StringIO()
    dump(text)
    _write(path + ".part", text.getvalue())
    os.replace(path + ".part", path)


def _path(process: int, what: str) -> str:
    """A file about `process`, in a directory that is its user's alone."""
    user = _user(process)
    directory = os.path.join(tempfile.gettempdir(), f"boundedexec-{user}")
    try:
        os.mkdir(directory, mode=0o700)
        if user != _user(os.getpid()):
            os.chown(directory, user, -1)  # It is root who asks.
    except FileExistsError:
        pass
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != user):
        raise CannotAsk(f"{directory} is not a directory of that user's")
    return os.path.join(directory, f"{process}.{what}")


def _user(process: int) -> int:
    """Whose it is; where the system does not say, the caller's."""
    try:
        return os.stat(f"/proc/{process}").st_uid
    except OSError:
        return os.getuid() if hasattr(os, "getuid") else 0


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
