"""Who the replicas are, as time goes: brings the ledger, the connections and the probes in line with what is wanted.

A replica that is no longer wanted is retired: it gets nothing new, is probed on while requests are there, and goes when
nothing of it is held any more; one that is wanted again meanwhile comes back. One that is to be removed first rests: it
is retired too, and stays. Invariant: ledger, connection pools and
probes know the same names; a name means one replica at a time, so its successor waits until it is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from paceline_router.endpoints import Member, Named, resting
from paceline_router.replica import Replica
from paceline_router.scrape import Scraper
from paceline_router.state import Ledger
from paceline_router.upstream import Upstreams

_log = logging.getLogger(__name__)


class Membership:
    """The replicas of one router."""

    def __init__(self, ledger: Ledger, upstreams: Upstreams, scraper: Scraper) -> None:
        self._ledger = ledger
        self._upstreams = upstreams
        self._scraper = scraper
        self._present: dict[str, Member] = {}
        self._wanted: dict[str, Member] = {}
        self._leaving: set[str] = set()  # present and not wanted
        self._named: Named = {}
        self._resting: frozenset[str] = frozenset()
        self._unprobed: set[str] | None = None  # of the first sync; None before it

    def apply(self, wanted: Iterable[Member]) -> None:
        """These are all that there are from now on; names are unique."""
        self._wanted = {member.name: member for member in wanted}
        self._rest()
        self._step()
        if self._unprobed is None:
            self._unprobed = set(self._wanted)

    def drain_first(self, named: Named) -> None:
        """These are to be removed first: they get nothing new while others can serve."""
        self._named = named
        self._rest()
        self._step()

    def reconcile(self) -> None:
        """Takes the steps that are possible now; cheap when there is none."""
        if self._present != self._wanted or self._leaving:
            self._step()

    def _rest(self) -> None:
        self._resting = resting(self._wanted.values(), self._named)

    def _step(self) -> None:
        for name, member in list(self._present.items()):
            leaves = self._wanted.get(name) != member
            (self._leaving.add if leaves else self._leaving.discard)(name)
            self._retire(name, leaves or name in self._resting)
            if leaves and self._ledger.replicas[name].is_idle:
                self._remove(name)
        for name, member in self._wanted.items():
            if name not in self._present:
                self._add(member)
                self._retire(name, name in self._resting)

    def _retire(self, name: str, retired: bool) -> None:
        if self._ledger.retire(name, retired):
            _log.info("replica=%s retired=%s", name, str(retired).lower())

    @property
    def is_settled(self) -> bool:
        """Whether the replicas are known, and each of the first ones has been probed or is gone."""
        if self._unprobed is None:
            return False
        self._unprobed = {name for name in self._unprobed if name in self._present and name not in self._scraper.probed}
        return not self._unprobed

    def _add(self, member: Member) -> None:
        self._present[member.name] = member
        self._upstreams.add(member.name, member.host, member.port)
        replica = Replica(member.name, member.role, member.pool, member.gpus, member.revision)
        self._ledger.add(replica)
        self._scraper.add(replica)
        if self._unprobed is not None:
            _log.info("replica=%s role=%s revision=%s added", member.name, member.role, member.revision)

    def _remove(self, name: str) -> None:
        del self._present[name]
        self._leaving.discard(name)
        self._scraper.remove(name)
        self._ledger.remove(name)
        self._upstreams.remove(name)
        _log.info("replica=%s removed", name)
