"""Traces: each format read, each broken line named with its place, cause and remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_planner.traces import TraceError, TraceRequest, read

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
FIRST = "2023-11-16 18:15:46,374,44\n"
AZURE = HEAD + "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109"
MOONCAKE = """\
{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}
{"timestamp": 4500, "input_length": 10, "output_length": 6, "hash_ids": [8]}
"""
OWN = """\
{"arrival_s": 2, "prompt_tokens": 3, "output_tokens": 4}

{"arrival_s": 2.5, "prompt_tokens": 3, "output_tokens": 1}"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(AZURE, [(0.0, 374, 44, ()), (4.314579, 396, 109, ())], id="Azure's CSV with seven decimals"),
        pytest.param("\ufeff" + AZURE, [(0.0, 374, 44, ()), (4.314579, 396, 109, ())], id="a byte order mark"),
        pytest.param(MOONCAKE, [(0.0, 600, 5, (0, 7)), (1.5, 10, 6, (8,))], id="Mooncake's milliseconds and blocks"),
        pytest.param(OWN, [(0.0, 3, 4, ()), (0.5, 3, 1, ())], id="our own, an empty line between"),
    ],
)
def test_arrivals_start_at_zero(
    tmp_path: Path, text: str, expected: list[tuple[float, int, int, tuple[int, ...]]]
) -> None:
    found = [
        (round(r.arrival_s, 6), r.prompt_tokens, r.output_tokens, r.prefix_blocks) for r in read(write(tmp_path, text))
    ]
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("num_prefill_tokens,num_decode_tokens,pd_ratio\n74,918,0.08\n", id="Sarathi's"),
        pytest.param("prompt_len,output_len\n74,918\n", id="DistServe's"),
    ],
)
def test_lengths_alone_have_no_arrival(tmp_path: Path, text: str) -> None:
    [request] = read(write(tmp_path, text))
    assert math.isnan(request.arrival_s)
    assert (request.prompt_tokens, request.output_tokens) == (74, 918)


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        pytest.param(HEAD + FIRST + "2023-11-16 18:15:47,-3,4\n", 3, "ContextTokens is '-3'", id="a negative length"),
        pytest.param(HEAD + "2023-11-16 18:15:47,3,0\n", 2, "GeneratedTokens is '0'", id="no output"),
        pytest.param(HEAD + "2023-11-16 18:15:47,x,1\n", 2, "ContextTokens is 'x'", id="a word for a length"),
        pytest.param(HEAD + "2023-11-16 18:15:47,1.5,1\n", 2, "ContextTokens is '1.5'", id="half a token"),
        pytest.param(HEAD + "2023-11-16 18:15:47,nan,1\n", 2, "ContextTokens is 'nan'", id="not a number"),
        pytest.param(HEAD + "yesterday,3,4\n", 2, "TIMESTAMP is 'yesterday'", id="no date"),
        pytest.param(HEAD + "2023-11-16 18:15:47,3\n", 2, "2 cells under 3 columns", id="a cell is missing"),
        pytest.param(
            HEAD + FIRST + "2023-11-16 18:15:40,3,4\n", 3, "6.000 s before the line above; sort", id="unsorted"
        ),
        pytest.param(MOONCAKE + "{\n", 3, "not JSON", id="half an object"),
        pytest.param(MOONCAKE + "7\n", 3, "not a JSON object", id="a number for an object"),
        pytest.param(MOONCAKE + '{"timestamp": 5000}\n', 3, "input_length is missing", id="a name is missing"),
        pytest.param(
            '{"timestamp": null, "input_length": 1, "output_length": 1}\n', 1, "timestamp is None", id="no time"
        ),
        pytest.param(
            OWN.replace('"prompt_tokens": 3', '"prompt_tokens": true'), 1, "prompt_tokens is True", id="a boolean"
        ),
        pytest.param("{broken\n", 1, "not a JSON object", id="a first line that is no JSON"),
        pytest.param("a,b\n1,2\n", 1, "unknown format", id="unknown columns"),
        pytest.param("", 1, "unknown format", id="an empty file"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str, line: int, cause: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TraceError) as error:
        list(read(path))
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: ")
    assert cause in message
    assert "; " in message
    assert "\n" not in message


@pytest.mark.parametrize("text", [HEAD, "prompt_len,output_len\n"], ids=["a header of requests", "a header of lengths"])
def test_a_header_alone_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="holds no request"):
        list(read(write(tmp_path, text)))


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="give the path"):
        list(read(tmp_path / "absent"))
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(TraceError, match="not UTF-8"):
        list(read(tmp_path / "packed"))


lengths = st.integers(1, 10**7)


@given(st.lists(st.tuples(st.floats(0, 1e6), lengths, lengths, st.lists(st.integers(0, 99), max_size=3)), min_size=1))
def test_our_own_format_comes_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, int, list[int]]]
) -> None:
    rows = sorted(rows)
    names = ("arrival_s", "prompt_tokens", "output_tokens", "prefix_blocks")
    text = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    requests = list(read(write(tmp_path_factory.mktemp("own"), text)))
    assert requests == [TraceRequest(at - rows[0][0], p, o, tuple(blocks)) for at, p, o, blocks in rows]


@pytest.mark.parametrize(
    ("file", "requests", "last_s", "prompt_mean"),
    [
        ("azure/AzureLLMInferenceTrace_conv.csv", 19366, 3501.722, 1155),
        ("mooncake/conversation_trace.jsonl", 12031, 3536.999, 12035),
        ("sarathi/sharegpt_8k_filtered_stats_llama2_tokenizer.csv", 30731, None, 2340),
        ("distserve/sharegpt_opt_lengths_1600.csv", 1600, None, 759),
    ],
)
def test_the_published_traces_are_read_whole(
    traces: Path, file: str, requests: int, last_s: float | None, prompt_mean: float
) -> None:
    found = list(read(traces / file))
    assert len(found) == requests
    assert sum(r.prompt_tokens for r in found) / requests == pytest.approx(prompt_mean, abs=1)
    assert math.isnan(found[-1].arrival_s) if last_s is None else found[-1].arrival_s == pytest.approx(last_s, abs=1e-3)
