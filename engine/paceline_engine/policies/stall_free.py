"""The deadline-driven stall-free policy (DESIGN §5): each step's token budget follows from what running requests owe.

The limit of a step is the time until the first decode, run at the decode-only pace from then on, would miss its mean
TPOT or stall; below it, a step is as long as computes prompts fastest in the long run, but ends in time for who comes
meanwhile (`newcomers`). Prefill chunks fill that time in the order of their deadlines. What cannot be saved any more
no longer bounds the others: a lost decode leaves the limit, a lost prefill goes to a background queue with a small
share, and so does one that would cost others theirs. No prompt that finds KV starves: a stall limit that no step with
a prompt can keep gives way to the smallest one; where means leave no room to compute, the first one has a tenth of the
time; and one at a time joins beyond the others' pace. Goes beyond Sarathi-Serve's fixed budget (OSDI'24, Algorithm 3).
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf, isnan, nan

from paceline_engine.budget import StepLoad, best_pace, largest_chunk
from paceline_engine.lengths import OutputLengths
from paceline_engine.policies import prefill_order
from paceline_engine.policies.joining import Beside, Entry, Joining
from paceline_engine.policies.newcomers import Newcomers
from paceline_engine.policies.step import Latest, Step, View
from paceline_engine.request import Request
from paceline_engine.step_time import Regime, StepTimeModel

HORIZON_TOKENS = 32  # how far ahead a decode's pace may be made up for (DESIGN §5)
MAX_PARTIALS = 4  # prefills that may hold KV unfinished
CROWDED_SHARE = 0.9  # of the tightest TPOT: a decode step that long is worth thinning out
REPLAN_STEPS = 16  # decode-only steps between two looks at the deadlines
KEPT_OUT_STEPS = 4  # the same where prompts wait, and none may join
SIT_OUT_FACTOR = 1.5  # a decode may sit out a step only if its TPOT is this far above the tightest
# Tried over the SLOs of benchmarks/policies.py:
LOST_SHARE = 0.02  # of prefill tokens, for prefills that miss anyway, while others can be saved
RESERVE = 2.0  # margins, of the tightest TPOT: no later step makes up for an error in a request's last ones
MOST_RESERVED = 0.5  # of the tightest TPOT, while the margin is a guess
STALL_SHARE = 0.7  # of the stall cap: one long step stalls every decode at once
OVERDUE_S, OVERDUE_SHARE = 0.6, 0.1  # where no prompt has run for so long, the first one has this share of the time


@dataclass(slots=True)
class _Owed:
    """What the running decodes allow: the limit of the next step, and the decodes that must be in it."""

    limit_s: float
    even_s: float  # if all steps were that long, every decode would keep its mean
    decode_s: float  # a decode-only step once the next prompt has joined
    decodes: list[Request]
    patient: list[Request]  # decodes that could sit out this step and still make the next, least room first
    load: StepLoad
    growth_tokens: int
    beside: Beside


@dataclass(slots=True)
class StallFree(Latest):
    """Of a prefill leg, the router has taken what follows it off its TTFT (KV hand-over, first decode steps)."""

    model: StepTimeModel
    lengths: OutputLengths
    delay_s: float = 0.002  # engine to router
    _lost_credit: float = field(default=0.0, init=False)
    _prefill_s: float = field(default=nan, init=False)  # since when a prompt has fitted nowhere
    _beyond: Request | None = field(default=None, init=False)  # the last to join though the pace did not allow it
    _beyond_s: float = field(default=nan, init=False)  # when it was last seen to run
    _newcomers: Newcomers = field(default_factory=Newcomers, init=False)
    _joining: Joining = field(init=False)

    def __post_init__(self) -> None:
        self._joining = Joining(self.model, self.lengths)

    def plan(self, view: View, start_s: float) -> Step:
        owed = self._owed(view, start_s)
        alone = not view.partials and not view.waiting
        prefills: list[Request] = []
        tokens, repeat = 0, REPLAN_STEPS
        if alone:
            self._prefill_s = nan
        else:
            self._make_room(view, owed, start_s)
            prefills, tokens, repeat = self._compose(view, owed, start_s)
        decodes = self._with_patient(owed, min(owed.even_s, owed.limit_s)) if owed.patient else owed.decodes
        if not decodes and not prefills:
            decodes = view.decodes
        if len(decodes) < max(1, len(view.decodes)):
            repeat = 1
        # Alone, the budget says what a prompt would find.
        budget = max(view.limits.max_batched_tokens, len(decodes)) if alone else max(1, len(decodes) + tokens)
        return Step(decodes, prefills, budget, repeat=repeat)

    def victim(self, view: View, start_s: float) -> Request:
        """Lost requests first, then those with most room until their next token is due."""
        if view.partials:
            return max(view.partials, key=lambda r: r.urgency_s)
        return max(view.decodes, key=lambda r: (r.lost, _due_s(r, 1)))

    def _owed(self, view: View, start_s: float) -> _Owed:
        """One pass over the decodes: who must run, and by when the step must end."""
        decodes = view.decodes
        if not decodes:
            return _Owed(inf, inf, 0.0, [], [], StepLoad(), 0, Beside())
        context = sum([r.prompt_tokens + r.emitted_tokens for r in decodes])
        tpots = [r.objective.tpot_s for r in decodes]
        tightest, loosest = min(tpots), max(tpots)
        joining = view.partials[0] if view.partials else view.waiting[0] if view.waiting else None
        pace_s = self._pace_s(decodes, tpots, context, joining)
        margin = self.model.margin_ratio(Regime.MIXED if joining else Regime.DECODE)
        earliest_s = start_s + self.delay_s
        from_s = earliest_s + min(RESERVE * margin, MOST_RESERVED) * tightest
        crowded = joining is not None or pace_s > CROWDED_SHARE * tightest
        hard = 1.0 / (1.0 + margin)
        limit, even, mean, growth = inf, inf, inf, 0
        run: list[Request] = []
        waits: list[tuple[float, int]] = []
        for i, (r, left) in enumerate(zip(decodes, self.lengths.medians(decodes), strict=True)):  # inlined: the hottest
            objective, emitted = r.objective, r.emitted_tokens
            left = max(1, min(left, r.max_tokens - emitted))  # guessed tokens may seem to be its last
            growth += left
            if emitted:
                h = left if left < HORIZON_TOKENS else HORIZON_TOKENS
                due = r.first_token_s + (emitted + h - 1) * objective.tpot_s - from_s
                slack = due - (h - 1) * pace_s
                stall = (r.last_token_s + STALL_SHARE * objective.max_stall_s - earliest_s) * hard
            else:  # its KV came from elsewhere: its first token is a decode step, bound by its TTFT
                h, due = 1, inf
                slack, stall = r.ttft_deadline_s - earliest_s, objective.max_stall_s
            r.lost = lost = slack < pace_s and _due_s(r, left) - left * pace_s < start_s
            if not lost:
                if due < even * h:
                    even = due / h
                if slack < mean:
                    mean = slack
            bound = stall if lost or stall < slack else slack
            may_wait = crowded and emitted and not lost and objective.tpot_s >= SIT_OUT_FACTOR * tightest
            if may_wait and bound - pace_s > max(pace_s, tightest):  # it sits out, and must still make the next
                bound -= pace_s
                waits.append((bound, i))
            else:
                run.append(r)
            if bound < limit:
                limit = bound
        load = StepLoad(len(run), context if len(run) == len(decodes) else sum(r.total_tokens for r in run))
        if joining is not None:
            newest_s = max([r.last_token_s for r in decodes if r.emitted_tokens], default=start_s)
            cap_s = newest_s + STALL_SHARE * min([r.objective.max_stall_s for r in decodes]) - earliest_s
            limit = max(limit, min(self._soft_s(view, load, cap_s * hard), mean))
        patient = [decodes[i] for _, i in sorted(waits)]
        return _Owed(limit, even, pace_s, run, patient, load, growth, Beside(tightest, loosest, context))

    def _pace_s(
        self, decodes: Sequence[Request], tpots: Sequence[float], context: int, joining: Request | None
    ) -> float:
        """A decode-only step of those that must run at the tightest pace, once the next prompt has joined.

        A decode of a looser class counts with the share of the steps that it needs.
        """
        count, tightest = len(decodes), min(tpots)
        if tightest < max(tpots):
            shares = [tightest / tpot_s for tpot_s in tpots]
            count = round(sum(shares))
            context = round(sum([share * r.total_tokens for share, r in zip(shares, decodes, strict=True)]))
        if joining is not None:
            count, context = count + 1, context + joining.total_tokens
        return self.model.predict4(0, 0.0, count, context)

    def _soft_s(self, view: View, load: StepLoad, cap_s: float) -> float:
        """How far the stall cap gives way: to the least step with a prompt, where no later one holds it either.

        `cap_s` is the cap of who has just got a token: what the host does before each step is gone from it for good.
        """
        least_s = self._least_s(view, load)
        return least_s if least_s > cap_s else 0.0

    def _least_s(self, view: View, load: StepLoad) -> float:
        """A step with one tile of a prompt, the deepest of the next."""
        deepest = max([r.computed_tokens for r in (*view.partials, *view.waiting[:MAX_PARTIALS])])
        return load.seconds(self.model, view.limits.tile_tokens, deepest)

    def _make_room(self, view: View, owed: _Owed, start_s: float) -> None:
        """Steps end in time for those who come meanwhile, though no step with a prompt is shorter than the least."""
        self._newcomers.note(view.waiting, start_s)
        most_s = self._newcomers.most_s(start_s)
        if most_s < owed.limit_s:
            most_s = max(most_s, self._least_s(view, owed.load))
            owed.limit_s, owed.even_s = min(owed.limit_s, most_s), min(owed.even_s, most_s)

    def _with_patient(self, owed: _Owed, limit_s: float) -> list[Request]:
        """Who must run, and as many of the patient as the step has time for: what they hold is KV that others need."""
        load, patient = owed.load, owed.patient
        contexts = list(accumulate([r.total_tokens for r in patient], initial=load.decode_context))
        low, high = 0, len(patient) + 1  # so many fit, so many do not
        while high - low > 1:
            k = (low + high) // 2
            step_s = self.model.predict4(load.prefill_tokens, load.prefill_pairs, load.decodes + k, contexts[k])
            low, high = (k, high) if step_s <= limit_s else (low, k)
        return owed.decodes + patient[:low]

    def _compose(self, view: View, owed: _Owed, start_s: float) -> tuple[list[Request], int, int]:
        """Prefills of this step in order, the tokens that they may take, and for how many steps that holds."""
        load = owed.load
        savable, lost, limit = self._queues(view, owed, start_s)
        chosen: list[Request] = []
        # What cannot join keeps out what comes later, but for those who have joined, and for whom it gives way to.
        shut, closed, kept_out = False, False, False
        later: Request | None = None  # the first that finds a place and KV, and is kept out all the same
        kv_left = view.kv.available - view.kv.blocks_for(owed.growth_tokens)
        for r, is_lost in self._turns(savable, lost):
            fresh = not r.blocks
            if fresh and (view.running or chosen):
                gives_way = is_lost or r.objective.tpot_s > owed.beside.tightest_tpot_s
                if closed or (gives_way and shut):
                    continue
                entry = self._joining.entry(view, owed.beside, r, len(chosen), kv_left, is_lost=is_lost)
                if entry is not Entry.OPEN:
                    shut, closed = True, closed or not gives_way
                    later = r if entry is Entry.LATER and later is None else later
                    continue
            due_s = inf if is_lost else max(r.ttft_deadline_s - self.delay_s - start_s, 0.0)
            chunk = self._chunk(load, r, limit, due_s, view)
            if chunk <= 0 and not chosen:
                chunk, kept_out = self._overdue(load, r, start_s, view), True
            if chunk <= 0:
                break
            if chunk < r.left_tokens and fresh and len(view.partials) >= MAX_PARTIALS:
                continue  # those that hold KV must go on, or nobody ever makes room for it
            if chosen and due_s < limit and load.seconds(self.model, chunk, r.computed_tokens) > due_s:
                break
            chosen.append(r)
            load.add(chunk, r.computed_tokens)
            self._lost_credit += -chunk if is_lost else LOST_SHARE * chunk
            kv_left -= view.kv.blocks_for(r.total_tokens) if fresh else 0
            limit = min(limit, due_s)
            if chunk < r.left_tokens:
                break
        no_time = kept_out
        if later is not None and not (chosen or kept_out or self._is_beyond(view, start_s)):
            chunk, kept_out = self._overdue(load, later, start_s, view), True
            if chunk > 0:
                chosen.append(later)
                load.add(chunk, later.computed_tokens)
                self._beyond, self._beyond_s = later, start_s
        if chosen or not kept_out:
            self._prefill_s = nan
        self._lost_credit = min(max(self._lost_credit, 0.0), float(view.limits.max_batched_tokens))
        # Who finds no time now may find it in the next step; a place, KV or pace, hardly before somebody ends.
        return chosen, load.prefill_tokens, 1 if chosen or no_time or view.partials else KEPT_OUT_STEPS

    def _queues(self, view: View, owed: _Owed, start_s: float) -> tuple[list[Request], list[Request], float]:
        """Prefills to save, those that are not, each in order, and the length of the step that serves them best."""
        model, load, limits = self.model, owed.load, view.limits
        beside_s = load.seconds(model, 1) - model.predict4(1, 0.5, 0, 0) if load.decodes else 0.0
        now, after_s = start_s + beside_s, self.delay_s
        savable, lost = prefill_order.split((*view.partials, *view.waiting), model, after_s, now)
        work = sum([r.left_tokens for r in savable or lost])
        room = limits.max_batched_tokens - load.decodes
        pace = best_pace(load, model, work, owed.even_s, owed.limit_s, owed.decode_s, room, limits.tile_tokens)
        if len(savable) > 1:
            savable, given_up = prefill_order.put_off(savable, model, pace.tokens_per_s, after_s, now)
            lost += given_up
        return savable, prefill_order.shortest_first(lost), min(pace.step_s, owed.limit_s)

    def _chunk(self, load: StepLoad, r: Request, limit_s: float, due_s: float, view: View) -> int:
        """Tokens of `r` for this step; its own deadline may shorten the step, but is no reason to cut the prompt."""
        limits = view.limits
        room = limits.max_batched_tokens - load.decodes - load.prefill_tokens
        due_s /= 1 + self.model.margin_ratio(Regime.MIXED)
        for bound_s in (due_s, limit_s) if due_s < limit_s else (limit_s,):
            chunk = largest_chunk(load, self.model, r.computed_tokens, r.left_tokens, bound_s, room, limits.tile_tokens)
            if chunk == r.left_tokens:
                break
        return chunk

    def _overdue(self, load: StepLoad, r: Request, start_s: float, view: View) -> int:
        """Tokens of a prompt that fits nowhere: none before it has waited, then what its share computes.

        It also puts a prediction to the test that lets no prompt run: if it is wrong, only a trial tells.
        """
        if isnan(self._prefill_s):
            self._prefill_s = start_s
        waited_s = min(start_s - self._prefill_s, 2 * OVERDUE_S)  # it may have gone unseen: not every step is planned
        if waited_s < OVERDUE_S:
            return 0
        least_s = load.seconds(self.model, view.limits.tile_tokens, r.computed_tokens)
        share_s = load.seconds(self.model) + OVERDUE_SHARE * waited_s
        return self._chunk(load, r, max(least_s, share_s), inf, view)

    def _is_beyond(self, view: View, start_s: float) -> bool:
        """Whether who joined though the pace did not allow it still runs, in another micro-batch perhaps."""
        if self._beyond is None:
            return False
        if any(r is self._beyond for r in (*view.decodes, *view.partials)):
            self._beyond_s = start_s
        elif not view.flying or start_s - self._beyond_s >= OVERDUE_S:
            self._beyond = None
        return self._beyond is not None

    def _turns(self, savable: list[Request], lost: list[Request]) -> Iterable[tuple[Request, bool]]:
        """Whose turn it is: lost prefills first when their credit covers one, else after all savable ones."""
        early = 1 if lost and savable and self._lost_credit >= lost[0].left_tokens else 0
        yield from ((r, True) for r in lost[:early])
        yield from ((r, False) for r in savable)
        yield from ((r, True) for r in lost[early:])


def _due_s(r: Request, h: int) -> float:
    """When the h-th token from now is due if the mean TPOT is to hold (DESIGN §5, D(h))."""
    if r.emitted_tokens == 0:
        return r.ttft_deadline_s
    return r.first_token_s + (r.emitted_tokens + h - 1) * r.objective.tpot_s
