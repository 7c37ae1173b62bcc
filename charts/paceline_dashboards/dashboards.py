"""The dashboards that the chart brings. Values only; needs none of Grafana's builders."""

from __future__ import annotations

from paceline_dashboards import autoscaler, engines, fleet, service
from paceline_dashboards.panels import Dashboard

DASHBOARDS: tuple[Dashboard, ...] = (fleet.DASHBOARD, service.DASHBOARD, engines.DASHBOARD, autoscaler.DASHBOARD)
