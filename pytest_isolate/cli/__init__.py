"""The command `pytest-isolate`: parses, hands over to one module per subcommand, and turns errors into exit statuses.

Owns: the table of subcommands and the exit statuses. Refuses: to import a subcommand's module before it is asked for.
To add one: write cli/NAME.py with ``add_arguments(parser)`` and ``run(arguments) -> int``, and add a row to COMMANDS.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn, TextIO

#: Subcommand -> what it does, as ``--help`` shows it.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "doctor": "what this host can isolate, what it cannot, why, and the fix",
        "bench": "what isolation costs on this machine, beside the floor in C and beside peers",
        "run": "run a program in a sandbox: pytest-isolate run --memory 64M --net none -- cmd",
    }
)

EXIT_OK = 0
#: The question was answered, and the answer is no.
EXIT_NO = 1
#: The request had no meaning. argparse's own number.
EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["run"]:
        _end_by_sigint()
    arguments = _parser(words).parse_args(words)
    from pytest_isolate.errors import IsolateError, PolicyError

    status = EXIT_OK
    try:
        status = importlib.import_module(f"{__name__}.{arguments.command}").run(arguments)
        if sys.stdout is not None:  # it was closed by the shell: >&-
            sys.stdout.flush()
    except PolicyError as error:
        print(f"pytest-isolate {arguments.command}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except IsolateError as error:
        print(f"pytest-isolate {arguments.command}: {error}", file=sys.stderr)
        return EXIT_NO
    except BrokenPipeError:  # `| head` has seen enough
        say_no_more(sys.stdout)
    return status


def _end_by_sigint() -> None:
    """As a command in C does, until its program is there to hear it (cli/forward.py): no traceback of half-done imports."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def say_no_more(stream: TextIO) -> None:
    """Nobody reads it: what is left of it goes nowhere, also at exit. Source: docs.python.org, library/signal, SIGPIPE."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _parser(words: Sequence[str]) -> _Parser:
    """Every subcommand by name; the arguments only of the one that is asked for."""
    parser = _Parser(prog="pytest-isolate", description="Linux sandboxes for tests.")
    parser.add_argument("--version", action="version", version=f"pytest-isolate {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in words:
            module = importlib.import_module(f"{__name__}.{name}")
            module.add_arguments(command)
            command.usage_status = getattr(module, "EXIT_USAGE", EXIT_USAGE)
            if words[:1] == [name]:  # of what no subcommand knows, the parser of all tells
                parser.usage_status = command.usage_status
    return parser


class _Parser(argparse.ArgumentParser):
    """Of each subcommand, too. One that runs programs has a status of its own for a command line without meaning."""

    usage_status = EXIT_USAGE

    def error(self, message: str) -> NoReturn:
        if sys.stderr is not None:  # it was closed by the shell: 2>&-
            try:
                self.print_usage(sys.stderr)
                sys.stderr.write(f"{self.prog}: error: {message}\n")
                sys.stderr.flush()
            except OSError:
                say_no_more(sys.stderr)
        sys.exit(self.usage_status)


def version() -> str:
    """The installed version; ``unknown`` in a checkout that is not installed."""
    from importlib import metadata

    try:
        return metadata.version("pytest-isolate-sandbox")
    except metadata.PackageNotFoundError:
        return "unknown"
