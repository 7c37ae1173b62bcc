"""One tenant's burst beside another's steady load: whose goodput it takes, with and without a waiting room.

Of a fleet of eight under chat, `steady` uses an eighth of the capacity all the time; `bursty` half of it, and for
BURST_S seconds BURST_SHARE times as much as the fleet serves. Figures: attainment of `steady` in those seconds, without
the burst and with it; of both together, good requests per second in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import merge
from itertools import takewhile
from statistics import fmean

from paceline_api.slo import Verdict, judge
from paceline_planner.judged.cases import jobs as drawn
from paceline_planner.sim.fleet import Fleet, Job, Ride
from rich.console import Console
from rich.table import Table
from routing_workloads import OURS, RIVAL, THREE, WORKLOADS, Side, fleet

TENANTS = "tenants"
STEADY, BURSTY = "steady", "bursty"
CAPACITY_RPS = 100.0  # of chat, about
BEGIN_S, BURST_S, END_S = 10.0, 15.0, 30.0
STEADY_SHARE, CALM_SHARE, BURST_SHARE = 0.125, 0.5, 2.0  # of the capacity
LEAST_KEPT = 0.9
SEEDS = (1, 2, 3)
SIDES = (
    Side(f"{OURS}, waiting room", OURS, (), waits=True),
    Side(OURS, OURS, ()),
    Side(RIVAL, RIVAL, ()),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """Attainment of `steady` in percent, and good requests/s during the burst, of all tenants."""

    side: str
    calm_percent: float
    burst_percent: float
    good_rps: float


def tenants(console: Console, *, quick: bool) -> tuple[list[dict[str, object]], list[str]]:
    """Prints the table; as JSON, and what is missed."""
    found = [kept(side, SEEDS[:1] if quick else SEEDS) for side in SIDES]
    rows = Table(title=f"a tenant's attainment beside another's burst of {BURST_SHARE:g} × capacity — SIMULATED")
    for column in ("side", "% without a burst", "% during it", "good/s of both during it"):
        rows.add_column(column, justify="left" if column == "side" else "right")
    for k in found:
        rows.add_row(k.side, f"{k.calm_percent:.1f}", f"{k.burst_percent:.1f}", f"{k.good_rps:.1f}")
    console.print(rows)
    return [_json(k) for k in found], missed(found[0])


def missed(ours: Kept) -> list[str]:
    if ours.burst_percent >= LEAST_KEPT * ours.calm_percent:
        return []
    return [f"a burst leaves another tenant {ours.burst_percent:.0f} % of {ours.calm_percent:.0f} %"]


def kept(side: Side, seeds: tuple[int, ...]) -> Kept:
    calm, burst, good_rps = [], [], []
    for seed in seeds:
        calm.append(_attained(serve(side, seed, CALM_SHARE), STEADY))
        rides = serve(side, seed, BURST_SHARE)
        burst.append(_attained(rides, STEADY))
        good_rps.append(sum(map(_is_good, rides)) / BURST_S)
    return Kept(side.name, fmean(calm), fmean(burst), fmean(good_rps))


def serve(side: Side, seed: int, share: float) -> list[Ride]:
    """Rides that arrived in the seconds in which `bursty` sent `share` of the capacity."""
    rides: list[Ride] = []
    workload = next(w for w in WORKLOADS if w.name == "mixed")
    spec = replace(fleet(workload, side), classes={"chat": THREE["chat"]})
    Fleet(spec, seed, lambda _: False, rides.append).run(_jobs(seed, share))
    return [r for r in rides if BEGIN_S <= r.job.arrival_s < BEGIN_S + BURST_S]


def _jobs(seed: int, share: float) -> Iterator[Job]:
    over_s = BEGIN_S + BURST_S
    phases = ((0.0, BEGIN_S, CALM_SHARE), (BEGIN_S, over_s, share), (over_s, END_S, CALM_SHARE))
    streams = [_stream(STEADY, CAPACITY_RPS * STEADY_SHARE, f"{seed}", 0.0, END_S)]
    for i, (begin, end, phase_share) in enumerate(phases):
        streams.append(_stream(BURSTY, CAPACITY_RPS * phase_share, f"{seed}/{i}", begin, end))
    return merge(*streams, key=lambda job: job.arrival_s)


def _stream(tenant: str, rate_rps: float, seed: str, begin_s: float, end_s: float) -> Iterator[Job]:
    found = drawn({"chat": (1.0, "chat")}, rate_rps, _seed_of(seed + tenant))
    shifted = (replace(job, arrival_s=begin_s + job.arrival_s, tenant=tenant) for job in found)
    return takewhile(lambda job: job.arrival_s < end_s, shifted)


def _seed_of(name: str) -> int:
    """The same in every process."""
    return int.from_bytes(name.encode()[-8:], "big")


def _is_good(ride: Ride) -> bool:
    return judge(THREE[ride.job.class_name], ride.course, END_S) is Verdict.GOOD


def _attained(rides: list[Ride], tenant: str) -> float:
    return 100 * fmean(_is_good(r) for r in rides if r.job.tenant == tenant)


def _json(k: Kept) -> dict[str, object]:
    return {"side": k.side, "calm": k.calm_percent, "burst": k.burst_percent, "good_rps": k.good_rps}
