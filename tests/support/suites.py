"""Runs every suite this checkout has, one pytest process each, and ends with the table of `make test`.

A row holds the suite, pytest's own summary line (and why tests were skipped), and minutes. Order: the checks first,
then the suites from cheap to dear; one failure does not hide the next. Exit code 1 if any row failed. A suite that
PACELINE_REQUIRE names fails if it ran no test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from requires import REQUIRE, required

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("unit", "property", "sim", "component", "cluster", "vllm", "e2e")


@dataclass(frozen=True, slots=True)
class Row:
    suite: str
    ok: bool
    ran: str
    minutes: float
    skips: tuple[str, ...] = ()


def table(rows: Sequence[Row]) -> str:
    """suite | what ran | minutes, and one indented line per reason for skips."""
    width = max(len(row.suite) for row in rows)
    ran = max(len(row.ran) for row in rows)
    lines = [f"{'suite':<{width}} | {'ran':<{ran}} | minutes", f"{'-' * width}-+-{'-' * ran}-+--------"]
    for row in rows:
        lines.append(f"{row.suite:<{width}} | {row.ran:<{ran}} | {row.minutes:7.2f}{'' if row.ok else '  FAILED'}")
        lines += [f"{'':<{width}} |   skipped {reason}" for reason in row.skips]
    return "\n".join(lines)


def skip_reasons(junit: str) -> tuple[str, ...]:
    """`12: PACELINE_TRACES is not set …`, the most frequent first, from pytest's JUnit XML."""
    reasons = Counter(node.get("message") or "without a reason" for node in ET.fromstring(junit).iter("skipped"))
    return tuple(f"{count}: {reason}" for reason, count in reasons.most_common())


def ran_any(junit: str) -> bool:
    suites = list(ET.fromstring(junit).iter("testsuite"))
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites) > 0


def listed(root: Path, require: frozenset[str]) -> Iterator[str]:
    """Suites with at least one test file, and those required whether or not they exist."""
    for suite in SUITES:
        if suite in require or any((root / "tests" / suite).rglob("test_*.py")):
            yield suite


def _stream(argv: Sequence[str]) -> tuple[int, list[str]]:
    """Runs argv, showing its output as it comes; the exit code and the lines that are not blank."""
    lines = [""]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if line.strip():
                lines.append(line.strip())
    return process.returncode, lines


def run_checks() -> Row:
    print("== check", flush=True)
    began = time.monotonic()
    code, lines = _stream(["make", "--no-print-directory", "check-static"])
    failed = re.findall(r"\*\*\* \[\S+ check-(?!static)(\w+)\]", "\n".join(lines))
    ran = "format, lint, types, imports, generated files" if code == 0 else f"failed: {', '.join(failed) or lines[-1]}"
    return Row("check", code == 0, ran, (time.monotonic() - began) / 60)


def run_suite(suite: str, require: frozenset[str]) -> Row:
    print(f"\n== {suite}", flush=True)
    folder = ROOT / "tests" / suite
    if not folder.is_dir():
        return Row(suite, False, f"{REQUIRE} names it, but there is no tests/{suite}", 0)
    junit = ROOT / "build" / "tests" / f"{suite}.xml"
    junit.unlink(missing_ok=True)
    began = time.monotonic()
    argv = [sys.executable, "-m", "pytest", "--color=no", f"--junitxml={junit}", "-o", f"junit_suite_name={suite}"]
    code, lines = _stream([*argv, str(folder.relative_to(ROOT))])
    minutes = (time.monotonic() - began) / 60
    if not junit.exists():
        return Row(suite, False, lines[-1], minutes)
    report = junit.read_text(encoding="utf-8")
    ok = code == 0 and (suite not in require or ran_any(report))
    return Row(suite, ok, re.sub(r"^=+ | =+$", "", lines[-1]), minutes, skip_reasons(report))


def main() -> int:
    try:
        require = required(os.environ)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    rows = [run_checks(), *(run_suite(suite, require) for suite in listed(ROOT, require))]
    print(f"\n{table(rows)}\n", flush=True)
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
