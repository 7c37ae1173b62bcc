"""Shared by all suites: bounded, repeatable hypothesis runs, machine requirements and golden files.

Warnings are errors (pyproject.toml). PACELINE_EXAMPLES raises the number of examples of a property; PACELINE_REQUIRE
turns skips into failures (support/requires.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import compare
from hypothesis import HealthCheck, settings
from requires import TRACES, Fail, Skip, required, verdict

GOLDEN = Path(__file__).parent / "golden"

settings.register_profile(
    "paceline",
    derandomize=True,  # the same examples on every machine; PACELINE_EXAMPLES finds new ones
    database=None,
    deadline=None,  # shared machines: a slow example is no failure
    max_examples=int(os.environ.get("PACELINE_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("paceline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden files instead of comparing with them")


def pytest_configure(config: pytest.Config) -> None:
    try:
        required(os.environ)
    except ValueError as e:
        raise pytest.UsageError(str(e)) from e


def _demand(name: str) -> None:
    match verdict(name, os.environ):
        case Skip(reason):
            pytest.skip(reason)
        case Fail(reason):
            pytest.fail(reason, pytrace=False)
        case None:
            pass


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        for name in marker.args:
            _demand(name)


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of real traces; a test that asks for it requires them."""
    _demand("traces")
    return Path(os.environ[TRACES])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares text with tests/golden/NAME; `make golden` writes it."""
    write = bool(request.config.getoption("--golden"))
    return lambda name, text: compare(GOLDEN / name, text, write=write)
