"""The queues that a pool of replicas is, in closed form: prompts that wait for a replica, decodes that share one.

`Line` is an M/G/N queue whose customers are of no use after their patience. `Sharing` is the number of requests
that decode together when Poisson arrivals share machines that slow down with their number. Invariants: shares are
within 0..1; lateness never falls with load, nor rises with a server or with patience; a population never shrinks with
load. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp, expm1, log, sqrt

MOST_POOLED = 16  # replicas beyond which a balanced population hardly fluctuates less


def erlang_b(servers: int, erlangs: float) -> float:
    """The share of Poisson arrivals that find all servers busy and go away; `erlangs` is the offered load."""
    inverse = 1.0  # the recursion on 1 / B keeps its precision where B is tiny
    for n in range(1, servers + 1):
        if erlangs <= 0.0 or inverse > 1e300:
            return 0.0
        inverse = 1.0 + inverse * n / erlangs
    return 1.0 / inverse


class Line:
    """Arrivals that wait for one of `servers`; `utilisation` is the load per server, any figure.

    Served in order of arrival, M/M/c's waiting tail would be late; turned away, the loss of M/M/c with deterministic
    patience (Boots and Tijms, Management Science 45, 1999). Prompts that are lost go behind the others, and are
    computed all the same: the geometric mean of the two is what the fleet simulator comes near
    (`make bench-autoscale`). Above a load of 1 it tends to √(1 − 1/load).
    """

    def __init__(self, servers: int, utilisation: float) -> None:
        self._load = utilisation
        self._busy = erlang_b(servers, utilisation * servers) if servers else 1.0

    def late_share(self, patience: float) -> float:
        """The share that waits longer than `patience`, in services of the whole group times (1 + cs²) / 2.

        The latter is Allen and Cunneen's correction for service times that are not exponential.
        """
        load, busy = self._load, self._busy
        if patience <= 0.0:
            return 1.0
        drain = (1.0 - load) * patience
        if drain <= 0.0:
            return sqrt(busy / (exp(max(drain, -700.0)) + load * busy * patience * _mean_decay(-drain)))
        tail = exp(-drain)
        in_order = busy / (1.0 - load * (1.0 - busy)) * tail
        return sqrt(in_order * busy * tail / (1.0 + load * busy * patience * _mean_decay(drain)))


def _mean_decay(x: float) -> float:
    """The mean of e^−u over u from 0 to x."""
    return 1.0 if x < 1e-9 else -expm1(-x) / x


@dataclass(frozen=True, slots=True)
class Population:
    """How many requests hold a slot of one replica, as a new one finds it. `cumulative[m]` is the share of at most m.

    What is missing from its last entry is the share of arrivals that find no slot; the queue of those falls by
    `tail_ratio` a request.
    """

    cumulative: Sequence[float]
    mean_gap_s: float
    tail_ratio: float

    def at_most(self, bound: float) -> float:
        """The share with at most `bound` requests in slots, linear between whole numbers."""
        if bound < 0.0:
            return 0.0
        if bound >= len(self.cumulative) - 1:
            return 1.0
        below = int(bound)
        here = self.cumulative[below]
        return here + (bound - below) * (self.cumulative[below + 1] - here)

    def in_time(self, queue: float) -> float:
        """The share that finds a slot, or at most `queue` requests before it in the queue for one."""
        return 1.0 - (1.0 - self.cumulative[-1]) * float(self.tail_ratio**queue)


class Sharing:
    """A machine on which m requests get a token each every `gaps_s[m - 1]` seconds, up to as many as there are gaps.

    The population of Poisson arrivals is the product π(m) ∝ Π λE[tokens]·gap(k)/k, whatever the distribution of their
    tokens (insensitivity of processor sharing). Replicas that a router keeps balanced are one machine so many times
    as fast.
    """

    def __init__(self, gaps_s: Sequence[float]) -> None:
        self.gaps_s = tuple(accumulate(gaps_s, max))
        self._log_pace = (0.0, *accumulate(log(gap_s / m) for m, gap_s in enumerate(self.gaps_s, 1)))

    @property
    def slots(self) -> int:
        return len(self.gaps_s)

    def gap_s(self, requests: float) -> float:
        """The gap with so many requests, linear between whole numbers, from one up to all slots."""
        at = min(max(requests, 1.0), float(self.slots)) - 1.0
        below = min(int(at), self.slots - 2)
        if below < 0:
            return self.gaps_s[0]
        here = self.gaps_s[below]
        return here + (at - below) * (self.gaps_s[below + 1] - here)

    def within(self, gap_s: float) -> float:
        """With how many requests the gap is no longer; one more than the slots: with any number."""
        gaps = self.gaps_s
        above = bisect_right(gaps, gap_s)
        if above == 0:
            return 0.0
        if above == len(gaps):
            return above + 1.0
        return above + (gap_s - gaps[above - 1]) / (gaps[above] - gaps[above - 1])

    def population(self, tokens_per_s: float, pooled: int) -> Population:
        """With `tokens_per_s` asked of each replica, and `pooled` of them balanced with each other."""
        slots, last = self.slots, self.gaps_s[-1]
        ratio = tokens_per_s * last / slots
        if ratio >= 1.0:
            return Population((0.0,) * (slots + 1), last, 1.0)
        if tokens_per_s <= 0.0:
            return Population((1.0,) * (slots + 1), self.gaps_s[0], 0.0)
        rate = log(tokens_per_s)
        logs = [pooled * (m * rate + pace) for m, pace in enumerate(self._log_pace)]
        top = max(logs)
        weights = [exp(x - top) if x - top > -80.0 else 0.0 for x in logs]
        tail = weights[-1] * ratio / (1.0 - ratio) / pooled
        total = sum(weights) + tail
        seen = (*self.gaps_s, last)  # the newcomer is one more
        mean_gap_s = (sum(w * gap_s for w, gap_s in zip(weights, seen, strict=True)) + tail * last) / total
        cumulative = tuple(min(share, 1.0) for share in accumulate(w / total for w in weights))
        return Population(cumulative, mean_gap_s, ratio)
