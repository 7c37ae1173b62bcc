"""Batching policies judged on simulated fleets: contests over SLOs, mixed classes, long prompts and overload."""
