"""`greedy_client.py URL JOB`: asks an OpenAI-compatible API greedy questions; how each ended, as a list in JSON.

A program, so that it can run inside the cluster's network. JOB, in JSON, has the fields of `Job`. Clients take the
questions in turns, one at a time each, and finish what they have begun. A list of tokens is completed as a stream, a
text is chatted with and answered whole. Invariant: each question that was asked is in the list, with its whole answer
or with what came instead.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count

from openai import APIError, AsyncOpenAI

TIMEOUT_S = 60.0
WHOLE = {"ignore_eos": True}

Question = str | list[int]


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked, and for how long. `rounds` 0: until standard input ends; `pause_s` after each answer."""

    model: str
    questions: list[Question]
    tokens: int
    clients: int = 1
    rounds: int = 0
    pause_s: float = 0.0


@dataclass(slots=True)
class Asked:
    """One question by its number, and what came. `error`: the API's code or what the client met; empty for a whole
    answer."""

    question: int
    text: str = ""
    prompt_tokens: int = 0
    error: str = ""
    took_s: float = 0.0


class Unfinished(Exception):
    """An answer ended before its last token, without an error."""


async def chat(client: AsyncOpenAI, job: Job, question: str, asked: Asked) -> None:
    """APIError, Unfinished."""
    answer = await client.chat.completions.create(
        model=job.model,
        messages=[{"role": "user", "content": question}],
        max_tokens=job.tokens,
        temperature=0,
        extra_body=WHOLE,
    )
    if answer.usage is None or answer.usage.completion_tokens != job.tokens:
        raise Unfinished
    asked.text, asked.prompt_tokens = answer.choices[0].message.content or "", answer.usage.prompt_tokens


async def complete(client: AsyncOpenAI, job: Job, prompt: list[int], asked: Asked) -> None:
    """APIError, Unfinished; `asked` then holds what came before."""
    stream = await client.completions.create(
        model=job.model,
        prompt=prompt,
        max_tokens=job.tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=WHOLE,
    )
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        asked.text += "".join(choice.text for choice in chunk.choices)
    if usage is None or usage.completion_tokens != job.tokens:
        raise Unfinished
    asked.prompt_tokens = usage.prompt_tokens


async def ask(client: AsyncOpenAI, job: Job, number: int) -> Asked:
    began, question, asked = time.monotonic(), job.questions[number], Asked(number)
    try:
        if isinstance(question, str):
            await chat(client, job, question, asked)
        else:
            await complete(client, job, question, asked)
    except APIError as e:
        asked.error = e.code or type(e).__name__
    except Unfinished:
        asked.error = "unfinished"
    asked.took_s = time.monotonic() - began
    return asked


def turns(job: Job, over: asyncio.Event) -> Iterator[int]:
    """Numbers of questions, shared by all clients."""
    for turn in count():
        if over.is_set() or (job.rounds and turn == job.rounds * len(job.questions)):
            return
        yield turn % len(job.questions)


async def run(url: str, job: Job) -> list[Asked]:
    over, ended = asyncio.Event(), list[Asked]()
    shared = turns(job, over)

    async def work(client: AsyncOpenAI) -> None:
        for number in shared:
            ended.append(await ask(client, job, number))
            await asyncio.sleep(job.pause_s)

    async with (
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(job.clients):
            group.create_task(work(client))
        if not job.rounds:
            await asyncio.to_thread(sys.stdin.read)
            over.set()
    return ended


def main(url: str, job: str) -> None:
    print(json.dumps([asdict(asked) for asked in asyncio.run(run(url, Job(**json.loads(job))))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
