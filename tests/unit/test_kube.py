"""The Kubernetes client: what it sends, how it fails, and that a watch goes on whatever happens to it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from paceline_router.kube import Changed, Conflict, Forbidden, Gone, Kube, Listed, NotFound, Unreachable, path_of
from paceline_router.kubeconfig import Bearer, ConfigError, find_access, from_kubeconfig, in_cluster

Json = dict[str, Any]
Handler = Callable[[httpx.Request], httpx.Response]
PODS = path_of("v1", "pods", "llm")


def call(handler: Handler, act: Callable[[Kube], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        client = httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="https://server")
        async with Kube(client, first_delay_s=0.001) as kube:
            return await act(kube)

    return asyncio.run(run())


def make_status(code: int, reason: str) -> httpx.Response:
    return httpx.Response(code, json={"kind": "Status", "code": code, "reason": reason, "message": "because"})


def make_pod(name: str, version: str = "1") -> Json:
    return {"kind": "Pod", "metadata": {"name": name, "resourceVersion": version}}


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        (("v1", "pods", "llm", "chat"), "/api/v1/namespaces/llm/pods/chat"),
        (("apps/v1", "deployments"), "/apis/apps/v1/deployments"),
        (("paceline.dev/v1alpha1", "llmservices", "llm"), "/apis/paceline.dev/v1alpha1/namespaces/llm/llmservices"),
    ],
)
def test_paths(parts: tuple[str, ...], path: str) -> None:
    assert path_of(*parts) == path


def test_apply_is_server_side_and_says_who_applies() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("PATCH", f"{PODS}/a/status")
        assert dict(request.url.params) == {"fieldManager": "me", "force": "true"}
        assert request.headers["content-type"] == "application/apply-patch+yaml"
        return httpx.Response(200, json=json.loads(request.content))

    assert call(handler, lambda kube: kube.apply(f"{PODS}/a/status", {"x": 1}, manager="me")) == {"x": 1}


def test_a_size_goes_through_scale() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == f"{PODS}/a/scale"
        if request.method == "PATCH":
            assert json.loads(request.content) == {"spec": {"replicas": 3}}
            assert request.headers["content-type"] == "application/merge-patch+json"
        return httpx.Response(200, json={"spec": {"replicas": 3}})

    call(handler, lambda kube: kube.set_scale(f"{PODS}/a", 3))
    assert call(handler, lambda kube: kube.get(f"{PODS}/a/scale")) == {"spec": {"replicas": 3}}


def test_a_list_has_every_page_and_its_items_say_what_they_are() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.params["labelSelector"] == "a=b"
        more = request.url.params.get("continue")
        meta = {"resourceVersion": "7"} if more else {"resourceVersion": "7", "continue": "next"}
        item = {"metadata": {"name": more or "first"}}
        return httpx.Response(200, json={"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": [item]})

    listed = call(handler, lambda kube: kube.list(PODS, {"labelSelector": "a=b"}))
    assert listed.version == "7"
    assert [(o["kind"], o["apiVersion"], o["metadata"]["name"]) for o in listed.objects] == [
        ("Pod", "v1", "first"),
        ("Pod", "v1", "next"),
    ]


def test_delete_is_of_that_very_object_and_says_when_it_was_gone() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["preconditions"] == {"uid": "u"}
        return make_status(404, "NotFound")

    assert call(handler, lambda kube: kube.delete(f"{PODS}/a", uid="u")) is False


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [(403, "Forbidden", Forbidden), (404, "NotFound", NotFound), (409, "AlreadyExists", Conflict), (410, "Gone", Gone)],
)
def test_refusals_are_typed(code: int, reason: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{code} {reason}: because"):
        call(lambda _: make_status(code, reason), lambda kube: kube.get(PODS))


@pytest.mark.parametrize(
    "answer",
    [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.Response(200, content=b"<html>")],
    ids=["no server", "no answer", "no JSON"],
)
def test_no_answer_is_unreachable(answer: httpx.HTTPError | httpx.Response) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, httpx.Response):
            return answer
        raise answer

    with pytest.raises(Unreachable):
        call(handler, lambda kube: kube.get(PODS))


class Server:
    """Answers lists with one pod, and each watch with the next script: events as bytes, or an exception at its end."""

    def __init__(self, *scripts: list[bytes | Exception]) -> None:
        self.scripts = list(scripts)
        self.lists = 0
        self.resumed: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if "watch" not in request.url.params:
            self.lists += 1
            body = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": []}
            return httpx.Response(200, json=body)
        self.resumed.append(request.url.params["resourceVersion"])
        assert request.url.params["allowWatchBookmarks"] == "true"
        return httpx.Response(200, content=self._stream(self.scripts.pop(0) if self.scripts else []))

    async def _stream(self, script: list[bytes | Exception]) -> AsyncIterator[bytes]:
        for part in script:
            if isinstance(part, Exception):
                raise part
            yield part


def make_event(kind: str, name: str, version: str) -> bytes:
    return json.dumps({"type": kind, "object": make_pod(name, version)}).encode() + b"\n"


def take(server: Server, count: int) -> list[Listed | Changed]:
    async def act(kube: Kube) -> list[Listed | Changed]:
        events = []
        async with asyncio.timeout(10), aclosing(kube.watch(PODS)) as stream:
            async for event in stream:
                events.append(event)
                if len(events) == count:
                    break
        return events

    found: list[Listed | Changed] = call(server, act)
    return found


def names(events: list[Listed | Changed]) -> list[str]:
    return ["list" if isinstance(e, Listed) else e.object["metadata"]["name"] for e in events]


def test_a_watch_lists_first_and_then_tells_changes_however_they_are_cut() -> None:
    both = make_event("ADDED", "a", "11") + make_event("DELETED", "b", "12")
    server = Server([both[:30], both[30:200], both[200:]])
    events = take(server, 3)
    assert names(events) == ["list", "a", "b"]
    assert [e.type for e in events if isinstance(e, Changed)] == ["ADDED", "DELETED"]


@pytest.mark.parametrize(
    "end", [[], [httpx.ReadError("reset")], [httpx.ReadTimeout("idle")]], ids=["end", "cut", "idle"]
)
def test_a_watch_that_ends_is_resumed_where_it_was(end: list[bytes | Exception]) -> None:
    server = Server([make_event("ADDED", "a", "11"), *end], [make_event("MODIFIED", "b", "12")])
    assert names(take(server, 3)) == ["list", "a", "b"]
    assert server.resumed == ["10", "11"]
    assert server.lists == 1


def test_a_bookmark_moves_the_place_to_resume_at_and_is_not_told() -> None:
    server = Server([make_event("BOOKMARK", "", "50")], [make_event("ADDED", "a", "51")])
    assert names(take(server, 2)) == ["list", "a"]
    assert server.resumed == ["10", "50"]


def test_a_version_that_is_too_old_lists_again() -> None:
    gone = json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410}}).encode() + b"\n"
    server = Server([gone], [make_event("ADDED", "a", "11")])
    assert names(take(server, 3)) == ["list", "list", "a"]
    assert server.lists == 2


def test_half_an_event_is_not_told() -> None:
    server = Server([make_event("ADDED", "a", "11")[:-20]], [make_event("ADDED", "a", "11")])
    assert names(take(server, 2)) == ["list", "a"]


def write_kubeconfig(path: Path, user: Json, cluster: Json | None = None) -> Path:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "llm"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://server:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def authorization(auth: httpx.Auth | None) -> str:
    assert auth is not None
    request = next(auth.auth_flow(httpx.Request("GET", "https://server")))
    return str(request.headers["authorization"])


def test_a_kubeconfig_gives_server_namespace_and_token(tmp_path: Path) -> None:
    access = find_access({"KUBECONFIG": str(write_kubeconfig(tmp_path / "c", {"token": "t"}))})
    assert (access.server, access.namespace) == ("https://server:6443", "llm")
    assert authorization(access.auth) == "Bearer t"


def test_a_plug_in_gives_the_token(tmp_path: Path) -> None:
    status = json.dumps({"status": {"token": "from-plugin"}})
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "echo", "args": [status]}
    access = from_kubeconfig(write_kubeconfig(tmp_path / "c", {"exec": plugin}))
    assert authorization(access.auth) == "Bearer from-plugin"


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        pytest.param({"client-certificate-data": "!", "client-key-data": "!"}, {}, id="no base64"),
        pytest.param({}, {"certificate-authority": "missing.crt"}, id="no such file"),
        pytest.param({}, {"certificate-authority-data": base64.b64encode(b"no PEM").decode()}, id="no certificate"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_says_which(tmp_path: Path, user: Json, cluster: Json) -> None:
    path = write_kubeconfig(tmp_path / "c", user, cluster)
    with pytest.raises(ConfigError, match="correct the kubeconfig"):
        from_kubeconfig(path)


def test_without_any_configuration_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set KUBECONFIG"):
        find_access({"HOME": str(tmp_path)})


def test_a_pod_needs_its_service_account(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="service account"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


def test_a_token_is_read_again_when_it_may_have_been_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("paceline_router.kubeconfig.time.monotonic", lambda: now[0])
    tokens = iter(["first", "second"])
    auth = Bearer(lambda: next(tokens))
    assert [authorization(auth), authorization(auth)] == ["Bearer first"] * 2
    now[0] += 61
    assert authorization(auth) == "Bearer second"
