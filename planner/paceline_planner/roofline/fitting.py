"""Finds what GPUs achieve of their data sheets from a calibration grid, and how far that is off elsewhere.

Levenberg and Marquardt's iteration on the logarithm of predicted / measured, weighted towards the median, over the
logarithms of the constants: all stay positive, and a step of 1 ms counts as much as one of 1 s. `leave_out` fits
without a group and predicts it: the error of a roofline for a model or a GPU that nobody has measured. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from paceline_planner.fit.grid import PHASES, Point
from paceline_planner.roofline.cost import Floats, Fractions, Steps, Work, seconds, work
from paceline_planner.roofline.gpu import Gpu
from paceline_planner.roofline.shape import Shape

START = Fractions(0.7, 0.8, 2.0, 0.6, 0.85, 0.7, 2e-5, 3e-4, 5e-6)
# As shares of the data sheet no fraction exceeds 1, and the blend is a blend; times only have to be positive.
HIGHEST = np.log(np.array([1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1e-3, 1e-2, 1e-3]))
LOWEST = np.log(np.array([0.1, 0.1, 1.0, 0.1, 0.1, 0.05, 1e-7, 1e-7, 1e-7]))
NEAR = 0.02  # errors below this count as squares, above by their size


@dataclass(frozen=True, slots=True)
class Group:
    """Measured steps of one model on one GPU and group size."""

    gpu: Gpu
    shape: Shape
    tensor: int
    work: Work
    measured: Floats
    phases: tuple[str, ...]


def group(gpu: Gpu, shape: Shape, tensor: int, points: Iterable[Point]) -> Group:
    """Points beyond the model's context are left out, for no engine runs them."""
    kept = [p for p in points if p.context <= shape.max_context_tokens]
    columns = np.array([(p.prefill_tokens, p.shape.prefill_pairs, p.decodes, p.shape.decode_context) for p in kept])
    steps = Steps(*(column.astype(np.float64) for column in columns.T))
    measured = np.array([p.seconds for p in kept])
    return Group(gpu, shape, tensor, work(shape, tensor, steps), measured, tuple(p.phase for p in kept))


def log_ratios(groups: Sequence[Group], f: Fractions) -> Floats:
    """log(predicted / measured) of every point."""
    return np.concatenate([np.log(seconds(g.work, g.gpu, f) / g.measured) for g in groups])


def fit(groups: Sequence[Group], start: Fractions = START, passes: int = 30) -> Fractions:
    """The one set of constants nearest to all groups."""
    x = np.log(np.array(astuple(start)))
    found, damping = log_ratios(groups, start), 1e-2
    for _ in range(passes):
        slopes = np.array([(log_ratios(groups, _at(x + 1e-4 * unit)) - found) / 1e-4 for unit in np.eye(len(x))]).T
        weight = 1.0 / np.maximum(np.abs(found), NEAR)
        normal, gradient = slopes.T @ (slopes * weight[:, None]), slopes.T @ (found * weight)
        before = _loss(found)
        while damping < 1e6:
            ridge = damping * np.diag(np.diag(normal) + 1e-6) + 1e-3 * np.eye(len(x))
            trial = np.clip(x - np.clip(np.linalg.solve(normal + ridge, gradient), -1.0, 1.0), LOWEST, HIGHEST)
            ratios = log_ratios(groups, _at(trial))
            if _loss(ratios) < before:
                x, found, damping = trial, ratios, damping / 4
                break
            damping *= 4
        if before - _loss(found) < 1e-5 * before:
            break
    return _at(x)


def _at(x: Floats) -> Fractions:
    return Fractions(*(float(value) for value in np.exp(x)))


def _loss(ratios: Floats) -> float:
    size = np.abs(ratios)
    return float(np.sum(np.where(size < NEAR, size**2 / (2 * NEAR), size - NEAR / 2)))


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of some points: median and p90 of their size, and the median with its sign."""

    median: float
    p90: float
    bias: float


def errors(groups: Sequence[Group], f: Fractions) -> Mapping[str, Errors]:
    """By phase, and `all`; phases without points are missing."""
    return quantiles(log_ratios(groups, f), [phase for g in groups for phase in g.phases])


def quantiles(ratios: Floats, phases: Sequence[str]) -> Mapping[str, Errors]:
    off, of = np.expm1(ratios), np.array(phases)
    found = {}
    for phase in (*PHASES, "all"):
        chosen = off if phase == "all" else off[of == phase]
        if len(chosen):
            size = np.abs(chosen)
            found[phase] = Errors(float(np.median(size)), float(np.quantile(size, 0.9)), float(np.median(chosen)))
    return found


def leave_out(groups: Sequence[Group], key: Callable[[Group], str], start: Fractions = START) -> Mapping[str, Floats]:
    """For each key the log ratios of its groups, predicted by a fit to all others."""
    found = {}
    for left_out in dict.fromkeys(key(g) for g in groups):
        rest = [g for g in groups if key(g) != left_out]
        found[left_out] = log_ratios([g for g in groups if key(g) == left_out], fit(rest, start))
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """The constants of one GPU, or of all, with the errors on what they were fitted to and on what was left out."""

    fractions: Fractions
    fitted: Mapping[str, Errors]
    left_out: Mapping[str, Errors]
    of_left_out: Mapping[str, Mapping[str, Errors]]  # by what was left out


def find(groups: Sequence[Group]) -> tuple[Found, Mapping[str, Found]]:
    """The constants of all GPUs together, a whole GPU left out at a time; then of each, a family of models left out.

    Models of one hidden size are a family: Llama-2-70B is left out with Llama-3.1-70B, which is almost the same.
    """
    together = _find(groups, lambda g: g.gpu.name, START)
    each = {
        name: _find([g for g in groups if g.gpu.name == name], lambda g: str(g.shape.hidden), together.fractions)
        for name in sorted({g.gpu.name for g in groups})
    }
    return together, each


def _find(groups: Sequence[Group], key: Callable[[Group], str], start: Fractions) -> Found:
    fractions = fit(groups, start)
    ratios = leave_out(groups, key, fractions)
    phases = {name: [p for g in groups if key(g) == name for p in g.phases] for name in ratios}
    of_left_out = {name: quantiles(ratios[name], phases[name]) for name in ratios}
    pooled = quantiles(np.concatenate(list(ratios.values())), [p for name in ratios for p in phases[name]])
    return Found(fractions, errors(groups, fractions), pooled, of_left_out)
