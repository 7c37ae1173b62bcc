"""Do the services meet their objectives, and what do they take for it? All services side by side."""

from __future__ import annotations

from paceline_dashboards.panels import GREEN, RED, Dashboard, Kind, Panel, Query, Unit, Variable
from paceline_dashboards.queries import ATTAINMENT, FLEET, TARGET, below_target, of

SERVICE_NAME = "{{llmservice_namespace}}/{{llmservice}}"
CLASS_NAME = f"{SERVICE_NAME} {{{{slo_class}}}}"
GOODPUT = of("llmservice:paceline_goodput:rate", FLEET)
GPUS = of("llmservice:paceline_gpus:sum", FLEET)

NOW = (
    Panel(
        "Classes below target",
        "SLO classes whose attainment is now below their target; above 0, the table at the end names them.",
        Unit.COUNT,
        (Query(f"count({below_target(FLEET)}) or vector(0)", "classes"),),
        Kind.STAT,
        width=6,
        height=4,
        steps=((None, GREEN), (1, RED)),
    ),
    Panel(
        "Goodput",
        "Good requests per second, all services; a fall without a fall of arrivals is lost objectives.",
        Unit.PER_SECOND,
        (Query(f"sum({GOODPUT})", "good"),),
        Kind.STAT,
        width=6,
        height=4,
    ),
    Panel(
        "GPUs",
        "GPUs of all replicas that the routers know; compare it with what the cluster has before raising maxReplicas.",
        Unit.COUNT,
        (Query(f"sum({GPUS})", "GPUs"),),
        Kind.STAT,
        width=6,
        height=4,
    ),
    Panel(
        "Good requests per GPU-hour",
        "What an hour of a GPU yields at the present rate; where it falls at equal load, the fleet is larger than it "
        "needs to be.",
        Unit.COUNT,
        (Query(f"3600 * sum({GOODPUT}) / (sum({GPUS}) > 0)", "good per GPU-hour"),),
        Kind.STAT,
        width=6,
        height=4,
    ),
)

COURSE = (
    Panel(
        "Attainment",
        "Share of decided requests within TTFT and TPOT, per class now; click a falling one for its causes.",
        Unit.SHARE,
        (Query(of(ATTAINMENT, FLEET), CLASS_NAME),),
        most=1.0,
        drill=True,
    ),
    Panel(
        "Attainment above target",
        "Attainment less the class's target; below zero the objective is missed, far above it the fleet may be "
        "smaller.",
        Unit.SHARE,
        (Query(f"{of(ATTAINMENT, FLEET)} - {of(TARGET, FLEET)}", CLASS_NAME),),
        steps=((None, RED), (0, GREEN)),
        least=None,
        drill=True,
    ),
    Panel(
        "Burn rate, 1 h",
        "Error budget spent, in multiples of what the target allows; 1 uses it up exactly, and the alerts say from "
        "when to act.",
        Unit.COUNT,
        (Query(of("llmservice_class:paceline_burn_rate:ratio1h", FLEET), CLASS_NAME),),
        steps=((None, GREEN), (1, RED)),
        drill=True,
    ),
    Panel(
        "Goodput by service",
        "Good requests per second of each service; click one that falls while its arrivals do not.",
        Unit.PER_SECOND,
        (Query(GOODPUT, SERVICE_NAME),),
        Kind.STACK,
        drill=True,
    ),
    Panel(
        "GPUs by service",
        "GPUs of each service's pools by role; a service at its maxReplicas or maxGPUs stays flat while it misses.",
        Unit.COUNT,
        (Query(of("llmservice_role:paceline_gpus:max", FLEET), f"{SERVICE_NAME} {{{{role}}}}"),),
        Kind.STACK,
        drill=True,
    ),
    Panel(
        "Good requests per GPU-hour by service",
        "The yield of each service's GPUs over the last hour; compare it before and after a change of topology, model "
        "or objective.",
        Unit.COUNT,
        (Query(of("llmservice:paceline_good_requests_per_gpu_hour:ratio1h", FLEET), SERVICE_NAME),),
        drill=True,
    ),
    Panel(
        "Error budget left, 30 d",
        "What the last 30 days left of the allowed share of misses; below zero, hold changes that risk more.",
        Unit.SHARE,
        (Query(of("llmservice_class:paceline_error_budget_left:ratio30d", FLEET), CLASS_NAME),),
        Kind.BARS,
        width=12,
        steps=((None, RED), (0, "orange"), (0.25, GREEN)),
        least=None,
        most=1.0,
        drill=True,
    ),
    Panel(
        "Classes that miss their objective",
        "One row a class that is now below its target; open its service for the causes.",
        Unit.SHARE,
        (
            Query(below_target(FLEET), "attainment"),
            Query(f"{of(TARGET, FLEET)} > {of(ATTAINMENT, FLEET)}", "target"),
        ),
        Kind.TABLE,
        width=12,
        drill=True,
        empty="every class meets its objective",
    ),
)

DASHBOARD = Dashboard(
    "paceline-fleet",
    "Paceline / Fleet",
    "All services: attainment against target, goodput, GPUs and what they yield, error budget.",
    (Variable("namespace", "Namespace", "paceline_slo_target_ratio", "llmservice_namespace", every=True),),
    (*NOW, *COURSE),
)
