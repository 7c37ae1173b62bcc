"""Turns the plain values of `panels` into Grafana's JSON, through Grafana's own builders (schema of Grafana 11.6).

The same values give the same bytes. Invariant: where the last word of a series' name has a colour, the series has
it, on every dashboard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as words
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from paceline_dashboards.panels import Dashboard, Kind, Link, Panel, Query, Variable

Json = dict[str, Any]

TAG = "paceline"
DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLOURS: Mapping[str, str] = {
    "attained": "green",
    "predicted": "purple",
    "target": "red",
    "limit": "red",
    "p10": "light-blue",
    "p50": "green",
    "p90": "yellow",
    "p99": "orange",
    "received": "text",
    "completed": "green",
    "rejected": "blue",
    "client_gone": "light-blue",
    "shed": "orange",
    "timed_out": "dark-orange",
    "no_endpoint": "red",
    "upstream_failed": "dark-red",
    "queue": "yellow",
    "prefill": "blue",
    "transfer": "purple",
    "decode": "green",
    "mixed": "light-green",
    "failure": "red",
    "stalls": "orange",
    "up": "orange",
    "down": "blue",
    "decided": "green",
    "blind": "orange",
    "failed": "red",
}
DASHED = ("target", "limit", "predicted")
UNSTACKED = "received"  # a line over the stack of its parts

Builder = TypeVar("Builder", timeseries.Panel, stat.Panel, bargauge.Panel, table.Panel)


def render(which: Dashboard) -> str:
    """The dashboard as JSON, keys in order, with a line end."""
    built = json.loads(json.dumps(_dashboard(which).build(), cls=JSONEncoder))
    return json.dumps(_trimmed(built), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _trimmed(built: Json) -> Json:
    """Without what the builders add beyond the schema: an interval's fields, and more of a data link than it has."""
    for variable in built["templating"]["list"]:
        for field in ("auto", "auto_count", "auto_min"):
            variable.pop(field, None)
    for panel in built["panels"]:
        defaults = panel["fieldConfig"]["defaults"]
        if "links" in defaults:
            defaults["links"] = [{key: link[key] for key in ("title", "url")} for link in defaults["links"]]
    return built


def _dashboard(which: Dashboard) -> dashboard.Dashboard:
    builder = (
        dashboard.Dashboard(which.title)
        .uid(which.uid)
        .description(which.says)
        .tags([TAG])
        .timezone("browser")
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable in which.variables:
        builder = builder.with_variable(_variable(variable))
    for link in which.links:
        builder = builder.link(_link(link))
    for number, panel in enumerate(which.panels, 1):
        builder = builder.with_panel(_panel(panel).id(number))
    return builder


def _variable(variable: Variable) -> dashboard.QueryVariable:
    query = f"label_values({variable.metric}, {variable.label})"
    builder = (
        dashboard.QueryVariable(variable.name)
        .label(variable.title)
        .datasource(DATASOURCE)
        .query({"query": query, "refId": variable.name, "qryType": 1})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    return builder.multi(True).include_all(True).all_value(".*") if variable.every else builder


def _link(link: Link) -> dashboard.DashboardLink:
    builder = dashboard.DashboardLink(link.title).type(model.DashboardLinkType.LINK).url(f"/d/{link.uid}")
    return builder.include_vars(True).keep_time(True).icon("dashboard")


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel:
    match panel.kind:
        case Kind.LINES | Kind.STEPS | Kind.STACK:
            return _course(panel)
        case Kind.STAT:
            last = common.ReduceDataOptions().calcs(["lastNotNull"])
            return _common(stat.Panel(), panel).reduce_options(last).graph_mode(words.BigValueGraphMode.AREA)
        case Kind.BARS:
            last = common.ReduceDataOptions().calcs(["lastNotNull"])
            return _common(bargauge.Panel(), panel).reduce_options(last).orientation(words.VizOrientation.HORIZONTAL)
        case Kind.TABLE:
            return _table(panel)


def _common(builder: Builder, panel: Panel) -> Builder:
    """What every kind of panel has."""
    steps = [model.Threshold(value=start, color=colour) for start, colour in panel.steps]
    builder = (
        builder.title(panel.title)
        .description(panel.says)
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(panel.height)
        .thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    )
    if panel.least is not None:
        builder = builder.min(panel.least)
    if panel.most is not None:
        builder = builder.max(panel.most)
    if panel.empty:
        builder = builder.no_value(panel.empty)
    if panel.drill:
        builder = builder.data_links([_drill(panel)])
    for number, query in enumerate(panel.queries):
        builder = builder.with_target(_target(query, panel, chr(ord("A") + number)))
    return builder


def _drill(panel: Panel) -> dashboard.DashboardLink:
    """From a row of a table or a series to the dashboard of its service."""
    of = "${__data.fields.%s}" if panel.kind is Kind.TABLE else "${__field.labels.%s}"
    labels = {"namespace": "llmservice_namespace", "service": "llmservice", "slo_class": "slo_class"}
    chosen = "&".join(f"var-{name}={of % label}" for name, label in labels.items())
    return dashboard.DashboardLink("Open the service").url(f"/d/paceline-service?{chosen}&${{__url_time_range}}")


def _target(query: Query, panel: Panel, ref: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref).datasource(DATASOURCE)
    if panel.kind is Kind.TABLE:
        return target.instant().format(PromQueryFormat.TABLE)
    target = target.legend_format(query.name)
    return target.instant() if panel.is_instant else target.range()


def _course(panel: Panel) -> timeseries.Panel:
    stacked = panel.kind is Kind.STACK
    builder = (
        _common(timeseries.Panel(), panel)
        .legend(common.VizLegendOptions().show_legend(True).display_mode(words.LegendDisplayMode.LIST))
        .tooltip(common.VizTooltipOptions().mode(words.TooltipDisplayMode.MULTI).sort(words.SortOrder.DESCENDING))
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(words.VisibilityMode.NEVER)
        .span_nulls(False)
    )
    if stacked:
        builder = builder.stacking(common.StackingConfig().mode(words.StackingMode.NORMAL).group("A"))
    if panel.kind is Kind.STEPS:
        builder = builder.line_interpolation(words.LineInterpolation.STEP_AFTER)
    if len(panel.steps) > 1:
        line = common.GraphThresholdsStyleConfig().mode(words.GraphThresholdsStyleMode.DASHED)
        builder = builder.thresholds_style(line)
    for word in panel.words:
        builder = builder.override_by_regexp(rf"/(^|\s){word}$/", _own_style(word))
    if panel.second is not None:
        word, unit = panel.second
        side = [_property("unit", unit), _property("custom.axisPlacement", "right")]
        builder = builder.override_by_regexp(rf"/(^|\s){word}$/", side)
    return builder


def _own_style(word: str) -> list[model.DynamicConfigValue]:
    style = [_property("color", {"mode": "fixed", "fixedColor": COLOURS[word]})]
    if word in DASHED:
        style += [_property("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}), _property("custom.fillOpacity", 0)]
    if word == UNSTACKED:
        style += [
            _property("custom.stacking", {"mode": "none", "group": "A"}),
            _property("custom.fillOpacity", 0),
            _property("custom.lineWidth", 2),
        ]
    return style


def _table(panel: Panel) -> table.Panel:
    """The queries' rows joined on their labels; values are named as their queries are."""
    names = {f"Value #{chr(ord('A') + number)}": query.name for number, query in enumerate(panel.queries)}
    joined = model.DataTransformerConfig(id_val="merge", options={})
    named = model.DataTransformerConfig(
        id_val="organize",
        options={"excludeByName": {"Time": True}, "renameByName": names},
    )
    return _common(table.Panel(), panel).show_header(True).with_transformation(joined).with_transformation(named)


def _property(key: str, value: object) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val=key, value=value)
