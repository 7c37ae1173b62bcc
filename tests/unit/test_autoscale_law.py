"""The law case by case: load, bounds and budget in, sizes and the reason in words out (DESIGN §7).

Capacities are the double's: unless a case says otherwise a prefill or mixed replica holds 1 rps, a decode replica 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from paceline_router.autoscale.law import least_sizes
from paceline_router.autoscale.outlook import Outlook
from paceline_router.autoscale.signals import Attained, PoolSignals, ServiceSignals, Unattainable
from paceline_router.facts import Role
from scaling_double import Capacity, make_class, make_pair, make_pool, make_signals

MIXED, PREFILL, DECODE = Role.MIXED, Role.PREFILL, Role.DECODE


def two_pools(cheap: float, dear: float, *, dear_gpus: int = 1) -> tuple[tuple[PoolSignals, ...], Capacity]:
    pools = make_pool(MIXED, 1, name="dear", gpus=dear_gpus, most=3), make_pool(MIXED, 1, name="cheap", least=0, most=3)
    return pools, Capacity({"cheap": cheap, "dear": dear})


@dataclass(frozen=True)
class Case:
    sentence: str
    signals: ServiceSignals
    sizes: dict[str, int]
    why: dict[str, str] = field(default_factory=dict)  # by pool, a pattern
    binding: dict[str, str] = field(default_factory=dict)
    capacity: Capacity = field(default_factory=Capacity)
    factors: dict[Role, float] = field(default_factory=dict)


CASES = [
    Case("as many mixed replicas as hold the rate", make_signals(make_pool(), rps=3.0), {"mixed": 3}),
    Case("one more as soon as the rate is above what they hold", make_signals(make_pool(), rps=3.1), {"mixed": 4}),
    Case(
        "the sentence has the rate, both sides of the step and the target",
        make_signals(make_pool(), rps=8.2, classes=(make_class("interactive", 8.2),)),
        {"mixed": 9},
        {"mixed": r"TTFT of interactive at 8\.2 rps: 9 replicas attain 98 %, 8 attain 80\.4 %, target 95 %"},
        {"mixed": "interactive/ttft"},
    ),
    Case(
        "prefill by the first token, decode by the tokens after it",
        make_signals(*make_pair(), rps=6.0),
        {"prefill": 6, "decode": 3},
        {"prefill": "TTFT of chat at 6 rps: 6 replicas", "decode": "TPOT of chat at 6 rps: 3 replicas"},
        {"prefill": "chat/ttft", "decode": "chat/tpot"},
    ),
    Case(
        "what is starting counts: sizes are absolute, whatever is ready now",
        make_signals(make_pool(replicas=5, ready=1), rps=5.0),
        {"mixed": 5},
    ),
    Case(
        "a learned factor multiplies the load", make_signals(make_pool(), rps=4.0), {"mixed": 6}, factors={MIXED: 1.5}
    ),
    Case(
        "the classes' rates add up, and the strictest target decides",
        make_signals(make_pool(), classes=(make_class("a", 2.0, 0.9), make_class("b", 1.0, 0.97))),
        {"mixed": 3},
        binding={"mixed": "b/ttft"},
    ),
    Case(
        "a laxer target accepts what a stricter one does not",
        make_signals(make_pool(), classes=(make_class(rps=3.1, target=0.7),)),
        {"mixed": 3},
    ),
    Case(
        "minReplicas stays however little comes",
        make_signals(make_pool(replicas=4, least=2), rps=0.5),
        {"mixed": 2},
        {"mixed": r"minReplicas 2 is enough: chat at 0\.5 rps attains 98 %, target 95 %"},
        {"mixed": ""},
    ),
    Case(
        "maxReplicas is never passed, and the sentence says what that costs",
        make_signals(make_pool(most=4), rps=6.0),
        {"mixed": 4},
        {"mixed": r"maxReplicas 4 reached; chat at 6 rps attains .* target 95 %"},
        {"mixed": ""},
    ),
    Case(
        "where prefill is at its most, decode gets no more than its own objective needs",
        make_signals(make_pool(PREFILL, most=3), make_pool(DECODE), rps=6.0),
        {"prefill": 3, "decode": 3},
    ),
    Case(
        "where prefill is hopeless at its most, decode still gets no more than its own objective needs",
        make_signals(make_pool(PREFILL, most=1), make_pool(DECODE), rps=6.0),
        {"prefill": 1, "decode": 3},
    ),
    Case(
        "prefill that attains nothing at its most stays at its most: no fewer would do",
        make_signals(make_pool(PREFILL, most=2), make_pool(DECODE), rps=6.0),
        {"prefill": 2, "decode": 3},
        capacity=Capacity(collapse=1.5),
    ),
    Case(
        "and so does decode",
        make_signals(make_pool(PREFILL), make_pool(DECODE, most=2), rps=6.0),
        {"prefill": 6, "decode": 2},
        capacity=Capacity(collapse=1.5),
    ),
    Case(
        "a fixed size is taken as it is",
        make_signals(make_pool(PREFILL, 5, least=5, most=5), make_pool(DECODE), rps=3.0),
        {"prefill": 5, "decode": 2},
    ),
    Case(
        "a size set by a person is taken as it is, and the other pool sized beside it",
        make_signals(make_pool(PREFILL, 2, held=True), make_pool(DECODE), rps=6.0),
        {"prefill": 2, "decode": 3},
        {"prefill": "2 replicas, as set by a person; chat at 6 rps attains"},
        {"prefill": ""},
    ),
    Case(
        "decode held at 0 serves nothing: nothing is scaled to no purpose",
        make_signals(make_pool(PREFILL, 2), make_pool(DECODE, 0, held=True), rps=6.0),
        {"prefill": 2, "decode": 0},
        {"prefill": "there may be no decode replica: nothing can be served"},
    ),
    Case(
        "nothing is scaled while the other role's pool does not exist yet",
        make_signals(make_pool(PREFILL, 2), rps=6.0),
        {"prefill": 2},
        {"prefill": "there may be no decode replica: nothing can be served"},
    ),
    Case("maxGPUs counts GPUs, not replicas", make_signals(make_pool(gpus=2), rps=6.0, max_gpus=8), {"mixed": 4}),
    Case(
        "maxGPUs is split where it helps the worst class most, and the sentence says what was wanted",
        make_signals(*make_pair(most=20), rps=12.0, max_gpus=9),
        {"prefill": 5, "decode": 4},
        {"prefill": r"maxGPUs 9 leaves 5 of 12 replicas; chat at 12 rps attains", "decode": "maxGPUs 9 leaves 4 of 6"},
        {"prefill": "", "decode": ""},
    ),
    Case(
        "with answers twice as long more of a budget goes to decode",
        make_signals(*make_pair(most=20), rps=12.0, max_gpus=10),
        {"prefill": 5, "decode": 5},
        capacity=Capacity({"prefill": 1.0, "decode": 1.0}),
    ),
    Case(
        "the budget alone takes no ready replica from a pool that needs it",
        make_signals(*make_pair(2, 5), rps=12.0, max_gpus=8),
        {"prefill": 3, "decode": 5},
    ),
    Case(
        "when the present exceeds the budget everything is split anew",
        make_signals(*make_pair(2, 8), rps=12.0, max_gpus=8),
        {"prefill": 4, "decode": 4},
    ),
    Case(
        "minReplicas above the budget win: the API refuses that, a race may not",
        make_signals(make_pool(least=5), rps=9.0, max_gpus=4),
        {"mixed": 5},
    ),
    Case(
        "the pool that does most for a GPU grows first, then the other",
        make_signals(*two_pools(2.0, 1.0)[0], rps=6.5),
        {"cheap": 3, "dear": 1},
        capacity=two_pools(2.0, 1.0)[1],
    ),
    Case(
        "a replica of two GPUs must do twice as much",
        make_signals(*two_pools(1.0, 1.9, dear_gpus=2)[0], rps=6.5),
        {"cheap": 3, "dear": 2},
        capacity=two_pools(1.0, 1.9, dear_gpus=2)[1],
    ),
    Case(
        "without traffic the least sizes",
        make_signals(make_pool(PREFILL, 4), make_pool(DECODE, 3, least=2), rps=0.0),
        {"prefill": 1, "decode": 2},
        {"prefill": "no traffic"},
    ),
    Case(
        "without traffic a role keeps one replica, because nothing would wake it",
        make_signals(make_pool(PREFILL, 4, least=0), make_pool(DECODE, 2, least=0), rps=0.0),
        {"prefill": 1, "decode": 1},
    ),
    Case(
        "without traffic that one replica is of a pool that has some",
        make_signals(make_pool(name="a", replicas=0, least=0), make_pool(name="b", replicas=2, least=0), rps=0.0),
        {"a": 0, "b": 1},
    ),
    Case(
        "without traffic what is at 0 on purpose stays there",
        make_signals(make_pool(replicas=0, least=0), rps=0.0),
        {"mixed": 0},
    ),
    Case("traffic wakes what is at 0", make_signals(make_pool(replicas=0, least=0), rps=0.1), {"mixed": 1}),
    Case(
        "the last point before A∞ is not chased: its target is A∞ − 1 point",
        make_signals(make_pool(), classes=(make_class(rps=3.0, target=0.975),)),
        {"mixed": 3},
        {"mixed": r"target 97 %"},
    ),
    Case(
        "a class that no fleet brings to its target makes nothing grow",
        make_signals(make_pool(), classes=(make_class(rps=6.0, target=0.99),)),
        {"mixed": 1},
    ),
    Case(
        "and takes nothing away that it needs",
        make_signals(make_pool(replicas=4), classes=(make_class(rps=6.0, target=0.99),)),
        {"mixed": 4},
    ),
    Case(
        "but what it has beyond its need may go",
        make_signals(make_pool(replicas=9), classes=(make_class(rps=6.0, target=0.99),)),
        {"mixed": 6},
    ),
    Case(
        "the others are scaled beside it, its load counted",
        make_signals(make_pool(), classes=(make_class("a", 2.0), make_class("hopeless", 2.0, 0.999))),
        {"mixed": 4},
        binding={"mixed": "hopeless/ttft"},
    ),
    Case(
        "of equally cheap sizes those that are nearest to the present",
        make_signals(*make_pair(4, 1), classes=(make_class(rps=4.0, target=0.3),)),
        {"prefill": 4, "decode": 3},
        capacity=Capacity({"prefill": 1.0, "decode": 1.0}),
    ),
    Case(
        "seen from the other side these are the others",
        make_signals(*make_pair(1, 4), classes=(make_class(rps=4.0, target=0.3),)),
        {"prefill": 3, "decode": 4},
        capacity=Capacity({"prefill": 1.0, "decode": 1.0}),
    ),
    Case(
        "a role that is needed has a replica, even for a class that no fleet brings to its target",
        make_signals(make_pool(replicas=0, least=0), classes=(make_class(rps=6.0, target=0.99),)),
        {"mixed": 1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_sizes(case: Case) -> None:
    sizing = least_sizes(case.signals, case.factors, case.capacity)
    assert sizing.sizes == case.sizes
    for pool, pattern in case.why.items():
        assert re.search(pattern, sizing.why[pool]), sizing.why[pool]
    assert {pool: sizing.binding[pool] for pool in case.binding} == case.binding


def test_an_unattainable_class_is_named_with_the_objective_that_binds_and_both_figures() -> None:
    capacity = Capacity(unloaded={"batch": Attained(0.98, 0.8)})
    signals = make_signals(make_pool(), classes=(make_class("chat", 1.0), make_class("batch", 1.0, 0.9)))
    sizing = least_sizes(signals, model=capacity)
    assert sizing.unattainable == (Unattainable("batch", "tpot", 0.98 * 0.8, 0.9),)
    assert sizing.targets == pytest.approx({"chat": 0.95, "batch": 0.98 * 0.8 - 0.01})


def test_a_class_without_traffic_is_neither_sized_for_nor_unattainable() -> None:
    signals = make_signals(make_pool(), classes=(make_class("chat", 1.0), make_class("hopeless", 0.0, 0.999)))
    sizing = least_sizes(signals, model=Capacity())
    assert (dict(sizing.targets), sizing.unattainable) == ({"chat": 0.95}, ())


@pytest.mark.parametrize(
    ("signals", "limited"),
    [
        pytest.param(make_signals(make_pool(), rps=6.0), False, id="enough replicas allowed"),
        pytest.param(make_signals(make_pool(most=4), rps=6.0), True, id="maxReplicas"),
        pytest.param(make_signals(make_pool(), rps=6.0, max_gpus=5), True, id="maxGPUs"),
        pytest.param(make_signals(make_pool(replicas=2, held=True), rps=6.0), True, id="a person's size"),
        pytest.param(
            make_signals(make_pool(), classes=(make_class(target=0.999),)), False, id="unattainable is no limit"
        ),
    ],
)
def test_limited_says_whether_bounds_or_budget_keep_a_class_from_its_target(
    signals: ServiceSignals, limited: bool
) -> None:
    assert least_sizes(signals, model=Capacity()).limited is limited


def test_holds_is_the_question_that_the_law_answers_with_its_least_sizes() -> None:
    signals = make_signals(*make_pair(), rps=6.0)
    targets = least_sizes(signals, model=Capacity()).targets
    predicted = Outlook(signals, {}, Capacity()(signals))
    assert predicted.holds({"prefill": 6, "decode": 3}, targets)
    assert not predicted.holds({"prefill": 5, "decode": 3}, targets)
    assert not predicted.under({Role.DECODE: 1.2}).holds({"prefill": 6, "decode": 3}, targets)


def test_the_law_decides_on_the_real_model_within_its_time() -> None:
    """Long chains are searched by halves: a service of 2 × 64 replicas needs few forecasts."""
    signals = make_signals(*make_pair(most=64), rps=200.0)
    sizing = least_sizes(signals)
    assert all(1 < n < 64 for n in sizing.sizes.values()), sizing.why
    assert sizing.binding["prefill"] == "chat/ttft"
