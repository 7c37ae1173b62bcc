"""`python -m paceline_engine.sim`: one process of simulated engines, each behind vLLM's HTTP API on its own port.

Makes the clock, reads the service's token from the environment and hands both down. Exit code 0 after a drain, 1 for
what cannot work (one line on stderr says what to change).
"""

from __future__ import annotations

import logging
import os
import sys

import uvloop
from paceline_api.headers import TOKEN_ENV

from paceline_engine.clock import Clock
from paceline_engine.sim import fleet
from paceline_engine.sim.options import UsageError, check, parser


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="sim: %(message)s", stream=sys.stderr)
    try:
        options = check(parser().parse_args(argv))
        uvloop.run(fleet.run(options, Clock(options.time_scale), os.environ.get(TOKEN_ENV, "")))
    except UsageError as e:
        print(f"sim: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
