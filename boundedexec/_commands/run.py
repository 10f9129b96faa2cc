"""``python -m boundedexec run PROGRAM``: an existing program, with pools of this package.

The program runs unchanged, and has `__main__`, `sys.argv` and `sys.path` to itself. An
exception that ends it reaches the interpreter, which handles it as in any program: a
traceback, an exit status, an end by SIGINT. The traceback does not show the frames of this
module.

At the end, when everything that was accepted has finished and the program's own exit
handlers have run, a report says what its pools did: on standard error, or in a file.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import importlib.util
import io
import linecache
import os
import pkgutil
import sys
import textwrap
import time
from collections.abc import Sequence
from importlib.machinery import (
    BuiltinImporter,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import CodeType, ModuleType, TracebackType
from typing import NamedTuple, NoReturn

from .._core.pool import all_idle, signal_on_its_way
from ..drop_in import set_default_workers
from ..installing import install
from .counting import Counts, count
from .files import trace_file, writable

_PROGRAM = "python -m boundedexec run"

# How each line of the report begins.
_SAYS = "boundedexec:"

# What Python itself reports.
_NO_SUCH_FILE = 2
_NO_SUCH_MODULE = 1

# Seconds. An initializer may take longer than the first, and is not waited for then.
_BEGINNING = 0.1
_A_MOMENT = 0.001


class _Program(NamedTuple):
    """The program, as the command line names it."""

    #: `-m`, `-c`, `-`, or nothing for a script.
    option: str
    #: The module, the code or the script's path.
    name: str
    #: What follows, which the program parses.
    arguments: list[str]


def main(arguments: Sequence[str]) -> int:
    """Run the program that `arguments` name; return 0, or raise what ended it."""
    args, program = _parse(arguments)
    module = ModuleType("__main__")
    # As in any program; a module created in code has none of these.
    vars(module).update(__builtins__=builtins, __loader__=BuiltinImporter)
    if sys.version_info < (3, 14):
        vars(module).update(__annotations__={})
    if args.workers is not None:
        set_default_workers(args.workers)
    if args.report is not None or not args.quiet:
        atexit.register(_report, count(), os.getpid(), args.report)
    if args.trace is not None:
        from ..trace import record_until_exit  # noqa: PLC0415  # Seldom asked for.

        record_until_exit(args.trace)
    install()
    try:
        exec(_FINDERS[program.option](program.name, program.arguments, module), vars(module))
    except SystemExit:
        raise
    except BaseException as error:
        _take_us_out_of(error)
        raise
    finally:
        _let_begin()
    return 0


def _let_begin() -> None:
    """Return when what can start has started, and has had time to submit.

    At interpreter exit Python 3.12 starts no threads. A program whose last line is a
    submit, like the one in the stdlib's documentation that hangs, needs one.
    """
    end = time.monotonic() + _BEGINNING
    while signal_on_its_way() and time.monotonic() < end:
        # Sleeping releases the GIL and the processor to the other thread.
        time.sleep(_A_MOMENT)
    if not all_idle():
        time.sleep(sys.getswitchinterval())


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, _Program]:
    parser = _parser()
    end = _end_of_ours(arguments)
    args = parser.parse_args(arguments[:end])
    if end == len(arguments):
        parser.error("which program? SCRIPT, -m MODULE, -c CODE or - is required")
    word, *rest = arguments[end:]
    option = word[:2]
    if option in ("-m", "-c"):
        if word == option and not rest:
            parser.error(f"argument {option}: expected one argument")
        return args, _Program(option, word[2:] or rest.pop(0), rest)
    return args, _Program("-" if word == "-" else "", word, rest)


def _end_of_ours(arguments: Sequence[str]) -> int:
    """Return how many of `arguments` stand before those that name the program."""
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "-" or argument[:2] in ("-m", "-c") or not argument.startswith("-"):
            return index
        index += 2 if argument in ("--workers", "--report", "--trace") else 1
    return len(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage="%(prog)s [-h] [--workers N] [--report FILE] [--trace FILE] [--quiet]"
        " (SCRIPT | -m MODULE | -c CODE | -) [ARGS ...]",
        description="Run a program as it is, from a file, a module, CODE or standard input, as "
        "python does. Its concurrent.futures.ThreadPoolExecutor, wait and as_completed are "
        "boundedexec's; at its end, a report of what its pools did goes to standard error.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="the size of pools created without max_workers, asyncio's too",
    )
    parser.add_argument(
        "--report",
        type=writable,
        metavar="FILE",
        help="write the report to FILE instead",
    )
    parser.add_argument(
        "--trace",
        type=trace_file,
        metavar="FILE",
        help="record what its pools do, and write that to FILE at the end: a picture if it ends "
        "in .svg, the Trace Event format, for https://ui.perfetto.dev, if in .json",
    )
    parser.add_argument("--quiet", action="store_true", help="write no report to standard error")
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be a number of threads, 1 or more, not {text!r}")
    return number


def _find_code(source: str, arguments: list[str], module: ModuleType) -> CodeType:
    """Return the code of `source`; set up the process as ``python -c source`` does."""
    sys.argv[:] = ["-c", *arguments]
    _put_first_on_path("")
    sys.modules["__main__"] = module
    if sys.version_info >= (3, 14):
        source = textwrap.dedent(source)
    code = compile(source + "\n", "<string>", "exec", dont_inherit=True)
    # So that tracebacks show its lines, from Python 3.13 on.
    register = getattr(linecache, "_register_code", None)
    if register is not None:
        by_code = hasattr(linecache, "_interactive_cache")
        register(code if by_code else "<string>", source, "<string>")
    return code


def _find_input(_: str, arguments: list[str], module: ModuleType) -> CodeType:
    """Return the code on standard input; set up the process as ``python -`` does."""
    sys.argv[:] = ["-", *arguments]
    _put_first_on_path("")
    vars(module).update(__file__="<stdin>")
    if sys.version_info < (3, 15):
        vars(module).update(__cached__=None)
    sys.modules["__main__"] = module
    source = b"" if sys.stdin is None else sys.stdin.buffer.read()
    return compile(source, "<stdin>", "exec", dont_inherit=True)


def _find_script(path: str, arguments: list[str], module: ModuleType) -> CodeType:
    """Return the code of `path`; set up the process as ``python path`` does."""
    sys.argv[:] = [path, *arguments]
    full = os.path.join(os.getcwd(), path)
    importer = pkgutil.get_importer(full)
    if importer is not None:
        # A directory or an archive: its `__main__` runs.
        _put_first_on_path(full, always=True)
        spec = importer.find_spec("__main__", None)
        if spec is None:
            _fail(f"can't find '__main__' module in {full!r}", _NO_SUCH_MODULE)
        return _code(spec, module)
    try:
        with io.open_code(full) as file:
            source = file.read()
    except OSError as error:
        _fail(f"can't open file {full!r}: [Errno {error.errno}] {error.strerror}", _NO_SUCH_FILE)
    _put_first_on_path(os.path.dirname(os.path.realpath(full)))
    compiled = full.endswith(".pyc")
    loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", full)
    _become_main(module, loader, full, None)
    if compiled:
        code = loader.get_code("__main__")
        assert code is not None
        return code
    return compile(source, full, "exec", dont_inherit=True)


def _put_first_on_path(folder: str, *, always: bool = False) -> None:
    """In the place of the working directory, which `python -m` has put there, if it may."""
    if not sys.flags.safe_path:
        sys.path[:1] = [folder]
    elif always:
        sys.path.insert(0, folder)


def _find_module(name: str, arguments: list[str], module: ModuleType) -> CodeType:
    """Return the code of the module `name`; set up the process as ``python -m`` does."""
    sys.argv[:] = ["-m", *arguments]
    spec = _spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        package, spec = spec, _spec(f"{name}.__main__")
        if spec is None:
            _fail(
                f"No module named {name}.__main__; {package.name!r} is a package and cannot be"
                " directly executed",
                _NO_SUCH_MODULE,
            )
    if spec is None:
        _fail(f"No module named {name}", _NO_SUCH_MODULE)
    sys.argv[0] = spec.origin or name
    return _code(spec, module)


def _spec(name: str) -> ModuleSpec | None:
    parent = name.rpartition(".")[0]
    try:
        if parent:
            __import__(parent)
    except ImportError as error:
        # Raised if a module of the program lacks another import.
        if error.name is None or not f"{parent}.".startswith(f"{error.name}."):
            raise
    try:
        return importlib.util.find_spec(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        _fail(f"Error while finding module specification for {name!r} ({reason})", _NO_SUCH_MODULE)


def _code(spec: ModuleSpec, module: ModuleType) -> CodeType:
    get_code = getattr(spec.loader, "get_code", None)
    code: CodeType | None = None if get_code is None else get_code(spec.name)
    if code is None:
        _fail(f"No code object available for {spec.name}", _NO_SUCH_MODULE)
    _become_main(module, spec.loader, spec.origin, spec)
    return code


def _become_main(
    module: ModuleType, loader: object, file: str | None, spec: ModuleSpec | None
) -> None:
    vars(module).update(
        __file__=file,
        __loader__=loader,
        __package__=None if spec is None else spec.parent,
        __spec__=spec,
    )
    if sys.version_info < (3, 15):
        vars(module).update(__cached__=None if spec is None else spec.cached)
    sys.modules["__main__"] = module


_FINDERS = {"": _find_script, "-m": _find_module, "-c": _find_code, "-": _find_input}


def _fail(message: str, status: int) -> NoReturn:
    print(f"{_PROGRAM}: {message}", file=sys.stderr)
    # The program has not run, so there is nothing to report.
    atexit.unregister(_report)
    sys.exit(status)


def _take_us_out_of(error: BaseException) -> None:
    """Make the interpreter show `error` without the frames of this module.

    The traceback grows until `error` reaches the interpreter, so the hook that shows it
    shortens it. It has to arrive there: the interpreter turns a Ctrl-C into an end by the
    signal.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    # A program may have taken it away.
    hook = vars(sys).get("excepthook", sys.__excepthook__)

    def show(kind: type[BaseException], value: BaseException, _: object) -> None:
        sys.excepthook = hook
        sys.last_traceback = trace
        try:
            hook(kind, value.with_traceback(trace), trace)
        except SystemExit:
            raise
        except BaseException as failure:
            _show_both(failure, value, trace)

    sys.excepthook = show


def _show_both(failure: BaseException, error: BaseException, trace: TracebackType | None) -> None:
    """The hook that was to show `error` has failed: say so as the interpreter does, which
    would show the frames that `error` has come through since."""
    assert failure.__traceback__ is not None
    print("Error in sys.excepthook:", file=sys.stderr, flush=True)
    # Without the frame that called the hook.
    hooks = failure.__traceback__.tb_next
    sys.__excepthook__(type(failure), failure.with_traceback(hooks), hooks)
    print("\nOriginal exception was:", file=sys.stderr, flush=True)
    sys.__excepthook__(type(error), error.with_traceback(trace), trace)


def _report(counts: Counts, process: int, path: str | None) -> None:
    # A forked child may end like the program; it is not the program.
    if os.getpid() != process:
        return
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        pass  # The interpreter tries again at exit, and reports the error.
    lines = _lines(counts)
    if path is not None:
        try:
            with open(path, "w", encoding="utf-8") as file:
                print(*lines, sep="\n", file=file)
            return
        except OSError as error:
            lines.insert(0, f"{_SAYS} can't write {path!r}: {error.strerror}")
    try:
        # Not `sys.stderr`, which the program may have replaced.
        print(*lines, sep="\n", file=sys.__stderr__, flush=True)
    except (OSError, ValueError):
        pass  # Closed: there is no reader.


def _lines(counts: Counts) -> list[str]:
    services = counts.services()
    if not services:
        return [f"{_SAYS} the program made no pool"]
    submissions, lends, circles, late = map(sum, zip(*services, strict=True))
    lines = [
        f"{_SAYS} {_count(len(services), 'service')}, "
        f"{_count(submissions, 'submission')}, "
        f"at most {_count(counts.most_threads, 'thread')} at a time, "
        f"longest wait for a slot {_time(counts.longest_wait())}"
    ]
    if lends:
        lines.append(
            f"{_SAYS} {_count(lends, 'slot')} lent by bodies to what they waited for,"
            " where a ThreadPoolExecutor may hang"
        )
    if late:
        lines.append(f"{_SAYS} {_count(late, 'wait')} ran out of time in a full pool")
    if circles:
        lines.append(
            f"{_SAYS} {_count(circles, 'wait')} raised DeadlockError and could never have ended"
        )
    return lines


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
