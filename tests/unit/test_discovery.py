"""Discovery: what EndpointSlices and pools say, what becomes of the ledger, who pairs, and what a reload changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.config import KubernetesDiscovery, RouterConfig
from paceline_engine.clock import Clock
from paceline_router.attempts import MAX_FAILURES, Again, GiveUp, Progress, without_decoder
from paceline_router.console.scaling import FORBIDDEN, GONE, Scaling, scaling_of
from paceline_router.discovery import follow
from paceline_router.endpoints import Member, changed, drained_first, listed, members, resting
from paceline_router.kube import Changed, Forbidden, Listed, Unreachable
from paceline_router.members import Membership
from paceline_router.metrics import Histogram
from paceline_router.pick import Choice, NoEndpoint, Picker
from paceline_router.reload import ConfigFile
from paceline_router.scrape import Scraper
from paceline_router.server import Router
from paceline_router.service_watch import follow_pools, follow_service
from paceline_router.state import Flight, Ledger, Replica, Role, Size
from paceline_router.upstream import Upstreams

Json = dict[str, Any]
SIZE = Size(100, 50)


def make_endpoint(name: str, ip: str = "198.18.0.1", **conditions: bool) -> Json:
    target = {"kind": "Pod", "name": name, "uid": f"uid-{name}"}
    return {"addresses": [ip], "conditions": {"ready": True, **conditions}, "targetRef": target}


def make_slice(name: str, *endpoints: Json, role: str = "mixed", family: str = "IPv4", **labels: str) -> Json:
    known = {"service": "chat", "pool": role, "role": role, "revision": "a", **labels}
    return {
        "metadata": {"name": name, "labels": {f"paceline.dev/{key}": value for key, value in known.items()}},
        "addressType": family,
        "ports": [{"name": "metrics", "port": 9000}, {"name": "http", "port": 8000}],
        "endpoints": list(endpoints),
    }


def names(*slices: Json) -> list[str]:
    return [member.name for member in members(listed(slices))]


def test_a_member_bears_what_the_labels_and_the_endpoint_say() -> None:
    slice_ = make_slice("s", make_endpoint("p-1", "198.18.0.7"), role="prefill", pool="fast", gpus="4")
    assert members(listed([slice_])) == (Member("uid-p-1", "p-1", "198.18.0.7", 8000, Role.PREFILL, "fast", "a", 4),)


@pytest.mark.parametrize(
    ("says", "slices", "expected"),
    [
        ("a ready endpoint is a member", [make_slice("s", make_endpoint("a"))], ["a"]),
        ("an unready one is none", [make_slice("s", make_endpoint("a", ready=False))], []),
        ("a terminating one is none, even while ready", [make_slice("s", make_endpoint("a", terminating=True))], []),
        (
            "conditions that are not given hold",
            [make_slice("s", {"addresses": ["198.18.0.1"], "targetRef": {"name": "a", "uid": "u"}})],
            ["a"],
        ),
        ("without a target the address is its name", [make_slice("s", {"addresses": ["198.18.0.1"]})], ["198.18.0.1"]),
        ("an endpoint without an address is none", [make_slice("s", {"addresses": []})], []),
        ("a slice without endpoints has none", [{**make_slice("s"), "endpoints": None}], []),
        ("a role that there is not names nobody", [make_slice("s", make_endpoint("a"), role="chef")], []),
        ("a slice of host names names nobody", [make_slice("s", make_endpoint("a"), family="FQDN")], []),
        ("a slice without labels names nobody", [{"metadata": {"name": "s"}, "addressType": "IPv4"}], []),
        (
            "a pod in two slices is one member",
            [make_slice("s", make_endpoint("a")), make_slice("t", make_endpoint("a"), make_endpoint("b"))],
            ["a", "b"],
        ),
        (
            "ready in one of two slices is ready",
            [make_slice("s", make_endpoint("a", ready=False)), make_slice("t", make_endpoint("a"))],
            ["a"],
        ),
        (
            "terminating in one of two slices is terminating",
            [make_slice("s", make_endpoint("a", terminating=True)), make_slice("t", make_endpoint("a"))],
            [],
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_who_is_a_member(says: str, slices: list[Json], expected: list[str]) -> None:
    assert names(*slices) == expected


def test_of_two_families_ipv4_is_taken_and_ipv6_where_it_is_alone() -> None:
    six, four = make_endpoint("a", "fd00::1"), make_endpoint("a", "198.18.0.1")
    both = listed([make_slice("s", six, family="IPv6"), make_slice("t", four)])
    assert [m.host for m in members(both)] == ["198.18.0.1"]
    assert [m.host for m in members(changed(both, True, make_slice("t")))] == ["fd00::1"]


def test_without_a_named_port_the_first_is_taken_and_without_any_the_default() -> None:
    slice_ = make_slice("s", make_endpoint("a"))
    ports = [members(listed([{**slice_, "ports": ports}]))[0].port for ports in ([{"port": 81}, {"port": 82}], None)]
    assert ports == [81, 8000]


SLICES = st.builds(
    lambda name, pods: make_slice(name, *(make_endpoint(p, **c) for p, c in pods)),
    st.sampled_from(["s", "t", "u"]),
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.fixed_dictionaries({"ready": st.booleans(), "terminating": st.booleans()})
        ),
        max_size=4,
        unique_by=lambda pod: pod[0],
    ),
)


@given(st.lists(st.tuples(st.booleans(), SLICES), max_size=12), st.randoms(use_true_random=False))
def test_changes_one_by_one_and_a_relist_in_any_order_agree(events: list[tuple[bool, Json]], rng: Random) -> None:
    slices, last = listed([]), dict[str, Json]()
    for deleted, slice_ in events:
        slices = changed(slices, deleted, slice_)
        last.pop(slice_["metadata"]["name"], None)
        if not deleted:
            last[slice_["metadata"]["name"]] = slice_
    anew = list(last.values())
    rng.shuffle(anew)
    found = members(slices)
    assert found == members(listed(anew))
    assert len({m.name for m in found}) == len({m.uid for m in found}) == len(found)


# --- the members of a router


def make_member(name: str, role: Role = Role.MIXED, **over: Any) -> Member:
    return Member(**{"uid": name, "name": name, "host": "127.0.0.1", "port": 1, "role": role, "pool": "p", **over})


class Parts:
    """A membership and what it looks after; nothing is probed."""

    def __init__(self) -> None:
        self.ledger, self.upstreams = Ledger(), Upstreams()
        self.scraper = Scraper(self.ledger, self.upstreams.pools, Clock(), "m", lambda name: None)
        self.membership = Membership(self.ledger, self.upstreams, self.scraper)

    def apply(self, *wanted: Member) -> None:
        self.membership.apply(wanted)
        self.check()

    def drain_first(self, *names: str) -> None:
        self.membership.drain_first({"p": frozenset(names)})
        self.check()

    def reconcile(self) -> None:
        self.membership.reconcile()
        self.check()

    def check(self) -> None:
        assert set(self.ledger.replicas) == set(self.upstreams.pools)

    def active(self) -> list[str]:
        for name in self.ledger.replicas:
            self.ledger.set_ready(name, True)
        return [replica.name for replica in self.ledger.ready(Role.MIXED)]


def test_a_replica_that_goes_gets_nothing_new_and_leaves_when_its_last_request_has() -> None:
    parts = Parts()
    parts.apply(make_member("a"), make_member("b"))
    assert parts.active() == ["a", "b"]
    flight = parts.ledger.begin(SIZE, None, "a", 0.0)
    parts.apply(make_member("b"))
    assert parts.active() == ["b"]
    assert set(parts.ledger.replicas) == {"a", "b"}
    parts.ledger.end(flight, 1.0)
    parts.reconcile()
    assert set(parts.ledger.replicas) == {"b"}


def test_a_replica_that_comes_back_in_time_is_the_same_one() -> None:
    parts = Parts()
    parts.apply(make_member("a"))
    parts.ledger.begin(SIZE, None, "a", 0.0)
    before = parts.ledger.replicas["a"]
    parts.apply()
    assert parts.active() == []
    parts.apply(make_member("a"))
    assert parts.active() == ["a"]
    assert parts.ledger.replicas["a"] is before


def test_its_successor_of_the_same_name_waits_until_it_is_gone() -> None:
    parts = Parts()
    parts.apply(make_member("a"))
    flight = parts.ledger.begin(SIZE, None, "a", 0.0)
    parts.apply(make_member("a", uid="later", port=2))
    assert parts.active() == []
    parts.ledger.end(flight, 1.0)
    parts.reconcile()
    assert parts.active() == ["a"]
    assert parts.upstreams.pools["a"].port == 2


def test_kv_that_waits_at_a_prefill_replica_keeps_it_too() -> None:
    parts = Parts()
    prefill, decode = make_member("p", Role.PREFILL), make_member("d", Role.DECODE)
    parts.apply(prefill, decode)
    flight = parts.ledger.begin(SIZE, "p", "d", 0.0)
    parts.ledger.prefilled(flight, 1.0)
    parts.apply(decode)
    assert "p" in parts.ledger.replicas
    parts.ledger.first_token(flight, 2.0)
    parts.reconcile()
    assert "p" not in parts.ledger.replicas


def test_it_is_settled_after_the_first_sync_and_a_probe_of_each() -> None:
    parts = Parts()
    assert not parts.membership.is_settled
    parts.apply(make_member("a"), make_member("b"))
    assert not parts.membership.is_settled
    parts.scraper.probed.add("a")
    assert not parts.membership.is_settled
    parts.apply(make_member("a"), make_member("c"))  # b went before its probe; c came later
    assert parts.membership.is_settled


def test_a_service_without_replicas_is_settled_at_once() -> None:
    parts = Parts()
    parts.apply()
    assert parts.membership.is_settled


# --- pods that are removed first


def make_pool(pool: str, named: str | None) -> Json:
    annotations = {} if named is None else {"paceline.dev/drain-first": named}
    return {"metadata": {"name": f"chat-{pool}", "annotations": annotations}, "spec": {"pool": pool}}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [(None, set()), ("", set()), ("a", {"a"}), (" a, b ,,", {"a", "b"})],
    ids=["none", "an empty one", "one pod", "blanks do not count"],
)
def test_what_an_annotation_names(annotation: str | None, expected: set[str]) -> None:
    assert drained_first(make_pool("p", annotation)) == expected
    assert drained_first({}) == frozenset()


@pytest.mark.parametrize(
    ("says", "others", "named", "expected"),
    [
        ("the one that is named rests", ["m-2"], {"p": {"m-1"}}, {"m-1"}),
        ("nobody is named", ["m-2"], {}, set()),
        ("one that is not there changes nothing", ["m-2"], {"p": {"gone"}}, set()),
        ("another pool's word does not count", ["m-2"], {"q": {"m-1"}}, set()),
        ("the last ones of a role never rest", ["m-2"], {"p": {"m-1", "m-2"}}, set()),
        ("nor the last one of a revision, for it has its pairs", ["m-2/b"], {"p": {"m-1"}}, set()),
        ("the last of one role leaves the others their rest", ["m-2", "d-1"], {"p": {"m-1", "d-1"}}, {"m-1"}),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_who_rests(says: str, others: list[str], named: dict[str, set[str]], expected: set[str]) -> None:
    roles = {"m": Role.MIXED, "d": Role.DECODE}
    parts = [(*name.split("/"), "a")[:2] for name in ["m-1", *others]]
    there = [make_member(name, roles[name[0]], revision=revision) for name, revision in parts]
    assert resting(there, {pool: frozenset(pods) for pool, pods in named.items()}) == expected


def test_a_replica_that_is_removed_first_gets_nothing_new_and_stays_until_its_pod_goes() -> None:
    parts = Parts()
    parts.apply(make_member("a"), make_member("b"))
    assert parts.active() == ["a", "b"]
    parts.drain_first("a")
    assert parts.active() == ["b"]
    parts.reconcile()
    assert set(parts.ledger.replicas) == {"a", "b"}
    parts.drain_first()
    assert parts.active() == ["a", "b"]
    parts.drain_first("b", "c")
    parts.apply(make_member("a"), make_member("b"), make_member("c"))
    assert parts.active() == ["a"]
    parts.apply(make_member("b"), make_member("c"))  # a, which served, is gone: the others must
    assert parts.active() == ["b", "c"]
    parts.apply(make_member("c"), make_member("d"))
    assert parts.active() == ["d"]
    assert set(parts.ledger.replicas) == {"c", "d"}


WANTED = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["uid-1", "uid-2"]))
STEPS = st.lists(
    st.one_of(WANTED, st.frozensets(st.sampled_from("abc")), st.sampled_from(["begin", "end"])), max_size=30
)


@given(STEPS, st.randoms(use_true_random=False))
def test_whatever_comes_and_goes_only_wanted_replicas_are_active_and_no_unwanted_one_stays_idle(
    steps: list[dict[str, str] | frozenset[str] | str], rng: Random
) -> None:
    parts, flights, wanted, named = Parts(), list[Flight](), dict[str, str](), frozenset[str]()
    for step in steps:
        if step == "begin":
            if active := parts.active():
                flights.append(parts.ledger.begin(SIZE, None, rng.choice(active), 0.0))
        elif step == "end":
            if flights:
                parts.ledger.end(flights.pop(rng.randrange(len(flights))), 1.0)
                parts.reconcile()
        elif isinstance(step, frozenset):
            named = step
            parts.drain_first(*named)
        elif isinstance(step, dict):
            wanted = step
            parts.apply(*(make_member(name, uid=uid, port=int(uid[-1])) for name, uid in wanted.items()))
        replicas = parts.ledger.replicas
        port = {name: parts.upstreams.pools[name].port for name in replicas}
        right = {name for name, uid in wanted.items() if port.get(name) == int(uid[-1])}
        rest = wanted.keys() & named
        assert set(parts.active()) == (right - rest if rest != wanted.keys() else right)
        assert all(name in right or not replica.is_idle for name, replica in replicas.items())
        assert wanted.keys() <= replicas.keys()


# --- revisions


def make_replica(name: str, revision: str) -> Replica:
    role = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}[name[0]]
    return Replica(name, role, revision=revision, ready=True)


def chosen(choice: Choice | NoEndpoint) -> tuple[str | None, str]:
    assert isinstance(choice, Choice)
    return choice.prefill, choice.decode


@pytest.mark.parametrize("policy", ["least-predicted-ttft", "round-robin", "random", "least-requests"])
def test_prefill_and_decode_replicas_of_different_revisions_never_pair(policy: str) -> None:
    ledger = Ledger(make_replica(f"{role}{revision}{i}", revision) for role in "pd" for revision in "ab" for i in "01")
    picker = Picker(policy, Random(1))
    pairs = []
    for _ in range(40):
        prefill, decode = chosen(picker.choose(ledger, SIZE, 0.0))
        assert prefill is not None
        pairs.append((prefill[1], decode[1]))
        ledger.begin(SIZE, prefill, decode, 0.0)
        again = picker.choose_decode(ledger, SIZE, 0.0, revision=prefill[1])
        assert isinstance(again, str)
        assert again[1] == prefill[1]
    assert set(pairs) == {("a", "a"), ("b", "b")}


def test_a_prefill_replica_without_a_decode_replica_of_its_revision_is_left_out() -> None:
    ledger = Ledger([make_replica("p-new", "b"), make_replica("d-old", "a")])
    assert chosen(Picker("round-robin", Random(1)).choose(ledger, SIZE, 0.0)) == (None, "d-old")  # recomputed
    strict = Picker("round-robin", Random(1), recompute=False)
    assert not strict.can_serve(ledger)
    assert isinstance(strict.choose(ledger, SIZE, 0.0), NoEndpoint)
    assert isinstance(strict.choose_prefill(ledger, SIZE, 0.0), NoEndpoint)
    ledger.add(make_replica("d-new", "b"))
    assert strict.can_serve(ledger)
    assert chosen(strict.choose(ledger, SIZE, 0.0)) == ("p-new", "d-new")


@pytest.mark.parametrize(
    ("says", "failures", "elsewhere", "step"),
    [
        ("others can serve it", 0, True, Again),
        ("nobody can", 0, False, GiveUp),
        ("it has failed too often", MAX_FAILURES - 1, True, GiveUp),
    ],
)
def test_a_prefill_whose_decode_replicas_are_gone(says: str, failures: int, elsewhere: bool, step: type) -> None:
    progress = Progress(failures, 0, deadline_s=10.0, parked_at_s=1.0)
    assert type(without_decoder(progress, "none", elsewhere=elsewhere)) is step


# --- what the router does with it


class Script:
    """A Kubernetes whose watch tells what a test puts in; its lists fail as `refusals` say, one by one."""

    def __init__(self, *refusals: Exception) -> None:
        self.events: asyncio.Queue[Listed | Changed] = asyncio.Queue()
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.refusals = list(refusals)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> Listed:
        if self.refusals:
            raise self.refusals.pop(0)
        return Listed((), "1")

    async def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]:
        self.asked.append((path, params or {}))
        while True:
            yield await self.events.get()
            self.events.task_done()


def test_it_watches_the_slices_of_its_service_and_follows_each_event() -> None:
    async def body() -> None:
        script, parts = Script(), Parts()
        discovery = KubernetesDiscovery(namespace="llm", service="chat")
        task = asyncio.create_task(follow(script, discovery, parts.membership))
        one, two = make_slice("s", make_endpoint("a")), make_slice("t", make_endpoint("b"))
        for event, present in (
            (Listed((one,), "1"), {"a"}),
            (Changed("ADDED", two), {"a", "b"}),
            (Changed("MODIFIED", make_slice("s")), {"b"}),
            (Changed("DELETED", two), set()),
            (Listed((one, two), "9"), {"a", "b"}),
        ):
            script.events.put_nowait(event)
            await asyncio.sleep(0)
            await script.events.join() if script.events.qsize() else None
            async with asyncio.timeout(2):
                while set(parts.ledger.replicas) != present:  # noqa: ASYNC110 - the reader of the queue is another task
                    await asyncio.sleep(0)
        task.cancel()
        assert script.asked == [
            (
                "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices",
                {"labelSelector": "paceline.dev/service=chat,paceline.dev/pool"},
            )
        ]

    asyncio.run(body())


DISCOVERY = KubernetesDiscovery(namespace="llm", service="chat")


async def turns(count: int = 20) -> None:
    """Lets the other tasks do what they can without waiting for time to pass."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_it_follows_the_pools_of_its_service() -> None:
    async def body() -> None:
        script, parts = Script(), Parts()
        parts.apply(make_member("a"), make_member("b"), make_member("x", pool="q"))
        task = asyncio.create_task(follow_pools(script, DISCOVERY, parts.membership))
        for event, active in (
            (Listed((make_pool("p", "a"), make_pool("q", None)), "1"), ["b", "x"]),
            (Changed("MODIFIED", make_pool("q", "x")), ["b"]),
            (Changed("MODIFIED", make_pool("p", "b")), ["a"]),
            (Changed("DELETED", make_pool("q", "x")), ["a", "x"]),
            (Listed((make_pool("p", None),), "9"), ["a", "b", "x"]),
        ):
            script.events.put_nowait(event)
            await turns()
            assert parts.active() == active
        task.cancel()
        path = "/apis/paceline.dev/v1alpha1/namespaces/llm/enginepools"
        assert script.asked == [(path, {"labelSelector": "paceline.dev/service=chat"})]

    asyncio.run(body())


def test_it_follows_what_its_service_says() -> None:
    async def body() -> None:
        script, told = Script(Unreachable("away")), list[Scaling]()
        task = asyncio.create_task(follow_service(script, DISCOVERY, told.append))
        decision = {"time": "2026-01-01T00:00:00Z", "pool": "p", "from": 1, "to": 2}
        service = {"metadata": {"name": "chat"}, "status": {"decisions": [decision]}}
        for event, expected in (
            (Listed((), "1"), GONE),
            (Changed("ADDED", service), scaling_of(service)),
            (Changed("DELETED", service), GONE),
            (Listed((service,), "9"), scaling_of(service)),
        ):
            script.events.put_nowait(event)
            await turns()
            assert told.pop() == expected
        assert not told
        task.cancel()
        path = "/apis/paceline.dev/v1alpha1/namespaces/llm/llmservices"
        assert script.asked == [(path, {"fieldSelector": "metadata.name=chat"})]

    asyncio.run(body())


def test_what_it_may_not_read_is_said_once_and_asked_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline_router.service_watch.ASK_AGAIN_S", 0)

    async def body() -> None:
        refusal = Forbidden(403, "Forbidden", "no")
        script, told, parts = Script(*[refusal] * 6), list[Scaling](), Parts()
        tasks = [
            asyncio.create_task(follow_service(script, DISCOVERY, told.append)),
            asyncio.create_task(follow_pools(script, DISCOVERY, parts.membership)),
        ]
        await turns()
        assert told == [FORBIDDEN]
        assert sum("not allowed" in record.message for record in caplog.records) == 2
        assert len(script.asked) == 2  # the refusals are over
        for task in tasks:
            task.cancel()

    asyncio.run(body())


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
        headers = dict(shell.headers.build(shell.classes["batch"], 1.0, b"id", None))
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
        assert shell.config.policy == "least-predicted-ttft"
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
