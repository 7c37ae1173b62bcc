"""The wait of prompts for a replica: TTFT attainment of like prefill or mixed replicas, and how busy they are.

The queue is in order of slack, as the engines keep it: a class waits for those with less slack, and for what is left
of one prompt of the others. Prompts that are computed in one step share its constant part, the more the busier the
replica. Invariant: attainment never falls with a replica, nor rises with the rates. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline_router.autoscale.machine import Machine, Prompts
from paceline_router.autoscale.queueing import Line
from paceline_router.autoscale.workload import Load

MATES = 0.5  # of a mean prompt: what others add to a busy prefill replica's step (fitted to the fleet simulator)


@dataclass(frozen=True, slots=True)
class Work:
    """Prompts a second, and the seconds (of one replica) that they bring with them, per second."""

    rate_rps: float = 0.0
    alone_s: float = 0.0
    shared_s: float = 0.0
    square_s2: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.rate_rps + other.rate_rps,
            self.alone_s + other.alone_s,
            self.shared_s + other.shared_s,
            self.square_s2 + other.square_s2,
        )

    @property
    def residual_s(self) -> float:
        """What is left of a prompt in progress, on average: E[s²] / 2E[s]; 0 without any."""
        return self.square_s2 / (2 * self.alone_s) if self.alone_s else 0.0

    def utilisation(self, replicas: float, *, beside_decodes: bool) -> float:
        """The share of time at work, above 1 where it cannot keep up.

        What a step costs whatever is in it is shared by the prompts that are in it, the busier the replica the more.
        Deadlines keep prompts from waiting for each other, the less so the larger that part of their time is: between
        half and all of it is shared. Beside decodes nearly every step pays it, and it is counted there.
        """
        if not self.alone_s:
            return 0.0
        together = 1.0 if beside_decodes else 0.5 + 0.5 * self.shared_s / self.alone_s
        return self.alone_s / replicas / (1.0 + together * self.shared_s / replicas)


@dataclass(frozen=True, slots=True)
class Room:
    """What replicas leave for prompts: the share of their time, and what a first token takes beside its prompt."""

    left: float = 1.0
    after_s: float = 0.0
    stretch: float = 1.0  # of a prompt's own time, by decodes in between
    slowdown: float = 1.0  # of the decodes, by prompts in between
    transfers: bool = True


def waits(machine: Machine, replicas: int, of: Sequence[Load], factor: float, room: Room) -> tuple[list[float], float]:
    """The share of each class's prompts that are in time, and the utilisation. `factor` multiplies the rates."""
    work = [_work(p, factor * load.rate_rps) for p, load in zip(machine.prompts, of, strict=True)]
    order = sorted(range(len(of)), key=lambda i: machine.prompts[i].limit_s)
    in_time = [0.0] * len(of)
    ahead = Work()
    for place, i in enumerate(order):
        ahead = ahead + work[i]
        behind = sum((work[j] for j in order[place + 1 :]), Work())
        in_time[i] = _in_time(machine.prompts[i], replicas, ahead, behind, room)
    return in_time, ahead.utilisation(replicas * room.left, beside_decodes=not room.transfers)


def _work(prompts: Prompts, rate_rps: float) -> Work:
    return Work(rate_rps, rate_rps * prompts.alone_s, rate_rps * prompts.shared_s, rate_rps * prompts.square_s2)


def _in_time(prompts: Prompts, replicas: int, ahead: Work, behind: Work, room: Room) -> float:
    servers, beside = replicas * room.left, not room.transfers
    utilisation = ahead.utilisation(servers, beside_decodes=beside)
    line = Line(replicas, utilisation)
    wait_unit_s = room.stretch * ahead.residual_s / replicas  # the mean service times (1 + cs²) / 2
    blocked_s = min(behind.utilisation(servers, beside_decodes=beside), 1.0) * behind.residual_s / replicas
    mates_s = 0.0 if beside else MATES * min(utilisation, 1.0) * prompts.alone_s
    share = 0.0
    for p in prompts.lengths:
        own_s = p.alone_s * room.stretch + mates_s + room.after_s + (0.0 if beside else p.transfer_s)
        patience_s = p.limit_s - own_s - blocked_s
        if wait_unit_s and patience_s > 0:
            share += p.share * (1.0 - line.late_share(patience_s / wait_unit_s))
        elif patience_s >= 0:
            share += p.share
    return share
