"""``python -m boundedexec demo [DIR]``: what the package does, on real files.

Three parts, each beside ``ThreadPoolExecutor`` where that can do it at all: a
submission for every file, a walk in which every directory waits for those below
it, and a storm of change notices that a ``Coalescer`` folds into few runs.

Every figure is measured in the run that prints it. The two executors alternate, so that
neither has the warmer cache or the quieter machine. The demo uses only the public names
of the package. No part takes longer than its time limit, however large DIR is: bodies
check a `_Limit`, and the output says what was left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import itertools
import math
import os
import platform
import random
import shutil
import stat
import statistics
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TextIO, TypeVar

import boundedexec
from boundedexec import Coalescer, Service

_E = TypeVar("_E", bound=Executor)

# Seconds that a pass over DIR may take; all passes together take under a minute.
_LIMIT = 8.0
# Shares of that limit: for the files hashed again to compare, for the rounds of one
# comparison, for a storm with one run for each notice.
_COMPARED = 0.25
_ROUNDS_SHARE = 0.5
_STORM_SHARE = 0.2

# Seconds.
_STUCK_AFTER = 0.5
_REFRESH = 0.1

_ROUNDS = 9
_BLOCK = 1 << 20

# So few that waiting bodies fill a pool on any tree three directories deep.
_WALK_SLOTS = 2

_STORM_KEYS = 200
_STORM_NOTICES = 20_000
# Notices in a burst, and the pause after it in seconds: without pauses no run would start.
_WAVE = 1000
_PAUSE = 0.001
_STORM_BYTES = 1 << 16

_NAMED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command on `parser`."""
    parser.description = (
        "Hash every file under DIR, walk its directories and coalesce a storm of change "
        "notices, beside ThreadPoolExecutor. Nothing is written; under a minute."
    )
    parser.add_argument(
        "directory", nargs="?", metavar="DIR", help="default: Python's own standard library"
    )
    parser.add_argument(
        "--limit",
        type=_positive,
        default=_LIMIT,
        metavar="SECONDS",
        help="after this time in each part, leave out the rest of DIR (default: %(default)s)",
    )


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be seconds, more than 0, not {text!r}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 0, or 1 if a run missed a change, or 2 if DIR is unusable."""
    given: str | None = args.directory
    directory = sysconfig.get_path("stdlib") if given is None else given
    # Packages installed beside the standard library are not part of it.
    left_out = frozenset({"site-packages", "dist-packages"} if given is None else ())
    try:
        os.scandir(directory).close()
    except OSError as error:
        print(f"python -m boundedexec demo: {_shown(directory)}: {error.strerror}", file=sys.stderr)
        return 2
    # The output's encoding may lack characters of a file's name.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")
    screen = _Screen(sys.stdout)
    status: Future[int] = Future()

    def show() -> None:
        try:
            status.set_result(_show(directory, left_out, args.limit, screen))
        except BaseException as error:
            status.set_exception(error)

    # Ctrl-C interrupts the main thread anywhere. In a weakref's callback it would be
    # lost, and in the submit of a ThreadPoolExecutor a lock would stay locked; so the main
    # thread only waits here. It wakes up regularly, because a signal that another thread
    # receives does not wake it.
    threading.Thread(target=show, daemon=True).start()
    try:
        while not boundedexec.wait([status], timeout=_REFRESH).done:
            pass
        return status.result()
    finally:
        screen.progress("")


def _show(directory: str, left_out: frozenset[str], seconds: float, screen: _Screen) -> int:
    screen.line(f"boundedexec demo, Python {platform.python_version()}, on {_shown(directory)}")
    tree = _look(directory, left_out, seconds, screen)
    so_far = "" if tree.complete else " (then the time for listing them was over)"
    screen.line(
        f"{_count(len(tree.files), 'file')} in "
        f"{_count(tree.directories, 'directory', 'directories')}, "
        f"{_count(tree.depth, 'level')} deep{so_far}"
    )
    hashed, hashing = _hash_files(tree, seconds, screen)
    walking = _walk_directories(tree, left_out, seconds, screen)
    fresh, notices = _coalesce(hashed, seconds, screen)
    screen.line()
    screen.line(f"{'time':<12}{'Service':>12}{'ThreadPoolExecutor':>22}")
    for name, times in (("1. hash", hashing), ("2. walk", walking), ("3. storm", notices)):
        if times is not None:
            screen.line(f"{name:<12}{_time(times.service):>12}{times.pool_shown():>22}")
    screen.line("medians; the two took turns on the same work, all files read once before")
    return 0 if fresh else 1


# What the parts share.


class _Screen:
    """Prints lines, and on a terminal a progress line below them that changes in place.

    On a pipe or in a file there is no progress line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        # The length of the progress line.
        self._length = 0

    def line(self, text: str = "") -> None:
        self.progress("")
        # Flushed, so that the reader of a pipe sees each part when it is over.
        print(text, file=self._stream, flush=True)

    def progress(self, text: str) -> None:
        if self._live and (text or self._length):
            # A terminal that does not know its width says 0.
            text = text[: max(0, (shutil.get_terminal_size().columns or 80) - 3)]
            # Overwritten with blanks, which works on every terminal, as is the ^C that
            # a terminal may have echoed after it.
            blank = " " * (self._length + 2)
            print(f"\r{blank}\r{text}", end="", file=self._stream, flush=True)
            self._length = len(text)


class _Limit:
    """The end of the time limit of a pass, which `stop` brings forward."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() >= self._end

    def stop(self) -> None:
        self._end = time.monotonic()


@contextmanager
def _ending(executor: _E, limit: _Limit) -> Generator[_E]:
    """Use `executor`; at the end cancel what is queued and do not wait for the rest.

    The ``with`` block of an executor would finish everything queued first, and would
    never end for one that is stuck.
    """
    try:
        yield executor
    finally:
        limit.stop()
        executor.shutdown(wait=False, cancel_futures=True)


def _service(slots: int | None = None) -> Service:
    # A read that never returns must not keep the demo from ending.
    return Service(slots, daemon=True)


@dataclasses.dataclass(frozen=True)
class _Times:
    """Seconds of one part: medians of `rounds` rounds. `pool` is None where it got stuck."""

    service: float
    pool: float | None
    rounds: int

    def pool_shown(self) -> str:
        return "would hang" if self.pool is None else _time(self.pool)


def _compare(
    screen: _Screen,
    seconds: float,
    service: Callable[[], float],
    pool: Callable[[], float] | None,
) -> _Times:
    """Alternate the two until the time for it is over; measure each at least once."""
    limit = _Limit(seconds * _ROUNDS_SHARE)
    of_service: list[float] = []
    of_pool: list[float] = []
    for number in range(_ROUNDS):
        screen.progress(f"   comparing, round {number + 1} of at most {_ROUNDS}")
        turns = [(service, of_service)] + ([(pool, of_pool)] if pool else [])
        # The second finds what the first left: a warm cache, a busy disk.
        for measure, times in turns if number % 2 else reversed(turns):
            gc.collect()
            times.append(measure())
        if limit.over():
            break
    return _Times(
        statistics.median(of_service),
        statistics.median(of_pool) if of_pool else None,
        len(of_service),
    )


def _shown(path: str) -> str:
    # A name may contain a line feed, an escape code or an undecodable byte.
    return path if path and path.isprintable() else ascii(path)


def _count(number: int, thing: str, things: str = "") -> str:
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _size(size: int) -> str:
    return f"{size / 10**6:,.1f} MB" if size >= 10**6 else f"{size:,} bytes"


@dataclasses.dataclass
class _Tree:
    root: str
    files: list[str] = dataclasses.field(default_factory=list[str])
    directories: int = 0
    depth: int = 0
    complete: bool = True
    unread: list[str] = dataclasses.field(default_factory=list[str])


def _look(root: str, left_out: frozenset[str], seconds: float, screen: _Screen) -> _Tree:
    """List what is under `root` on this thread; the later parts are checked against it.

    Symbolic links to directories are not followed, so a loop of them ends here.
    """
    tree = _Tree(root)
    limit = _Limit(seconds)
    prefix = len(os.path.join(root, ""))

    def unlisted(error: OSError) -> None:
        tree.unread.append(f"{_shown(str(error.filename))}: {error.strerror}")

    for directory, below, files in os.walk(root, onerror=unlisted):
        below[:] = [name for name in below if name not in left_out]
        tree.files += [os.path.join(directory, name) for name in files]
        tree.directories += 1
        if below_root := directory[prefix:]:
            tree.depth = max(tree.depth, below_root.count(os.sep) + 1)
        if tree.directories % 100 == 0:
            screen.progress(f"listing {_count(len(tree.files), 'file')}")
        if limit.over():
            tree.complete = False
            break
    return tree


# 1. Hash every file.


def _digest(path: str, limit: _Limit) -> int | None:
    """Hash the file; return its size, or None if the limit passed first."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        # Opening a named pipe would block until it has a writer.
        raise OSError(0, "not a regular file", path)
    size = 0
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size += len(block)
            digest.update(block)
            if limit.over():
                return None
    return size


def _hash_files(tree: _Tree, seconds: float, screen: _Screen) -> tuple[list[str], _Times | None]:
    """Hash the files of `tree`; return those that could be read, and the times."""
    limit = _Limit(seconds)
    # Many bodies append, which is atomic on every build, while one thread reads.
    read: list[tuple[str, int]] = []
    unread = list(tree.unread)

    def body(path: str) -> None:
        # The futures are dropped, and a dropped future logs an exception that was never
        # retrieved.
        try:
            size = _digest(path, limit)
        except OSError as error:
            unread.append(f"{_shown(path)}: {error.strerror}")
        else:
            if size is not None:
                read.append((path, size))

    number = len(tree.files)
    with _ending(_service(), limit) as service:
        slots = service.max_workers
        screen.line()
        screen.line(f"1. Hash every file: one submission for each, {slots} slots")
        start = time.perf_counter()
        for path in tree.files:
            service.submit(body, path)
        submitted = time.perf_counter() - start
        screen.line(
            f"   {_count(number, 'submission')} in {_time(submitted)}: "
            "submit does not wait for a slot"
        )
        size = counted = 0
        while not service.block_till_done(_REFRESH) and not limit.over():
            size += sum(more for _, more in itertools.islice(read, counted, None))
            counted = len(read)
            screen.progress(f"   hashed {counted:,} of {_count(number, 'file')}, {_size(size)}")
        if limit.over():
            service.shutdown(wait=False, cancel_futures=True)
            # Running bodies check the limit after each block.
            service.block_till_done(1.0)
        passed = time.perf_counter() - start
    # Sorted by name, because bodies finish in any order; copied, because a body that is
    # stuck in a read may still finish.
    hashed, failed = sorted(read), sorted(unread)
    size = sum(more for _, more in hashed)
    screen.line(f"   hashed {_count(len(hashed), 'file')}, {_size(size)}, in {_time(passed)}")
    if late := number - len(hashed) - len(failed) + len(tree.unread):
        screen.line(f"   {_count(late, 'file')} left out: the time for this part was over")
    if failed:
        screen.line(f"   {len(failed):,} could not be read:")
        for text in failed[:_NAMED]:
            screen.line(f"     {text}")
        if len(failed) > _NAMED:
            screen.line(f"     and {len(failed) - _NAMED:,} more")
    paths = [path for path, _ in hashed]
    # A part that takes a short time is enough, and stays in the page cache.
    share = min(1.0, seconds * _COMPARED / passed)
    compared = paths[: max(1, int(len(paths) * share))]
    return paths, _compare_hashing(compared, slots, seconds, screen) if compared else None


def _compare_hashing(
    paths: Sequence[str], slots: int | None, seconds: float, screen: _Screen
) -> _Times:
    def measure(make: Callable[[], Executor]) -> float:
        limit = _Limit(math.inf)
        with _ending(make(), limit) as executor:
            start = time.perf_counter()
            for future in [executor.submit(_digest, path, limit) for path in paths]:
                future.exception()
            return time.perf_counter() - start

    times = _compare(
        screen,
        seconds,
        lambda: measure(lambda: _service(slots)),
        lambda: measure(lambda: ThreadPoolExecutor(slots)),
    )
    screen.line(
        f"   {_count(times.rounds, 'round')} of {_count(len(paths), 'file')}: "
        f"Service {_time(times.service)}, ThreadPoolExecutor {times.pool_shown()}"
    )
    return times


# 2. Walk the tree, nested.


class _Walk:
    """A walk whose bodies submit the directories below theirs and wait for them."""

    def __init__(self, executor: Executor, left_out: frozenset[str], limit: _Limit) -> None:
        self._executor = executor
        self._left_out = left_out
        self._limit = limit
        # Many threads append, which is atomic; the thread that watches reads.
        self.threads: list[int] = []
        self.waiting: list[str] = []
        self.finished: list[str] = []
        self._this_thread = threading.local()

    def body(self, directory: str) -> tuple[int, int]:
        """Return how many directories and files there are from `directory` down."""
        # Not a set of thread identifiers: a new thread may reuse that of one that ended.
        if not hasattr(self._this_thread, "counted"):
            self._this_thread.counted = True
            self.threads.append(threading.get_ident())
        below: list[str] = []
        directories, files = 1, 0
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
                    elif not (entry.is_symlink() and os.path.isdir(entry.path)):
                        files += 1
        except OSError:
            # It was reported when the files were listed.
            directories = 0
        if self._limit.over():
            below.clear()
        futures = [
            self._executor.submit(self.body, path)
            for path in below
            if os.path.basename(path) not in self._left_out
        ]
        self.waiting.append(directory)
        for future in futures:
            try:
                more_directories, more_files = future.result()
            except CancelledError:
                # The walk was cancelled from outside, and its result is not used.
                break
            directories += more_directories
            files += more_files
        self.finished.append(directory)
        return directories, files


def _walk_directories(
    tree: _Tree, left_out: frozenset[str], seconds: float, screen: _Screen
) -> _Times | None:
    """Walk `tree`; return the times, or None where it is too large for its time limit."""
    slots = _WALK_SLOTS
    screen.line()
    screen.line(f"2. Walk the tree: each directory submits those below it and waits, {slots} slots")
    limit = _Limit(seconds)
    with _ending(_service(slots), limit) as service:
        walk = _Walk(service, left_out, limit)
        future = service.submit(walk.body, tree.root)
        while not service.block_till_done(_REFRESH):
            screen.progress(f"   walked {len(walk.finished):,} directories")
        cut = limit.over() or not tree.complete
        directories, files = future.result()
    if cut:
        verdict = "then the time for this part was over"
    elif (directories, files) == (tree.directories, len(tree.files)):
        verdict = "as many as a plain loop counts"
    else:
        verdict = (
            f"a plain loop counted {tree.directories:,} and {len(tree.files):,} before: "
            "they have changed"
        )
    screen.line(
        f"   Service({slots}): {_count(directories, 'directory', 'directories')}, "
        f"{_count(files, 'file')}, on {_count(len(walk.threads), 'thread')}\n     ({verdict})"
    )
    if cut:
        return None

    def measure(make: Callable[[], Executor]) -> float:
        limit = _Limit(math.inf)
        with _ending(make(), limit) as executor:
            start = time.perf_counter()
            executor.submit(_Walk(executor, left_out, limit).body, tree.root).result()
            return time.perf_counter() - start

    stuck = _stuck_walk(tree, left_out, seconds, screen)
    times = _compare(
        screen,
        seconds,
        lambda: measure(lambda: _service(slots)),
        None if stuck else lambda: measure(lambda: ThreadPoolExecutor(slots)),
    )
    screen.line(f"   Service({slots}): {_time(times.service)}, {_count(times.rounds, 'round')}")
    if stuck:
        screen.line(f"   ThreadPoolExecutor({slots}): would hang:\n     {stuck}")
    else:
        screen.line(
            f"   ThreadPoolExecutor({slots}): {times.pool_shown()}; "
            "here, bodies that wait never held all its threads"
        )
    return times


def _stuck_walk(tree: _Tree, left_out: frozenset[str], seconds: float, screen: _Screen) -> str:
    """Walk `tree` on a pool; return how it gets stuck, an empty string if it does not.

    Stuck: every thread of the pool waits for the result of a submission, and in
    `_STUCK_AFTER` seconds none of them went on. Those submissions are queued, and no
    thread is left to run them.
    """
    limit = _Limit(seconds)
    with _ending(ThreadPoolExecutor(_WALK_SLOTS), limit) as pool:
        walk = _Walk(pool, left_out, limit)
        whole = pool.submit(walk.body, tree.root)
        screen.progress("   trying ThreadPoolExecutor")
        before = (0, 0)
        while not boundedexec.wait([whole], timeout=_STUCK_AFTER).done:
            # `finished` is read first: a body appends to `waiting` before it, so the
            # difference is never too small. It is too large only while the walk makes
            # progress, which the next comparison notices.
            finished = len(walk.finished)
            now = (len(walk.waiting), finished)
            if now == before and now[0] - finished == _WALK_SLOTS:
                # Leaving this block cancels the submissions that they wait for.
                return (
                    f"with {finished:,} of {tree.directories:,} directories done, each of its "
                    f"{_WALK_SLOTS} threads waits for one still queued\n"
                    f"     (watched for {_STUCK_AFTER} s, then cancelled)"
                )
            before = now
    return ""


# 3. A storm of change notices.


class _Index:
    """For each file the number of its changes, and which of them the last run saw."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.changes = dict.fromkeys(paths, 0)
        self.last_seen = dict.fromkeys(paths, 0)
        # Many threads append, which is atomic.
        self.runs: list[str] = []

    def body(self, path: str) -> int:
        """Index `path`; return which of its changes this run saw."""
        self.runs.append(path)
        seen = self.changes[path]
        _read_start(path)
        self.last_seen[path] = seen
        return seen

    def missed(self) -> int:
        """Return the number of files whose last run did not see the last change."""
        return sum(self.last_seen[path] != number for path, number in self.changes.items())


def _read_start(path: str) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            hashlib.sha256(file.read(_STORM_BYTES)).digest()
    except OSError:
        # The file was there in part 1. A run for a file that has gone counts like any other.
        pass


@dataclasses.dataclass(frozen=True)
class _Outcome:
    seconds: float
    runs: int
    # Notices whose result came from a run that had not seen their change.
    stale: int
    # Files whose last run had not seen their last change.
    missed: int


def _storm(
    paths: Sequence[str],
    notices: Sequence[str],
    submit: Callable[[_Index, str], Future[int]],
) -> _Outcome:
    index = _Index(paths)
    start = time.perf_counter()
    results: list[tuple[int, Future[int]]] = []
    for number, path in enumerate(notices, 1):
        index.changes[path] += 1
        results.append((index.changes[path], submit(index, path)))
        if number % _WAVE == 0:
            time.sleep(_PAUSE)
    stale = sum(future.result() < change for change, future in results)
    seconds = time.perf_counter() - start
    return _Outcome(seconds, len(index.runs), stale, index.missed())


def _coalesce(hashed: Sequence[str], seconds: float, screen: _Screen) -> tuple[bool, _Times | None]:
    """Run the storms; return whether every change was seen, and the times."""
    screen.line()
    if not hashed:
        screen.line("3. A storm of change notices: no file that could change")
        return True, None
    paths = hashed[:: -(-len(hashed) // _STORM_KEYS)]
    start = time.perf_counter()
    for path in paths:
        _read_start(path)
    each = (time.perf_counter() - start) / len(paths)
    number = max(1000, min(_STORM_NOTICES, int(seconds * _STORM_SHARE / each)))
    # A few files change often, most of them rarely.
    hotness = [1 / place for place in range(1, len(paths) + 1)]
    notices = random.Random(0).choices(paths, hotness, k=number)
    screen.line(
        f"3. A storm of change notices: {number:,} for {_count(len(paths), 'file')}, "
        f"{_WAVE:,} at a time"
    )
    coalesced: list[_Outcome] = []
    plain: list[_Outcome] = []
    slots: int | None = None

    def with_coalescer() -> float:
        nonlocal slots
        with _ending(_service(), _Limit(math.inf)) as service:
            slots = service.max_workers
            coalescer: Coalescer[str] = Coalescer(service)
            coalesced.append(
                _storm(paths, notices, lambda index, path: coalescer.submit(path, index.body, path))
            )
        return coalesced[-1].seconds

    def with_pool() -> float:
        with _ending(ThreadPoolExecutor(slots), _Limit(math.inf)) as pool:
            plain.append(_storm(paths, notices, lambda index, path: pool.submit(index.body, path)))
        return plain[-1].seconds

    # Once before the comparison, so that both have the Service's number of slots.
    with_coalescer()
    times = _compare(screen, seconds, with_coalescer, with_pool)
    runs = statistics.median_low([outcome.runs for outcome in coalesced])
    stale = sum(outcome.stale for outcome in coalesced)
    missed = sum(outcome.missed for outcome in coalesced)
    screen.line(
        f"   Coalescer on a Service: {number:,} submits, {_count(runs, 'run')}, "
        f"{_time(times.service)}"
    )
    screen.line(
        f"   ThreadPoolExecutor:     {number:,} submits, {_count(plain[-1].runs, 'run')}, "
        f"{times.pool_shown()}, {_count(times.rounds, 'round')} each"
    )
    if stale or missed:
        screen.line(
            f"   BROKEN: {_count(missed, 'file')} whose last run missed the last change, "
            f"{_count(stale, 'notice')} with a result from before the change"
        )
    else:
        screen.line(
            f"   checked in {_count(len(coalesced), 'storm')}: each file's last run saw its "
            "last change,\n     and each notice got a result that had seen its own"
        )
    return not (stale or missed), times
