"""The command line: ``python -m boundedexec COMMAND ...``.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``, which
returns the exit status; or with ``main(arguments) -> int`` if it parses its arguments
itself. Only the chosen one is imported, so that no command depends on another's imports.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

# The command, its module, and its line in the help.
_COMMANDS = {
    "ps": ("boundedexec._commands.ps", "what the services of a running process do"),
    "demo": ("boundedexec._commands.demo", "what the package does, on the files of a directory"),
    "run": (
        "boundedexec._commands.run",
        "run a program unchanged, with this package's pools in place of its own",
    ),
    "bench": (
        "boundedexec._commands.bench",
        "what it costs, compared with ThreadPoolExecutor, row by row",
    ),
}

# What a shell reports for a program that the signal ended: 128 + its number.
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def _chosen(arguments: Sequence[str]) -> str:
    lines = [f"  {name:<8}{text}" for name, (_, text) in _COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m boundedexec",
        usage="%(prog)s [-h] COMMAND ...",
        epilog="\n".join(["commands (each has a --help):", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    command: str = parser.parse_args(arguments).command
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's) name; return its exit status.

    Ctrl-C ends the process at once, with status 130; under `run` the program handles it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # The command parses what follows its name.
    command = _chosen(arguments[:1])
    module = importlib.import_module(_COMMANDS[command][0])
    if hasattr(module, "main"):
        returned: int = module.main(arguments[1:])
        return returned
    parser = argparse.ArgumentParser(prog=f"python -m boundedexec {command}")
    module.add_arguments(parser)
    try:
        status: int = module.run(parser.parse_args(arguments[1:]))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # Not a return: the interpreter would wait for the other threads.
        os._exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output is gone. The interpreter flushes stdout again at exit
        # and would print an error, so that flush must find an open file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return status


if __name__ == "__main__":
    sys.exit(main())
