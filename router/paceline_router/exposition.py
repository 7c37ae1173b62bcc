"""Reads engines' /metrics: only what the router decides by, so that a large exposition costs little.

The facts of each scrape are parsed at once, the histograms of a fleet only when its own /metrics are asked for. Does no
I/O. Invariant: a family that is absent or makes no sense leaves its default; nothing that an engine says
raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from paceline_engine.step_time import GREATEST_SCALE, LARGEST_OFFSET_S, LEAST_SCALE, StepTable
from paceline_engine.tables import TableMissing, load_table
from paceline_engine.work import CONTEXT_TOKENS, PACE, PACED_REQUESTS, QUEUED_TOKENS, Work
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from paceline_router.facts import Facts
from paceline_router.quantile import bucket_quantile
from paceline_router.replica import NOTHING_TOLD, Told

_STEPS, _TOKENS = "paceline_step_seconds_count", ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
_WANTED = (
    "paceline_step_time_scale",
    "paceline_step_time_offset_seconds",
    "paceline_token_budget_tokens",
    "vllm:cache_config_info",
    *(QUEUED_TOKENS, CONTEXT_TOKENS, PACED_REQUESTS),
    *(_STEPS, *_TOKENS),
)
MOST_COUNTED = 1e12  # of anything: beyond it a value makes no sense
LATENESS, STEP = "paceline_sim_lateness_seconds", "paceline_step_seconds"


@dataclass(frozen=True, slots=True)
class Scraped:
    """One engine's answer: `told` is what its counters say; `histograms` are the lines of those on how it runs."""

    facts: Facts
    told: Told = NOTHING_TOLD
    histograms: str = ""


def read(text: str, now: float, model: str, tensor: int) -> Scraped:
    """`text` is a Prometheus exposition scraped at `now`, model seconds.

    An engine's scale bears the labels of its table: `table`, `model`, `tensor`; where the last two are missing they are
    the service's own.
    """
    lines = text.splitlines()
    samples = _samples(line for line in lines if line.startswith(_WANTED))
    facts = Facts(seen_at_s=now)
    for sample in samples.get("paceline_step_time_scale", ()):
        if not LEAST_SCALE <= sample.value <= GREATEST_SCALE:
            continue
        if sample.labels.get("regime") == "decode":
            facts = replace(facts, decode_scale=sample.value)
        else:
            facts = replace(facts, mixed_scale=sample.value)
    for sample in samples.get("paceline_step_time_offset_seconds", ()):
        if abs(sample.value) > LARGEST_OFFSET_S:
            continue
        if sample.labels.get("regime") == "decode":
            facts = replace(facts, decode_offset_s=sample.value)
        else:
            facts = replace(facts, mixed_offset_s=sample.value)
    for sample in samples.get("paceline_token_budget_tokens", ()):
        if sample.value >= 1:
            facts = replace(facts, token_budget=int(min(sample.value, 1e9)))
    for sample in samples.get("vllm:cache_config_info", ()):
        facts = _with_cache(facts, sample.labels)
    facts = replace(facts, table=_table(samples, model, tensor), work=_work(samples))
    histograms = (line for line in lines if line.startswith((f"{LATENESS}_bucket", f"{STEP}_bucket")))
    return Scraped(facts, _told(samples), "\n".join(histograms))


def fleet_quantile(fleet: Iterable[Scraped], name: str, q: float, where: Mapping[str, str]) -> float | None:
    """Of a histogram over all engines of the fleet, in their own units; None where none has observed anything."""
    counts: dict[float, float] = {}
    for scraped in fleet:
        lines = [line for line in scraped.histograms.splitlines() if line.startswith(f"{name}_bucket")]
        for sample in _samples(lines).get(f"{name}_bucket", ()):
            le = sample.labels.get("le", "")
            if all(sample.labels.get(key) == value for key, value in where.items()) and _is_number(le):
                counts[float(le)] = counts.get(float(le), 0.0) + sample.value
    return bucket_quantile(sorted(counts.items()), q)


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _samples(lines: Iterable[str]) -> Mapping[str, list[Sample]]:
    """Samples by name; a line that cannot be read loses them all, as a torn answer would."""
    found: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    found.setdefault(sample.name, []).append(sample)
    except ValueError:
        return {}
    return found


def _with_cache(facts: Facts, labels: Mapping[str, str]) -> Facts:
    block, blocks = labels.get("block_size", ""), labels.get("num_gpu_blocks", "")
    if not (block.isdigit() and blocks.isdigit() and int(block) and int(blocks)):
        return facts
    return replace(facts, kv_tokens=int(block) * int(blocks))


def _work(samples: Mapping[str, list[Sample]]) -> Work | None:
    queued = _count(samples, QUEUED_TOKENS)
    if queued is None:
        return None
    paces = {
        float(pace): int(s.value)
        for s in samples.get(PACED_REQUESTS, ())
        if _is_number(pace := s.labels.get(PACE, "")) and float(pace) > 0 and 1 <= s.value <= MOST_COUNTED
    }
    return Work(queued, _count(samples, CONTEXT_TOKENS) or 0, paces)


def _count(samples: Mapping[str, list[Sample]], name: str) -> int | None:
    """Over whatever labels there are; None where the engine does not tell."""
    found = [sample.value for sample in samples.get(name, ()) if 0 <= sample.value <= MOST_COUNTED]
    return int(sum(found)) if found else None


def _told(samples: Mapping[str, list[Sample]]) -> Told:
    steps = sum(s.value for s in samples.get(_STEPS, ()) if s.labels.get("kind") == "measured")
    return Told(steps, sum(s.value for name in _TOKENS for s in samples.get(name, ())))


def _table(samples: Mapping[str, list[Sample]], model: str, tensor: int) -> StepTable | None:
    for sample in samples.get("paceline_step_time_scale", ()):
        labels = sample.labels
        its_tensor = labels.get("tensor", "")
        try:
            return load_table(
                labels.get("table", ""), labels.get("model", model), int(its_tensor) if its_tensor.isdigit() else tensor
            )
        except TableMissing:
            continue
    return None
