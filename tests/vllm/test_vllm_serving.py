"""`vllm serve` with our scheduler against vLLM's own, over HTTP: same answers, short gaps, our metrics on its page.

Both engines serve the 5 M model on one core each, and are measured in turns: whatever else the machine does falls on
both. Where it does so much that streams stall without a prompt, the quietest of three tries counts, and by how much.
"""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from gaps import Measured, Stream, complete, measure, prompt, quantile, together
from prometheus_client.parser import text_string_to_metric_families
from vllm_engine import serving

pytestmark = pytest.mark.requires("vllm")
TOKEN = "service-token"
BEARER = {"x-paceline-token": TOKEN}
JSON = {"content-type": "application/json"}
LIMIT_MS, LONG_TOKENS, ROUNDS = 30.0, 4000, 4
DATE, WORDS = "[0-9]{4}-[01][0-9]-[0-3][0-9]", ["alpha", "omega"]
STRUCTURES = ({"regex": DATE}, {"choice": WORDS})
PROMPTS = tuple(prompt(seed, tokens) for seed, tokens in enumerate((3, 40, 129, 700, 2500)))

Rounds = tuple[Measured, ...]  # of one side


@dataclass(slots=True)
class Seen:
    """What one engine answered."""

    answers: list[str] = field(default_factory=list)
    structured: list[str] = field(default_factory=list)
    measured: list[Rounds] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    after_abort: str = ""
    statuses: dict[str, int] = field(default_factory=dict)


def ask(port: int, tokens: list[int], headers: Mapping[str, str], output: int = 32) -> str:
    answer = asyncio.run(complete(port, Stream(), headers, prompt=tokens, max_tokens=output, ignore_eos=True))
    assert answer.status == 200
    return answer.text


async def structured(port: int, headers: Mapping[str, str]) -> list[str]:
    """Answers of given forms, while a long prompt is computed beside them."""
    long = asyncio.create_task(complete(port, Stream(), prompt=prompt(77, LONG_TOKENS), max_tokens=1))
    asked = (
        complete(port, Stream(), headers, prompt=PROMPTS[1], max_tokens=16, structured_outputs=form)
        for form in STRUCTURES
    )
    answers = await asyncio.gather(*asked)
    await long
    return [answer.text for answer in answers]


def status(port: int, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> int:
    """Of the answer to a request that is no generation, or one with a body that is odd."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {**JSON, **(headers or {})}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code


async def leave_early(port: int) -> None:
    """Eight clients that go away while their answers stream."""

    async def leave(k: int) -> None:
        stream = Stream()
        task = asyncio.create_task(complete(port, stream, prompt=prompt(k, 300), max_tokens=4000, ignore_eos=True))
        await stream.settled.wait()
        task.cancel()

    await asyncio.gather(*(leave(k) for k in range(8)))


def scrape(port: int) -> dict[str, float]:
    """Samples by name and their own labels' values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {
            " ".join((s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("model_name", "engine")))): s.value
            for family in families
            for s in family.samples
        }


def first_requests(port: int, headers: Mapping[str, str]) -> Seen:
    for tokens in (16, 64, 256, 1000, LONG_TOKENS):  # what the machine is like
        ask(port, prompt(tokens, tokens), {}, 8)
    answers = [ask(port, tokens, headers) for tokens in PROMPTS]
    return Seen(answers, asyncio.run(structured(port, headers)))


def last_requests(port: int, headers: Mapping[str, str], seen: Seen) -> None:
    asyncio.run(leave_early(port))
    seen.after_abort = ask(port, PROMPTS[1], headers)
    seen.metrics = scrape(port)


def noise_ms(*sides: Rounds) -> float:
    """What 1 % of the gaps exceed while no prompt is computed."""
    return max(1e3 * quantile(together(rounds).quiet_s, 0.99) for rounds in sides)


def in_turns(streams: int, *sides: tuple[int, Mapping[str, str]]) -> tuple[Rounds, ...]:
    """Each side measured so many times in turn; once more, and up to three times, while the machine is busy."""
    tries: list[tuple[Rounds, ...]] = []
    while len(tries) < 3 and not any(noise_ms(*runs) <= LIMIT_MS / 2 for runs in tries):
        rounds = [
            [
                asyncio.run(measure(port, long_tokens=LONG_TOKENS, rounds=1, streams=streams, seed=k, headers=headers))
                for port, headers in sides
            ]
            for k in range(ROUNDS)
        ]
        tries.append(tuple(zip(*rounds, strict=True)))
    return min(tries, key=lambda runs: noise_ms(*runs))


def provoke(port: int, seen: Seen) -> None:
    """What a stranger may try, what the bearer of the token may get wrong, and a drain."""
    ask_for = {"model": "m", "prompt": "a", "max_tokens": 1}
    odd = ask_for | {"kv_transfer_params": {"do_remote_prefill": True}}  # without a host: vLLM's engine would die of it
    objective = ask_for | {"vllm_xargs": {"slo_tpot_ms": []}}

    def generate(body: object, headers: Mapping[str, str] | None = None) -> int:
        return status(port, "POST", "/v1/completions", body, headers)

    seen.statuses = {
        "ready": status(port, "GET", "/readyz"),
        "stranger's transfer": generate(odd),
        "bearer's odd transfer": generate(odd, BEARER),
        "bearer's odd limit": generate(ask_for, BEARER | {"x-slo-tpot-ms": "-1"}),
        "stranger's objective": generate(objective),
        "stranger's drain": status(port, "POST", "/paceline/drain", {}),
        "still well": generate(ask_for),
        "drain": status(port, "POST", "/paceline/drain", {}, BEARER),
        "draining": status(port, "GET", "/readyz"),
        "refused": generate(ask_for),
        "metrics": status(port, "GET", "/metrics"),
    }


@pytest.fixture(scope="module")
def both() -> tuple[Seen, Seen]:
    border, no_cache = "--middleware=paceline_engine.vllm.border.Border", "--no-enable-prefix-caching"
    paced = BEARER | {"x-slo-tpot-ms": f"{LIMIT_MS}", "x-slo-max-stall-ms": f"{LIMIT_MS}"}
    with (
        serving("qwen2-5m", no_cache, border, env={"PACELINE_TOKEN": TOKEN}) as port,
        serving("qwen2-5m", no_cache, scheduler="") as stock_port,
    ):
        ours, stock = first_requests(port, paced), first_requests(stock_port, {})
        for streams in (1, 4):
            runs = in_turns(streams, (port, paced), (stock_port, {}))
            for seen, run in zip((ours, stock), runs, strict=True):
                seen.measured.append(run)
        last_requests(port, paced, ours)
        last_requests(stock_port, {}, stock)
        provoke(port, ours)
    return ours, stock


@pytest.fixture(scope="module")
def ours(both: tuple[Seen, Seen]) -> Seen:
    return both[0]


@pytest.fixture(scope="module")
def stock(both: tuple[Seen, Seen]) -> Seen:
    return both[1]


def test_greedy_answers_are_those_of_vllms_own_scheduler(ours: Seen, stock: Seen) -> None:
    assert ours.answers == stock.answers
    assert len(set(ours.answers)) == len(PROMPTS)


def test_answers_of_a_given_form_have_it_and_are_those_of_vllms_own_scheduler(ours: Seen, stock: Seen) -> None:
    date, word = ours.structured
    assert re.fullmatch(DATE, date)
    assert word in WORDS
    assert ours.structured == stock.structured


@pytest.mark.parametrize("streams", [1, 4])
def test_gaps_under_long_prompts_stay_near_the_limit(ours: Seen, stock: Seen, streams: int) -> None:
    run, other = (seen.measured[(1, 4).index(streams)] for seen in (ours, stock))
    busy_ms = noise_ms(run, other)
    p99_ms, theirs_ms = (1e3 * quantile(together(rounds).gaps_s, 0.99) for rounds in (run, other))
    print(f"{streams} streams: p99 of gaps {p99_ms:.1f} ms, vLLM's own {theirs_ms:.1f} ms, no prompt {busy_ms:.1f} ms")
    if busy_ms <= LIMIT_MS / 2:  # in the round that others' work disturbed least
        least_p95_ms, least_p99_ms = (1e3 * min(quantile(each.gaps_s, q) for each in run) for q in (0.95, 0.99))
        assert least_p95_ms <= LIMIT_MS
        assert least_p99_ms <= 1.5 * LIMIT_MS
        assert least_p99_ms <= theirs_ms / 5
    assert p99_ms <= 1.5 * LIMIT_MS + 4 * busy_ms
    assert p99_ms <= theirs_ms / 2


def test_the_long_prompt_is_not_starved(ours: Seen, stock: Seen) -> None:
    run, other = ours.measured[0], stock.measured[0]
    times = [(a.long_ttft_s[0], b.long_ttft_s[0]) for a, b in zip(run, other, strict=True)]
    print(f"TTFT of the long prompt in each round, ours and vLLM's own: {times}")
    assert min(paced / theirs for paced, theirs in times) <= (2.5 if noise_ms(run, other) <= LIMIT_MS / 2 else 6.0)


def test_the_scheduler_shows_itself_on_vllms_page(ours: Seen) -> None:
    m = ours.metrics
    assert m["vllm:num_requests_running"] == 0
    assert m["paceline_step_time_trusted decode"] == m["paceline_step_time_trusted mixed"] == 1
    assert m["paceline_step_seconds_count measured"] == m["paceline_step_seconds_count predicted"] > 1000
    assert m["paceline_step_tokens_sum prefill"] >= 2 * ROUNDS * LONG_TOKENS
    assert 0 < m["paceline_token_budget_tokens"] <= 2048
    assert m["paceline_engine_misses_total ttft"] == 0, "nobody has named a limit that could be missed"
    assert {"paceline_stalls_total", "paceline_engine_misses_total tpot"} <= m.keys()
    assert any(name.startswith("paceline_engine_info") for name in m)


def test_clients_that_leave_give_their_blocks_back(ours: Seen, stock: Seen) -> None:
    assert ours.after_abort == stock.answers[1]
    assert ours.metrics["vllm:kv_cache_usage_perc"] == 0


def test_nobody_kills_or_steers_the_engine_and_a_drain_refuses_what_is_new(ours: Seen) -> None:
    assert ours.statuses == {
        "ready": 200,
        "stranger's transfer": 200,
        "bearer's odd transfer": 400,
        "bearer's odd limit": 400,
        "stranger's objective": 200,
        "stranger's drain": 403,
        "still well": 200,
        "drain": 202,
        "draining": 503,
        "refused": 503,
        "metrics": 200,
    }
