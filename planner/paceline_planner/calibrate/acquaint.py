"""Checks that an engine can be calibrated before any of it is timed: one engine, idle, token ids, tokens that it times.

Invariant: what passes answers a prompt of token ids to the length asked for, and serves nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from paceline_engine.http1 import EventSplitter

from paceline_planner.calibrate import CalibrateError
from paceline_planner.calibrate.link import FOREIGN_LOAD, Link
from paceline_planner.served_models import NoModel, served_model

_TRIAL = 32, 4  # tokens of the first prompt and its answer


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """What an engine said and showed of itself; `step_tokens` as in its Page."""

    kv_tokens: int
    context_tokens: int | None
    step_tokens: int
    simulated: bool


async def acquaint(link: Link, wanted: str | None) -> Acquaintance:
    """Has `link` ask for the wanted model, or the first; CalibrateError when the engine cannot be measured."""
    page = await link.page()
    if page.requests:
        raise CalibrateError(f"{link.url} {FOREIGN_LOAD}")
    if not page.kv_tokens:
        raise CalibrateError(f"{link.url}/metrics has no vllm:cache_config_info with its KV blocks; use a vLLM engine")
    try:
        name, context_tokens = served_model(await link.models(), wanted, "--served-name")
    except NoModel as e:
        raise CalibrateError(f"{link.url} {e}") from e
    link.ask_for(name)
    simulated = await _try_token_ids(link)
    tried = await link.page_when(
        lambda after: after.gaps > page.gaps and after.prompts > page.prompts,
        "does not time prompts and tokens in its /metrics; start vLLM without --disable-log-stats",
    )
    return Acquaintance(page.kv_tokens, context_tokens, tried.step_tokens, simulated)


def usage(body: bytes) -> tuple[int, int] | None:
    """(prompt, output) tokens that a streamed answer says; None when it says none."""
    found: tuple[int, int] | None = None
    try:
        for payload in EventSplitter().feed(body):
            said = None if payload == b"[DONE]" else orjson.loads(payload).get("usage")
            if said:
                found = int(said["prompt_tokens"]), int(said["completion_tokens"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return found


async def _try_token_ids(link: Link) -> bool:
    """Whether it says that it is simulated."""
    answer = await link.post(*_TRIAL)
    needs = "calibrate needs vLLM's /v1/completions with token ids and `ignore_eos`"
    if answer.status != 200:
        said = " ".join(answer.body[:160].decode("utf-8", "replace").split())
        raise CalibrateError(f"{link.url} refuses a prompt of token ids ({answer.status} {said}); {needs}")
    if (counted := usage(answer.body)) != _TRIAL:
        tokens = "no tokens" if counted is None else f"{counted[0]} tokens in and {counted[1]} out"
        raise CalibrateError(f"{link.url} counts {tokens} for {_TRIAL[0]} ids and {_TRIAL[1]} to answer; {needs}")
    return answer.header(b"x-paceline-simulated") == b"1"
