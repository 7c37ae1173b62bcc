"""Grafana's dashboards as code: fleet, service, engines, autoscaler, written to charts/paceline/dashboards.

A dashboard is a plain value (`panels`), its PromQL is put together in one place (`queries`), and only `build` knows
Grafana's builders. Every query is right under any number of router replicas: counters are summed, gauges that each
replica repeats are taken once. The package is no part of the wheel: the chart carries what it writes.
"""
