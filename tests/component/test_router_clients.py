"""Public clients run against a router as they are: load generators agree with its accounts, a fuzzer finds no fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from public_clients import call, tokenizer
from router_fleet import run
from router_processes import counts, engines, router

pytestmark = pytest.mark.requires("clients")

_REQUESTS = 20
_NOT_CHECKED = "positive_data_acceptance"  # what the document leaves open, the engine judges


def _profile(folder: Path, url: str) -> tuple[str, ...]:
    return (
        *("profile", "--model=m", f"--url={url}", f"--tokenizer={tokenizer()}", "--endpoint-type=chat", "--streaming"),
        *("--synthetic-input-tokens-mean=64", "--output-tokens-mean=16", "--extra-inputs=ignore_eos:true"),
        *(f"--request-count={_REQUESTS}", "--concurrency=4", f"--artifact-dir={folder}", "--ui-type=none"),
    )


def _benchmark(folder: Path, url: str) -> tuple[str, ...]:
    return (
        *("run", f"--backend=kind=openai_http,target={url},model=m", "--profile=kind=concurrent,streams=4"),
        *(f"--constraint=kind=max_requests,count={_REQUESTS}", f"--output=kind=json,path={folder / 'report.json'}"),
        *(f"--tokenizer=kind=huggingface_auto,model={tokenizer()}", "--disable-progress"),
        "--data=kind=synthetic_text,prompt_tokens=64,output_tokens=16",
    )


def test_aiperf_measures_streamed_chats(tmp_path: Path) -> None:
    report = _against_a_router(tmp_path, "aiperf", _profile, "profile_export_aiperf.json")
    assert (report["request_count"]["avg"], report["was_cancelled"]) == (_REQUESTS, False)
    assert report.get("error_request_count") is None
    assert report["total_usage_completion_tokens"]["avg"] == 16 * _REQUESTS
    assert 0 < report["time_to_first_token"]["avg"] < report["request_latency"]["avg"]


def test_guidellm_measures_streamed_chats(tmp_path: Path) -> None:
    report = _against_a_router(tmp_path, "guidellm", _benchmark, "report.json")
    (benchmark,) = report["benchmarks"]
    found = [len(benchmark["requests"][how]) for how in ("successful", "errored", "incomplete")]
    assert found == [_REQUESTS, 0, 0]
    assert all(len(request["output"].split()) == 16 for request in benchmark["requests"]["successful"])


def _fuzzing(url: str) -> tuple[str, ...]:
    return (
        *("run", f"{url}/openapi.json", "--max-examples=5", "--max-time=20", "--seed=1"),
        f"--exclude-checks={_NOT_CHECKED}",
    )


def test_schemathesis_finds_no_answer_that_the_document_does_not_describe(tmp_path: Path) -> None:
    async def main() -> None:
        async with engines(tmp_path, "mixed0") as up, router(tmp_path, up) as front:
            url = f"http://127.0.0.1:{front.port}"
            await asyncio.to_thread(call, tmp_path / "log", "schemathesis", *_fuzzing(url))
            outcomes = await counts(front.port, "paceline_requests_total", "outcome")
            assert set(outcomes) == {"completed", "rejected"}
            received = await counts(front.port, "paceline_requests_received_total", "slo_class")
            assert sum(outcomes.values()) == sum(received.values())

    run(main())


def _against_a_router(folder: Path, name: str, args: Callable[[Path, str], tuple[str, ...]], report: str) -> Any:
    """What the client reports of a fleet of two engines, all of whose requests were completed."""

    async def main() -> None:
        async with engines(folder, "mixed0", "mixed1") as up, router(folder, up) as front:
            url = f"http://127.0.0.1:{front.port}"
            await asyncio.to_thread(call, folder / f"{name}.log", name, *args(folder, url))
            assert await counts(front.port, "paceline_requests_total", "outcome") == {"completed": _REQUESTS}

    run(main())
    return json.loads((folder / report).read_text())
