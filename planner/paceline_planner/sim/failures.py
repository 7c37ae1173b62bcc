"""Replicas that die while a fleet runs: what was on them is lost, and each request goes where production sends it.

The process is gone at once, so that its connections break; a router learns of it by the first of them. Invariant: the
rides of a dead replica end, or run elsewhere; nobody waits for it. Times are seconds.
"""

from __future__ import annotations

from functools import partial

from paceline_router.attempts import Fault

from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.members import Members


def kill_at(when_s: float, members: Members, name: str) -> None:
    """Have a replica die at that moment, or all replicas of a pool, if ready then; the pool orders others."""
    members.fleet.timeline.at(when_s, partial(_kill_all, members, name))


def _kill_all(members: Members, name: str) -> None:
    for pod in list(members.pods):
        if name in (pod.name, pod.pool.name) and pod.name in members.fleet.engines:
            _kill(members, pod.name)


def _kill(members: Members, name: str) -> None:
    fleet: Fleet = members.fleet
    rides = fleet.remove(name)
    members.lost(name)
    for ride in rides:
        if ride.on == name:
            fleet.fail_leg(ride, Fault.LOST)
        else:  # its KV was here, and the engine that wants it says so
            fleet.engines[ride.on].abort(ride.key)
            fleet.fail_leg(ride, Fault.ERRORED)
