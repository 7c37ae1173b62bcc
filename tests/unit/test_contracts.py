"""The import contracts bite: one planted violation breaks its contract, and no other.

Each plant is one import line in a copy of the packages, checked by lint-imports under the repository's own
.importlinter. The pure modules of the design are listed here as well: one that exists must stand in the contract, by
name.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "paceline_api": "crds",
    "paceline_engine": "engine",
    "paceline_router": "router",
    "paceline_planner": "planner",
    "paceline_operator": "operator",
    "paceline_cli": "cli",
}
WORDS = ("slo", "outcomes", "headers", "conditions")  # all that pure modules import from paceline_api
PURE = (
    *(f"paceline_api.{name}" for name in WORDS),
    *(
        f"paceline_engine.{name}"
        for name in ("request", "kv_blocks", "step_time", "budget", "pd", "lengths", "objective", "work")
    ),
    *(f"paceline_engine.{name}" for name in ("policies", "http1.sse")),
    *(f"paceline_engine.sim.{name}" for name in ("replica", "batching", "machine", "pipeline", "setup", "text")),
    *(f"paceline_engine.vllm.{name}" for name in ("rules", "bodies", "objectives", "settings", "guess", "pacer")),
    *(
        f"paceline_router.{name}"
        for name in ("request", "admission", "key_ring", "waiting", "pick", "latency", "state", "endpoints")
    ),
    *(f"paceline_router.{name}" for name in ("prompts", "response_stream")),
    *(f"paceline_router.{name}" for name in ("outlook", "foresight", "shortlist", "prefixes", "prompt_spans")),
    *(f"paceline_router.{name}" for name in ("roster", "sizing", "way", "fairness", "openapi")),
    *(f"paceline_router.{name}" for name in ("silence", "outliers", "retry_budget")),
    *(f"paceline_router.{name}" for name in ("attempts", "autoscale", "miss", "tracker", "stream", "spans", "bodies")),
    *(f"paceline_router.{name}" for name in ("quantile", "pod_state", "judged", "facts", "replica", "arriving")),
    *(f"paceline_router.console.{name}" for name in ("tally", "scaling", "view")),
    *(f"paceline_router.scaling.{name}" for name in ("queries", "views", "holds", "answers", "lengths", "checks")),
    *(f"paceline_router.scaling.{name}" for name in ("gather", "figures", "report", "steward")),
)

CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / ".importlinter", encoding="utf-8")
CONTRACTS = {name.rsplit(":", 1)[1]: name for name in CONFIG.sections() if ":contract:" in name}


def listed(contract: str, key: str) -> list[str]:
    return CONFIG[CONTRACTS[contract]][key].split()


def source(root: Path, module: str) -> Path | None:
    """The file of a module, a package's being its __init__.py; None where there is none."""
    path = root / FOLDERS[module.split(".")[0]] / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


@dataclass(frozen=True)
class Plant:
    """`line` at the end of each of `modules` breaks the contract `breaks`; None: it breaks none."""

    sentence: str
    breaks: str | None
    modules: Sequence[str]
    line: str

    def grow(self, root: Path) -> None:
        for module in self.modules:
            path = source(root, module)
            if path is None:
                path = root / FOLDERS[module.split(".")[0]] / f"{module.replace('.', '/')}.py"
                path.parent.mkdir(exist_ok=True)
                (path.parent / "__init__.py").touch()
            with path.open("a", encoding="utf-8") as f:
                f.write(f"\n{self.line}\n")


PLANTS = (
    Plant("the engine imports the router", "layers", ["paceline_engine.planted"], "import paceline_router"),
    Plant("the router imports the planner", "layers", ["paceline_router.planted"], "import paceline_planner"),
    Plant("the command line imports the operator", "layers", ["paceline_cli.planted"], "import paceline_operator"),
    Plant("the operator imports the command line", "layers", ["paceline_operator.planted"], "import paceline_cli"),
    Plant("torch outside the plugin", "vllm", ["paceline_engine.planted"], "import torch"),
    Plant("vLLM in the router", "vllm", ["paceline_router.planted"], "from vllm.config import VllmConfig"),
    Plant("vLLM inside the plugin", None, ["paceline_engine.vllm.planted"], "import torch, vllm"),
    Plant("OpenTelemetry elsewhere", "traces", ["paceline_router.planted"], "from opentelemetry import trace"),
    Plant("a shared word needs a dependency", "words", listed("words", "source_modules"), "import orjson"),
    *(
        Plant(f"{line} in every pure module", "pure", listed("pure", "source_modules"), line)
        for line in ("import time", "import asyncio", "from random import random", "from urllib.request import urlopen")
    ),
    Plant(
        "a pure module imports a clock's module", "pure", ["paceline_engine.pd"], "from paceline_engine import clock"
    ),
    Plant("a pure module imports the catalogue", "pure", ["paceline_engine.pd"], "import paceline_api.catalog"),
    Plant(
        "a pure module imports a clock for its types only",
        None,
        ["paceline_engine.pd"],
        "import typing\nif typing.TYPE_CHECKING:\n    import random",
    ),
)


def lint(root: Path, plant: Plant | None = None) -> tuple[set[str], str]:
    """The contracts that a copy of the packages breaks once planted, and what lint-imports printed."""
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    shutil.copy(ROOT / ".importlinter", root)
    if plant:
        plant.grow(root)
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", "--config", ".importlinter"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS.values()), "COLUMNS": "400", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Contracts: " in linted.stdout, linted.stdout + linted.stderr
    broken = {name for name, section in CONTRACTS.items() if f"{CONFIG[section]['name']} BROKEN" in linted.stdout}
    assert linted.returncode == (1 if broken else 0), linted.stderr
    return broken, linted.stdout


@pytest.fixture(scope="module")
def broken_already(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What the tree breaks without a plant: none, or `make check-imports` fails and says it better than these tests."""
    return lint(tmp_path_factory.mktemp("unplanted"))[0]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.sentence)
def test_a_planted_import_breaks_its_contract_alone(plant: Plant, tmp_path: Path, broken_already: set[str]) -> None:
    broken, printed = lint(tmp_path, plant)
    assert broken == broken_already | ({plant.breaks} if plant.breaks else set()), printed
    if plant.breaks:
        imported = plant.line.split()[1].split(".")[0]
        unseen = [m for m in plant.modules if not re.search(rf"\b{re.escape(m)} -> {imported}\b", printed)]
        assert unseen == [], printed


def test_every_pure_module_that_exists_is_named_in_the_contract() -> None:
    exist = {module for module in PURE if source(ROOT, module)}
    named = set(listed("pure", "source_modules"))
    assert named == exist, f"add {sorted(exist - named)} to and remove {sorted(named - exist)} from .importlinter"


def test_the_shared_words_are_named_in_their_contract() -> None:
    exist = {f"paceline_api.{name}" for name in WORDS if source(ROOT, f"paceline_api.{name}")}
    assert set(listed("words", "source_modules")) == exist


def test_pure_modules_see_nothing_of_the_api_but_its_words() -> None:
    modules = {path.stem for path in (ROOT / "crds/paceline_api").glob("*.py")} - {"__init__", *WORDS}
    forbidden = {name for name in listed("pure", "forbidden_modules") if name.startswith("paceline_api.")}
    assert forbidden == {f"paceline_api.{name}" for name in modules}, "bring .importlinter's pure contract up to date"
