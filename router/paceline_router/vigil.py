"""Listens to the engines: leaves out silent ones and those that err, asks elsewhere for what silent ones owe.

silence.py and outliers.py decide; here it is gathered and applied. A stream that had begun cannot be retried: its
client is told after the longer silence, sooner than it would run into its time limit, later than an engine that only
paused is back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from paceline_router.attempts import Fault
from paceline_router.metrics import Ejection
from paceline_router.outliers import Outliers
from paceline_router.shell import InFlight, Shell
from paceline_router.silence import Finding, Heard, Mute, Owed, Silences, Silent, Tried

_log = logging.getLogger(__name__)

LEAST_S = 2.0  # wall: two scrapes' interval, so that a page can tell of steps; model time where that runs slower


class Vigil:
    """Of one router; `probe_soon` hears of whom to look after."""

    def __init__(self, shell: Shell, probe_soon: Callable[[str], None]) -> None:
        least_s = LEAST_S * max(shell.clock.scale, 1.0)
        timeout_s = shell.config.kv_transfer.timeout_s
        self._shell = shell
        self._probe_soon = probe_soon
        self._silences = Silences(least_s, timeout_s, recompute=shell.guide.recompute)
        self._outliers = Outliers()
        self._owed: dict[str, list[tuple[InFlight, Owed]]] = {}

    def look(self, now: float) -> None:
        """Takes note of what was heard until `now`; to be called often."""
        ledger = self._shell.ledger
        erring = self._outliers.look(ledger.replicas, now)
        found = self._silences.look(ledger.replicas, ledger.errors, self._gather, now, self._outliers.suspects)
        for name in ledger.replicas:
            ledger.leave_out(name, name in self._silences.left_out)
        for finding in found:
            self._apply(finding)
        self._owed = {}
        for name in erring:
            _log.warning("replica=%s errors=%d", name, ledger.replicas[name].errors)
            self._count(name, Ejection.ERRING)

    def _gather(self) -> Mapping[str, Sequence[Owed]]:
        for job in self._shell.jobs:
            if (found := job.owed) is not None:
                self._owed.setdefault(found[0], []).append((job, found[1]))
        return {name: [owed for _, owed in each] for name, each in self._owed.items()}

    def _apply(self, finding: Finding) -> None:
        name = finding.name
        match finding:
            case Silent(_, silent_s, limit_s):
                waiting = self._jobs(name, begun=False)
                _log.warning(
                    "replica=%s silent_s=%.1f limit_s=%.1f retried=%d begun=%d",
                    *(name, silent_s, limit_s, len(waiting), len(self._jobs(name, begun=True))),
                )
                self._count(name, Ejection.SILENT)
                self._probe_soon(name)
                self._abandon(name, waiting, silent_s)
            case Mute(_, silent_s, _):
                begun = self._jobs(name, begun=True)
                _log.warning("replica=%s silent_s=%.1f ended=%d", name, silent_s, len(begun))
                self._abandon(name, begun, silent_s)
            case Tried():
                _log.info("replica=%s is tried again", name)
            case Heard(_, after_s):
                _log.info("replica=%s heard_after_s=%.1f", name, after_s)
            case _ as never:
                assert_never(never)

    def _count(self, name: str, cause: Ejection) -> None:
        self._shell.metrics.ejections.add(self._shell.ledger.replicas[name].role, cause)

    def _jobs(self, name: str, *, begun: bool) -> list[InFlight]:
        return [job for job, owed in self._owed.get(name, ()) if owed.begun is begun]

    def _abandon(self, name: str, jobs: Sequence[InFlight], silent_s: float) -> None:
        for job in jobs:
            job.abandon_leg(name, Fault.SILENT, f"the engine gave no sign of work for {silent_s:.1f} s")
