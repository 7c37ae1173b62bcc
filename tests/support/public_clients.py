"""Public clients of OpenAI's API as child processes, from the environment of `make clients`, and their tokenizer."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from vllm_engine import ROOT
from vllm_engine import find as find_vllm

_PATIENCE_S = 240.0  # each takes 10 s of one idle core, most of it to import


@cache
def find() -> Path | str:
    """The environment's folder, or what is missing."""
    where = subprocess.run([ROOT / "images/clients/build.sh", "where"], capture_output=True, text=True, check=False)
    if where.returncode:
        return "the environment of public clients is not made (1.3 GB, 1 min after make vllm, once): make clients"
    return Path(where.stdout.strip())


def missing() -> str | None:
    """Why they cannot run here."""
    environment = find()
    return environment if isinstance(environment, str) else None


def tokenizer() -> Path:
    """Of the smallest model of `make vllm`; any would do, because simulated engines count tokens their own way."""
    environment = find_vllm()
    assert not isinstance(environment, str), environment
    return environment.models / "qwen2-5m"


def call(log: Path, name: str, *args: str) -> None:
    """Runs one; it must end with 0. No hub of models can be reached from it."""
    environment = find()
    assert isinstance(environment, Path), environment
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    with log.open("wb") as out:
        command = [str(environment / "bin" / name), *args]
        env = {**os.environ, **nowhere}
        code = subprocess.run(command, stdout=out, stderr=out, cwd=log.parent, env=env, timeout=_PATIENCE_S).returncode
    assert code == 0, log.read_text()[-3000:]
