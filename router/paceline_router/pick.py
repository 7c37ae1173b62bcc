"""Which replicas serve a request: the least predicted TTFT, or one of the baselines that it is compared with.

The prompt goes to a prefill or a mixed replica; a prefill replica's request then needs one of its revision to decode. A
service whose prefill replicas are all gone may have its decode replicas compute prompts (`recompute`). Invariant: a
choice names ready replicas outside `avoid`, no two of different revisions, and with the same state, generator and past
choices it is the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paceline_router.latency import prefill_s, tpot_s, transfer_s, wait_s
from paceline_router.state import Ledger, Replica, Role, Size

if TYPE_CHECKING:
    from random import Random

NOBODY: frozenset[str] = frozenset()


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


@dataclass(frozen=True, slots=True)
class Ask:
    """One replica wanted, to compute the prompt (`computes`) or to decode.

    `handover_s`: of a prefill replica's revision, the first decode step that follows the transfer.
    """

    size: Size
    now: float
    computes: bool
    turn: int
    rng: Random
    handover_s: Mapping[str, float] = field(default_factory=dict)


Policy = Callable[[Sequence[Replica], Ask], Replica]


def _least_predicted(replicas: Sequence[Replica], ask: Ask) -> Replica:
    """The least predicted time to the first token, then TPOT, then name; those short of KV room come last."""
    best, best_missing, best_s = replicas[0], float("inf"), float("inf")
    best_tpot_s: float | None = None  # predicted only where it breaks a tie
    for replica in replicas:
        missing = _missing_room(replica, ask)
        if missing > best_missing:
            continue
        if missing == best_missing and ask.computes and wait_s(replica, ask.now) > best_s:
            continue  # spares predicting its own prefill
        time_s = _predicted_s(replica, ask)
        its_tpot_s: float | None = None
        if missing == best_missing and time_s >= best_s:
            if time_s > best_s:
                continue
            best_tpot_s = _tpot_s(best, ask) if best_tpot_s is None else best_tpot_s
            its_tpot_s = _tpot_s(replica, ask)
            if its_tpot_s >= best_tpot_s:
                continue
        best, best_missing, best_s, best_tpot_s = replica, missing, time_s, its_tpot_s
    return best


def _missing_room(replica: Replica, ask: Ask) -> float:
    output = 0 if replica.role is Role.PREFILL else ask.size.output_tokens
    missing = ask.size.prompt_tokens + output - replica.kv_room
    return missing if missing > 0.0 else 0.0


def _predicted_s(replica: Replica, ask: Ask) -> float:
    if not ask.computes:
        return _tpot_s(replica, ask)
    tokens = ask.size.prompt_tokens
    computed = wait_s(replica, ask.now) + prefill_s(replica, tokens, tokens * tokens)
    if replica.role is not Role.PREFILL:
        return computed
    return computed + ask.handover_s[replica.revision] + transfer_s(replica.facts, tokens)


def _tpot_s(replica: Replica, ask: Ask) -> float:
    return 0.0 if replica.role is Role.PREFILL else tpot_s(replica, ask.size.prompt_tokens)


def _round_robin(replicas: Sequence[Replica], ask: Ask) -> Replica:
    return replicas[ask.turn % len(replicas)]


def _random(replicas: Sequence[Replica], ask: Ask) -> Replica:
    return replicas[ask.rng.randrange(len(replicas))]


def _least_requests(replicas: Sequence[Replica], ask: Ask) -> Replica:
    return min(replicas, key=lambda r: r.legs if ask.computes else r.legs + r.incoming)


POLICIES: dict[str, Policy] = {
    "least-predicted-ttft": _least_predicted,
    "round-robin": _round_robin,
    "random": _random,
    "least-requests": _least_requests,
}


class Picker:
    """A policy with its turn counters and generator. `recompute`: decode replicas may compute prompts in need."""

    def __init__(self, policy: str, rng: Random, *, recompute: bool = True) -> None:
        self._policy = POLICIES[policy]
        self._rng = rng
        self._recompute = recompute
        self._first_turn = 0
        self._decode_turn = 0

    def can_serve(self, ledger: Ledger) -> bool:
        """Whether a request could be given to someone now."""
        if self._recompute and ledger.decoders:
            return True
        return bool(ledger.ready(Role.MIXED)) or any(r.revision in ledger.decoders for r in ledger.ready(Role.PREFILL))

    def choose(self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY) -> Choice | NoEndpoint:
        """Where a new request goes. Its decode replica is provisional: `choose_decode` decides when leg 1 ends."""
        decoders: dict[str, Replica] = {}  # the best of each revision
        for revision, replicas in ledger.decoders.items():
            if allowed := _without(replicas, avoid):
                decoders[revision] = self._decoder(allowed, size, now)
        firsts = _without(ledger.ready(Role.MIXED), avoid)
        if decoders:
            prefills = _without(ledger.ready(Role.PREFILL), avoid)
            firsts = (*(r for r in prefills if r.revision in decoders), *firsts)
        if not firsts and decoders and self._recompute:
            return self.choose_computing(ledger, size, now, avoid)
        if not firsts:
            return NoEndpoint("no ready replica can compute a prompt" if decoders else _missing(ledger))
        handover_s = {revision: tpot_s(decoder, size.prompt_tokens) for revision, decoder in decoders.items()}
        ask = Ask(size, now, True, self._first_turn, self._rng, handover_s)
        self._first_turn += 1
        first = self._policy(firsts, ask)
        if first.role is Role.PREFILL:
            decoder = decoders[first.revision]
            return Choice(first.name, decoder.name, _predicted_s(first, ask), handover_s[first.revision])
        return Choice(None, first.name, _predicted_s(first, ask), _tpot_s(first, ask))

    def choose_prefill(
        self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY
    ) -> str | NoEndpoint:
        """Another prefill replica, with decode replicas of its revision; which of those, `choose_decode` says later."""
        firsts = tuple(r for r in _without(ledger.ready(Role.PREFILL), avoid) if r.revision in ledger.decoders)
        if not firsts:
            return NoEndpoint("no other prefill replica is ready")
        self._first_turn += 1
        step_s = {v: tpot_s(replicas[0], size.prompt_tokens) for v, replicas in ledger.decoders.items()}
        return self._policy(firsts, Ask(size, now, True, self._first_turn, self._rng, step_s)).name

    def choose_decode(
        self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY, revision: str = ""
    ) -> str | NoEndpoint:
        """The decode replica of a request whose prompt a prefill replica of `revision` computed.

        Its own reservation must not be in the ledger.
        """
        decoders = _without(ledger.decoders.get(revision, ()), avoid)
        if not decoders:
            return NoEndpoint("no decode replica is ready")
        chosen = self._decoder(decoders, size, now)
        self._decode_turn += 1
        return chosen.name

    def choose_computing(
        self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY
    ) -> Choice | NoEndpoint:
        """A mixed or decode replica that serves the whole request, prompt included."""
        replicas = _without((*ledger.ready(Role.MIXED), *ledger.ready(Role.DECODE)), avoid)
        if not replicas:
            return NoEndpoint("no decode or mixed replica is ready")
        ask = Ask(size, now, True, self._decode_turn, self._rng)
        self._decode_turn += 1
        chosen = self._policy(replicas, ask)
        return Choice(None, chosen.name, _predicted_s(chosen, ask), _tpot_s(chosen, ask))

    def _decoder(self, decoders: Sequence[Replica], size: Size, now: float) -> Replica:
        return self._policy(decoders, Ask(size, now, False, self._decode_turn, self._rng))


def _without(replicas: tuple[Replica, ...], avoid: frozenset[str]) -> tuple[Replica, ...]:
    return tuple(r for r in replicas if r.name not in avoid) if avoid else replicas


def _missing(ledger: Ledger) -> str:
    roles = {replica.role for replica in ledger.replicas.values()}
    wanted = "decode" if Role.DECODE in roles else "mixed"
    return f"no {wanted} replica is ready"
