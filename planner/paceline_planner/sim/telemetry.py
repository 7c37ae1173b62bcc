"""What a simulated fleet's routers count, Prometheus samples, and the autoscaler is answered.

The counters are production's own (`RouterMetrics`, `Tracker`); only HTTP and PromQL are not there: each signal is
computed as its query in paceline_router.scaling.queries says, with Prometheus' rule for increases over the samples of a
window. Invariant: an answer knows nothing that happened after the last scrape. Times are seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass, Verdict
from paceline_engine.step_time import Regime
from paceline_router.metrics import Counters, Histogram, RouterMetrics
from paceline_router.quantile import bucket_quantile
from paceline_router.scaling.answers import Answers
from paceline_router.scaling.queries import MEASURED_LENGTHS, Row, Signal, report_s, window_s
from paceline_router.tracker import Followed, Tracker

from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.members import Members
from paceline_planner.sim.rides import Ride

Key = tuple[str, ...]  # metric, labels
EXTRAPOLATED = 1.1  # of the mean interval: a window's end that is further from a sample than this is not reached
HISTOGRAMS = ("prompt", "output", "ttft", "tpot")


@dataclass(frozen=True, slots=True)
class Sample:
    """One scrape of routers and engines. `engines` are rows of those signals that are about engines."""

    at_s: float
    counts: Mapping[Key, float]
    engines: Mapping[Signal, tuple[Row, ...]]
    waiting: Mapping[str, float] = field(default_factory=dict)  # by pool: requests in its engines' queues


class Telemetry:
    """Of one service; `arrived`, `first_token` and `ended` are the fleet's to call."""

    def __init__(self, classes: Mapping[str, SLOClass], scrape_s: float) -> None:
        self.classes = classes
        self.scrape_s = scrape_s
        self.metrics = RouterMetrics("sim", "sim", classes)
        self.samples: deque[Sample] = deque()
        self._tracker = Tracker()
        self._followed: dict[int, Followed] = {}

    def arrived(self, ride: Ride) -> None:
        name = ride.job.class_name
        self.metrics.received.add(name)
        self.metrics.prompt.observe(ride.job.prompt_tokens, name)

        def decided(verdict: Verdict) -> None:
            self.metrics.decided.add(name, verdict)

        self._followed[ride.id] = self._tracker.follow(ride.course, self.classes[name], decided)

    def first_token(self, ride: Ride) -> None:
        self.metrics.ttft.observe(ride.course.ttft_s or 0.0, ride.job.class_name)
        self._tracker.first_token(self._followed[ride.id])

    def ended(self, ride: Ride) -> None:
        course, name = ride.course, ride.job.class_name
        assert course.outcome is not None
        assert course.end_s is not None
        self.metrics.outcomes.add(name, course.outcome)
        self._tracker.look(self._followed.pop(ride.id), course.end_s)
        if course.outcome is Outcome.COMPLETED:
            self.metrics.output.observe(course.output_tokens, name)
            if course.tpot_s is not None:
                self.metrics.tpot.observe(course.tpot_s, name)

    def scrape(self, fleet: Fleet, members: Members) -> None:
        """A sample of all; what is older than the longest window is forgotten."""
        self._tracker.tick(fleet.now)
        pools = {pod.name: pod.pool.name for pod in members.pods}
        waiting: dict[str, float] = {}
        for name, engine in fleet.engines.items():
            pool = pools[name]
            waiting[pool] = waiting.get(pool, 0.0) + len(engine.view.waiting) + len(engine.remote)
        self.samples.append(Sample(fleet.now, dict(self._counts()), _engine_rows(fleet, members), waiting))
        while len(self.samples) > 2 and self.samples[1].at_s < fleet.now - report_s(self.scrape_s):
            self.samples.popleft()

    def answers(self, now: float) -> Answers:
        """What Prometheus says at `now`."""
        rows: dict[Signal, tuple[Row, ...]] = dict(self.samples[-1].engines) if self.samples else {}
        rows |= {signal: tuple(found) for signal, found in self._router_rows(now).items()}
        if self.samples:
            age_s = now - self.samples[-1].at_s
            rows[Signal.ENGINE_AGES] = tuple(Row(row.labels, age_s) for row in rows[Signal.ENGINE_AGES])
        return Answers({("sim", "sim"): rows}, now, now, self.scrape_s)

    def p90(self, histogram: str, class_name: str, now: float) -> float | None:
        """Of `ttft` or `tpot` over the rates' window."""
        increase = self.increase(now, window_s(self.scrape_s))
        bounds = (*map(str, getattr(self.metrics, histogram).bounds), "inf")
        found = [(float(le), increase((histogram, class_name, le))) for le in bounds]
        return bucket_quantile(found, 0.9)

    def increase(self, now: float, length_s: float) -> Callable[[Key], float]:
        """Prometheus' increase over the samples of the window that ends at `now`."""
        seen = [s for s in self.samples if now - length_s < s.at_s <= now]
        if len(seen) < 2:
            return lambda key: 0.0
        first, last = seen[0], seen[-1]
        span = last.at_s - first.at_s
        mean = span / (len(seen) - 1)
        gaps = (first.at_s - (now - length_s), now - last.at_s)
        before, after = (gap if gap < EXTRAPOLATED * mean else mean / 2 for gap in gaps)

        def of(key: Key) -> float:
            had = first.counts.get(key, 0.0)
            more = last.counts.get(key, 0.0) - had
            reach = min(before, span * had / more) if more > 0 else 0.0  # a counter was never below 0
            return more * (reach + span + after) / span

        return of

    def _counts(self) -> Iterator[tuple[Key, float]]:
        for name, counters in (("received", self.metrics.received), ("outcomes", self.metrics.outcomes)):
            yield from _counted(name, counters)
        yield from _counted("decided", self.metrics.decided)
        for name in HISTOGRAMS:
            yield from _buckets(name, getattr(self.metrics, name))

    def _router_rows(self, now: float) -> dict[Signal, list[Row]]:
        if not self.samples:
            return {}
        window, report = window_s(self.scrape_s), report_s(self.scrape_s)
        recent, reported = self.increase(now, window), self.increase(now, report)
        rows: dict[Signal, list[Row]] = {
            Signal.ROUTER_AGES: [Row({"pod": "router"}, now - self.samples[-1].at_s)],
            Signal.COVERAGE: [Row({}, sum(now - window < s.at_s <= now for s in self.samples))],
        }
        for name in self.classes:
            labels = {"slo_class": name}
            came = recent(("received", name)) - recent(("outcomes", name, Outcome.REJECTED))
            rows.setdefault(Signal.ARRIVALS, []).append(Row(labels, max(came, 0.0) / window))
            for signal, increase in ((Signal.VERDICTS, recent), (Signal.REPORTED_VERDICTS, reported)):
                rows.setdefault(signal, []).extend(
                    Row({**labels, "result": v}, increase(("decided", name, v))) for v in Verdict
                )
            for signal, sums, metric in (
                (Signal.PROMPT_BUCKETS, Signal.PROMPT_SUM, "prompt"),
                (Signal.OUTPUT_BUCKETS, Signal.OUTPUT_SUM, "output"),
            ):
                lengths = self._lengths(metric, name, reported)
                rows.setdefault(signal, []).extend(
                    Row({**labels, "le": key[2]}, lengths(key)) for key in self.samples[-1].counts
                    if key[:2] == (metric, name) and key[2] != "sum"
                )  # fmt: skip
                rows.setdefault(sums, []).append(Row(labels, lengths((metric, name, "sum"))))
        return rows

    def _lengths(self, metric: str, class_name: str, reported: Callable[[Key], float]) -> Callable[[Key], float]:
        """Of the reporting window if enough were counted in it, else of all time."""
        if reported((metric, class_name, "inf")) >= MEASURED_LENGTHS:
            return reported
        return lambda key: self.samples[-1].counts.get(key, 0.0)


def _counted(name: str, counters: Counters) -> Iterator[tuple[Key, float]]:
    for labels, value in counters.values.items():
        yield (name, *labels), float(value)


def _buckets(name: str, histogram: Histogram) -> Iterator[tuple[Key, float]]:
    """Cumulative, and the sum."""
    for labels, (counts, total) in histogram.values.items():
        running = 0
        for le, value in zip((*map(str, histogram.bounds), "inf"), counts, strict=True):
            running += value
            yield (name, *labels, le), float(running)
        yield (name, *labels, "sum"), total[0]


def _engine_rows(fleet: Fleet, members: Members) -> dict[Signal, tuple[Row, ...]]:
    """Of those that are ready: Prometheus finds pods by their readiness here."""
    rows: dict[Signal, list[Row]] = {}
    for pool in members.pools:
        pods = [pod for pod in members.pods if pod.pool is pool and pod.name in fleet.engines]
        engines = [fleet.engines[pod.name] for pod in pods]
        labels = {"pool": pool.name}
        table = pool.replica.prior or pool.replica.machine.table
        rows.setdefault(Signal.ENGINE_AGES, []).extend(Row({**labels, "pod": p.name}, 0.0) for p in pods)
        rows.setdefault(Signal.RUNNING, []).extend(
            Row({**labels, "pod": p.name}, e.requests) for p, e in zip(pods, engines, strict=True)
        )
        if not engines:
            continue
        tensor = {"table": table.name, "model": table.model, "tensor": str(table.tensor)}
        rows.setdefault(Signal.TABLES, []).append(Row({**labels, **tensor}, len(engines)))
        kv = engines[0].view.kv
        blocks = {"block_size": str(kv.block_size), "num_gpu_blocks": str(kv.capacity)}
        rows.setdefault(Signal.KV, []).append(Row({**labels, **blocks}, len(engines)))
        for regime in Regime:
            fits = [e.model for e in engines if e.model.trusted(regime)]
            if fits:
                its = {**labels, "regime": regime}
                rows.setdefault(Signal.SCALES, []).append(Row(its, median(m.scale(regime) for m in fits)))
                rows.setdefault(Signal.OFFSETS, []).append(Row(its, median(m.offset_s(regime) for m in fits)))
    return {signal: tuple(found) for signal, found in rows.items()}
