"""Why does a class miss its objective? Latencies against limits, causes, predictions, queue, KV cache and failures."""

from __future__ import annotations

from paceline_api.outcomes import Outcome
from paceline_router.facts import Role
from paceline_router.miss import Cause

from paceline_dashboards.panels import Dashboard, Kind, Link, Panel, Query, Unit, Variable
from paceline_dashboards.queries import ATTAINMENT, CLASS, SERVICE, TARGET, WINDOW, engines, gauge, of, quantile, rate

CLASSES = "paceline_slo_target_ratio"  # every service shows one for each class, with or without traffic
VARIABLES = (
    Variable("namespace", "Namespace", CLASSES, "llmservice_namespace"),
    Variable("service", "Service", of(CLASSES, 'llmservice_namespace="$namespace"'), "llmservice"),
)
CLASS_VARIABLE = Variable("slo_class", "Class", of(CLASSES, SERVICE), "slo_class")
QUANTILES = ("p50", "p90", "p99")


def quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(Query(of(f"llmservice_class:{metric}:{name}", CLASS), name) for name in QUANTILES)


def limit(objective: str) -> Query:
    return Query(of("llmservice_class:paceline_slo_limit_seconds:max", f'{CLASS}, objective="{objective}"'), "limit")


OBJECTIVES = (
    Panel(
        "Attainment",
        "Share of decided requests within both limits, beside the target and what the autoscaler predicts for the "
        "present size; under the target, the two panels beside it tell which limit binds.",
        Unit.SHARE,
        (
            Query(of(ATTAINMENT, CLASS), "attained"),
            Query(gauge("paceline_autoscaler_predicted_attainment_ratio", CLASS, "slo_class"), "predicted"),
            Query(of(TARGET, CLASS), "target"),
        ),
        words=("attained", "predicted", "target"),
        most=1.0,
    ),
    Panel(
        "TTFT",
        "From receipt to the first token, against the class's limit (without its part per prompt token); above it, "
        "look at the queue and at the prefill pool.",
        Unit.SECONDS,
        (*quantiles("paceline_ttft_seconds"), limit("ttft")),
        words=(*QUANTILES, "limit"),
    ),
    Panel(
        "TPOT",
        "Mean time per output token after the first, against the class's limit; above it, look at the decode pool's "
        "batches and KV use.",
        Unit.SECONDS,
        (*quantiles("paceline_tpot_seconds"), limit("tpot")),
        words=(*QUANTILES, "limit"),
    ),
)

LOAD = (
    Panel(
        "Requests by outcome",
        "How requests ended, with arrivals as a line; shed means that they could not have met the objective, the other "
        "failures are faults to look up in the router's log.",
        Unit.PER_SECOND,
        (
            Query(of("llmservice_class:paceline_requests:rate", CLASS), "{{outcome}}"),
            Query(of("llmservice_class:paceline_requests_received:rate", CLASS), "received"),
        ),
        Kind.STACK,
        words=(*Outcome, "received"),
    ),
    Panel(
        "Misses by cause",
        "What took the time of the requests that missed: queue and prefill ask for prefill replicas, decode for decode "
        "replicas, transfer and failure for a look at the network and the engines.",
        Unit.PER_SECOND,
        (Query(of("llmservice_class:paceline_miss:rate", CLASS), "{{cause}}"),),
        Kind.STACK,
        words=tuple(Cause),
        empty="no misses",
    ),
    Panel(
        "Requests in flight",
        "Requests without an outcome, by where they are; growth without more arrivals means that a role falls behind.",
        Unit.COUNT,
        (Query(of("llmservice_role:paceline_requests_in_flight:sum", SERVICE), "{{role}}"),),
        Kind.STACK,
        words=tuple(Role),
    ),
    Panel(
        "Queue time",
        "From receipt to the leg that led to the first token; near the TTFT limit, prefills wait for room.",
        Unit.SECONDS,
        quantiles("paceline_queue_seconds"),
        words=QUANTILES,
    ),
)

PREDICTION = tuple(
    Panel(
        f"{objective} less its prediction",
        f"Actual less predicted {objective} of all classes: around zero the router chooses well; far from it, see "
        "whether the engines' step times are trusted.",
        Unit.SECONDS,
        tuple(
            Query(quantile(share, f"paceline_predicted_{objective.lower()}_error_seconds", SERVICE), name)
            for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9))
        ),
        words=("p10", "p50", "p90"),
        least=None,
    )
    for objective in ("TTFT", "TPOT")
)

ENGINE_FAILURES = engines(f"rate(paceline_kv_transfer_failures_total[{WINDOW}])", SERVICE)

ENGINES = (
    Panel(
        "KV cache in use",
        "The fullest and the mean replica of each pool; near 100 % requests are preempted or wait, and the pool "
        "should grow.",
        Unit.SHARE,
        tuple(
            Query(of(f"pool:vllm_kv_cache_usage:{over}", SERVICE), f"{{{{pool}}}} {over}") for over in ("max", "avg")
        ),
        most=1.0,
    ),
    Panel(
        "KV transfer failures",
        "Hand-overs that failed, as the router counts them and by cause as the engines do; any lasting rate is an "
        "alert.",
        Unit.PER_SECOND,
        (
            Query(of("llmservice:paceline_kv_transfer_failures:rate", SERVICE), "router"),
            Query(f"sum by (cause) ({ENGINE_FAILURES})", "{{cause}}"),
        ),
    ),
    Panel(
        "Retries",
        "Steps taken after a leg failed, by fault and step; a lasting rate names an engine that is broken.",
        Unit.PER_SECOND,
        (Query(rate("paceline_retries_total", SERVICE, "leg, fault, step"), "{{leg}} {{fault}}: {{step}}"),),
        empty="no retries",
    ),
)

DASHBOARD = Dashboard(
    "paceline-service",
    "Paceline / Service",
    "One class of one service: latencies against its limits, what misses are due to, and whether predictions hold.",
    (*VARIABLES, CLASS_VARIABLE),
    (*OBJECTIVES, *LOAD, *PREDICTION, *ENGINES),
    (Link("Engines", "paceline-engines"), Link("Autoscaler", "paceline-autoscaler")),
)
