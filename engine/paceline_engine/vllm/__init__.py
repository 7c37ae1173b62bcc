"""The plugin for vLLM 0.32: scheduler, border and progress thread, and what they show on vLLM's `/metrics`.

`scheduler` carries vLLM's queues to `pacer` and the plan back, `machine` reads its configuration: they alone import
vLLM, so that a new version means two files. Everything else here is tested without it.
"""
