"""What `router.py` has its load client do, and the requests that this sends: whole ones, heads included."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from router_engines import MODEL

WORDS = ("what", "a", "router", "costs", "between", "client", "and", "engine", "in", "time", "and", "work")
VARIANTS = 64  # different prompts


@dataclass(frozen=True, slots=True)
class Order:
    """What to do against `port`; streams have `tokens` events, `gap_s` apart; the warm-up is not counted."""

    port: int
    seconds: float
    connections: int = 64
    rate_rps: float = 0.0
    tokens: int = 0  # 0: no streams, a closed loop
    gap_s: float = 0.025
    prompt_chars: int = 100
    warm_up_s: float = 0.5
    seed: int = 0
    most: int = 1_000_000  # streams


def requests(order: Order) -> list[bytes]:
    """Whole requests, heads included."""
    rng, made = Random(order.seed), []
    for _ in range(VARIANTS):
        text = f"gap_s={order.gap_s} tokens={order.tokens} " if order.tokens else ""
        while len(text) < order.prompt_chars:
            text += rng.choice(WORDS) + " "
        body: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text[: order.prompt_chars]}],
        }
        body |= {"max_tokens": order.tokens or 16, "temperature": 0.7}
        if order.tokens:
            body["stream"] = True
        raw = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{order.port}\r\n"
        head += "user-agent: bench\r\naccept: */*\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        made.append(head.encode() + raw)
    return made
