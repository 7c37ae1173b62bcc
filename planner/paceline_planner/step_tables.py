"""Which step-time table a service's model has on an accelerator: a measured one, else a roofline.

A model of the catalogue has its tables in files; one's own, given by its config.json, gets a roofline on the spot.
Invariant: what is not measured says so, with its error, wherever a plan or a report names its table. No I/O but those
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from paceline_api.catalog import Accelerator, find_model
from paceline_engine.step_time import StepTable
from paceline_engine.tables import TableMissing, available, load_table

if TYPE_CHECKING:
    from paceline_planner.roofline.shape import Shape

PREFIX = "roofline."
TENSORS = (1, 2, 4, 8)  # those of rooflines, and those tried in this order where no table says which there are


class Model(Protocol):
    """What a plan asks of a model."""

    @property
    def name(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def max_context_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Tables:
    """`own` is the service's model where its config.json is given."""

    own: Shape | None = None

    def model(self, uri: str) -> Model | None:
        """None for a model that is neither in the catalogue nor given."""
        return self.own or find_model(uri)

    def tensors(self, accelerator: Accelerator, uri: str) -> list[int]:
        """Tensor parallelisms with a measured table, then larger ones, or where there is none all, with a roofline."""
        model = self.model(uri)
        if model is None:
            return []
        if self.own is not None:
            return [t for t in TENSORS if self._own(accelerator, t)]
        names = (accelerator.table, roofline_name(accelerator))
        measured, rooflines = (
            sorted(t for name, m, t in available() if (name, m) == (wanted, model.name)) for wanted in names
        )
        return measured + [t for t in rooflines if not measured or t > measured[-1]]

    def find(self, accelerator: Accelerator, uri: str, tensor: int) -> StepTable | None:
        """The measured table, else the roofline, else None."""
        if self.own is not None:
            return self._own(accelerator, tensor)
        for name in (accelerator.table, roofline_name(accelerator)):
            try:
                return load_table(name, uri, tensor)
            except TableMissing:
                continue
        return None

    def _own(self, accelerator: Accelerator, tensor: int) -> StepTable | None:
        assert self.own is not None
        return _roofline(self.own, accelerator.table or accelerator.name, tensor)


CATALOGUE = Tables()


def roofline_name(accelerator: Accelerator) -> str:
    """Of the file with the rooflines of an accelerator."""
    return PREFIX + (accelerator.table or accelerator.name)


def describe(table: StepTable) -> str:
    """Source and error of a table, one line."""
    errors = ", ".join(f"{phase} {100 * e['median']:.1f} %" for phase, e in table.error.items() if "median" in e)
    return f"{table.name}, {table.model} × {table.tensor}: {table.source}; median error {errors or 'not known'}"


def is_roofline(table: str) -> bool:
    """Whether a table of that name was computed and not measured."""
    return table.startswith(PREFIX)


@cache
def _roofline(shape: Shape, gpu: str, tensor: int) -> StepTable | None:
    # Not at the top: numpy takes a tenth of a second to import, and only one's own model needs it.
    from paceline_planner.roofline.gpu import GPUS
    from paceline_planner.roofline.table import DoesNotFit, roofline_table

    try:
        return roofline_table(shape, GPUS[gpu], tensor) if gpu in GPUS else None
    except DoesNotFit:
        return None


def largest_error(errors: Mapping[str, Mapping[str, float]], quantile: str) -> float:
    """Over all phases, as a share; 0 where none is stated."""
    return max((e[quantile] for e in errors.values() if quantile in e), default=0.0)
