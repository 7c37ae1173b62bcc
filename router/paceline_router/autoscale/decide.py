"""What to do now: the law's sizes over time become changes (DESIGN §7).

Up at once to what the measured rate asks for, where that is more for sure (evidence.py) or requests miss already.
Down to what is enough for the rate of the last minutes and its doubt, never below a size that was surely needed at any
moment of the whole stabilisation window, and only by a process that saw that window without a gap. Invariants: no
change leaves a pool's bounds; none makes the sizes exceed maxGPUs, counting what is yet to shrink; a tick without
signals changes nothing; a held pool, and one that is starting, rolling out or failing, does not shrink. A pool above a
new bound or budget shrinks like any other. Pure: `now` is monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf

from paceline_router.autoscale.correction import COLD_S, Learned, is_instructive, misses, move, observe, tokens_per_s
from paceline_router.autoscale.evidence import Rates, with_rates
from paceline_router.autoscale.explain import level, replicas
from paceline_router.autoscale.ladder import Sizes, gpus_of
from paceline_router.autoscale.law import Sizing, present, sized, within_budget
from paceline_router.autoscale.outlook import PHASES, Model, Outlook
from paceline_router.autoscale.phases import Factors
from paceline_router.autoscale.signals import Change, PoolSignals, Ruling, ServiceSignals
from paceline_router.facts import Role


@dataclass(slots=True)
class Window:
    """The sizes surely needed at each tick since sight began, back to the last before the stabilisation window."""

    ticks: deque[tuple[float, Sizes]] = field(default_factory=deque)

    def add(self, now: float, needed: Sizes, length_s: float) -> None:
        self.ticks.append((now, needed))
        while len(self.ticks) > 1 and self.ticks[1][0] <= now - length_s:
            self.ticks.popleft()

    def seen_s(self, now: float) -> float:
        return now - self.ticks[0][0] if self.ticks else 0.0

    def last_s(self) -> float | None:
        return self.ticks[-1][0] if self.ticks else None

    def greatest(self, pool: str) -> int:
        return max(needed[pool] for _, needed in self.ticks)


class Pacer:
    """One service's memory from tick to tick. `stabilisation_s` may be set at any time."""

    def __init__(self, stabilisation_s: float, model: Model = PHASES) -> None:
        self.stabilisation_s = stabilisation_s
        self._model = model
        self._window, self._rates = Window(), Rates()
        self._terms: Mapping[str, Hashable] = {}
        self._learned: dict[Role, Learned] = {}
        self._taught_s: dict[Role, float] = {}  # when each factor last moved, or began to be comparable
        self._raised_s = -inf  # when verdicts last raised a factor
        self._longest_gap_s = 0.0  # ticks this far apart see every arrival: the window of the rates

    @property
    def factors(self) -> Factors:
        """How much more load each role sees than predicted, as far as that is learned at a load like the present."""
        return {role: learned.left for role, learned in self._learned.items()}

    def rule(self, signals: ServiceSignals, now: float) -> Ruling:
        """What to change at `now`. Asked again before a change shows in the signals, it says the same again."""
        self._longest_gap_s = signals.window_s
        self._notice_gap(now)
        self._notice_terms(signals, now)
        self._rates.add(signals, now)
        known = self._rates.known(signals)
        load = tokens_per_s(with_rates(signals, {name: rate.mean for name, rate in known.items()}))
        outlook, sizing = self._correct(Outlook(signals, self.factors, self._model(signals)), load, now)
        sure = now - self._raised_s < signals.window_s or misses(signals, sizing.targets)
        surely = self._least(with_rates(signals, {name: rate.low for name, rate in known.items()}))
        needed = sizing.sizes if sure else surely
        self._window.add(now, needed, self.stabilisation_s)
        likely = self._least(with_rates(signals, {name: rate.high for name, rate in known.items()}))
        enough = {name: max(n, sizing.sizes[name]) for name, n in likely.items()}
        smaller, waits = self._shrink(signals, enough, sizing, now)
        after = {**_grow(outlook, sizing, needed), **smaller}
        return Ruling(
            wanted=sizing.sizes,
            changes=tuple(
                self._change(outlook, p, after, sizing) for p in signals.pools if after[p.name] != p.replicas
            ),
            predicted=outlook.at({pool.name: pool.ready for pool in signals.pools}),
            unattainable=sizing.unattainable,
            factors=self.factors,
            waits="; ".join(waits),
        )

    def blind(self, now: float) -> None:
        """A tick without signals: nothing changes, and sight ends where it lasts longer than the rates' window."""
        self._notice_gap(now)

    def restart(self, now: float) -> None:
        """The clock jumped: what was seen is not a window of known length, and verdicts may be of any time."""
        self._window, self._rates = Window(), Rates()
        self._taught_s = dict.fromkeys(Role, now)

    def seen_s(self, now: float) -> float:
        """How much of the stabilisation window has been seen without a gap, seconds."""
        return min(self._window.seen_s(now), self.stabilisation_s)

    def _notice_gap(self, now: float) -> None:
        last_s = self._window.last_s()
        if last_s is not None and not 0.0 <= now - last_s <= self._longest_gap_s:
            self._window, self._rates = Window(), Rates()

    def _notice_terms(self, signals: ServiceSignals, now: float) -> None:
        """Sizes wanted on other terms are forgotten; verdicts on other objectives, and other engines, teach nothing."""
        pools = tuple((p.name, p.role, p.gpus, p.engine.table.name, p.engine.table.tensor) for p in signals.pools)
        bounds = tuple((p.name, p.least, p.most) for p in signals.pools)
        classes = tuple(c.slo for c in signals.classes)
        terms = {"pools": pools, "classes": classes, "limits": (bounds, signals.max_gpus)}
        before, self._terms = self._terms, terms
        if not before or before == terms:
            return
        self._window, self._rates = Window(), Rates()
        if before["pools"] != pools:
            self._learned = {}
        if before["pools"] != pools or before["classes"] != classes:
            self._taught_s = dict.fromkeys(Role, now)

    def _correct(self, outlook: Outlook, load: float, now: float) -> tuple[Outlook, Sizing]:
        """Moves the factors, each at most once for each window's verdicts; the law under what they are then."""
        self._learned = {role: learned.at(load) for role, learned in self._learned.items()}
        outlook = outlook.under(self.factors)
        sizing, signals = sized(outlook), outlook.signals
        if sizing.limited or not sizing.targets:
            return outlook, sizing
        for role in Role:
            if now - self._taught_s.get(role, -inf) >= signals.window_s + COLD_S and is_instructive(signals, role):
                before, interval = self.factors, observe(outlook, role, sizing.targets)
                moved = move(before, role, interval, _wanted(outlook, role)) if interval else before
                if moved != before:
                    self._raised_s = now if moved[role] > before.get(role, 1.0) else self._raised_s
                    self._learned[role], self._taught_s[role] = Learned(moved[role], load), now
                    outlook = outlook.under(moved)
                    sizing = sized(outlook)
        return outlook, sizing

    def _least(self, signals: ServiceSignals) -> Sizes:
        return sized(Outlook(signals, self.factors, self._model(signals))).sizes

    def _shrink(self, signals: ServiceSignals, enough: Sizes, sizing: Sizing, now: float) -> tuple[Sizes, list[str]]:
        """The sizes of the pools that shrink now, and why others that are larger than is enough wait."""
        smaller, waits = dict[str, int](), []
        for pool in signals.pools:
            if enough[pool.name] < pool.replicas:
                wait = self._waits(signals, pool, enough, sizing, now)
                if wait:
                    waits.append(f"{pool.name} {pool.replicas} → {enough[pool.name]}: {wait}")
                else:
                    smaller[pool.name] = max(enough[pool.name], self._window.greatest(pool.name))
        return smaller, waits

    def _waits(self, signals: ServiceSignals, pool: PoolSignals, enough: Sizes, sizing: Sizing, now: float) -> str:
        """Why a pool that is larger than wanted stays so for now; empty: it shrinks."""
        length = f"{self.stabilisation_s:g} s"
        if self.seen_s(now) < self.stabilisation_s:
            return f"{self.seen_s(now):.0f} of {length} seen"
        if self._window.greatest(pool.name) >= pool.replicas:
            return f"{replicas(pool.replicas)} needed within the last {length}"
        if pool.ready != pool.replicas or pool.settled_s <= 0.0:
            return f"{pool.ready} of {replicas(pool.replicas)} ready, and not settled"
        for other in signals.pools:
            needed = self._relied_on(signals, other, enough, sizing)
            if other is not pool and other.ready < needed:
                return f"{other.name} has {other.ready} of {needed} ready"
        return ""

    def _relied_on(self, signals: ServiceSignals, pool: PoolSignals, enough: Sizes, sizing: Sizing) -> int:
        """Ready replicas without which no other pool shrinks: those there are, and those it may still grow by."""
        spent = gpus_of(signals, present(signals)) + pool.gpus
        may_grow = signals.max_gpus is None or spent <= signals.max_gpus
        coming = max(pool.replicas, sizing.sizes[pool.name]) if may_grow else pool.replicas
        return min(enough[pool.name], coming)

    def _change(self, outlook: Outlook, pool: PoolSignals, after: Sizes, sizing: Sizing) -> Change:
        name, n, wanted = pool.name, after[pool.name], sizing.sizes[pool.name]
        binding, why = sizing.binding[name], sizing.why[name]
        if n < pool.replicas:
            now = level(outlook, after, sizing.targets) if sizing.targets else why
            why = f"{replicas(n)} {'is' if n == 1 else 'are'} enough, "
            why += f"and no more were surely needed for {self.stabilisation_s:g} s: {now}"
        elif n < wanted:
            binding = ""
            why = (
                f"maxGPUs {outlook.signals.max_gpus} leaves {n} of {replicas(wanted)} until another pool shrinks: {why}"
            )
        return Change(name, pool.replicas, n, binding, why)


def _grow(outlook: Outlook, sizing: Sizing, needed: Sizes) -> Sizes:
    """All sizes with what may grow; GPUs that a pool gives up are spent only once /scale says so."""
    here = present(outlook.signals)
    larger = {name: max(needed[name], sizing.sizes[name]) if needed[name] > n else n for name, n in here.items()}
    return within_budget(outlook, larger, here, sizing.targets)


def _wanted(outlook: Outlook, role: Role) -> Callable[[Factors], int]:
    """The replicas of a role that some factors ask for."""
    names = [pool.name for pool in outlook.signals.pools if pool.role is role]

    def wanted(factors: Factors) -> int:
        sizes = sized(outlook.under(factors)).sizes
        return sum(sizes[name] for name in names)

    return wanted
