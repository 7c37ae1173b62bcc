"""Puts the choices of a request's legs together: the replica for the prompt, and the one that decodes.

The prompt goes to a prefill or a mixed replica; a prefill replica's request then needs one of its revision to decode. A
service whose prefill replicas are all gone may have its decode replicas compute prompts (`recompute`); with
`local_prefill` a policy that foresees misses may have them do so at any time. Invariant: a choice names ready replicas
outside `avoid`, no two of different revisions, and with the same state, generator and past choices it is the same
choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import TYPE_CHECKING

from paceline_router.facts import Role
from paceline_router.latency import tpot_s
from paceline_router.outlook import Foreseen
from paceline_router.pick.choice import NOTHING, Ask, Choice, NoEndpoint
from paceline_router.pick.least_misses import weigh
from paceline_router.pick.least_predicted import predicted_s, predicted_tpot_s
from paceline_router.pick.policies import FORESEEING, POLICIES, PREFIX_READING
from paceline_router.replica import Replica, Size
from paceline_router.shortlist import Shortlist
from paceline_router.state import Ledger

if TYPE_CHECKING:
    from random import Random

NOBODY: frozenset[str] = frozenset()
FEW = 12  # replicas of a role: all are looked at
HOLDERS = 3  # of the longest prefix, looked at besides


class Picker:
    """A policy with its turn counters and generator.

    `recompute`: decode replicas may compute prompts in need; `local_prefill`: wherever that is the shorter way, which
    suits engines that can mix.
    """

    def __init__(self, policy: str, rng: Random, *, recompute: bool = True, local_prefill: bool = False) -> None:
        self._policy = POLICIES[policy]
        self._rng = rng
        self._recompute = recompute
        self.reads_prefixes = policy in PREFIX_READING
        self._foresee = FORESEEING.get(policy)
        self._local_prefill = local_prefill and recompute and self._foresee is not None
        self._first_turn = 0
        self._decode_turn = 0
        self._shortlist: Shortlist | None = None

    def can_serve(self, ledger: Ledger) -> bool:
        """Whether a request could be given to someone now."""
        if self._recompute and ledger.decoders:
            return True
        return bool(ledger.ready(Role.MIXED)) or any(r.revision in ledger.decoders for r in ledger.ready(Role.PREFILL))

    def choose(self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY) -> Choice | NoEndpoint:
        """Where a new request goes. Its decode replica is provisional: `choose_decode` decides when leg 1 ends."""
        decoders: dict[str, Replica] = {}  # the best of each revision
        for revision, replicas in ledger.decoders.items():
            if allowed := self._offered(ledger, replicas, avoid, revision):
                decoders[revision] = self._decoder(ledger, allowed, size, now)
        cached = _cached(ledger, size, now)
        firsts = self._offered(ledger, ledger.ready(Role.MIXED), avoid, cached=cached)
        if decoders:
            prefills = self._offered(ledger, ledger.ready(Role.PREFILL), avoid, cached=cached)
            firsts = (*(r for r in prefills if r.revision in decoders), *firsts)
        if not firsts and decoders and self._recompute:
            return self.choose_computing(ledger, size, now, avoid)
        if not firsts:
            return NoEndpoint("no ready replica can compute a prompt" if decoders else _missing(ledger))
        if decoders and self._local_prefill:
            firsts = (*firsts, *self._offered(ledger, ledger.ready(Role.DECODE), avoid, cached=cached))
        step_s = {revision: tpot_s(decoder, size.prompt_tokens) for revision, decoder in decoders.items()}
        ask = self._asked(ledger, size, now, self._first_turn, step_s, decoders, cached)
        self._first_turn += 1
        return self._choice(firsts, ask)

    def weigh(self, ledger: Ledger, size: Size, now: float, choice: Choice) -> Foreseen:
        """What a choice just made is expected to come to, whatever policy made it."""
        decoder = ledger.replicas[choice.decode]
        first = decoder if choice.prefill is None else ledger.replicas[choice.prefill]
        pair = {} if choice.prefill is None else {first.revision: decoder}
        ask = self._asked(ledger, size, now, 0, dict.fromkeys(pair, choice.tpot_s), pair, _cached(ledger, size, now))
        return weigh(first, ask)

    def choose_prefill(
        self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY
    ) -> str | NoEndpoint:
        """Another prefill replica, with decode replicas of its revision; which of those, `choose_decode` says later."""
        firsts = tuple(r for r in _without(ledger.ready(Role.PREFILL), avoid) if r.revision in ledger.decoders)
        if not firsts:
            return NoEndpoint("no other prefill replica is ready")
        self._first_turn += 1
        decoders = {v: replicas[0] for v, replicas in ledger.decoders.items()}
        step_s = {v: tpot_s(decoder, size.prompt_tokens) for v, decoder in decoders.items()}
        ask = self._asked(ledger, size, now, self._first_turn, step_s, decoders, _cached(ledger, size, now))
        return self._policy(firsts, ask).name

    def choose_decode(
        self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY, revision: str = ""
    ) -> str | NoEndpoint:
        """The decode replica of a request whose prompt a prefill replica of `revision` computed.

        Its own reservation must not be in the ledger.
        """
        decoders = self._offered(ledger, ledger.decoders.get(revision, ()), avoid, revision)
        if not decoders:
            return NoEndpoint("no decode replica is ready")
        chosen = self._decoder(ledger, decoders, size, now)
        self._decode_turn += 1
        return chosen.name

    def choose_computing(
        self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = NOBODY
    ) -> Choice | NoEndpoint:
        """A mixed or decode replica that serves the whole request, prompt included."""
        cached = _cached(ledger, size, now)
        mixed, decoders = ledger.ready(Role.MIXED), ledger.ready(Role.DECODE)
        replicas = (
            *self._offered(ledger, mixed, avoid, cached=cached),
            *self._offered(ledger, decoders, avoid, cached=cached),
        )
        if not replicas:
            return NoEndpoint("no decode or mixed replica is ready")
        ask = self._asked(ledger, size, now, self._decode_turn, {}, {}, cached)
        self._decode_turn += 1
        return self._choice(replicas, ask)

    def _offered(
        self,
        ledger: Ledger,
        replicas: tuple[Replica, ...],
        avoid: frozenset[str],
        revision: str | None = None,
        cached: Mapping[str, int] = NOTHING,
    ) -> Sequence[Replica]:
        """Those of one role that are to be looked at: of many, the least loaded and the holders of the prefix.

        All but those to avoid where they are few, or where none of the least loaded is left.
        """
        if len(replicas) <= FEW or self._foresee is None:
            return _without(replicas, avoid)
        return _without(self._heads(ledger, replicas, revision, cached), avoid) or _without(replicas, avoid)

    def _heads(
        self, ledger: Ledger, replicas: Sequence[Replica], revision: str | None, cached: Mapping[str, int]
    ) -> Sequence[Replica]:
        if self._shortlist is None or self._shortlist.ledger is not ledger:
            self._shortlist = Shortlist(ledger)
        found = self._shortlist.heads(replicas[0].role, revision)
        for name in nlargest(HOLDERS, cached, key=cached.__getitem__) if cached else ():
            holder = ledger.replicas.get(name)
            if holder is not None and holder.is_active and holder.role is replicas[0].role and holder not in found:
                found.append(holder)
        return found

    def _decoder(self, ledger: Ledger, decoders: Sequence[Replica], size: Size, now: float) -> Replica:
        ask = Ask(size, now, False, self._decode_turn, self._rng, ledger.load, ledger.errors, ledger.share, ledger.own)
        return self._policy(decoders, ask)

    def _asked(
        self,
        ledger: Ledger,
        size: Size,
        now: float,
        turn: int,
        step_s: Mapping[str, float],
        decoders: Mapping[str, Replica],
        cached: Mapping[str, int],
    ) -> Ask:
        """What is asked of one who computes the prompt."""
        return Ask(
            size,
            now,
            True,
            turn,
            self._rng,
            ledger.load,
            ledger.errors,
            ledger.share,
            ledger.own,
            step_s,
            decoders,
            cached,
        )

    def _choice(self, firsts: Sequence[Replica], ask: Ask) -> Choice:
        if self._foresee is not None:
            first, seen = self._foresee(firsts, ask)
            ttft_s = seen.ttft_s
        else:
            first = self._policy(firsts, ask)
            ttft_s = predicted_s(first, ask)
        if first.role is not Role.PREFILL:
            return Choice(None, first.name, ttft_s, predicted_tpot_s(first, ask))
        decoder = ask.decoders[first.revision]
        return Choice(first.name, decoder.name, ttft_s, ask.step_s[first.revision])


def _without(replicas: Sequence[Replica], avoid: frozenset[str]) -> Sequence[Replica]:
    return tuple(r for r in replicas if r.name not in avoid) if avoid else replicas


def _cached(ledger: Ledger, size: Size, now: float) -> Mapping[str, int]:
    return ledger.prefixes.cached(size.prefix, now) if size.prefix else NOTHING


def _missing(ledger: Ledger) -> str:
    roles = {replica.role for replica in ledger.replicas.values()}
    wanted = "decode" if Role.DECODE in roles else "mixed"
    return f"no {wanted} replica is ready"
