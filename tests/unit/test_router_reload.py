"""What a changed configuration file changes while the router runs, and what it leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from paceline_api.config import DEFAULT_POLICY, RouterConfig
from paceline_engine.clock import Clock
from paceline_router.metrics import Histogram
from paceline_router.reload import ConfigFile
from paceline_router.server import Router

Json = dict[str, Any]


def make_config(**over: Any) -> RouterConfig:
    base: Json = {
        "service": "chat",
        "model": "m",
        "max_context_tokens": 4096,
        "default_class": "c",
        "classes": [{"name": "c", "ttft_s": 0.4, "tpot_s": 0.04}],
        "discovery": {"kind": "kubernetes", "namespace": "llm", "service": "chat"},
    }
    return RouterConfig.model_validate({**base, **over})


async def make_router(config: RouterConfig) -> Router:
    return Router(config, config.discovery, Clock(), "token")


def test_a_changed_file_changes_the_classes_and_a_broken_one_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        file = tmp_path / "router.json"
        file.write_text(make_config().to_json())
        router = await make_router(make_config())
        shell, reload = router.shell, ConfigFile(file, router.shell)
        shell.metrics.ttft.observe(0.3, "c")
        classes = [{"name": "c", "ttft_s": 0.2, "tpot_s": 0.04}, {"name": "batch", "ttft_s": 30, "tpot_s": 1}]

        reload.look()
        assert list(shell.classes) == ["c"]

        file.write_text(make_config(classes=classes, default_class="batch").to_json())
        reload.look()
        assert shell.classes["c"].ttft_s == 0.2
        assert shell.config.default_class == "batch"
        assert shell.metrics.decided.values[("batch", "good")] == 0
        assert 0.2 in shell.metrics.ttft.bounds
        assert 0.4 not in shell.metrics.ttft.bounds
        headers = dict(shell.headers.build(shell.classes["batch"], 1.0, b"id", ()))
        assert (headers[b"x-slo-class"], headers[b"x-slo-tpot-ms"]) == (b"batch", b"1000")

        file.write_text(make_config(classes=classes).to_json().replace('"c"', '"?"', 1))
        reload.look()
        reload.look()
        assert shell.config.default_class == "batch"
        assert sum("refused" in record.message for record in caplog.records) == 1

        file.unlink()
        reload.look()
        reload.look()
        assert sum("unreadable" in record.message for record in caplog.records) == 1

        file.write_text(make_config(policy="random").to_json())
        reload.look()
        assert list(shell.classes) == ["c"]
        assert shell.config.policy == DEFAULT_POLICY
        assert "fields=policy" in caplog.text

    asyncio.run(body())


def test_a_reload_keeps_the_counts_of_the_buckets_that_stay() -> None:
    histogram = Histogram("h", "", (), (1.0, 2.0, 4.0))
    for value in (0.5, 1.5, 3.0, 3.5, 9.0):
        histogram.observe(value)
    histogram.rebound((1.0, 3.2, 4.0))
    ((counts, total),) = histogram.values.values()
    assert counts == [1, 1, 2, 1]  # below 3.2 only what is known to be
    assert total == [17.5]
    histogram.observe(3.1)
    histogram.rebound((4.0,))
    assert next(iter(histogram.values.values()))[0] == [5, 1]
