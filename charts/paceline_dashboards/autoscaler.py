"""What does the autoscaler want, what does it do, what comes of it, and does it see?"""

from __future__ import annotations

from paceline_dashboards.panels import GREEN, RED, Dashboard, Kind, Link, Panel, Query, Unit
from paceline_dashboards.queries import ATTAINMENT, SERVICE, TARGET, gauge, increase, of, quantile, rate
from paceline_dashboards.service import QUANTILES, VARIABLES

OURS = "paceline_autoscaler_"

HEALTH = (
    Panel(
        "Leaders",
        "Autoscalers that act; 0 for more than a lease's time means that nothing scales: see their pods and the Lease.",
        Unit.COUNT,
        (Query(f"sum({OURS}leader) or vector(0)", "leaders"),),
        Kind.STAT,
        width=6,
        height=4,
        steps=((None, RED), (1, GREEN), (2, RED)),
    ),
    Panel(
        "Sees its metrics",
        "No: sizes are held, and the service's condition MetricsAvailable says what is missing.",
        Unit.FLAG,
        (Query(gauge(f"{OURS}metrics_available", SERVICE, "llmservice"), "metrics"),),
        Kind.STAT,
        width=6,
        height=4,
        steps=((None, RED), (1, GREEN)),
    ),
    Panel(
        "Replicas",
        "Replicas of all pools, as /scale says; the chart below has them by pool, beside what the law wants.",
        Unit.COUNT,
        (Query(f"sum({gauge(f'{OURS}replicas', SERVICE, 'pool')})", "replicas"),),
        Kind.STAT,
        width=6,
        height=4,
    ),
    Panel(
        "Pools held by a person",
        "Pools whose size someone set; it is respected for the stated hold, and ScalingActive says until when.",
        Unit.COUNT,
        (Query(f"sum({gauge(f'{OURS}held', SERVICE, 'pool')})", "held"),),
        Kind.STAT,
        width=6,
        height=4,
        steps=((None, GREEN), (1, "orange")),
    ),
)

DECISIONS = (
    Panel(
        "Replicas and wanted",
        "Each pool's size beside the least that the law finds sufficient; wanted above size for long means a bound, "
        "the budget, a hold or pods that do not start.",
        Unit.COUNT,
        (
            Query(gauge(f"{OURS}replicas", SERVICE, "pool"), "{{pool}} replicas"),
            Query(gauge(f"{OURS}wanted_replicas", SERVICE, "pool"), "{{pool}} wanted"),
        ),
        Kind.STEPS,
        width=12,
    ),
    Panel(
        "Attainment under it",
        "What decisions come to: attained and predicted share per class beside the target; a prediction that stays far "
        "from what is attained is corrected by one replica a decision.",
        Unit.SHARE,
        (
            Query(of(ATTAINMENT, SERVICE), "{{slo_class}} attained"),
            Query(gauge(f"{OURS}predicted_attainment_ratio", SERVICE, "slo_class"), "{{slo_class}} predicted"),
            Query(of(TARGET, SERVICE), "{{slo_class}} target"),
        ),
        width=12,
        words=("attained", "predicted", "target"),
        most=1.0,
    ),
    Panel(
        "Changes",
        "Changes of size within five minutes; up and down in turns at constant load is a fault to report.",
        Unit.COUNT,
        (Query(increase(f"{OURS}changes_total", SERVICE, "pool, direction"), "{{pool}} {{direction}}"),),
        words=("up", "down"),
    ),
    Panel(
        "Load factor",
        "The load that explains what is observed, over the predicted one, per role; far from 1 for long, the step-time "
        "table or the lengths of requests are not what the law takes them for.",
        Unit.COUNT,
        (Query(gauge(f"{OURS}load_factor", SERVICE, "role"), "{{role}}"),),
        words=("prefill", "decode", "mixed"),
    ),
    Panel(
        "Replicas ready",
        "Replicas that may get requests, by role; below the pools' sizes while new ones start.",
        Unit.COUNT,
        (Query(of("llmservice_role:paceline_ready_replicas:max", SERVICE), "{{role}}"),),
        Kind.STEPS,
        words=("prefill", "decode", "mixed"),
    ),
)

SIGHT = (
    Panel(
        "Ticks by result",
        "Looks at this service: blind ones could not see, failed ones met an error that the autoscaler's log names; "
        "both should be rare.",
        Unit.PER_SECOND,
        (Query(rate(f"{OURS}ticks_total", SERVICE, "result"), "{{result}}"),),
        Kind.STACK,
        words=("decided", "blind", "failed"),
    ),
    Panel(
        "Query time",
        "How long Prometheus takes to answer one query; towards the interval of the ticks, give it more CPU or fewer "
        "series.",
        Unit.SECONDS,
        tuple(
            Query(quantile(share, f"{OURS}query_seconds", ""), name)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        ),
        words=QUANTILES,
    ),
    Panel(
        "Query failures",
        "Ticks without an answer of Prometheus, by cause: unreachable, refused (its token), malformed (no Prometheus); "
        "any of them holds all sizes.",
        Unit.PER_SECOND,
        (Query(rate(f"{OURS}query_failures_total", "", "cause"), "{{cause}}"),),
    ),
)

DASHBOARD = Dashboard(
    "paceline-autoscaler",
    "Paceline / Autoscaler",
    "One service's sizes: wanted and actual, what the decisions come to, and whether the autoscaler sees.",
    VARIABLES,
    (*HEALTH, *DECISIONS, *SIGHT),
    (Link("Service", "paceline-service"), Link("Engines", "paceline-engines")),
)
