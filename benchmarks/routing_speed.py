"""How long the router's policies take to decide over 128 replicas, with the ledger's own work beside it.

A ledger under a steady load of three classes, driven by its own predictions: about 25 decodes a replica, scrapes spread
over each second. CPU time of the thread, so that other processes on the machine do not count; garbage collection does.
Issue 8's goal: p50 at most 40 µs, p99 below 1 ms.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random
from time import thread_time_ns

from paceline_engine.tables import load_table
from paceline_router.facts import Facts, Role
from paceline_router.pick import POLICIES, NoEndpoint, Picker
from paceline_router.replica import Replica, Size
from paceline_router.state import Ledger
from rich.console import Console
from rich.table import Table

REPLICAS, RPS_A_REPLICA, DECISIONS, WARM_UP = 128, 6.0, 8000, 1500
LIMITS = ((1.0, 0.05), (0.3, 0.02), (30.0, 0.25))  # TTFT and TPOT, seconds
PACE_S, RELAYED_TOKENS = 0.03, 64
OURS, P50_US, P99_US = "least-misses", 40.0, 1000.0


class Fleet:
    """A ledger, and what will happen to it: events at their times, whose actions may add others."""

    def __init__(self) -> None:
        table = load_table("a100-sxm-80gb", "llama-3.1-8b")
        self.facts = partial(Facts, table=table, kv_tokens=table.kv_tokens)
        names = [f"mixed-{i:03d}" for i in range(REPLICAS)]
        self.ledger = Ledger(Replica(name, Role.MIXED, facts=self.facts(), ready=True) for name in names)
        self.now = 0.0
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        for i, name in enumerate(names):
            self.at(i / REPLICAS, partial(self._scrape, name))

    def at(self, when_s: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), action))

    def until(self, when_s: float) -> int:
        """Nanoseconds that the ledger took."""
        spent = 0
        while self._events and self._events[0][0] <= when_s:
            self.now, _, action = heapq.heappop(self._events)
            begun = thread_time_ns()
            action()
            spent += thread_time_ns() - begun
        self.now = when_s
        return spent

    def _scrape(self, name: str) -> None:
        self.ledger.learn(name, self.facts(seen_at_s=self.now))
        self.at(self.now + 1.0, partial(self._scrape, name))


def decide(policy: str) -> tuple[list[float], list[float]]:
    """Microseconds of each decision, and of the ledger's work since the one before."""
    fleet, rng, picker = Fleet(), Random(1), Picker(policy, Random(2))
    decisions, ledger_us, now = [], [], 0.0
    for _ in range(DECISIONS):
        now += rng.expovariate(REPLICAS * RPS_A_REPLICA)
        ledger_ns = fleet.until(now)
        (ttft_s, tpot_s), prompt = rng.choice(LIMITS), min(int(rng.lognormvariate(6.5, 0.9)), 8000)
        output = min(int(rng.lognormvariate(4.9, 0.8)), 1000)
        size = Size(prompt, 400, now + ttft_s, tpot_s, 150)
        begun = thread_time_ns()
        choice = picker.choose(fleet.ledger, size, now)
        chosen = thread_time_ns()
        assert not isinstance(choice, NoEndpoint), choice.message
        flight = fleet.ledger.begin(size, choice.prefill, choice.decode, now)
        ledger_ns += thread_time_ns() - chosen
        decisions.append((chosen - begun) / 1000)
        ledger_us.append(ledger_ns / 1000)
        first_s = now + max(choice.ttft_s, 0.01)
        fleet.at(first_s, partial(fleet.ledger.first_token, flight, first_s))
        for tokens in range(RELAYED_TOKENS, output, RELAYED_TOKENS):
            fleet.at(first_s + tokens * PACE_S, partial(fleet.ledger.tokens, flight, RELAYED_TOKENS))
        fleet.at(first_s + output * PACE_S, partial(fleet.ledger.end, flight, first_s + output * PACE_S))
    return sorted(decisions[WARM_UP:]), sorted(ledger_us[WARM_UP:])


def speed(console: Console) -> int:
    """Prints a row a policy; 1 when ours is too slow."""
    rows = Table(title=f"microseconds of CPU for a decision over {REPLICAS} replicas")
    for column in ("policy", "p50", "p90", "p99", "most", "ledger p50"):
        rows.add_column(column, justify="left" if column == "policy" else "right")
    slow = False
    for policy in POLICIES:
        us, ledger_us = decide(policy)
        p50, p90, p99 = (us[int(len(us) * q)] for q in (0.5, 0.9, 0.99))
        slow |= policy == OURS and (p50 > P50_US or p99 >= P99_US)
        cells = (p50, p90, p99, us[-1], ledger_us[len(ledger_us) // 2])
        rows.add_row(policy, *(f"{x:.1f}" for x in cells))
    console.print(rows)
    return int(slow)
