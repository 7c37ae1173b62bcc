"""The same file and load on the virtual clock and over HTTP: `paceline simulate` beside `paceline up` and `replay`.

    python benchmarks/served.py [--only NAME] [--duration 300] [--traces DIR] [--out build/served]

Synthetic chat and the first five minutes of the Azure conversation trace, each on two mixed replicas and on one
prefill and one decode replica, at rates where some requests miss their objective. Prints the figures side by side and
writes the reports. Exit code 1 when attainment is more than 3 points apart, the p50 of TTFT or TPOT more than 5 %, or
when a run over HTTP was not valid. Time scale 1, one after the other: 22 minutes, of which a core is used a third.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

MOST_POINTS, MOST_RATIO = 3.0, 0.05
READY_S, STOP_S = 60, 60
PACELINE = (sys.executable, "-m", "paceline_cli")
AZURE = Path("azure", "AzureLLMInferenceTrace_conv.csv")
MIXED = {"mixed": 2}
ONE_EACH = {"prefill": 1, "decode": 1}
CHAT = {"name": "interactive", "ttftMs": 150, "tpotMs": 25, "attainmentPercent": 90}
CONVERSATION = {
    "name": "conversation",
    "ttftMs": 100,
    "ttftMsPer1kPromptTokens": 100,
    "tpotMs": 18,
    "attainmentPercent": 90,
}


@dataclass(frozen=True, slots=True)
class Case:
    """`rate_rps` is of the whole fleet; `trace` empty: synthetic chat."""

    name: str
    pools: dict[str, int]
    rate_rps: float
    slo: dict[str, Any]
    trace: Path | None = None


CASES = (
    Case("chat-aggregated", MIXED, 8.0, CHAT),
    Case("chat-1p1d", ONE_EACH, 8.0, CHAT),
    Case("azure-aggregated", MIXED, 5.5, CONVERSATION, AZURE),
    Case("azure-1p1d", ONE_EACH, 3.5, CONVERSATION, AZURE),
)


@dataclass(frozen=True, slots=True)
class Beside:
    """One figure of both; `apart` is in points or a share of the served one, as `limit` is."""

    name: str
    simulated: float
    served: float
    apart: float
    limit: float | None

    @property
    def is_missed(self) -> bool:
        return self.limit is not None and not self.apart <= self.limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append", help="this case; repeatable")
    parser.add_argument("--duration", type=float, default=300.0, metavar="S", help="of each case (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--traces", type=Path, default=os.environ.get("PACELINE_TRACES"), help="folder of the traces")
    parser.add_argument("--out", type=Path, default=Path("build/served"))
    args = parser.parse_args()
    cases = [case for case in CASES if not args.only or case.name in args.only]
    if args.traces is None and any(case.trace for case in cases):
        parser.error("name the folder of traces with --traces or PACELINE_TRACES")
    console, missed = Console(width=110), []
    for case in cases:
        folder = args.out / case.name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "service.yaml"
        file.write_text(yaml.safe_dump(service(case), sort_keys=False))
        load = flags(case, args.duration, args.seed, args.traces)
        simulated = simulate(file, load, folder / "simulated.json")
        served = serve(file, load, folder)
        beside = list(compare(simulated, served))
        show(console, case, beside, served)
        missed += [f"{case.name}: {b.name} {b.apart:.3g}, at most {b.limit:g} allowed" for b in beside if b.is_missed]
        missed += [f"{case.name}: not valid: {served['invalid_reason']}"] if not served["valid"] else []
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red", highlight=False)
    return 1 if missed else 0


def service(case: Case) -> dict[str, Any]:
    """The LLMService file."""
    roles = {"mixed": "Mixed", "prefill": "Prefill", "decode": "Decode"}
    return {
        "apiVersion": "paceline.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": case.name},
        "spec": {
            "model": {
                "uri": "hf://meta-llama/Llama-3.1-8B-Instruct",
                "servedName": "llama-3.1-8b",
                "maxContextTokens": 16384,
            },
            "slo": {"classes": [dict(case.slo)]},
            "topology": "Aggregated" if case.pools == MIXED else "Disaggregated",
            "pools": [
                {"name": name, "role": roles[name], "replicas": count, "accelerator": "a100-sxm-80gb"}
                for name, count in case.pools.items()
            ],
            "engine": {"runtime": "Simulated"},
        },
    }


def flags(case: Case, duration_s: float, seed: int, traces: Path | None) -> list[str]:
    """The load, for `simulate` and `replay` alike."""
    what = ["--trace", str(Path(traces or "") / case.trace)] if case.trace else ["--synthetic", "chat"]
    return [*what, "--rate", f"{case.rate_rps:g}", "--duration", f"{duration_s:g}", "--seed", str(seed)]


def simulate(file: Path, load: list[str], report: Path) -> dict[str, Any]:
    return run(["simulate", str(file), *load], report)


def serve(file: Path, load: list[str], folder: Path) -> dict[str, Any]:
    """`up`, `replay`, and a stop as Ctrl-C would."""
    url_file = folder / "url"
    url_file.unlink(missing_ok=True)
    command = [*PACELINE, "up", str(file), "--port", "0", "--url-file", str(url_file)]
    with (folder / "up.log").open("w") as log:
        up = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + READY_S
        while not url_file.exists():
            if up.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"paceline up is not ready; see {folder / 'up.log'}")
            time.sleep(0.1)
        return run(["replay", "--url", url_file.read_text().strip(), *load], folder / "served.json")
    finally:
        stop(up)


def stop(up: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would; a fleet that does not end by it is killed, and that is an error."""
    up.send_signal(signal.SIGINT)
    try:
        up.wait(STOP_S)
    except subprocess.TimeoutExpired:
        up.kill()
        up.wait()
        raise


def run(command: list[str], report: Path) -> dict[str, Any]:
    """The report of one command of `paceline`."""
    subprocess.run([*PACELINE, *command, "--json", str(report)], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def compare(simulated: dict[str, Any], served: dict[str, Any]) -> Iterator[Beside]:
    """Attainment in points, latencies as shares; only the first three are judged."""
    ours, theirs = simulated["classes"][0], served["classes"][0]
    attained = ours["attainment_percent"], theirs["attainment_percent"]
    yield Beside("attainment, %", *attained, abs(attained[0] - attained[1]), MOST_POINTS)
    for quantile in ("p50", "p90", "p99"):
        for name in ("ttft_ms", "tpot_ms"):
            pair = ours[name][quantile], theirs[name][quantile]
            yield Beside(
                f"{name} {quantile}", *pair, abs(pair[0] / pair[1] - 1), MOST_RATIO if quantile == "p50" else None
            )


def show(console: Console, case: Case, beside: list[Beside], served: dict[str, Any]) -> None:
    arrivals, valid = served["arrivals"], "valid" if served["valid"] else "NOT VALID"
    table = Table(title=f"{case.name}: {arrivals} requests at {case.rate_rps:g}/s, SIMULATED engines, {valid}")
    for column in ("figure", "simulate", "up + replay", "apart", "allowed"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for b in beside:
        points = b.name.startswith("attainment")
        apart = f"{b.apart:.2f}" if points else f"{100 * b.apart:.1f} %"
        allowed = "" if b.limit is None else f"{b.limit:g}" if points else f"{100 * b.limit:g} %"
        table.add_row(b.name, f"{b.simulated:.2f}", f"{b.served:.2f}", apart, allowed)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
