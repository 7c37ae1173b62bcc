"""What a pick answers, and what each policy is asked.

A policy chooses one replica among those that it is offered; the picker puts the choices of a request's legs together.
Invariant: a policy changes nothing, and answers the same to the same replicas, question and generator. Times are model
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from paceline_router.arriving import Load
from paceline_router.foresight import PredictionErrors
from paceline_router.replica import Replica, Size

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Choice:
    """`prefill` None: `decode` computes the prompt itself. Predictions are model seconds from the time of choice."""

    prefill: str | None
    decode: str
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class NoEndpoint:
    """No ready replica can do it; the message says which role is missing."""

    message: str


NOTHING: Mapping[str, int] = {}


class Ask(NamedTuple):
    """One replica wanted, to compute the prompt (`computes`) or to decode.

    `share` of the load that one replica gets, `own` of it this router's. `step_s`: of a prefill replica's revision,
    the first decode step that follows the transfer; `decoders`: the replica that would take that step. `cached`: prompt
    tokens that a replica is thought to hold KV of, by name. A tuple, because one is made for each choice.
    """

    size: Size
    now: float
    computes: bool
    turn: int
    rng: Random
    load: Load
    errors: PredictionErrors
    share: float
    own: float
    step_s: Mapping[str, float] = {}
    decoders: Mapping[str, Replica] = {}
    cached: Mapping[str, int] = NOTHING


Policy = Callable[[Sequence[Replica], Ask], Replica]


def requests(replica: Replica, ask: Ask) -> int:
    """Requests that count at a replica: those sent there, and for a decode those that are on their way."""
    return replica.legs if ask.computes else replica.legs + replica.incoming


def fewest_requests(replicas: Sequence[Replica], ask: Ask) -> Replica:
    """The first with the fewest requests."""
    return min(replicas, key=lambda replica: requests(replica, ask))
