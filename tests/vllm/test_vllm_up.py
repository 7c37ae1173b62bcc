"""`paceline up EXAMPLE --engine vllm --model file:///DIR` whole: router, real vLLM on the CPU and the OpenAI client.

One run aggregated, one with prefill and decode apart: both answer the same, end well and leave nothing behind.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from up_run import Run, up, wait_for
from vllm_engine import ROOT, START_TIMEOUT_S, found

pytestmark = pytest.mark.requires("vllm")
PROMPTS = tuple(list(range(2000 * i + 10, 2000 * i + 10 + n)) for i, n in enumerate((5, 300, 1500)))  # no shared prefix
OUTPUT_TOKENS, LAST_TOKENS = 24, 200
REQUESTS = "paceline_requests_total"


@dataclass(slots=True)
class Seen:
    """What one run showed. `sources` are an engine's prompt tokens by where they came from, by its role."""

    answers: list[str] = field(default_factory=list)
    chat: str = ""
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)
    code: int = -1
    lines: list[str] = field(default_factory=list)
    left: list[object] = field(default_factory=list)


def complete(client: OpenAI, prompt: list[int], tokens: int) -> str:
    """Greedy and streamed."""
    model = client.models.list().data[0].id
    extra = {"ignore_eos": True}
    chunks = client.completions.create(
        model=model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True, extra_body=extra
    )
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def chat(client: OpenAI) -> str:
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": "Say hello"}],
        max_tokens=OUTPUT_TOKENS,
        temperature=0,
    )
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= OUTPUT_TOKENS
    return answer.choices[0].message.content or ""


def scrape(url: str, name: str, label: str) -> dict[str, float]:
    """A counter's sums by the values of a label."""
    sums: dict[str, float] = defaultdict(float)
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        for family in text_string_to_metric_families(page.read().decode()):
            for sample in family.samples:
                if sample.name == name:
                    sums[sample.labels[label]] += sample.value
    return sums


def engines(run: Run) -> dict[str, str]:
    """Role → URL, of the configuration that the router has."""
    (config,) = run.folder.glob("paceline-*/router.json")
    return {r["role"]: r["url"] for r in json.loads(config.read_text())["discovery"]["replicas"]}


def end_within_a_stream(run: Run, client: OpenAI, seen: Seen) -> None:
    """Ctrl-C while an answer is under way."""
    streaming = threading.Thread(target=lambda: seen.last.append(complete(client, PROMPTS[0], LAST_TOKENS)))
    streaming.start()
    time.sleep(0.3)
    seen.code = run.end(signal.SIGINT)
    streaming.join()


def observe(example: str) -> Seen:
    """A run of the 5 M model. Its folder has a short path: there are sockets in it, whose paths are bounded."""
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="up-") as name:
        folder, model = Path(name), f"file://{found().models / 'qwen2-5m'}"
        with up(folder, ROOT / f"examples/{example}.yaml", "--engine=vllm", f"--model={model}") as run:
            with run.wait_ready(START_TIMEOUT_S) as client:
                seen.answers = [complete(client, prompt, OUTPUT_TOKENS) for prompt in PROMPTS]
                seen.chat = chat(client)
                for role, url in engines(run).items():
                    seen.sources[role] = scrape(url, "vllm:prompt_tokens_by_source_total", "source")
                url = run.url_file.read_text().strip()
                wait_for("all counted", lambda: scrape(url, REQUESTS, "outcome")["completed"] > len(PROMPTS))
                seen.requests = scrape(url, REQUESTS, "outcome")
                end_within_a_stream(run, client, seen)
            seen.lines, seen.left = run.lines, run.left()
    return seen


@pytest.fixture(scope="module")
def aggregated() -> Seen:
    return observe("mixed")


@pytest.fixture(scope="module")
def apart() -> Seen:
    return observe("chat")


def test_both_answer_the_same(aggregated: Seen, apart: Seen) -> None:
    assert len(set(aggregated.answers)) == len(PROMPTS)
    assert apart.answers == aggregated.answers
    assert apart.chat == aggregated.chat


def test_apart_the_decode_engine_computes_no_prompt(apart: Seen) -> None:
    assert set(apart.sources) == {"prefill", "decode"}
    assert apart.sources["decode"]["external_kv_transfer"] >= sum(map(len, PROMPTS))
    assert apart.sources["decode"]["local_compute"] == 0


def test_what_of_the_file_cannot_run_here_is_said(aggregated: Seen, apart: Seen) -> None:
    for seen, replicas in ((aggregated, "mixed 1 of 2"), (apart, "prefill 1 of 2, decode 1 of 1")):
        assert any("context: 8192 tokens, all that qwen2-5m takes" in line for line in seen.lines)
        assert any(f"runs on the CPU: replicas {replicas};" in line for line in seen.lines)


@pytest.mark.parametrize("way", ["aggregated", "apart"])
def test_ctrl_c_ends_streams_well_and_leaves_nothing(way: str, request: pytest.FixtureRequest) -> None:
    seen: Seen = request.getfixturevalue(way)
    assert {outcome: n for outcome, n in seen.requests.items() if n} == {"completed": len(PROMPTS) + 1}
    assert len(seen.last) == 1
    assert seen.last[0]
    assert seen.code == 0, seen.lines
    assert seen.left == []
    assert not any(line.startswith(("crashed", "unclean")) for line in seen.lines)
