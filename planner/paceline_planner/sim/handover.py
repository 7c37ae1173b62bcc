"""KV on its way from prefill to decode replicas: pulls, pulls that fail, and KV that nobody fetches any more.

Invariant: parked KV is released when it was read, or at the end of its lease. Times are seconds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from paceline_engine.sim.replica import Replica as Engine
from paceline_router.attempts import Fault

from paceline_planner.sim.rides import FleetSpec, Ride

if TYPE_CHECKING:
    from random import Random

    from paceline_planner.sim.timeline import Timeline


class Served(Protocol):
    """What a hand-over needs of its fleet. `rides` are those with a leg on an engine, by key."""

    timeline: Timeline
    engines: dict[str, Engine]
    rides: dict[str, Ride]

    def kick(self, name: str, *, turn: bool = False) -> None: ...
    def fail_leg(self, ride: Ride, fault: Fault) -> None: ...


class Handovers:
    """Of one fleet."""

    def __init__(self, fleet: Served, spec: FleetSpec, rng: Random) -> None:
        self._fleet = fleet
        self._spec = spec
        self._rng = rng

    def pull(self, engine: Engine, key: str, after_s: float = 0.0) -> None:
        """The KV of a decode leg sets out after a while, or never comes."""
        time, spec = self._fleet.timeline, self._spec
        if spec.kv_failure_ratio and self._rng.random() < spec.kv_failure_ratio:
            time.at(time.now + spec.kv_timeout_s, partial(self._failed, key), awaited=True)
        else:
            seconds = engine.machine.transfer_s(self._fleet.rides[key].job.prompt_tokens)
            time.at(time.now + spec.hop_s + after_s + seconds, partial(self._arrived, key), awaited=True)

    def abandon(self, ride: Ride) -> None:
        """Nobody will fetch what is parked of it: it goes with its lease."""
        name, key = ride.prefilled_on, ride.parked_key
        ride.prefilled_on = ride.parked_key = ""
        engine, time = self._fleet.engines.get(name), self._fleet.timeline
        if engine is not None and key in engine.parked:
            time.at(max(engine.parked[key].expires_s, time.now), partial(self._expire, name, key), awaited=True)

    def _arrived(self, key: str) -> None:
        fleet = self._fleet
        ride = fleet.rides.get(key)
        if ride is None:
            return  # the leg has failed meanwhile
        source, ride.prefilled_on = ride.prefilled_on, ""
        fleet.engines[source].release(ride.parked_key)
        ride.parked_key = ""
        fleet.engines[ride.on].kv_arrived(key)
        fleet.kick(source)
        fleet.kick(ride.on, turn=True)

    def _failed(self, key: str) -> None:
        ride = self._fleet.rides.get(key)
        if ride is not None:
            name = ride.on
            self._fleet.engines[name].kv_failed(key, recompute=False)
            self._fleet.fail_leg(ride, Fault.ERRORED)
            self._fleet.kick(name, turn=True)

    def _expire(self, name: str, key: str) -> None:
        if name in self._fleet.engines:
            self._fleet.engines[name].release(key)
            self._fleet.kick(name)
