"""Reads request traces of four formats into one stream of `TraceRequest`.

The format is told from the first line: Azure's CSV (TIMESTAMP, ContextTokens, GeneratedTokens), Mooncake's JSONL
(timestamp in ms, input_length, output_length, hash_ids of 512-token prefix blocks), a CSV of lengths alone
(num_prefill_tokens, num_decode_tokens or prompt_len, output_len), and our own JSONL (arrival_s, prompt_tokens,
output_tokens, optionally prefix_blocks). Arrivals start at 0 and never decrease; lengths without arrivals have a NaN
arrival: draw from them with `workloads.Empirical`. A broken line ends the reading with FILE:LINE, cause and remedy.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

MAX_TOKENS = 10_000_000  # above any model's context: a length beyond it is a broken line


class TraceError(Exception):
    """A trace that cannot be read; the message is `FILE:LINE: cause; what to change`."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. `arrival_s` counts from the trace's first; NaN where the trace has lengths only."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()  # ids of the prompt's leading 512-token blocks; equal ids, equal tokens


@dataclass(frozen=True, slots=True)
class _Format:
    """How one line becomes a request; `parse` raises ValueError (cause) or KeyError (missing name)."""

    name: str
    remedy: str
    csv_header: tuple[str, ...]
    parse: Callable[[dict[str, object]], TraceRequest]


def read(path: str | Path) -> Iterator[TraceRequest]:
    """Requests in the file's order. Raises TraceError at the first line that is not one."""
    name = str(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _requests(name, file)
    except OSError as e:
        raise TraceError(f"{name}: {e.strerror or e}; give the path of a readable trace file") from e
    except UnicodeDecodeError as e:
        raise TraceError(f"{name}: not UTF-8 text; unpack or convert it first") from e


def _requests(name: str, lines: Iterator[str]) -> Iterator[TraceRequest]:
    first = next(lines, "").strip()
    form = _detect(name, first)
    columns = [] if not form.csv_header else [column.strip() for column in first.split(",")]
    rows = enumerate(lines, start=2) if columns else enumerate(_chain(first, lines), start=1)
    origin = previous = math.nan
    empty = True
    for number, line in rows:
        if not line.strip():
            continue
        try:
            request = form.parse(_row(line, columns))
        except KeyError as e:
            raise _broken(name, number, f"{e.args[0]} is missing", form) from e
        except ValueError as e:
            raise _broken(name, number, str(e), form) from e
        if request.arrival_s < previous:
            cause = f"arrives {previous - request.arrival_s:.3f} s before the line above"
            raise TraceError(f"{name}:{number}: {cause}; sort the file by its time column")
        previous = request.arrival_s
        origin = previous if math.isnan(origin) else origin
        empty = False
        yield TraceRequest(
            request.arrival_s - origin, request.prompt_tokens, request.output_tokens, request.prefix_blocks
        )
    if empty:
        raise TraceError(f"{name}: holds no request; add at least one line")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _broken(name: str, number: int, cause: str, form: _Format) -> TraceError:
    return TraceError(f"{name}:{number}: {cause}; {form.remedy}")


def _detect(name: str, first: str) -> _Format:
    if first.startswith("{"):
        try:
            keys = orjson.loads(first)
        except orjson.JSONDecodeError as e:
            raise TraceError(f"{name}:1: not a JSON object ({e}); write one complete object a line") from e
        return _MOONCAKE if "input_length" in keys else _OWN
    columns = {column.strip() for column in first.split(",")}
    for form in (_AZURE, _LENGTHS_LLAMA, _LENGTHS):
        if columns.issuperset(form.csv_header):
            return form
    known = "; ".join(",".join(form.csv_header) for form in (_AZURE, _LENGTHS_LLAMA, _LENGTHS))
    raise TraceError(f"{name}:1: unknown format; start with a CSV header ({known}) or with one JSON object a line")


def _row(line: str, columns: list[str]) -> dict[str, object]:
    if not columns:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as e:
            raise ValueError(f"not JSON ({e})") from e
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value
    cells = next(csv.reader([line]))
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells under {len(columns)} columns")
    return dict(zip(columns, cells, strict=True))


def _tokens(row: dict[str, object], key: str) -> int:
    """A length of at least 1; CSV cells may be written as floats (`12.0`), anything else is refused."""
    raw = row[key]
    try:
        number = float(raw) if isinstance(raw, (str, int, float)) and not isinstance(raw, bool) else math.nan
    except ValueError:
        number = math.nan
    if not number.is_integer() or not 1 <= number <= MAX_TOKENS:
        raise ValueError(f"{key} is {raw!r}, not a whole number from 1 to {MAX_TOKENS}")
    return int(number)


def _seconds(row: dict[str, object], key: str, per_second: float) -> float:
    raw = row[key]
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        raise ValueError(f"{key} is {raw!r}, not a number")
    return raw / per_second


def _blocks(row: dict[str, object], key: str) -> tuple[int, ...]:
    raw = row.get(key, [])
    if not isinstance(raw, list) or not all(isinstance(block, int) and block >= 0 for block in raw):
        raise ValueError(f"{key} is not a list of block ids")
    return tuple(raw)


def _azure(row: dict[str, object]) -> TraceRequest:
    stamp = str(row["TIMESTAMP"]).strip()
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError as e:
        raise ValueError(f"TIMESTAMP is {stamp!r}, not a date and time") from e
    at = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return TraceRequest(at.timestamp(), _tokens(row, "ContextTokens"), _tokens(row, "GeneratedTokens"))


def _mooncake(row: dict[str, object]) -> TraceRequest:
    arrival = _seconds(row, "timestamp", 1000)
    return TraceRequest(arrival, _tokens(row, "input_length"), _tokens(row, "output_length"), _blocks(row, "hash_ids"))


def _own(row: dict[str, object]) -> TraceRequest:
    arrival = _seconds(row, "arrival_s", 1)
    return TraceRequest(
        arrival, _tokens(row, "prompt_tokens"), _tokens(row, "output_tokens"), _blocks(row, "prefix_blocks")
    )


def _lengths(prompt: str, output: str) -> Callable[[dict[str, object]], TraceRequest]:
    return lambda row: TraceRequest(math.nan, _tokens(row, prompt), _tokens(row, output))


_CSV_REMEDY = "mend or remove the line"
_AZURE = _Format("azure", _CSV_REMEDY, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure)
_LENGTHS_LLAMA = _Format(
    "lengths",
    _CSV_REMEDY,
    ("num_prefill_tokens", "num_decode_tokens"),
    _lengths("num_prefill_tokens", "num_decode_tokens"),
)
_LENGTHS = _Format("lengths", _CSV_REMEDY, ("prompt_len", "output_len"), _lengths("prompt_len", "output_len"))
_MOONCAKE = _Format("mooncake", "a line holds timestamp (ms), input_length, output_length and hash_ids", (), _mooncake)
_OWN = _Format("paceline", "a line holds arrival_s, prompt_tokens and output_tokens", (), _own)
