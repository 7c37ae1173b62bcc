"""Draws a report: a PNG, and one self-contained HTML page with the same figure as SVG and the tables.

One rate: attainment by class against its target and over time, TTFT and TPOT against their limits. Several rates:
attainment over rate with the 90 % and 99 % lines, goodput per GPU, and the headline run's latencies. Invariant:
SIMULATED and INVALID stand in the title of whatever they hold for, so no figure goes around without them.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paceline_planner.aggregate import Floats, Samples
from paceline_planner.report import LEVELS_PERCENT, Report, Run
from paceline_planner.report_table import (
    CLASS_COLUMNS,
    CURVE_COLUMNS,
    class_rows,
    crossing_lines,
    curve_rows,
    describe,
    labels,
    note_lines,
)

# Okabe and Ito's palette: told apart by the colour-blind
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#000000")
_WINDOWS = 30  # points of attainment over time
_TAIL_PERCENT = 99.5  # a CDF's axis ends here, or beyond its limit


def draw(report: Report) -> Figure:
    """The figure of a report, four panels."""
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    axes = figure.subplots(2, 2)
    run = report.headline
    if len(report.runs) > 1:
        _curve(axes[0, 0], report)
        _goodput(axes[0, 1], report)
    else:
        _bars(axes[0, 0], run)
        _over_time(axes[0, 1], run)
    at = f" at {run.rate_rps:.3g} requests/s" if len(report.runs) > 1 else ""
    _distribution(axes[1, 0], f"Time to first token{at}", run.samples, lambda s: s.ttft_s, lambda s: s.slo.ttft_s)
    _distribution(axes[1, 1], f"Time per output token{at}", run.samples, lambda s: s.tpot_s, lambda s: s.slo.tpot_s)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e4e4e4", linewidth=0.6)
        ax.set_axisbelow(True)
    flags = labels(report)
    figure.suptitle(
        "   ".join([" · ".join(flags), describe(report)] if flags else [describe(report)]),
        fontsize=11,
        fontweight="bold",
        color="#b00020" if "INVALID" in flags else "#222222",
    )
    return figure


def write_png(report: Report, path: Path) -> None:
    """Writes the figure at 150 dpi."""
    figure = draw(report)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, format="png")


def write_html(report: Report, path: Path) -> None:
    """Writes the page; it loads nothing from elsewhere."""
    path.write_text(render_html(report), encoding="utf-8")


def render_html(report: Report) -> str:
    """The page: verdict, figure, tables, and what stands beside them."""
    figure = draw(report)
    FigureCanvasSVG(figure)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    flags = "".join(f'<span class="flag">{label}</span>' for label in labels(report))
    faults = "".join(f"<p class='fault'>not valid: {html.escape(fault)}</p>" for fault in report.faults)
    tables = _table(CLASS_COLUMNS, class_rows(report.headline))
    if len(report.runs) > 1:
        tables += _table(CURVE_COLUMNS, curve_rows(report))
        tables += "".join(f"<p>{html.escape(line)}</p>" for line in crossing_lines(report))
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in note_lines(report.headline))
    title = html.escape(describe(report))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = f"<h1>{flags}{title}</h1>{faults}<figure>{svg[svg.index('<svg') :]}</figure>{tables}{notes}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _bars(ax: Axes, run: Run) -> None:
    """Attainment of each class, its worst length quartile, and its target."""
    shown = [(c, c.attainment_percent) for c in run.classes if c.attainment_percent is not None]
    for i, (c, attained) in enumerate(shown):
        worst = c.attainment_worst_quartile_percent or 0.0
        ax.barh([i], [attained], height=0.5, color=COLOURS[i % len(COLOURS)])
        ax.text(1, i - 0.31, f"{attained:.1f} %", va="bottom", weight="bold")
        ax.plot([worst], [i], marker="D", color="white", markeredgecolor="#222222", linestyle="none")
        ax.plot([c.target_percent] * 2, [i - 0.36, i + 0.36], color="#222222", linewidth=2)
    ax.set(title="Attainment", xlim=(0, 101), xlabel="% of decided requests", ylim=(len(shown) - 0.2, -0.6))
    ax.set_yticks(range(len(shown)), [c.name for c, _ in shown])
    ax.legend(
        handles=[
            Line2D([], [], color="#222222", linewidth=2, label="target"),
            Line2D([], [], marker="D", color="white", markeredgecolor="#222222", label="worst prompt-length quartile"),
        ],
        loc="lower left",
        fontsize=8,
    )


def _over_time(ax: Axes, run: Run) -> None:
    """Attainment in windows of arrival; windows without a decided request are left open."""
    edges = np.linspace(0, run.duration_s, min(_WINDOWS, max(1, run.arrivals // 10)) + 1)
    for colour, s in zip(COLOURS, run.samples, strict=False):
        decided, _ = np.histogram(s.decided_arrival_s, edges)
        good, _ = np.histogram(s.decided_arrival_s[s.decided_good], edges)
        share = np.divide(100.0 * good, decided, out=np.full(len(decided), np.nan), where=decided > 0)
        ax.plot((edges[:-1] + edges[1:]) / 2, share, color=colour, marker=".", label=s.slo.name)
        ax.axhline(100 * s.slo.target_ratio, color=colour, linestyle=":", linewidth=1)
    ax.set(title="Attainment by time of arrival", xlabel="seconds", ylabel="%", ylim=(0, 103))
    _legend(ax, run.samples)


def _curve(ax: Axes, report: Report) -> None:
    rates = [run.rate_rps for run in report.runs]
    for colour, name in zip(COLOURS, _class_names(report), strict=False):
        figures = [next((c for c in run.classes if c.name == name), None) for run in report.runs]
        values = [np.nan if c is None or c.attainment_percent is None else c.attainment_percent for c in figures]
        ax.plot(rates, values, color=colour, marker="o", label=name)
    for level in LEVELS_PERCENT:
        ax.axhline(level, color="#444444", linestyle="--", linewidth=0.9)
        ax.annotate(f"{level:g} %", (1, level), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom")
    _mark_invalid(ax, rates, [run.attainment_percent or 0.0 for run in report.runs], report)
    ax.set(title="Attainment over rate", xlabel="requests/s offered", ylabel="%", ylim=(0, 104))
    ax.legend(fontsize=8, loc="lower left")


def _goodput(ax: Axes, report: Report) -> None:
    rates = [run.rate_rps for run in report.runs]
    values = [run.goodput_rps / (run.gpus or 1) for run in report.runs]
    offered = [run.rate_rps / (run.gpus or 1) for run in report.runs]
    ax.plot(rates, offered, color="#999999", linestyle=":", label="all offered")
    ax.plot(rates, values, color=COLOURS[0], marker="o", label="good")
    _mark_invalid(ax, rates, values, report)
    unit = "good requests/s per GPU" if report.runs[0].gpus else "good requests/s"
    ax.set(title="Goodput over rate", xlabel="requests/s offered", ylabel=unit)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8, loc="upper left")


def _mark_invalid(ax: Axes, rates: Sequence[float], values: Sequence[float], report: Report) -> None:
    invalid = [(rate, v) for rate, v, run in zip(rates, values, report.runs, strict=True) if run.faults]
    if invalid:
        ax.plot(
            [rate for rate, _ in invalid],
            [value for _, value in invalid],
            color="#b00020",
            marker="x",
            markersize=11,
            linestyle="none",
            label="INVALID",
        )


def _distribution(
    ax: Axes,
    title: str,
    samples: Sequence[Samples],
    values_s: Callable[[Samples], Floats],
    limit_s: Callable[[Samples], float],
) -> None:
    """Cumulative shares up to and beyond the limit: in ms, or with several classes in multiples of each one's limit."""
    alone = len(samples) == 1
    end = 0.0
    for colour, s in zip(COLOURS, samples, strict=False):
        limit = 1e3 * limit_s(s) if alone else 1.0
        values = np.sort(values_s(s)) * limit / limit_s(s)
        ax.axhline(100 * s.slo.target_ratio, color=colour, linestyle=":", linewidth=1)
        ax.axvline(limit, color=colour if alone else "#444444", linestyle="--", linewidth=1.2)
        end = max(end, 1.15 * limit)
        if len(values):
            ax.step(values, 100 * np.arange(1, len(values) + 1) / len(values), color=colour, where="post")
            end = max(end, float(np.percentile(values, _TAIL_PERCENT)))
    unit = "ms" if alone else "multiples of the class's limit"
    ax.set(title=title, xlabel=f"{unit} (dashed: limit, dotted: target)", ylabel="% of requests", ylim=(0, 103))
    if end > 0:
        ax.set_xlim(0, end)
    _legend(ax, samples)


def _legend(ax: Axes, samples: Sequence[Samples]) -> None:
    lines = [Line2D([], [], color=c, label=s.slo.name) for c, s in zip(COLOURS, samples, strict=False)]
    if lines:
        ax.legend(handles=lines, fontsize=8, loc="lower right")


def _class_names(report: Report) -> list[str]:
    return list(dict.fromkeys(c.name for run in report.runs for c in run.classes))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#222}"
    "h1{font-size:1.15rem}figure{margin:1rem 0}svg{width:100%;height:auto}.wide{overflow-x:auto}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:13px}th,td{padding:.3rem .6rem;text-align:right;"
    "border-bottom:1px solid #ddd;white-space:nowrap}th:first-child,td:first-child{text-align:left}"
    ".flag{background:#b00020;color:#fff;padding:.1rem .5rem;margin-right:.5rem;border-radius:3px}.fault{color:#b00020}"
)
