"""The command line: ``python -m boundedexec COMMAND ...``.

Each command is a module of `_commands` with ``add_arguments(parser)`` and
``run(args) -> int``, which returns the exit status; or with ``main(arguments) -> int`` if it
parses its arguments itself and its output is its own. Only the chosen one is imported, so
that no command depends on another's imports.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Generator, Sequence
from typing import NamedTuple

from . import __version__
from ._commands.screen import OutputFailed, flush

PROGRAM = "python -m boundedexec"


class Command(NamedTuple):
    """What the help says of a command."""

    summary: str
    example: str


# Each is the name of a module.
COMMANDS = {
    "demo": Command("show what the package does, on the files of a directory", "demo src"),
    "run": Command(
        "run a program, unchanged, on this package's pools",
        "run --workers 16 program.py",
    ),
    "ps": Command("show what the services of a running process do", "ps 12345"),
    "bench": Command(
        "measure what it costs beside ThreadPoolExecutor",
        "bench --only submit round-trip",
    ),
}

USAGE_ERROR = 2
OUTPUT_FAILED = 1
# What a shell reports for a program that the signal ended: 128 + its number.
INTERRUPTED = 130
BROKEN_PIPE = 141


def _chosen(arguments: Sequence[str]) -> str:
    """Return the command that `arguments` name; exit where they name none."""
    summaries = [f"  {name:<8}{command.summary}" for name, command in COMMANDS.items()]
    examples = [f"  {PROGRAM} {command.example}" for command in COMMANDS.values()]
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [--help] [--version] COMMAND ...",
        epilog="\n".join(
            ["commands, each with a --help of its own:", *summaries, "", "examples:", *examples]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"boundedexec {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    # A command parses what follows its name.
    word: str | None = parser.parse_args(arguments[:1]).command
    if word is None:
        parser.print_help(sys.stderr)
        parser.exit(USAGE_ERROR)
    if word not in COMMANDS:
        parser.error(f"no command is called {word!r}; there are {', '.join(COMMANDS)}")
    return word


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's) name; return its exit status.

    Ctrl-C ends the process at once, with status 130; under `run` the program handles it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with _ended_from_outside(PROGRAM):
        name = _chosen(arguments)
    module = importlib.import_module(f"boundedexec._commands.{name}")
    if hasattr(module, "main"):
        returned: int = module.main(arguments[1:])
        return returned
    for stream in "stdout", "stderr":
        # None where the process was started with that descriptor closed.
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {name}")
    module.add_arguments(parser)
    with _ended_from_outside(parser.prog):
        status: int = module.run(parser.parse_args(arguments[1:]))
    return status


@contextlib.contextmanager
def _ended_from_outside(program: str) -> Generator[None]:
    """Turn Ctrl-C, and output that cannot be written, into an exit status and a line at most."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                flush(sys.stdout)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        # Not a return: the interpreter would wait for the other threads.
        os._exit(INTERRUPTED)
    except OutputFailed as failed:
        sys.exit(_give_up(program, failed.error))


def _give_up(program: str, error: OSError) -> int:
    """Return the status for an output that cannot be written, because of `error`."""
    status = BROKEN_PIPE
    if not isinstance(error, BrokenPipeError):
        status = OUTPUT_FAILED
        with contextlib.suppress(OSError):
            print(f"{program}: cannot write: {error.strerror}", file=sys.stderr, flush=True)
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except OSError:
            # The interpreter flushes again at exit and would print an error, so that
            # flush must find an open file.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


if __name__ == "__main__":
    sys.exit(main())
