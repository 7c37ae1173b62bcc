"""`paceline up EXAMPLE --engine vllm --model file:///DIR` whole: router, real vLLM on the CPU and the OpenAI client.

One run aggregated, one with prefill and decode apart: both answer the same, end well and leave nothing behind.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
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
FIRST = list(range(7000, 7020))
OUTPUT_TOKENS, LAST_TOKENS = 24, 200
REQUESTS = "paceline_requests_total"


@dataclass(slots=True)
class Seen:
    """What one run showed. `sources`: where an engine's prompt tokens came from since the first request, by role."""

    answers: list[str] = field(default_factory=list)
    chat: str = ""
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)
    last_tokens: int = 0
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


def computed(url: str) -> dict[str, float]:
    return scrape(url, "vllm:prompt_tokens_by_source_total", "source")


def engines(run: Run) -> dict[str, str]:
    """Role → URL, of the configuration that the router has."""
    (config,) = run.folder.glob("paceline-*/router.json")
    return {r["role"]: r["url"] for r in json.loads(config.read_text())["discovery"]["replicas"]}


def end_within_a_stream(run: Run, client: OpenAI, seen: Seen) -> None:
    """Ctrl-C once an answer has begun."""
    began = threading.Event()
    model = client.models.list().data[0].id

    def stream() -> None:
        chunks = client.completions.create(
            model=model,
            prompt=PROMPTS[0],
            max_tokens=LAST_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        for chunk in chunks:
            began.set()
            if chunk.usage:
                seen.last_tokens = chunk.usage.completion_tokens

    streaming = threading.Thread(target=stream)
    streaming.start()
    assert began.wait(60), "no token came"
    seen.code = run.end(signal.SIGINT)
    streaming.join()


def observe(example: str) -> Seen:
    """A run of the 5 M model. Its folder has a short path: there are sockets in it, whose paths are bounded."""
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="up-") as name:
        folder, model = Path(name), f"file://{found().models / 'qwen2-5m'}"
        with up(folder, ROOT / f"examples/{example}.yaml", "--engine=vllm", f"--model={model}") as run:
            with run.wait_ready(START_TIMEOUT_S) as client:
                complete(client, FIRST, 1)  # the engines shake hands, which may take longer than a transfer may
                before = {role: computed(url) for role, url in engines(run).items()}
                seen.answers = [complete(client, prompt, OUTPUT_TOKENS) for prompt in PROMPTS]
                seen.chat = chat(client)
                for role, url in engines(run).items():
                    seen.sources[role] = {k: n - before[role][k] for k, n in computed(url).items()}
                url = run.url_file.read_text().strip()
                wait_for("all counted", lambda: scrape(url, REQUESTS, "outcome")["completed"] > 1 + len(PROMPTS))
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
    assert {outcome: n for outcome, n in seen.requests.items() if n} == {"completed": len(PROMPTS) + 2}
    assert seen.last_tokens == LAST_TOKENS
    assert seen.code == 0, seen.lines
    assert seen.left == []
    assert not any(line.startswith(("crashed", "unclean")) for line in seen.lines)
