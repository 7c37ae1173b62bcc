"""The names of all metrics that Paceline's processes expose, from the collectors themselves; none is written down here.

A query that names another has a typo, or outlived its metric. `in_query` finds the names in PromQL.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import cast

from paceline_api.slo import SLOClass
from paceline_engine.alarms import Alarms
from paceline_engine.clock import Clock
from paceline_engine.sim.engine import Engine
from paceline_engine.sim.metrics import render
from paceline_engine.sim.options import check, make_replica, parser
from paceline_engine.sim.samples import samples
from paceline_operator.metrics import OperatorMetrics
from paceline_router.gauges import StateGauges
from paceline_router.metrics import RouterMetrics
from paceline_router.scaling.metrics import AutoscalerMetrics
from paceline_router.shell import Shell
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

CLASSES = {"interactive": SLOClass("interactive", 0.4, 0.04)}


def router() -> frozenset[str]:
    """A router with one class, before its first request."""
    shell = SimpleNamespace(
        config=SimpleNamespace(service="s", namespace="n"),
        classes=CLASSES,
        ledger=SimpleNamespace(replicas={}),
        jobs=(),
        clock=Clock(1.0),
    )
    fleet = SimpleNamespace(simulated=True, lateness_p99_s=0.0, step_p50_s=0.0)
    collectors = (RouterMetrics("s", "n", CLASSES), StateGauges(cast(Shell, shell), fleet))
    return _names(family for collector in collectors for family in collector.collect())


def engine() -> frozenset[str]:
    """A simulated engine; the vLLM ones expose the same names."""
    return _names(text_string_to_metric_families(asyncio.run(_engine_page())))


def engine_families(page: str = "") -> Mapping[str, tuple[str, frozenset[str]]]:
    """Type and own labels of each metric of an engine's page; the simulated engine's without one."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(page or asyncio.run(_engine_page())):
        labels = frozenset(label for s in family.samples for label in s.labels) - {"le", "engine", "model_name"}
        found[family.name] = family.type, labels
    return found


def operator() -> frozenset[str]:
    registry = CollectorRegistry()
    OperatorMetrics(registry)
    return _names(registry.collect())


def autoscaler() -> frozenset[str]:
    registry = CollectorRegistry()
    AutoscalerMetrics(registry)
    return _names(registry.collect())


@cache
def exposed() -> frozenset[str]:
    """Of all processes."""
    return router() | engine() | operator() | autoscaler()


def in_query(expr: str) -> frozenset[str]:
    """Our metrics and recorded series in PromQL; label names and values are not among them."""
    bare = re.sub(r'"(\\.|[^"\\])*"', '""', expr)
    names = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)
    return frozenset(name for name in names if "paceline_" in name or "vllm" in name)


async def _engine_page() -> str:
    flags = ("--model=llama-3.1-8b", "--served-name=m", "--table=a100-sxm-80gb", "--max-model-len=4096")
    options = check(parser().parse_args(flags))
    alarms = Alarms(asyncio.get_running_loop())
    try:
        made = Engine("e", options, make_replica(options, 0), Clock(1.0), alarms, "token")
        return render('engine="0"', samples(made), made.metrics).decode()
    finally:
        alarms.close()


def _names(families: Iterable[Metric]) -> frozenset[str]:
    return frozenset(name for family in families for name in _sample_names(family))


def _sample_names(family: Metric) -> Iterator[str]:
    match family.type:
        case "counter":
            yield f"{family.name}_total"
        case "histogram":
            yield from (f"{family.name}_{part}" for part in ("bucket", "count", "sum"))
        case _:
            yield family.name
