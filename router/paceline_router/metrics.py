"""The router's counters and histograms (DESIGN §9), cheap enough for one observation a token.

prometheus_client exposes them; it does not count them, because a lock and a label lookup a token would cost more than
the relay. Invariant: received = Σ outcomes + in flight, at every moment at which a scrape can look. Units are model
seconds, but for the router's own overhead, which is CPU time of this machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass, Verdict
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from paceline_router.facts import Role

SERVICE_LABELS = ("llmservice", "llmservice_namespace")

TIME_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
ERROR_BOUNDS_S = (-10.0, -2.5, -1.0, -0.25, -0.1, -0.025, -0.01, 0.0, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0)
OVERHEAD_BOUNDS_S = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
TOKEN_BOUNDS = tuple(float(2**n) for n in range(18))


class Ejection(StrEnum):
    """`cause` of paceline_replica_ejections_total: why a replica got nothing new for a time."""

    FAILED = "failed"  # a request of ours found it unreachable, refusing, or broke off
    UNANSWERED = "unanswered"  # its probes had no answer
    SILENT = "silent"  # it gave no sign of work
    ERRING = "erring"  # it answered with errors alone


class Counters:
    """One counter family: label values → count."""

    __slots__ = ("help", "labels", "name", "values")

    def __init__(self, name: str, help_: str, labels: tuple[str, ...]) -> None:
        self.name, self.help, self.labels = name, help_, labels
        self.values: dict[tuple[str, ...], int] = {}

    def begin(self, *labels: str) -> None:
        """Shows 0 before the first is counted, so that an increase is seen."""
        self.values.setdefault(labels, 0)

    def add(self, *labels: str, count: int = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + count

    def collect(self, service: tuple[str, str]) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=(*SERVICE_LABELS, *self.labels))
        for labels, value in list(self.values.items()):
            family.add_metric((*service, *labels), value)
        return family


class Histogram:
    """One histogram family; `observe` costs a bisection."""

    __slots__ = ("bounds", "help", "labels", "name", "values")

    def __init__(self, name: str, help_: str, labels: tuple[str, ...], bounds: Iterable[float]) -> None:
        self.name, self.help, self.labels = name, help_, labels
        self.bounds = sorted(set(bounds))
        self.values: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}  # counts per bucket; [sum]

    def rebound(self, bounds: Iterable[float]) -> None:
        """Other buckets from now on. Counts at bounds that stay are exact; at a new bound, those known to be below."""
        bounds = sorted(set(bounds))
        upper = [bisect_left(bounds, bound) for bound in self.bounds] + [len(bounds)]  # old bucket → new one
        for labels, (counts, total) in self.values.items():
            moved = [0] * (len(bounds) + 1)
            for index, count in zip(upper, counts, strict=True):
                moved[index] += count
            self.values[labels] = (moved, total)
        self.bounds = bounds

    def observe(self, value: float, *labels: str) -> None:
        found = self.values.get(labels)
        if found is None:
            found = self.values[labels] = ([0] * (len(self.bounds) + 1), [0.0])
        found[0][bisect_left(self.bounds, value)] += 1
        found[1][0] += value

    def collect(self, service: tuple[str, str]) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=(*SERVICE_LABELS, *self.labels))
        names = [*(_bound(bound) for bound in self.bounds), "+Inf"]
        for labels, (counts, total) in list(self.values.items()):
            running, buckets = 0, []
            for name, count in zip(names, counts, strict=True):
                running += count
                buckets.append((name, float(running)))
            family.add_metric((*service, *labels), buckets, total[0])
        return family


def _bound(bound: float) -> str:
    return repr(float(bound))


class RouterMetrics(Collector):
    """Everything that the router counts. Made in `__main__`, registered there, passed down."""

    def __init__(self, service: str, namespace: str, classes: Mapping[str, SLOClass]) -> None:
        self._service = (service, namespace)
        by_class = ("slo_class",)
        self.received = Counters("paceline_requests_received", "Requests received.", by_class)
        self.outcomes = Counters(
            "paceline_requests",
            "Requests that ended, by outcome.",
            (*by_class, "outcome"),
        )
        self.decided = Counters(
            "paceline_slo_decided",
            "Requests whose verdict on their class's objective is decided.",
            (*by_class, "result"),
        )
        self.tightened = Counters(
            "paceline_slo_tightened_decided",
            "Of requests with limits of their own, tighter than their class's: the verdict on those.",
            (*by_class, "result"),
        )
        self.misses = Counters("paceline_miss", "Missed objectives, by what took the time.", (*by_class, "cause"))
        self.legs = Counters("paceline_legs", "Requests sent to engines, by how they ended.", ("role", "result"))
        self.retries = Counters("paceline_retries", "Steps taken after a leg failed.", ("leg", "fault", "step"))
        self.ejections = Counters("paceline_replica_ejections", "Replicas found unwell, by how.", ("role", "cause"))
        for role in Role:
            for ejection in Ejection:
                self.ejections.begin(role, ejection)
        self.transfer_failures = Counters("paceline_kv_transfer_failures", "Prefills or KV hand-overs that failed.", ())
        self.transfer_failures.begin()
        self.passthrough = Counters(
            "paceline_passthrough_requests",
            "Requests that are not for tokens, by the status they were answered with.",
            ("path", "code"),
        )
        self.ttft = Histogram("paceline_ttft_seconds", "Receipt to first content sent.", by_class, ())
        self.tpot = Histogram("paceline_tpot_seconds", "Mean time per output token after the first.", by_class, ())
        self.itl = Histogram("paceline_itl_seconds", "Gaps between tokens of a stream.", by_class, ())
        self.queue = Histogram(
            "paceline_queue_seconds", "Receipt to the sending of the leg that led to the first token.", by_class, ()
        )
        self.prompt = Histogram(
            "paceline_prompt_tokens",
            "Prompt tokens of requests as they arrive; those of text are estimated.",
            by_class,
            TOKEN_BOUNDS,
        )
        self.output = Histogram(
            "paceline_output_tokens", "Output tokens of completed requests.", by_class, TOKEN_BOUNDS
        )
        self.ttft_error = Histogram(
            "paceline_predicted_ttft_error_seconds", "Actual − predicted, from the choice on.", (), ERROR_BOUNDS_S
        )
        self.tpot_error = Histogram("paceline_predicted_tpot_error_seconds", "Actual − predicted.", (), ERROR_BOUNDS_S)
        self.overhead = Histogram(
            "paceline_router_overhead_seconds",
            "Wall seconds from having all of a request to the sending of its first leg.",
            (),
            OVERHEAD_BOUNDS_S,
        )
        self.adopt(classes)

    def adopt(self, classes: Mapping[str, SLOClass]) -> None:
        """These are the classes from now on: their limits are bucket bounds, their counters begin at 0."""
        for name in classes:
            self.received.begin(name)
            for outcome in Outcome:
                self.outcomes.begin(name, outcome)
            for verdict in Verdict:
                self.decided.begin(name, verdict)
        ttft = (*TIME_BOUNDS_S, *(c.ttft_s for c in classes.values()))
        tpot = (*TIME_BOUNDS_S, *(c.tpot_s for c in classes.values()), *(c.stall_s for c in classes.values()))
        for histogram, bounds in ((self.ttft, ttft), (self.queue, ttft), (self.tpot, tpot), (self.itl, tpot)):
            histogram.rebound(bounds)

    def collect(self) -> Iterator[Metric]:
        for family in vars(self).values():
            if isinstance(family, Counters | Histogram):
                yield family.collect(self._service)
