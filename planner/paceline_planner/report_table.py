"""Shows a report on a terminal: one table of classes, with several rates one of the curve, and what stands beside them.

Says first whether the figures are SIMULATED or INVALID. Only formats: every figure is the report's own.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paceline_planner.aggregate import ClassFigures, Percentiles
from paceline_planner.report import Report, Run


def render_table(report: Report) -> Group:
    """The report for `rich.console.Console.print`."""
    run = report.headline
    parts: list[RenderableType] = [_title(report), *_faults(report), _classes(run)]
    if len(report.runs) > 1:
        parts += [_curve(report), *_crossings(report)]
    return Group(*parts, *_notes(run), *(Text(f"step times: {text}", style="dim") for text in report.step_times))


def labels(report: Report) -> list[str]:
    """SIMULATED, INVALID and INTERRUPTED, as far as they hold."""
    flags = {"SIMULATED": report.simulated, "INVALID": bool(report.faults), "INTERRUPTED": report.interrupted}
    return [label for label, holds in flags.items() if holds]


def describe(report: Report) -> str:
    """Workload, rate, window, fleet and clock of the headline run in one line."""
    run = report.headline
    gpus = f", {round(run.gpus, 1):g} GPUs" if run.gpus else ""
    scale = f", time × {report.time_scale:g}" if report.time_scale != 1 else ""
    rates = f"{run.rate_rps:.3g}"
    if len(report.runs) > 1:
        rates = f"{report.runs[0].rate_rps:.3g}–{report.runs[-1].rate_rps:.3g} (here {rates})"
    what = f"{report.workload} at {rates} requests/s for {run.duration_s:.0f} s"
    return f"{what}: {run.arrivals} arrivals{gpus}{scale}, seed {report.seed}"


def class_rows(run: Run) -> list[tuple[str, ...]]:
    """CLASS_COLUMNS of each class, formatted."""
    return [
        (
            c.name,
            _percent(c.attainment_percent),
            _percent(c.target_percent),
            _percent(c.attainment_worst_quartile_percent),
            f"{c.goodput_rps:.2f}",
            _number(c.goodput_rps_per_gpu),
            f"{c.good_output_tokens_per_s:.0f}",
            _percent(c.gap_over_5_tpot_percent),
            _trio(c.ttft_ms, c.ttft_limit_ms),
            _trio(c.tpot_ms, c.tpot_limit_ms),
            _trio(c.itl_ms),
            f"{c.good}/{c.decided}" + (f" +{c.undecided} undecided" if c.undecided else ""),
        )
        for c in run.classes
    ]


MOST_EVENTS = 40
CLASS_COLUMNS = (
    "class",
    "attainment",
    "target",
    "worst length quartile",
    "goodput rps",
    "per GPU",
    "good tokens/s",
    "gap > 5 TPOT",
    "TTFT ms p50/p90/p99 (limit)",
    "TPOT ms p50/p90/p99 (limit)",
    "ITL ms p50/p90/p99",
    "good/decided",
)
CURVE_COLUMNS = (
    "rate rps",
    "attainment",
    "goodput",
    "per GPU",
    "worst quartile",
    "TTFT p90",
    "TPOT p90",
    "",
)


def curve_rows(report: Report) -> list[tuple[str, ...]]:
    """CURVE_COLUMNS of each run, formatted; over several classes the worst of each."""
    return [
        (
            f"{run.rate_rps:.3g}",
            _percent(run.attainment_percent),
            f"{run.goodput_rps:.2f}",
            _number(run.goodput_rps_per_gpu),
            _percent(min(_known(c.attainment_worst_quartile_percent for c in run.classes), default=None)),
            _number(max(_known(c.ttft_ms.p90 if c.ttft_ms else None for c in run.classes), default=None), 0),
            _number(max(_known(c.tpot_ms.p90 if c.tpot_ms else None for c in run.classes), default=None), 1),
            "INVALID" if run.faults else "",
        )
        for run in report.runs
    ]


def crossing_lines(report: Report) -> list[str]:
    """Where attainment falls below 90 % and 99 %."""
    lines = []
    for c in report.crossings:
        per_gpu = "" if c.goodput_rps_per_gpu is None else f", {c.goodput_rps_per_gpu:.2f} in-SLO rps per GPU"
        found = "outside of the rates tried" if c.rate_rps is None else f"at {c.rate_rps:.3g} requests/s{per_gpu}"
        lines.append(f"{c.level_percent:g} % crossing: {found}")
    return lines


def note_lines(run: Run) -> list[str]:
    """Outcomes, lateness, and the router's own count."""
    outcomes = ", ".join(f"{name} {n}" for name, n in run.outcomes.items() if n)
    lines = [f"outcomes: {outcomes or 'none'}"]
    if run.failed_legs:
        failed = ", ".join(f"{name} {n}" for name, n in run.failed_legs.items())
        lines.append(f"legs that failed, most of them sent again: {failed}")
    lines += [f"at {event.at_s:.0f} s: {event.what}" for event in run.events[:MOST_EVENTS]]
    if len(run.events) > MOST_EVENTS:
        lines.append(f"and {len(run.events) - MOST_EVENTS} more events in the JSON report")
    late = run.lateness
    if not late.virtual:
        who = (("client", late.client_p99_s), ("engines", late.engine_p99_s))
        said = ", ".join(f"{name} {'unknown' if s is None else f'{1e3 * s:.2f} ms'}" for name, s in who)
        lines.append(f"lateness p99: {said} (limit {1e3 * late.limit_s:.1f} ms)")
    if (check := run.reconciliation) is not None:
        counted = ", ".join(f"{name} {n}" for name, n in check.router_outcomes.items()) or "nothing"
        # Behind a Service with several routers, the one that was asked counts its own share only.
        verdict = "equal" if check.matches else "DIFFERENT: other clients, or other routers at this address"
        own = f", attainment there {_percent(check.attainment_percent)}"
        lines.append(f"router counted {check.router_arrivals} arrivals and {counted}: {verdict}{own}")
    return lines


def _title(report: Report) -> Text:
    title = Text(describe(report), style="bold")
    for label in labels(report):
        title = Text.assemble((f" {label} ", "bold reverse"), " ", title)
    return title


def _faults(report: Report) -> list[Text]:
    return [Text(f"not valid: {fault}", style="red") for fault in report.faults]


def _classes(run: Run) -> Table:
    """Upright, one column a class: twelve figures side by side fit no terminal."""
    table = Table("", *(c.name for c in run.classes), box=None, pad_edge=False)
    rows = class_rows(run)
    for i, column in enumerate(CLASS_COLUMNS[1:], start=1):
        style = [_verdict_style(c) if i == 1 else "" for c in run.classes]
        table.add_row(column, *(Text(row[i], style=s) for row, s in zip(rows, style, strict=True)))
    return table


def _curve(report: Report) -> Table:
    table = Table(*CURVE_COLUMNS, box=None, pad_edge=False)
    for run, row in zip(report.runs, curve_rows(report), strict=True):
        table.add_row(*row, style="bold" if run is report.headline else "")
    return table


def _crossings(report: Report) -> list[Text]:
    return [Text(line) for line in crossing_lines(report)]


def _notes(run: Run) -> list[Text]:
    return [Text(line, style="dim") for line in note_lines(run)]


def _verdict_style(figures: ClassFigures) -> str:
    return "green" if figures.meets_target else "red"


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _trio(p: Percentiles | None, limit_ms: float | None = None) -> str:
    limit = "" if limit_ms is None else f" ({limit_ms:g})"
    return "–" if p is None else f"{p.p50:.0f} / {p.p90:.0f} / {p.p99:.0f}{limit}"
