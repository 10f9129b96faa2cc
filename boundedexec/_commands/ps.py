"""`python -m boundedexec ps PID`: what the services of a running process do."""

from __future__ import annotations

import argparse
import sys

from ..asking import CannotAsk, NoAnswer, ask
from .stacks import stacks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.description = (
        "Print what the services of a running process do: its dump. From Python 3.14 on any"
        " process of yours can be asked; before, one that has called"
        " boundedexec.dump_on_signal(), as `run` does."
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the number of the process")


def run(args: argparse.Namespace) -> int:
    """Print the dump; 2 where the process cannot be asked."""
    try:
        try:
            text = ask(args.pid)
        except NoAnswer:
            text = stacks(args.pid)
            if not text:
                raise
        sys.stdout.write(text)
    except CannotAsk as error:
        print(f"ps: {error}", file=sys.stderr)
        return 2
    return 0
