"""The experiments of `make papers`, in the order in which they run and are told of in docs/papers.md."""

from __future__ import annotations

from paceline_planner.papers import (
    distserve_curves,
    distserve_example,
    distserve_parallelism,
    distserve_placements,
    distserve_steady,
    sarathi_ablation,
    sarathi_bubbles,
    sarathi_capacity,
    sarathi_pipeline,
    sarathi_stalls,
    sarathi_steps,
)
from paceline_planner.papers.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    distserve_example.EXPERIMENT,
    distserve_curves.EXPERIMENT,
    distserve_steady.EXPERIMENT,
    distserve_placements.EXPERIMENT,
    distserve_parallelism.EXPERIMENT,
    sarathi_steps.EXPERIMENT,
    sarathi_capacity.EXPERIMENT,
    sarathi_pipeline.EXPERIMENT,
    sarathi_bubbles.EXPERIMENT,
    sarathi_ablation.EXPERIMENT,
    sarathi_stalls.EXPERIMENT,
)
