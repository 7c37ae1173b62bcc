"""`paceline`, also installed as `kubectl paceline`: one subcommand a module, imported only when asked for.

Each module has `register(subparsers)`, which sets `run`. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted;
every failure is a line on stderr that says what to do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {  # subcommand, which is its module's name too → its line in the help
    "up": "start the fleet of an LLMService file on this machine and serve it",
    "replay": "offer a workload to a URL as real streaming HTTP and report goodput",
    "simulate": "serve a workload with an LLMService file's fleet on a virtual clock and report goodput",
    "calibrate": "measure a model on a GPU and write the step-time table that Paceline plans with",
    "status": "show what runs for a service in a cluster, held to which objective, and why it is not ready",
    "crds": "print the CustomResourceDefinitions",
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(words).parse_args(words)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Knows the whole of the subcommand in `words`, and of the others their names: `paceline --help` stays quick."""
    parser = argparse.ArgumentParser(
        prog="paceline", description="Serve LLMs within latency objectives at the lowest GPU cost."
    )
    parser.add_argument("--version", action="version", version=f"paceline {version('paceline')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == asked:
            importlib.import_module(f"paceline_cli.{name}").register(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
