"""One engine as this router sees it, and one request's holdings on engines.

Records that only the ledger (state.py) writes and policies read, but for the memos of latency.py and outlook.py, which
these fill and the ledger voids. Lengths are tokens, times model seconds. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, inf
from typing import TYPE_CHECKING, NamedTuple

from paceline_engine.work import NO_WORK, Work

from paceline_router.facts import NO_FACTS, Facts, Role

if TYPE_CHECKING:
    from paceline_router.outlook import Outlook, Pacing

RECENT_S = 1.0  # model time: as long as the steps of a few prompts, short against a request
OUTPUT_QUANTILE = 0.9  # KV is reserved for this quantile of a class's output lengths (DESIGN §6)


class Queued(NamedTuple):
    """A prompt in a queue, in the order in which it is due; `new_squares` is twice its attention pairs."""

    due_s: float
    number: int  # of its flight
    new_tokens: int
    new_squares: int
    since_s: float  # when it came
    tpot_s: float
    prompt_tokens: int


class Told(NamedTuple):
    """What an engine's /metrics count: steps, and tokens of prompts and answers; 0 where it does not count them."""

    steps: float = 0.0
    tokens: float = 0.0


class Recent(NamedTuple):
    """Prompt tokens sent to a replica, each counting less by half every RECENT_S·ln 2; as they counted at `at_s`."""

    tokens: float
    at_s: float

    def at(self, now: float) -> float:
        """As they count now."""
        return self.tokens * exp(min(self.at_s - now, 0.0) / RECENT_S) if self.tokens else 0.0


NOT_YET = Recent(0.0, 0.0)
NOTHING_TOLD = Told()


@dataclass(slots=True, eq=False)
class Replica:
    """One engine as this router sees it. `prefill_squares` is Σ prompt², twice the attention pairs of the queue.

    `paces` counts those that decode or will decode here by their TPOT limit; `tightest_s` is the least of these limits
    and of other routers', infinite without any.
    """

    name: str
    role: Role
    pool: str = ""
    gpus: int = 1
    revision: str = ""  # prefill and decode replicas hand KV over within one only
    facts: Facts = NO_FACTS
    ready: bool = False
    retired: bool = False  # going: nothing new is sent here, whatever its probes say
    left_out: bool = False  # nor here while it gives no sign of work, or errs (silence.py, outliers.py)
    signs: int = 0  # of work, so far
    errors: int = 0  # legs that it answered with an error, since one was completed
    told: Told = NOTHING_TOLD  # by its latest page
    legs: int = 0  # requests sent here whose answer is not complete
    prefill_queue: int = 0  # requests whose prompt is waiting or being computed here
    prefill_tokens: int = 0
    prefill_squares: int = 0
    head_since_s: float = 0.0  # when the request at the head of that queue came to it
    decodes: int = 0
    decode_context: int = 0
    incoming: int = 0  # requests whose KV is expected: leg 1 runs, or the transfer does
    incoming_context: int = 0
    kv_reserved: int = 0
    kv_parked: int = 0  # of kv_reserved: prefilled, waiting to be fetched
    others: Work = NO_WORK  # what other routers had here at the last scrape
    others_paced: int = 0  # requests of theirs that decode or will
    new_tokens: int = 0  # of prefill_tokens: not thought to be in the prefix cache
    queue: list[Queued] = field(default_factory=list)
    paces: dict[float, int] = field(default_factory=dict)
    tightest_s: float = inf
    late: dict[float, int] = field(default_factory=dict)  # too late for good, when last looked at, by TPOT limit
    late_tokens: int = 0  # and their prompts'
    recent: Recent = NOT_YET
    queue_s: float | None = None  # latency's memo of the queue's predicted seconds; None: to be computed again
    outlook: Outlook | None = None  # the same for what outlook.py foresees of its queue
    pacing: Pacing | None = None  # and of its decodes
    drift: float = 1.0  # its prompts' own seconds over foreseen ones, the median (foresight.py)
    link: float = 1.0  # seconds of KV hand-overs to it over assumed ones, the median (latency.py)
    prompt_steps_s: tuple[float, float] | None = None  # and for what it makes of the facts alone

    @property
    def is_active(self) -> bool:
        """Whether it may get requests."""
        return self.ready and not self.retired and not self.left_out

    @property
    def is_idle(self) -> bool:
        """Whether no flight holds anything here."""
        return not (self.legs or self.prefill_queue or self.incoming or self.decodes or self.kv_reserved)

    @property
    def kv_room(self) -> float:
        """Unreserved KV, tokens; infinite where the capacity is not known."""
        return float("inf") if self.facts.kv_tokens is None else self.facts.kv_tokens - self.kv_reserved


@dataclass(frozen=True, slots=True)
class Size:
    """What a request is expected to need: prompt tokens and output tokens to reserve KV for; and by when.

    `due_s`: until its first token; `tpot_s`: its limit; `pace_tokens`: the output that is as likely exceeded as not.
    `prefix` has one chained hash for each full span of its prompt's beginning, empty where that is not known.
    """

    prompt_tokens: int
    output_tokens: int
    due_s: float = inf
    tpot_s: float = inf
    pace_tokens: int = 0
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Promise:
    """What a choice said of a request's first token, and how old the state was that said it.

    `alone`: no other prompt was there that it waits for.
    """

    chosen_s: float
    ttft_s: float
    age_s: float
    alone: bool


@dataclass(slots=True, eq=False)
class Flight:
    """One request's holdings. Each field that names a replica says where something of it is counted."""

    size: Size
    decode: Replica  # chosen, provisionally while leg 1 runs
    prefill: Replica | None = None
    leg_on: Replica | None = None
    queued_on: Replica | None = None
    parked_on: Replica | None = None
    incoming_on: Replica | None = None
    decoding_on: Replica | None = None
    paced_on: Replica | None = None
    promise: Promise | None = None
    fetched_s: float | None = None  # when `decode` was asked to fetch its KV; None where that is not learnt from
    entry: Queued | None = None  # in the queue of `queued_on`
    number: int = 0  # in order of arrival
    context: int = 0
    kv: dict[str, int] = field(default_factory=dict)  # tokens reserved, by replica
