"""Which replicas there are, and which of them may get requests, by role and by revision.

What is asked at each decision is kept in order whenever a replica comes, goes or changes its readiness. Invariant: a
replica stands under its role, and a decode replica under its revision, exactly while it is active; names are in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from paceline_router.facts import Role
from paceline_router.replica import NOTHING_TOLD, Replica, Told


class Roster:
    """All replicas of the service."""

    def __init__(self, replicas: Iterable[Replica] = ()) -> None:
        self.replicas = {replica.name: replica for replica in replicas}
        self._ready: dict[Role, tuple[Replica, ...]] = {}
        self.decoders: Mapping[str, tuple[Replica, ...]] = {}  # those that may get requests, by revision, by name
        self._computing = 1  # active replicas over which prompts are spread
        self._changed: set[str] | None = None  # None: nobody reads it
        self._group()

    def watch(self) -> set[str]:
        """Names of replicas whose work, state or facts change, at first all; the one reader there is empties it."""
        self._changed = set(self.replicas)
        return self._changed

    def ready(self, role: Role) -> tuple[Replica, ...]:
        """Replicas of a role that may get requests, by name."""
        return self._ready[role]

    @property
    def share(self) -> float:
        """Of what arrives here, what one replica gets if all get the same."""
        return 1.0 / self._computing

    def add(self, replica: Replica) -> None:
        """A replica that was not there."""
        self.replicas[replica.name] = replica
        self._group()

    def retire(self, name: str, retired: bool) -> bool:
        """Whether this changed anything."""
        replica = self.replicas[name]
        if replica.retired is retired:
            return False
        replica.retired = retired
        self._group()
        return True

    def leave_out(self, name: str, left_out: bool) -> bool:
        """Whether this changed anything."""
        replica = self.replicas[name]
        if replica.left_out is left_out:
            return False
        replica.left_out = left_out
        self._group()
        return True

    def completed(self, name: str) -> None:
        """The replica answered a leg wholly: a sign of work."""
        replica = self.replicas[name]
        replica.signs += 1
        replica.errors = 0

    def erred(self, name: str) -> None:
        """It is to blame for a leg that ended in an error."""
        if name in self.replicas:
            self.replicas[name].errors += 1

    def tell(self, name: str, told: Told) -> None:
        """Its page counts this; a sign of work if that differs from the last page, and there was one.

        Counts that fall are those of a new process, which may be compiling.
        """
        replica = self.replicas[name]
        if told == NOTHING_TOLD:
            return
        if told.steps < replica.told.steps or told.tokens < replica.told.tokens:
            replica.signs = 0 if replica.signs else 1
        elif replica.told not in (NOTHING_TOLD, told):
            replica.signs += 1
        replica.told = told

    def remove(self, name: str) -> None:
        """An idle replica is gone."""
        del self.replicas[name]
        self._note((name,))
        self._group()

    def set_ready(self, name: str, ready: bool) -> bool:
        """Whether this changed anything."""
        replica = self.replicas[name]
        if replica.ready is ready:
            return False
        replica.ready = ready
        self._group()
        return True

    def _group(self) -> None:
        active = sorted((r for r in self.replicas.values() if r.is_active), key=lambda r: r.name)
        self._ready = {role: tuple(r for r in active if r.role is role) for role in Role}
        decoders = self._ready[Role.DECODE]
        revisions = sorted({replica.revision for replica in decoders})
        self.decoders = {v: tuple(r for r in decoders if r.revision == v) for v in revisions}
        computing = len(self._ready[Role.PREFILL]) + len(self._ready[Role.MIXED])
        self._computing = computing or max(len(decoders), 1)
        self._note(self.replicas)

    def _note(self, names: Iterable[str]) -> None:
        if self._changed is not None:
            self._changed.update(names)
