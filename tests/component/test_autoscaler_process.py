"""The autoscaler as a process: its Lease, its end, and what keeps it from running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable

import httpx
import pytest
from api_double import ApiDouble
from autoscaler_rig import CHAT, Rig
from paceline_router import autoscaler
from paceline_router.kube import Kube
from waiting import until

LEASE = "/apis/coordination.k8s.io/v1/namespaces/llm/leases/paceline-autoscaler"


def process(monkeypatch: pytest.MonkeyPatch, act: Callable[[ApiDouble], Awaitable[None]]) -> tuple[int, ApiDouble]:
    """`main` itself, in this process, on an API server in memory; its exit code."""
    api = ApiDouble()
    r = Rig(api)
    r.add_service()
    monkeypatch.setenv("POD_NAME", "autoscaler-0")
    acting: list[asyncio.Task[None]] = []

    def connect() -> Kube:
        acting.append(asyncio.ensure_future(act(api)))
        return Kube(httpx.AsyncClient(transport=api.transport, base_url="http://api"), "llm")

    monkeypatch.setattr(Kube, "connect", connect)
    code = autoscaler.main(["--port", "0", "--host", "127.0.0.1", "--interval-s", "0.01"])
    assert acting[0].done()
    acting[0].result()
    return code, api


def test_the_process_acts_while_it_holds_the_lease_and_hands_it_over_when_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def act(api: ApiDouble) -> None:
        await until(lambda: "status" in api.objects[CHAT])
        assert api.objects[LEASE]["spec"]["holderIdentity"] == "autoscaler-0"
        os.kill(os.getpid(), signal.SIGTERM)

    code, api = process(monkeypatch, act)
    assert code == 0
    assert api.objects[LEASE]["spec"]["holderIdentity"] == ""
    assert api.objects[CHAT]["status"]["conditions"][0]["reason"] == "MetricsUnreachable"


def test_the_process_waits_for_anothers_lease_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(api: ApiDouble) -> None:
        meta = {"name": "paceline-autoscaler", "namespace": "llm"}
        held = {"holderIdentity": "autoscaler-1", "leaseDurationSeconds": 15}
        api.put(LEASE, {"kind": "Lease", "metadata": meta, "spec": held})
        await asyncio.sleep(0.3)
        assert api.writes == []
        os.kill(os.getpid(), signal.SIGTERM)

    code, api = process(monkeypatch, act)
    assert (code, api.objects[LEASE]["spec"]["holderIdentity"]) == (0, "autoscaler-1")


def test_the_process_ends_when_another_takes_the_lease(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paceline_router.lease.RENEW_S", 0.05)

    async def act(api: ApiDouble) -> None:
        await until(lambda: "status" in api.objects[CHAT])
        lease = api.objects[LEASE]
        api.put(LEASE, {**lease, "spec": {**lease["spec"], "holderIdentity": "autoscaler-1"}})

    code, api = process(monkeypatch, act)
    assert (code, api.objects[LEASE]["spec"]["holderIdentity"]) == (1, "autoscaler-1")
    assert capsys.readouterr().err.splitlines()[-1] == (
        "paceline_router.autoscaler: Lease paceline-autoscaler is another's"
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param([], "no cluster is configured", id="without a cluster"),
        pytest.param(["--prometheus-url", "prom:9090"], "no URL of a Prometheus", id="with a URL that is none"),
        pytest.param(["--interval-s", "31"], "above half of the window of rates, 30 s", id="with looks too far apart"),
        pytest.param(
            ["--prometheus-url", "https://prom", "--prometheus-ca-file", "/nowhere"], "/nowhere", id="without its CA"
        ),
    ],
)
def test_the_process_ends_with_one_line(args: list[str], says: str) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "paceline_router.autoscaler", "--port", "0", "--host", "127.0.0.1", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
