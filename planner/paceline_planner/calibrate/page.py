"""Reads an engine's `/metrics` for a calibration: its load, its KV, and what its prompts and tokens have cost so far.

Every time is the engine's own: no client, network or HTTP share is in it. The cost of a prompt is the time from
schedule to first token; engines that do not publish that give time to first token less time in the queue. Does no I/O.
Invariant: a page that is not one vLLM engine's is a CalibrateError that says what to give instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paceline_engine.sim.worker import SLIP_WALL_S
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from paceline_planner.calibrate import CalibrateError

_WANTED = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:cache_config_info",
    "vllm:prefix_cache_hits",
    "vllm:request_prefill_time_seconds",
    "vllm:time_to_first_token_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:inter_token_latency_seconds",
    "paceline_token_budget_tokens",
    "paceline_sim_lateness_seconds",
    "paceline_fleet_info",
)


@dataclass(frozen=True, slots=True)
class Page:
    """One scrape. `prompts` and `prompts_s`: prompts computed, and the seconds of their steps.

    `gaps` and `gaps_s`: times between two tokens of a request, and their seconds. `slips`: steps of a simulated engine
    that its own machine held up, so that they took longer than they should have.
    """

    running: int
    waiting: int
    kv_tokens: int
    prefix_hits: float | None
    prompts: int
    prompts_s: float
    gaps: int
    gaps_s: float
    slips: int = 0
    step_tokens: int = 0  # the most that the engine's scheduler puts into a step; 0 where it does not say

    @property
    def requests(self) -> int:
        return self.running + self.waiting


def read(text: str, url: str) -> Page:
    """CalibrateError for what is not one engine's page."""
    lines = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    try:
        samples = [s for family in text_string_to_metric_families(lines + "\n") for s in family.samples]
    except (ValueError, KeyError, IndexError) as e:
        raise CalibrateError(f"{url}/metrics is not Prometheus' text format ({e}); give an engine's URL") from e
    names = {s.name for s in samples}
    if "paceline_fleet_info" in names:
        raise CalibrateError(f"{url} is a router; give the URL of one of its engines")
    if "vllm:num_requests_running" not in names:
        raise CalibrateError(f"{url}/metrics has no vllm:num_requests_running; give the URL of a vLLM engine")
    if len({s.labels.get("engine") for s in samples if s.name == "vllm:num_requests_running"}) > 1:
        raise CalibrateError(f"{url} runs several engines (data parallel); calibrate one with a single engine")
    return _page(samples, names)


def _page(samples: list[Sample], names: set[str]) -> Page:
    def total(name: str) -> float:
        return sum(s.value for s in samples if s.name == name)

    if "vllm:request_prefill_time_seconds_sum" in names:
        prompts = total("vllm:request_prefill_time_seconds_count")
        prompts_s = total("vllm:request_prefill_time_seconds_sum")
    else:
        prompts = total("vllm:time_to_first_token_seconds_count")
        prompts_s = total("vllm:time_to_first_token_seconds_sum") - total("vllm:request_queue_time_seconds_sum")
    lateness = "paceline_sim_lateness_seconds_bucket"
    on_time = sum(s.value for s in samples if s.name == lateness and float(s.labels.get("le", 0)) == SLIP_WALL_S)
    cache: Mapping[str, str] = next((s.labels for s in samples if s.name == "vllm:cache_config_info"), {})
    block, blocks = cache.get("block_size", ""), cache.get("num_gpu_blocks", "")
    return Page(
        running=int(total("vllm:num_requests_running")),
        waiting=int(total("vllm:num_requests_waiting")),
        kv_tokens=int(block) * int(blocks) if block.isdecimal() and blocks.isdecimal() else 0,
        prefix_hits=total("vllm:prefix_cache_hits_total") if "vllm:prefix_cache_hits_total" in names else None,
        prompts=int(prompts),
        prompts_s=prompts_s,
        gaps=int(total("vllm:inter_token_latency_seconds_count")),
        gaps_s=total("vllm:inter_token_latency_seconds_sum"),
        step_tokens=int(total("paceline_token_budget_tokens")),
        slips=int(total("paceline_sim_lateness_seconds_count") - on_time),
    )
