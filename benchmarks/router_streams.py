"""What a router adds to streams, and what it holds for them: two parts of `router.py`.

`streams`: the same streams at the same seeded moments, directly and through each router, at LOAD of the highest rate
that a direct connection sustains; request by request and event by event the direct time is subtracted. `held`: HELD
streams open at once, a token a second each; memory is read from SETTLING_S after the last was opened until the first
ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import mean

from engine_verdicts import Verdict, ratio
from rich.console import Console
from rich.table import Table
from router_orders import Order
from router_runs import BOUND, Ran, ran
from router_sides import NEW, OLD, Side, engines, resident_mib, scratch, sides

ROBIN = ("--policy", "round_robin")
TOKENS, GAP_S = 40, 0.025
LOAD = 0.7
LATE_S = 0.005  # p99 of an event's way from engine to client that still counts as sustained
FASTER = 1.4  # from one rate tried to the next
HELD, OPENING_S, SETTLING_S, HOLDING_S = 2000, 8.0, 6.0, 14.0
TICKS = 32  # tokens of each, a second apart: the first ends after the holding
ROOMY = ("--max-concurrent-requests", "4096")  # the rivals' default is below HELD
FLAT = 1.02  # memory at the end of the holding over that at its beginning


@dataclass(frozen=True, slots=True)
class Added:
    """In one round, milliseconds beyond a direct connection's; `lost` streams were not relayed whole."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p99_ms: float
    lost: int
    router_us: float  # CPU an event
    others_share: float


def streams(console: Console, rounds: int, seconds: float) -> tuple[list[Verdict], bool, object]:
    theirs = {NEW: ROBIN, OLD: ROBIN}
    with scratch() as folder, engines(8, folder) as (pid, ports), sides(ports, "round-robin", theirs, folder) as all_:
        direct = Side("direct", ports[0])
        rate_rps = LOAD * _sustained_rps(direct, pid)
        seen: dict[str, list[Added]] = {side.name: [] for side in all_}
        for k in range(rounds):
            order = Order(0, seconds, rate_rps=rate_rps, tokens=TOKENS, gap_s=GAP_S, seed=k)
            runs = {side.name: ran(side, pid, _at(side, order)) for side in (direct, *all_)}
            for name, added in seen.items():
                added.append(_added(runs[name], runs["direct"]))
    title = f"streams of {TOKENS} events at {rate_rps:.0f}/s, {LOAD:.0%} of what a direct connection sustains"
    _show(console, title, seen)
    ours, new = seen["ours"], seen[NEW]
    verdicts = [
        ratio("streams not relayed whole", ours, 1.0, lambda rs: float(sum(r.lost for r in rs)), 0.0, at_most=True),
        ratio(f"added TTFT p50 over {NEW}'s", ours, new, lambda rs: mean(r.ttft_p50_ms for r in rs), 1.0, at_most=True),
        ratio(f"added TTFT p99 over {NEW}'s", ours, new, lambda rs: mean(r.ttft_p99_ms for r in rs), 1.0, at_most=True),
        ratio(f"added ITL p99 over {NEW}'s", ours, new, lambda rs: mean(r.itl_p99_ms for r in rs), 1.0, at_most=True),
    ]
    busiest = max(r.others_share for rs in seen.values() for r in rs)
    if busiest > BOUND:
        console.print(f"INVALID: engines and client used {busiest:.0%} of their core")
    return verdicts, busiest > BOUND, {name: [asdict(r) for r in rs] for name, rs in seen.items()}


def _at(side: Side, order: Order) -> Order:
    return Order(**asdict(order) | {"port": side.port})


def _sustained_rps(direct: Side, pid: int) -> float:
    """The highest rate of those tried at which every stream comes whole and its events in time."""
    rate_rps, sustained_rps = 20.0, 0.0
    while True:
        found = ran(direct, pid, Order(direct.port, 3.0, rate_rps=rate_rps, tokens=TOKENS, gap_s=GAP_S)).found
        ways = sorted(b - a for s in found["streams"] if s for b, a in zip(s[1], s[2], strict=True))
        if None in found["streams"] or not ways or ways[int(len(ways) * 0.99)] > LATE_S:
            return sustained_rps or rate_rps
        sustained_rps, rate_rps = rate_rps, rate_rps * FASTER


def _added(run: Ran, direct: Ran) -> Added:
    pairs = [(s, d) for s, d in zip(run.found["streams"], direct.found["streams"], strict=True) if s and d]
    ttft_s = sorted((s[1][0] - s[0]) - (d[1][0] - d[0]) for s, d in pairs)
    itl_s = sorted(ours - theirs for s, d in pairs for ours, theirs in zip(_gaps(s[1]), _gaps(d[1]), strict=True))
    events = max(TOKENS * len(pairs), 1)
    return Added(
        _quantile_ms(ttft_s, 0.5),
        _quantile_ms(ttft_s, 0.99),
        _quantile_ms(itl_s, 0.99),
        run.found["streams"].count(None),
        run.router_s / events * 1e6,
        run.others_s / run.took_s,
    )


def _gaps(moments: Sequence[float]) -> list[float]:
    return [b - a for a, b in pairwise(moments)]


def _quantile_ms(ordered: Sequence[float], q: float) -> float:
    return ordered[int(len(ordered) * q)] * 1e3 if ordered else float("inf")


def _show(console: Console, title: str, seen: dict[str, list[Added]]) -> None:
    table = Table(title=title)
    columns = ("router", "added TTFT p50 ms", "p99 ms", "added ITL p99 ms", "lost", "CPU µs/event", "others' core")
    for column in columns:
        table.add_column(column, justify="left" if column == "router" else "right")
    for name, rounds in seen.items():
        figures = zip(*((r.ttft_p50_ms, r.ttft_p99_ms, r.itl_p99_ms) for r in rounds), strict=True)
        last = (f"{sum(r.lost for r in rounds)}", f"{mean(r.router_us for r in rounds):.0f}")
        busiest = f"{max(r.others_share for r in rounds):.0%}"
        table.add_row(name, *(f"{mean(values):.2f}" for values in figures), *last, busiest)
    console.print(table)


def held(console: Console, rounds: int, seconds: float) -> tuple[list[Verdict], bool, object]:
    """`rounds` and `seconds` are its own: one holding a router."""
    theirs = {NEW: (*ROBIN, *ROOMY)}
    with scratch() as folder, engines(8, folder) as (pid, ports), sides(ports, "round-robin", theirs, folder) as all_:
        seen = {side.name: _hold(side, pid) for side in all_}
    for name, (idle_mib, mib, whole) in seen.items():
        grown = (mib[0] - idle_mib) / HELD * 1024
        console.print(
            f"{name}: {whole} of {HELD} streams whole; {idle_mib:.0f} MiB idle, {mib[0]:.0f} when all are open"
            f" ({grown:.0f} KiB each), {min(mib):.0f}…{max(mib):.0f} while they are held"
        )
    _, mib, whole = seen["ours"]
    verdicts = [
        ratio(f"of {HELD} streams relayed whole", [whole], float(HELD), lambda w: float(w[0]), 1.0),
        ratio("memory at most, over its beginning", [max(mib)], mib[0], lambda m: m[0], FLAT, at_most=True),
    ]
    return verdicts, False, seen


def _hold(side: Side, pid: int) -> tuple[float, list[float], int]:
    """Memory before, memory while all are held, and how many streams came whole."""
    idle_mib, mib = resident_mib(side.pid), list[float]()
    order = Order(
        side.port, OPENING_S + SETTLING_S + HOLDING_S, rate_rps=HELD / OPENING_S, tokens=TICKS, gap_s=1.0, most=HELD
    )

    def look(since_s: float) -> None:
        if since_s > OPENING_S + SETTLING_S:
            mib.append(resident_mib(side.pid))

    found = ran(side, pid, order, look).found
    return idle_mib, mib, sum(s is not None for s in found["streams"])
