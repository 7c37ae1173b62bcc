"""Whose request is next among tenants that wait: of the one that was served the fewest tokens.

A counter of tokens for each tenant; one that comes to wait is lifted to the least of those that do, so that nobody
saves up idle time (virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", OSDI'24).
Invariants: of two tenants that wait all the time, the tokens served differ by at most the largest request; tenants that
do not wait are forgotten once the others have caught up. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

FORGET_FROM = 256  # tenants kept in mind


class TokenShares:
    """Of one class. `waiting` are the tenants that have a request there."""

    __slots__ = ("_served",)

    def __init__(self) -> None:
        self._served: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._served)

    def come(self, tenant: str, waiting: Collection[str]) -> None:
        """A request of `tenant` comes to wait beside those of `waiting`."""
        if not waiting:
            self._served.clear()
        if tenant in waiting:
            return
        least = min((self._served.get(other, 0) for other in waiting), default=0)
        self._served[tenant] = max(self._served.get(tenant, 0), least)
        if len(self._served) > FORGET_FROM:
            kept = {*waiting, tenant}
            self._served = {t: served for t, served in self._served.items() if t in kept or served > least}

    def next_of(self, waiting: Collection[str]) -> str:
        """The tenant whose turn it is; the first by name of equals."""
        return min(waiting, key=lambda tenant: (self._served.get(tenant, 0), tenant))

    def serve(self, tenant: str, tokens: int) -> None:
        """A request of `tenant` is served."""
        self._served[tenant] = self._served.get(tenant, 0) + tokens
