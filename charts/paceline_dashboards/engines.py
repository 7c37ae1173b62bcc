"""What do the engines do with their steps? Budget, batches, step times against the model of them, memory and misses."""

from __future__ import annotations

from paceline_dashboards.panels import GREEN, RED, Dashboard, Kind, Link, Panel, Query, Unit, Variable
from paceline_dashboards.queries import POOL, SERVICE, engines, of
from paceline_dashboards.service import VARIABLES

POOL_VARIABLE = Variable("pool", "Pool", of("paceline_engine_info", SERVICE), "pool", every=True)


def each(metric: str) -> Query:
    """One series a replica."""
    return Query(f"max by (pool, pod) ({engines(metric, POOL)})", "{{pool}} {{pod}}")


def pools(series: str, suffix: str = "") -> Query:
    """One series a pool, of those that are recorded."""
    return Query(of(f"pool:{series}", POOL), f"{{{{pool}}}} {suffix}".rstrip())


HITS = of("pool:vllm_prefix_cache_hits:rate", POOL)
ASKED = of("pool:vllm_prefix_cache_queries:rate", POOL)

BATCH = (
    Panel(
        "Token budget",
        "The most tokens that one step may compute, mean over a pool; a budget that shrinks says that decodes have "
        "little slack left against TPOT.",
        Unit.COUNT,
        (pools("paceline_token_budget_tokens:avg"),),
    ),
    Panel(
        "Batch mix",
        "Tokens of prefills and of decodes per step; prefills that crowd out decodes in a mixed pool are seen here "
        "first.",
        Unit.COUNT,
        (pools("paceline_step_tokens:mean", "{{phase}}"),),
    ),
    Panel(
        "Step time",
        "Measured steps beside the predicted ones; where the pairs part, budgets and choices rest on a wrong model.",
        Unit.SECONDS,
        tuple(pools(f"paceline_step_seconds:{name}", f"{name} {{{{kind}}}}") for name in ("p50", "p99")),
    ),
)

MODEL = (
    Panel(
        "Prediction error of steps",
        "Relative error of predicted step times by regime, of the worst engine of a pool; above 20 % check that the "
        "table is this GPU's.",
        Unit.SHARE,
        (pools("paceline_step_time_error:max", "{{regime}}"),),
        steps=((None, GREEN), (0.2, RED)),
    ),
    Panel(
        "Scale and offset",
        "The fit on the step-time table: 1 and 0 s where the table is exact; outside 0.5 to 3 it is not used.",
        Unit.COUNT,
        (
            pools("paceline_step_time_scale:avg", "{{regime}} scale"),
            pools("paceline_step_time_offset_seconds:avg", "{{regime}} offset"),
        ),
        least=None,
        second=("offset", Unit.SECONDS),
    ),
    Panel(
        "Trusted fits",
        "Share of a pool's engines whose fit is used; the others run on the plain table with a wide margin, as every "
        "new engine does. A regime that a pool never runs stays at 0.",
        Unit.SHARE,
        (pools("paceline_step_time_trusted:avg", "{{regime}}"),),
        most=1.0,
    ),
)

TROUBLE = (
    Panel(
        "Stalls and misses",
        "Gaps above the class's stall limit, and objectives that the engine saw missed; both at once say that the "
        "pool is too small or the budget too large.",
        Unit.PER_SECOND,
        (
            pools("paceline_stalls:rate", "stalls"),
            pools("paceline_engine_misses:rate", "{{cause}}"),
        ),
        words=("stalls",),
    ),
    Panel(
        "Preemptions",
        "Requests thrown out of a full KV cache; any lasting rate costs their prefill again: grow the pool or lower "
        "maxContextTokens.",
        Unit.PER_SECOND,
        (pools("vllm_num_preemptions:rate"),),
    ),
    Panel(
        "KV cache in use",
        "Each replica's share of KV blocks in use; one replica far above its pool has long requests or a router that "
        "herds.",
        Unit.SHARE,
        (each("vllm:kv_cache_usage_perc"),),
        most=1.0,
    ),
)

LIFE = (
    Panel(
        "Prefix cache hits",
        "Prompt tokens found in the prefix cache; a fall after a change of routing means that conversations no longer "
        "return to their replica.",
        Unit.SHARE,
        (Query(f"{HITS} / ({ASKED} > 0)", "{{pool}}"),),
        most=1.0,
    ),
    Panel(
        "Running and waiting",
        "Requests in the batches of a pool, and those that wait in its engines; lasting waiting means that the router "
        "sends more than the pool's KV holds.",
        Unit.COUNT,
        (
            pools("vllm_num_requests_running:sum", "running"),
            pools("vllm_num_requests_waiting:sum", "waiting"),
        ),
        Kind.STACK,
    ),
    Panel(
        "Start time",
        "From process start to ready, per replica; the autoscaler counts on it, and a cache of the model's files "
        "shortens it.",
        Unit.SECONDS,
        (each("paceline_engine_start_seconds"),),
        Kind.BARS,
    ),
)

DASHBOARD = Dashboard(
    "paceline-engines",
    "Paceline / Engines",
    "The pools of one service: token budget, batches, step times against their model, stalls, KV cache.",
    (*VARIABLES, POOL_VARIABLE),
    (*BATCH, *MODEL, *TROUBLE, *LIFE),
    (Link("Service", "paceline-service"), Link("Autoscaler", "paceline-autoscaler")),
)
