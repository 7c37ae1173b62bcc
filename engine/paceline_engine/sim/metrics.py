"""What one simulated engine measures, and its text for Prometheus: vLLM's names, and DESIGN §9's beside them.

Steps are observed into plain lists, and everything else is read from the replica when it is scraped: 64 replicas in a
process take thousands of steps a second, and a scrape must not hold the others up (prometheus_client's own collectors
take ten times as long). Invariant: a scrape shows each leg received in exactly one of running, waiting or a result.
Times are model seconds, except the lateness, which is wall seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# vLLM 0.32's own buckets, v1/metrics/loggers.py; the other histograms' are ours.
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STEP_S = (0.002, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
LATENESS_S = (0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1)


class LegResult(StrEnum):
    """How a request to this engine ended; the router counts the same legs from its side."""

    FINISHED = "finished"  # the whole answer was sent
    ABORTED = "aborted"  # the caller left, or read too slowly
    FAILED = "failed"  # 500, or a stream cut by the end of a drain
    REJECTED = "rejected"  # 4xx
    REFUSED = "refused"  # 503: loading or draining


class Histogram:
    """Counts by bucket; `bounds` are upper and inclusive."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        seen = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {seen}'
        yield f"{name}_count{{{labels}}} {seen}"
        yield f"{name}_sum{{{labels}}} {self._sum}"


class EngineMetrics:
    """The measurements of one replica that nothing else keeps."""

    def __init__(self) -> None:
        self.ttft = Histogram(TTFT_S)
        self.itl = Histogram(TOKEN_S)
        self.tpot = Histogram(TOKEN_S)
        self.e2e = Histogram(LATENCY_S)
        self.queue = Histogram(LATENCY_S)
        self.iteration_tokens = Histogram(ITERATION_TOKENS)
        self.prefill_tokens = Histogram(ITERATION_TOKENS)
        self.decode_tokens = Histogram(ITERATION_TOKENS)
        self.measured = Histogram(STEP_S)
        self.predicted = Histogram(STEP_S)
        self.lateness = Histogram(LATENESS_S)
        self.legs = dict.fromkeys(LegResult, 0)
        self.success = {"stop": 0, "length": 0, "abort": 0}
        self.kv_failures = dict.fromkeys(("gone", "late", "timeout", "unreachable", "mismatch"), 0)

    def on_step(self, prefill_tokens: int, decodes: int, measured_s: float, predicted_s: float, late_s: float) -> None:
        """One step's shape, times and lateness (wall)."""
        self.iteration_tokens.observe(prefill_tokens + decodes)
        if prefill_tokens:
            self.prefill_tokens.observe(prefill_tokens)
        if decodes:
            self.decode_tokens.observe(decodes)
        self.measured.observe(measured_s)
        self.predicted.observe(predicted_s)
        self.lateness.observe(late_s)

    def histograms(self) -> Iterable[tuple[str, str, Histogram]]:
        """(name, its own labels, histogram), those of one name together."""
        yield "vllm:time_to_first_token_seconds", "", self.ttft
        yield "vllm:inter_token_latency_seconds", "", self.itl
        yield "vllm:request_time_per_output_token_seconds", "", self.tpot
        yield "vllm:e2e_request_latency_seconds", "", self.e2e
        yield "vllm:request_queue_time_seconds", "", self.queue
        yield "vllm:iteration_tokens_total", "", self.iteration_tokens
        yield "paceline_step_tokens", 'phase="prefill"', self.prefill_tokens
        yield "paceline_step_tokens", 'phase="decode"', self.decode_tokens
        yield "paceline_step_seconds", 'kind="measured"', self.measured
        yield "paceline_step_seconds", 'kind="predicted"', self.predicted
        yield "paceline_sim_lateness_seconds", "", self.lateness


Sample = tuple[str, str, str, float]  # type, name (counters without _total), its own labels, value


def render(common: str, samples: Iterable[Sample], metrics: EngineMetrics) -> bytes:
    """The exposition: `samples`, then the histograms. `common` are labels that every line bears."""
    lines: list[str] = []
    last = ""
    for kind, name, own, value in samples:
        full = f"{name}_total" if kind == "counter" else name
        if name != last:
            lines.append(f"# TYPE {full} {kind}")
            last = name
        lines.append(f"{full}{{{_join(common, own)}}} {value}")
    for name, own, histogram in metrics.histograms():
        if name != last:
            lines.append(f"# TYPE {name} histogram")
            last = name
        lines += histogram.lines(name, _join(common, own))
    lines.append("")
    return "\n".join(lines).encode()


def labels(pairs: Mapping[str, object]) -> str:
    """`a="x",b="y"` with the values escaped."""
    return ",".join(f'{k}="{_escaped(str(v))}"' for k, v in pairs.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _join(common: str, own: str) -> str:
    return f"{common},{own}" if own else common
