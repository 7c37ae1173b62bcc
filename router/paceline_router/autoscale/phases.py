"""What share of a service's requests its pools attain at given sizes: TTFT and TPOT by class, in closed form.

Prefill replicas are an M/G/N queue of prompts, decode replicas machines that their requests share, mixed replicas both:
prompts get what the decodes leave of the TPOT limit, as the stall-free policy has it. Step times are the engines' own
tables and fits, the router one that balances work, arrivals Poisson. Invariants: attainment is within 0..1, never falls
with a replica more, never rises with the load. Saturated decodes are taken to attain 1 % / (1 + load), saturated
prompts 1 − √(1 − 1/load): less than the engines save, and still a slope to climb.

Neglected: bursts beyond Poisson, prefix cache hits, decodes that sit out for a tighter class, preemption, lengths that
depend on each other (where a context limit makes long answers go with short prompts, decodes hold up to a seventh less
KV than is taken here), and what differs between routers. Pools of one role with unlike engines share its load in
proportion to their capacity, and are balanced within themselves only: growing the slower may lower attainment. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from paceline_router.autoscale.decode import Decoded, decodes, room_for_prompts
from paceline_router.autoscale.machine import Machine
from paceline_router.autoscale.prefill import Room, waits
from paceline_router.autoscale.signals import Attained, ServiceSignals
from paceline_router.autoscale.workload import loads
from paceline_router.facts import Role

HANDOVER_STEPS = 1.5  # decode steps from the KV's arrival to the first token: half of the one in progress, and its own

Factors = Mapping[Role, float]  # how much more load a role sees than predicted; absent: 1
AS_PREDICTED: Factors = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Forecast:
    """`room` is the share of a class's requests that find KV and a batch slot in time, a factor of its TTFT.

    `utilisation` by role, of its fullest group: 1 is saturated, infinite without replicas, left out without traffic.
    """

    attained: Mapping[str, Attained]
    room: Mapping[str, float]
    utilisation: Mapping[Role, float]


@dataclass(frozen=True, slots=True)
class _Group:
    """Like replicas of one role, the share of the role's load that they get, and how much more of it there is."""

    machine: Machine
    replicas: int
    share: float
    more: float

    @property
    def factor(self) -> float:
        return self.share * self.more


class Forecaster:
    """One service's signals, prepared for trying many sizes."""

    def __init__(self, signals: ServiceSignals) -> None:
        self._names = [c.slo.name for c in signals.classes]
        self._loads = loads(signals.classes)
        self._roles = {pool.name: pool.role for pool in signals.pools}
        self._mixed = Role.MIXED in self._roles.values()
        self._machines: dict[str, Machine] = {}
        for pool in signals.pools if self._loads else ():
            like = [m for m in self._machines.values() if m.role is pool.role and m.engine == pool.engine]
            self._machines[pool.name] = like[0] if like else Machine(pool.engine, self._loads, pool.role)

    def forecast(self, sizes: Mapping[str, int], factors: Factors = AS_PREDICTED) -> Forecast:
        """With `sizes` ready replicas by pool, and the load that a role sees multiplied by its factor."""
        if not self._loads:
            return self._result((), Decoded((), (), 0.0, 0.0), {})
        return self._aggregated(sizes, factors) if self._mixed else self._disaggregated(sizes, factors)

    def _aggregated(self, sizes: Mapping[str, int], factors: Factors) -> Forecast:
        groups = self._groups(Role.MIXED, sizes, factors)
        rooms = [room_for_prompts(g.machine, g.replicas, self._loads, g.factor) for g in groups]
        decode = self._decode(groups, [room.slowdown for room in rooms])
        ttft, busy = self._prompts(groups, rooms)
        return self._result(ttft, decode, {Role.MIXED: max(busy, decode.utilisation)})

    def _disaggregated(self, sizes: Mapping[str, int], factors: Factors) -> Forecast:
        decoding = self._groups(Role.DECODE, sizes, factors)
        decode = self._decode(decoding, [1.0] * len(decoding))
        groups = self._groups(Role.PREFILL, sizes, factors)
        ttft, busy = self._prompts(groups, [Room(after_s=HANDOVER_STEPS * decode.gap_s)] * len(groups))
        return self._result(ttft, decode, {Role.PREFILL: busy, Role.DECODE: decode.utilisation})

    def _decode(self, groups: Sequence[_Group], slowdowns: Sequence[float]) -> Decoded:
        found = [
            decodes(g.machine, g.replicas, self._loads, g.factor, slowdown)
            for g, slowdown in zip(groups, slowdowns, strict=True)
        ]
        return Decoded(
            self._mixture(groups, [d.tpot for d in found]),
            self._mixture(groups, [d.room for d in found]),
            sum(g.share * d.gap_s for g, d in zip(groups, found, strict=True)),
            max((d.utilisation for d in found), default=inf),
        )

    def _prompts(self, groups: Sequence[_Group], rooms: Sequence[Room]) -> tuple[tuple[float, ...], float]:
        found = [
            waits(g.machine, g.replicas, self._loads, g.factor, room) for g, room in zip(groups, rooms, strict=True)
        ]
        return self._mixture(groups, [in_time for in_time, _ in found]), max((busy for _, busy in found), default=inf)

    def unloaded(self) -> Mapping[str, Attained]:
        """A∞: no queue, a batch of one."""
        return self.forecast(dict.fromkeys(self._roles, 1), dict.fromkeys(Role, 0.0)).attained

    def _groups(self, role: Role, sizes: Mapping[str, int], factors: Factors) -> list[_Group]:
        counts: dict[Machine, int] = {}
        for name, machine in self._machines.items():
            if machine.role is role and sizes.get(name, 0) > 0:
                counts[machine] = counts.get(machine, 0) + sizes[name]
        total = sum(n * machine.capacity_rps for machine, n in counts.items())
        shares = {machine: n * machine.capacity_rps / total for machine, n in counts.items()}
        return [_Group(machine, n, shares[machine], factors.get(role, 1.0)) for machine, n in counts.items()]

    def _mixture(self, groups: Sequence[_Group], shares: Sequence[Sequence[float]]) -> tuple[float, ...]:
        mixed = [sum(g.share * s[i] for g, s in zip(groups, shares, strict=True)) for i in range(len(self._loads))]
        return tuple(min(max(x, 0.0), 1.0) for x in mixed)

    def _result(self, ttft: Sequence[float], decode: Decoded, utilisation: Mapping[Role, float]) -> Forecast:
        attained = dict.fromkeys(self._names, Attained(1.0, 1.0))
        room = dict.fromkeys(self._names, 1.0)
        for load, prompt, tpot, its_room in zip(self._loads, ttft, decode.tpot, decode.room, strict=True):
            attained[load.slo.name] = Attained(prompt * its_room, tpot)
            room[load.slo.name] = its_room
        return Forecast(attained, room, utilisation)
