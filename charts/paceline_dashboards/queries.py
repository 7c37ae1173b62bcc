"""The PromQL of every panel, put together around the dashboards' variables: $namespace, $service, $slo_class and $pool.

Nearly all of it reads series that rules/recording.yaml records: a refresh costs little, and the windows are theirs. The
rest keeps their rules: counters and histograms are summed over the replicas of a router, a gauge that each of them
repeats is taken once, by max, and engines are joined to their service on (job, instance).
"""

from __future__ import annotations

WINDOW = "5m"  # of what is not recorded; at least four scrapes at the longest interval that the chart allows
SERVICE = 'llmservice_namespace="$namespace", llmservice="$service"'
CLASS = f'{SERVICE}, slo_class="$slo_class"'
POOL = f'{SERVICE}, pool=~"$pool"'
FLEET = 'llmservice_namespace=~"$namespace"'
ATTAINMENT = "llmservice_class:paceline_attainment:ratio_rate"
TARGET = "llmservice_class:paceline_slo_target:max"


def of(series: str, where: str) -> str:
    """A series that is one for each of its label sets: recorded, or a gauge of one process."""
    return f"{series}{{{where}}}"


def below_target(where: str) -> str:
    """The attainment of the classes that miss their target."""
    return f"{of(ATTAINMENT, where)} < {of(TARGET, where)}"


def rate(metric: str, where: str, by: str) -> str:
    """Events a second over all replicas."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{WINDOW}]))"


def increase(metric: str, where: str, by: str) -> str:
    """Events within the window over all replicas."""
    return f"sum by ({by}) (increase({metric}{{{where}}}[{WINDOW}]))"


def gauge(metric: str, where: str, by: str) -> str:
    """A gauge that every replica repeats."""
    return f"max by ({by}) ({metric}{{{where}}})"


def quantile(share: float, metric: str, where: str) -> str:
    """Over all replicas. NaN where nothing was observed."""
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', where, 'le')})"


def engines(samples: str, where: str) -> str:
    """What engines say, with their `pool` as a label; `where` selects them by the labels of paceline_engine_info."""
    info = of("instance:paceline_engine_info:max", where)
    return f"{samples} * on (job, instance) group_left (pool) {info}"
