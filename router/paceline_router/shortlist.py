"""Which replicas are worth a close look: the least loaded few of each kind, kept in order as their work changes.

Replicas are of a kind when role, revision, step-time table and the tightest TPOT among their requests agree: within a
kind a less loaded one is hardly ever the worse choice, between kinds it may be. A change moves one entry, by bisection;
a decision reads the heads of a few lists and scans no fleet. Invariant: when `heads` answers, each active replica
stands in exactly one list, and no other does.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from paceline_router.facts import Role
from paceline_router.replica import Replica
from paceline_router.state import Ledger

HEADS = 3
TOKENS, REQUESTS = 20_000, 100  # queued prompt tokens, and requests, that weigh as much as a full KV cache


Kind = tuple[Role, str, str, float]  # role, revision, name of the table, tightest TPOT
Entry = tuple[float, str]  # load, name


class Shortlist:
    """Of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._changed = ledger.watch()
        self._lists: dict[Kind, list[Entry]] = {}
        self._where: dict[str, tuple[Kind, Entry]] = {}

    def heads(self, role: Role, revision: str | None = None) -> list[Replica]:
        """The HEADS least loaded of each kind of this role; `revision` None: of any."""
        changed, replicas = self._changed, self.ledger.replicas
        while changed:
            self._move(changed.pop())
        return [
            replicas[name]
            for kind, entries in self._lists.items()
            if kind[0] is role and (revision is None or kind[1] == revision)
            for _, name in entries[:HEADS]
        ]

    def _move(self, name: str) -> None:
        replica, before = self.ledger.replicas.get(name), self._where.get(name)
        after = None
        if replica is not None and replica.is_active:
            after = _kind(replica), (load(replica), name)
        if before == after:
            return
        if before is not None:
            kind, entry = before
            entries = self._lists[kind]
            del entries[bisect_left(entries, entry)]
            if not entries:
                del self._lists[kind]
        if after is None:
            del self._where[name]
            return
        kind, entry = self._where[name] = after
        insort(self._lists.setdefault(kind, []), entry)


def _kind(replica: Replica) -> Kind:
    table = replica.facts.table
    return replica.role, replica.revision, table.name if table else "", replica.tightest_s


def load(replica: Replica) -> float:
    """How full it is: queued prompt tokens, and of requests and reserved KV the fuller."""
    requests = (replica.decodes + replica.incoming + replica.prefill_queue + replica.others_paced) / REQUESTS
    kv_tokens = replica.facts.kv_tokens
    held = replica.kv_reserved / kv_tokens if kv_tokens else 0.0
    return (replica.new_tokens + replica.others.queued_tokens) / TOKENS + (held if held > requests else requests)
