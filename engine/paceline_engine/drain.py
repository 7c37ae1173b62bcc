"""`python -m paceline_engine.drain`: the preStop hook of both runtimes. It returns when the engine has nothing left.

It asks the engine to drain (`POST /paceline/drain` with the service's token: `/readyz` turns to 503), waits out
`--notice-s`, in which endpoints and routers notice that the pod is going and requests are still served, then polls
`/metrics` until nothing runs, waits or is parked for a decode engine. A vLLM without our plugin knows no such call
(404): the hook does the rest all the same; unread KV it cannot see, and leaves to vLLM's own `--shutdown-timeout`.
Always exits with 0: a hook that fails would only cut short what can still be waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from urllib.parse import urlsplit

from paceline_api import headers

from paceline_engine.http1 import ClientError, ClientPool, fetch

_CALL_TIMEOUT_S = 5.0
_POLL_S = 0.5
_LEFT = re.compile(
    rb"^(?:vllm:num_requests_running|vllm:num_requests_waiting|paceline_kv_parked_requests)(?:\{[^\n]*\})? (\S+)", re.M
)


def left_requests(exposition: bytes) -> float:
    """Requests that run, wait, or have KV parked, over all engines of a metrics page."""
    return sum(float(value) for value in _LEFT.findall(exposition))


async def drain(host: str, port: int, *, token: str, notice_s: float, timeout_s: float) -> str:
    """Waits until the engine is empty, `timeout_s` (wall) at most; how that ended, for the log."""
    pool = ClientPool(host, port)
    try:
        async with asyncio.timeout(timeout_s):
            ask = ((headers.TOKEN.encode(), token.encode()),) if token else ()
            await fetch(pool, b"POST", b"/paceline/drain", ask, timeout_s=_CALL_TIMEOUT_S)
            await asyncio.sleep(notice_s)
            while True:
                page = await fetch(pool, b"GET", b"/metrics", timeout_s=_CALL_TIMEOUT_S)
                if page.status == 200 and left_requests(page.body) == 0:
                    return "drained"
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return "timeout"
    except ClientError as e:
        return f"gone ({e})"
    finally:
        pool.close()


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m paceline_engine.drain", description="Wait until an engine is empty.")
    p.add_argument("--url", default="http://127.0.0.1:8000")
    p.add_argument("--notice-s", type=float, default=10.0, help="until everyone has noticed")
    p.add_argument("--timeout-s", type=float, default=300.0)
    args = p.parse_args(argv)
    parts = urlsplit(args.url)
    token = os.environ.get(headers.TOKEN_ENV, "")
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    ended = asyncio.run(drain(host, port, token=token, notice_s=args.notice_s, timeout_s=args.timeout_s))
    print(f"drain: url={args.url} result={ended}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
