"""/tokenize and /detokenize of the simulated engine, in vLLM's shapes, by its stand-in tokenizer (text.py).

Invariant: a text has as many ids here as `usage` counts for it as a prompt, and those ids make that prompt. Pure.
"""

from __future__ import annotations

from typing import Any

from paceline_engine.sim import text
from paceline_engine.sim.api import MOST_IDS, Refused, Served, model_fault, read_turns


def tokenize(body: object, served: Served) -> dict[str, Any] | Refused:
    """The ids of a `prompt`, or of `messages` under the chat template."""
    if not isinstance(body, dict):
        return Refused("the body must be a JSON object")
    if fault := model_fault(body, served):
        return fault
    ids = _ids(body)
    if isinstance(ids, Refused):
        return ids
    strings = [text.piece(id_) for id_ in ids] if body.get("return_token_strs") is True else None
    return {"count": len(ids), "max_model_len": served.max_model_len, "tokens": ids, "token_strs": strings}


def _ids(body: dict[str, Any]) -> list[int] | Refused:
    if isinstance(body.get("prompt"), str):
        return text.text_ids(body["prompt"])
    if "messages" not in body:
        return Refused("prompt must be a text, or messages a list", "prompt")
    turns = read_turns(body["messages"])
    if isinstance(turns, Refused):
        return turns
    return text.chat_ids(turns, opening=body.get("add_generation_prompt") is not False)


def detokenize(body: object, served: Served) -> dict[str, Any] | Refused:
    """The text of `tokens`."""
    if not isinstance(body, dict):
        return Refused("the body must be a JSON object")
    if fault := model_fault(body, served):
        return fault
    ids = body.get("tokens")
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int} or (ids and min(ids) < 0):
        return Refused("tokens must be a list of token ids", "tokens")
    if ids and max(ids) >= MOST_IDS:
        return Refused(f"Token id is out of vocabulary: ids are from 0 to {MOST_IDS - 1}", "tokens")
    return {"prompt": "".join(map(text.piece, ids))}
