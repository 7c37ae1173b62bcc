"""The autoscaler around the law of `paceline_router.autoscale`: asks Prometheus, watches Kubernetes, writes sizes.

`gather` makes signals of what was asked and seen, the law rules, and what it rules is written through /scale.
Invariant: whatever cannot be known leaves every size as it is.
"""
