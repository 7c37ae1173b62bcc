"""The console's figures: increases, standings, pools and queues, what an LLMService says, and what the page may do."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.slo import SLOClass
from paceline_router.console.scaling import LOCAL, UNDECIDED, Condition, Decision, PlannedPool, Scaling, scaling_of
from paceline_router.console.serve import _policy
from paceline_router.console.tally import EVERY_S, KEPT, WINDOW_S, Distribution, History, Sample, Tally
from paceline_router.console.view import Present, Service, Standing, Waiting, figures, standing, view
from paceline_router.facts import Facts, Role
from paceline_router.metrics import Histogram
from paceline_router.replica import Replica, Size
from paceline_router.state import Ledger

SLO = SLOClass("interactive", 0.4, 0.04, target_ratio=0.9)
PAGE = resources.files("paceline_router.console").joinpath("console.html").read_bytes()

Json = dict[str, Any]


def make_tally(good: int = 0, missed: int = 0, open_: int = 0) -> Tally:
    verdicts = {"good": good, "ttft": missed}
    return Tally(good + missed + open_, verdicts, {"completed": good + missed}, {"queue": missed})


# --- increases


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0, 2)), min_size=2, max_size=20))
def test_what_was_before_and_the_increase_since_are_all_there_is(steps: list[tuple[int, int, float]]) -> None:
    histogram = Histogram("h", "", ("slo_class",), (0.1, 0.4, 1.0))
    good = missed = 0
    samples = []
    for at_s, (more, misses, value) in enumerate(steps):
        good, missed = good + more, missed + misses
        histogram.observe(value, "c")
        counts = histogram.values[("c",)][0]
        ttft = Distribution(tuple(histogram.bounds), tuple(counts))
        tally = Tally(good + missed, {"good": good, "ttft": missed}, {}, {"queue": missed}, ttft)
        samples.append(Sample(float(at_s), {"c": tally}))
    first, last = samples[0].tallies["c"], samples[-1].tallies["c"]
    increase = samples[-1].since(samples[0])
    found = increase.tallies["c"]
    assert increase.at_s == len(steps) - 1
    assert (first.arrivals + found.arrivals, first.good + found.good) == (last.arrivals, last.good)
    assert [a + b for a, b in zip(first.ttft.counts, found.ttft.counts, strict=True)] == list(last.ttft.counts)
    assert min(found.ttft.counts) >= 0


def test_an_edited_objective_leaves_no_quantile_of_what_cannot_be_compared() -> None:
    before, after = Distribution((0.1, 0.4), (1, 1, 0)), Distribution((0.1, 0.2), (1, 0, 1))
    assert after.since(before).quantile(0.5) is None
    assert after.since(Distribution()) == after


@pytest.mark.parametrize(
    ("says", "counts", "median"),
    [
        ("nothing was observed", (), None),
        ("no increase", (0, 0, 0), None),
        ("half way through its bucket", (0, 10, 0), 0.25),
        ("the last bound stands for what lies above", (0, 0, 7), 0.4),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_quantile(says: str, counts: tuple[int, ...], median: float | None) -> None:
    assert Distribution((0.1, 0.4) if counts else (), counts).quantile(0.5) == (
        None if median is None else pytest.approx(median)
    )


def test_the_last_minute_is_counted_from_the_latest_sample_that_is_a_minute_old() -> None:
    history = History(Sample(0.0, {"c": make_tally()}))
    assert history.recent(Sample(3.0, {"c": make_tally(good=2)})) == Sample(3.0, {"c": make_tally(good=2)})
    for i in range(1, 100):
        history.add(Sample(i * EVERY_S, {"c": make_tally(good=i)}))
    recent = history.recent(Sample(99 * EVERY_S + 1, {"c": make_tally(good=100)}))
    assert WINDOW_S <= recent.at_s < WINDOW_S + EVERY_S
    assert recent.tallies["c"].good == 100 - (99 - WINDOW_S / EVERY_S)
    assert [step.tallies["c"].good for step in history.trend()] == [1] * (KEPT - 1)


# --- what is shown


@pytest.mark.parametrize(
    ("says", "recent", "expected"),
    [
        ("nothing came", make_tally(), Standing.NO_TRAFFIC),
        ("nothing is decided", make_tally(open_=3), Standing.UNDECIDED),
        ("just enough are good", make_tally(good=9, missed=1), Standing.MEETING),
        ("one too few", make_tally(good=8, missed=1), Standing.MISSING),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) and " " in value else "",
)
def test_how_a_class_stands(says: str, recent: Tally, expected: Standing) -> None:
    assert standing(recent, SLO) is expected


def test_figures_of_no_time_are_no_rates() -> None:
    assert figures(make_tally(good=1), 0.0)["arrivals_per_s"] == 0.0


def make_present(ledger: Ledger, now: Sample, **over: Any) -> Present:
    service = Service("chat", "llm", "m", "interactive", {"interactive": SLO}, simulated=True, time_scale=1.0)
    return Present(
        **{
            "service": service,
            "now": now,
            "not_ready": "",
            "replicas": list(ledger.replicas.values()),
            "in_flight": [],
            "waiting": [],
            "scaling": LOCAL,
            **over,
        }
    )


def show(present: Present) -> Json:
    return view(present, present.now, [])


def test_pools_say_what_this_router_knows_and_holds_there() -> None:
    facts = Facts(kv_tokens=1000, token_budget=512, seen_at_s=1.0)
    ledger = Ledger(
        [
            Replica("d1", Role.DECODE, "slow", gpus=2, facts=facts, ready=True),
            Replica("d0", Role.DECODE, "slow", gpus=2, facts=facts, ready=True, retired=True),
            Replica("p0", Role.PREFILL, "fast", facts=Facts()),
        ]
    )
    ledger.begin(Size(100, 100), None, "d1", 0.0)
    prefill, decode = show(make_present(ledger, Sample(9.0, {})))["pools"]
    assert (prefill["name"], prefill["role"], prefill["ready"], prefill["replicas"]) == ("fast", "prefill", 0, 1)
    assert (prefill["kv_reserved_ratio"], prefill["token_budgets"]) == (None, [])
    assert decode == {
        "name": "slow",
        "role": "decode",
        "desired": None,
        "replicas": 2,
        "ready": 1,
        "leaving": 1,
        "gpus": 4,
        "in_flight": 1,
        "kv_reserved_ratio": 0.1,
        "token_budgets": [512],
    }


def test_a_pool_that_is_wanted_and_has_no_replica_yet_is_shown() -> None:
    planned = {"m": PlannedPool("mixed", 3), "off": PlannedPool("mixed", 0)}
    (pool,) = show(make_present(Ledger(), Sample(0.0, {}), scaling=Scaling(pools=planned)))["pools"]
    assert (pool["name"], pool["role"], pool["desired"], pool["ready"]) == ("m", "mixed", 3, 0)


def test_the_queue_is_told_by_role_with_its_oldest() -> None:
    present = make_present(
        Ledger([Replica("p", Role.PREFILL), Replica("d", Role.DECODE)]),
        Sample(10.0, {}),
        in_flight=[Role.PREFILL, Role.PREFILL, Role.DECODE],
        waiting=[Waiting(Role.PREFILL, 9.5), Waiting(Role.PREFILL, 8.0)],
    )
    assert show(present)["roles"] == [
        {"role": "prefill", "in_flight": 2, "waiting": 2, "oldest_s": 2.0},
        {"role": "decode", "in_flight": 1, "waiting": 0, "oldest_s": None},
    ]


def test_requests_refused_before_their_class_was_known_count_in_the_sums_alone() -> None:
    tallies = {"interactive": make_tally(good=3, missed=1), "": Tally(2, {}, {"rejected": 2}, {})}
    shown = show(make_present(Ledger(), Sample(2.0, tallies)))
    assert shown["requests"]["total"]["arrivals"] == 6
    assert shown["requests"]["total"]["outcomes"] == {"completed": 4, "rejected": 2}
    assert shown["misses"]["total"] == {"queue": 1}
    assert [c["total"]["arrivals"] for c in shown["classes"]] == [4]
    assert shown["classes"][0]["total"]["attainment_ratio"] == 0.75


# --- what the service says


STATUS = {
    "conditions": [
        {"type": "ScalingActive", "status": "False", "reason": "ManualHold", "message": "decode: set by others"},
        {"type": "Ready", "status": "True", "reason": "Serving", "message": ""},
        {"type": "SLOMet", "status": "True", "reason": "ObjectivesMet", "message": ""},
    ],
    "decisions": [
        {"time": "2026-01-01T00:00:05Z", "pool": "decode", "from": 2, "to": 3, "binding": "c/tpot", "why": "w"},
        {"time": "2026-01-01T00:01:05Z", "pool": "prefill", "from": 2, "to": 1},
    ],
    "pools": [{"name": "decode", "role": "Decode", "desired": 3, "ready": 2}],
}


def test_decisions_come_newest_first_and_conditions_are_the_autoscalers() -> None:
    assert scaling_of({"status": STATUS}) == Scaling(
        "",
        (
            Condition("SLOMet", "True", "ObjectivesMet", ""),
            Condition("ScalingActive", "False", "ManualHold", "decode: set by others"),
        ),
        (
            Decision("2026-01-01T00:01:05Z", "prefill", 2, 1, "", ""),
            Decision("2026-01-01T00:00:05Z", "decode", 2, 3, "c/tpot", "w"),
        ),
        {"decode": PlannedPool("decode", 3)},
    )


def test_a_service_without_a_status_has_decided_nothing() -> None:
    assert scaling_of({}) == Scaling(UNDECIDED)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "role", "desired", "from", "to"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["conditions", "decisions", "pools"]), VALUES) | VALUES)
def test_whatever_a_status_holds_nothing_raises(status: Mapping[str, Any] | object) -> None:
    show(make_present(Ledger(), Sample(0.0, {}), scaling=scaling_of({"status": status})))


# --- the page


def test_the_policy_allows_the_inline_parts_by_hash_and_nothing_from_elsewhere() -> None:
    ((name, policy),) = _policy(PAGE)
    assert name == b"content-security-policy"
    allowed = dict(part.split(b" ", 1) for part in policy.split(b"; "))
    assert allowed[b"default-src"] == b"'none'"
    assert allowed[b"connect-src"] == b"'self'"
    for kind in (b"script", b"style"):
        (text,) = re.findall(rb"<%b>(.*?)</%b>" % (kind, kind), PAGE, re.DOTALL)
        assert allowed[kind + b"-src"] == b"'sha256-%b'" % b64encode(sha256(text).digest())
    assert b"unsafe" not in policy


def test_the_page_needs_nothing_from_elsewhere_and_never_parses_text_as_markup() -> None:
    page = PAGE.decode()
    assert set(re.findall(r"https?://[^\"' )]+", page)) == {"http://www.w3.org/2000/svg"}  # a namespace, not fetched
    assert re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=\"(?!data:)", page) is None
    assert re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=|\sstyle=", page) is None
