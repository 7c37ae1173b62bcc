"""The repository's own rules: what must not be in it, what its commands promise, and the machinery of its tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from golden import compare
from requires import Fail, Skip, required, verdict
from suites import Row, listed, ran_any, skip_reasons, table

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
JUNIT = """<testsuites><testsuite name="sim" tests="{tests}" skipped="{skipped}">
<testcase name="a"/><testcase name="b"><skipped message="no traces"/></testcase>
<testcase name="c"><skipped message="no traces"/></testcase><testcase name="d"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def tracked_or_new() -> list[str]:
    """Paths that git holds or would add, relative to the root."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in files.split("\0") if path and (ROOT / path).exists()]


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("folder", ["operator", "tests"])
def test_no_package_marker_where_it_would_shadow_or_collide(folder: str) -> None:
    shadows = [path for path in tracked_or_new() if re.fullmatch(rf"{folder}/(.*/)?__init__\.py", path)]
    if folder == "operator":  # only directly inside: operator/__init__.py shadows the standard library's module
        shadows = [path for path in shadows if path.count("/") == 1]
    assert shadows == []


def test_the_standard_operator_module_is_not_shadowed_from_the_root() -> None:
    subprocess.run([sys.executable, "-c", "from operator import itemgetter"], cwd=ROOT, check=True)


def test_no_lock_file_that_names_hosts() -> None:
    locks = {"uv.lock", "poetry.lock", "Pipfile.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml"}
    assert [path for path in tracked_or_new() if path.rsplit("/", 1)[-1] in locks] == []


def test_test_files_have_unique_names() -> None:
    names = [Path(path).name for path in tracked_or_new() if re.fullmatch(r"tests/.*/test_\w+\.py", path)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirement_files_are_pinned_hashed_and_name_no_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    assert entries
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []
    assert re.search(r"https?://|--(extra-)?index-url|--find-links", text) is None


@pytest.mark.parametrize("name", ["runtime.txt", "build.txt", "image.txt"])
def test_the_developers_pins_are_those_that_users_run(name: str) -> None:
    developers = pins(ROOT / "requirements/dev.txt")
    assert {
        k: (v, developers.get(k)) for k, v in pins(ROOT / "requirements" / name).items() if developers.get(k) != v
    } == {}


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for file, entries in (("runtime", []), ("image", project["optional-dependencies"]["otel"])):
        named = {re.split(r"[^A-Za-z0-9_.-]", entry)[0].lower() for entry in project["dependencies"] + entries}
        assert named <= {name.lower() for name in pins(ROOT / f"requirements/{file}.txt")}


@pytest.mark.parametrize("script", [".ci/run", "examples/run.sh", "examples/vllm.sh"])
def test_scripts_stop_at_the_first_error_and_parse(script: str) -> None:
    assert "set -euo pipefail" in (ROOT / script).read_text(encoding="utf-8")
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_command_that_a_page_names_exists(page: str) -> None:
    help_ = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    exist = {line.split()[0] for line in help_.splitlines()}
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", (ROOT / page).read_text(encoding="utf-8")))
    assert named
    assert named <= exist


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, Skip, id="without traces a test is skipped"),
        pytest.param({"PACELINE_REQUIRE": "cluster"}, Skip, id="requiring something else leaves it skipped"),
        pytest.param({"PACELINE_REQUIRE": "vllm, traces"}, Fail, id="required traces that are missing fail it"),
        pytest.param({"PACELINE_TRACES": "no/such/folder"}, Skip, id="a folder that does not exist counts as missing"),
        pytest.param({"PACELINE_TRACES": str(ROOT)}, None, id="with the folder it runs"),
        pytest.param(
            {"PACELINE_TRACES": str(ROOT), "PACELINE_REQUIRE": "traces"}, None, id="required and present, it runs"
        ),
    ],
)
def test_a_missing_requirement_skips_or_fails(environ: dict[str, str], expected: type[Skip | Fail] | None) -> None:
    found = verdict("traces", environ)
    assert found is None if expected is None else isinstance(found, expected)


def test_an_unknown_name_in_paceline_require_is_an_error_that_lists_the_known_ones() -> None:
    known = "chromium, clients, cluster, e2e, npm, prometheus, traces, vllm"
    with pytest.raises(ValueError, match=f"names trace; there are: {known}"):
        required({"PACELINE_REQUIRE": "trace"})
    with pytest.raises(ValueError, match="no requirement 'gpu'"):
        verdict("gpu", {})


@pytest.mark.parametrize(
    ("require", "code", "summary"),
    [
        pytest.param("traces", 1, "1 passed, 2 errors", id="failed where traces are required"),
        pytest.param("tarces", 4, "there are:", id="a misspelt requirement runs nothing"),
    ],
)
def test_pytest_skips_or_fails_by_marker_and_fixture(require: str, code: int, summary: str, tmp_path: Path) -> None:
    for path in ("conftest.py", "support/requires.py", "support/golden.py"):
        copy = tmp_path / path
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((ROOT / "tests" / path).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_planted.py").write_text(
        "import pytest\n\n@pytest.mark.requires('traces')\ndef test_marked(): ...\n\n"
        "def test_asks(traces): ...\n\ndef test_plain(): ...\n",
        encoding="utf-8",
    )
    environ = {k: v for k, v in os.environ.items() if k not in ("PACELINE_TRACES", "PACELINE_REQUIRE")}
    planted = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "pythonpath=support", "-p", "no:cacheprovider", "test_planted.py"],
        cwd=tmp_path,
        env={**environ, "PACELINE_REQUIRE": require},
        capture_output=True,
        text=True,
    )
    assert planted.returncode == code, planted.stdout + planted.stderr
    assert summary in planted.stdout + planted.stderr


def test_a_golden_file_is_compared_and_written_on_request_only(tmp_path: Path) -> None:
    path = tmp_path / "a/b.txt"
    with pytest.raises(AssertionError, match="make golden"):
        compare(path, "new", write=False)
    assert not path.exists()
    compare(path, "new", write=True)
    compare(path, "new", write=False)
    with pytest.raises(AssertionError, match=r"b\.txt differs"):
        compare(path, "newer", write=False)


def test_suites_without_a_test_file_are_left_out_unless_required(tmp_path: Path) -> None:
    (tmp_path / "tests/unit").mkdir(parents=True)
    (tmp_path / "tests/unit/test_a.py").touch()
    (tmp_path / "tests/sim").mkdir()
    assert list(listed(tmp_path, frozenset({"traces"}))) == ["unit"]
    assert list(listed(tmp_path, frozenset({"cluster"}))) == ["unit", "cluster"]


def test_the_table_of_suites_shows_summaries_reasons_and_failures() -> None:
    reasons = skip_reasons(JUNIT.format(tests=4, skipped=3))
    rows = [Row("check", True, "all", 0.5), Row("sim", False, "1 passed, 3 skipped in 2.10s", 0.04, reasons)]
    assert table(rows).splitlines() == [
        "suite | ran                          | minutes",
        "------+------------------------------+--------",
        "check | all                          |    0.50",
        "sim   | 1 passed, 3 skipped in 2.10s |    0.04  FAILED",
        "      |   skipped 2: no traces",
        "      |   skipped 1: no GPU",
    ]


@pytest.mark.parametrize(("skipped", "ran"), [(3, True), (4, False)])
def test_a_suite_that_skips_every_test_ran_none(skipped: int, ran: bool) -> None:
    assert ran_any(JUNIT.format(tests=4, skipped=skipped)) is ran
