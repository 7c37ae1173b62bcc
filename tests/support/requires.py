"""What a test may require of its machine, and what follows where that is missing.

A test names it with `@pytest.mark.requires("traces")`. Missing, the test is skipped, unless PACELINE_REQUIRE (a comma
list) names it: then the test fails, so that nothing is silently left out where it must run. Pure: the environment is an
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

TRACES = "PACELINE_TRACES"  # the folder of real traces
REQUIRE = "PACELINE_REQUIRE"

MACHINE_SUITES = ("cluster", "vllm", "e2e")  # these names also require the suite tests/NAME as a whole


@dataclass(frozen=True, slots=True)
class Skip:
    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    reason: str


def _traces_missing(environ: Mapping[str, str]) -> str | None:
    folder = environ.get(TRACES)
    if not folder:
        return f"{TRACES} is not set; it names the folder of real traces"
    if not Path(folder).is_dir():
        return f"{TRACES}={folder} is not a folder"
    return None


def _cluster_missing(_: Mapping[str, str]) -> str | None:
    from testbed.machine import cluster_missing  # here: no other requirement needs that package

    return cluster_missing()


def _e2e_missing(environ: Mapping[str, str]) -> str | None:
    from testbed.machine import e2e_missing

    return e2e_missing(environ)


def _prometheus_missing(_: Mapping[str, str]) -> str | None:
    from testbed.machine import PROMETHEUS, tool_missing

    return tool_missing(PROMETHEUS)


def _chromium_missing(_: Mapping[str, str]) -> str | None:
    from testbed.machine import CHROMIUM, tool_missing

    return tool_missing(CHROMIUM)


def _npm_missing(_: Mapping[str, str]) -> str | None:
    from grafana_schema import missing

    return missing()


def _vllm_missing(_: Mapping[str, str]) -> str | None:
    from vllm_engine import find

    environment = find()
    return environment if isinstance(environment, str) else None


def _clients_missing(_: Mapping[str, str]) -> str | None:
    from public_clients import missing

    return missing()


MISSING: Mapping[str, Callable[[Mapping[str, str]], str | None]] = {
    "traces": _traces_missing,
    "cluster": _cluster_missing,
    "e2e": _e2e_missing,
    "prometheus": _prometheus_missing,
    "chromium": _chromium_missing,
    "npm": _npm_missing,
    "vllm": _vllm_missing,
    "clients": _clients_missing,
}


def required(environ: Mapping[str, str]) -> frozenset[str]:
    """The names in PACELINE_REQUIRE. ValueError on one that does not exist: a typo must not switch a check off."""
    names = frozenset(name.strip() for name in environ.get(REQUIRE, "").split(",") if name.strip())
    known = {*MISSING, *MACHINE_SUITES}
    if unknown := sorted(names - known):
        raise ValueError(f"{REQUIRE} names {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    return names


def verdict(name: str, environ: Mapping[str, str]) -> Skip | Fail | None:
    """None where the machine has what `name` stands for. ValueError on an unknown name."""
    if name not in MISSING:
        raise ValueError(f"no requirement {name!r}; there are: {', '.join(sorted(MISSING))}")
    reason = MISSING[name](environ)
    if reason is None:
        return None
    return Fail(f"{reason} ({REQUIRE} names {name})") if name in required(environ) else Skip(reason)
