"""What this machine has for `paceline up` on vLLM: the program that will run, and the model in a folder.

The program is the one on PATH, else that of the environment which `make vllm` makes in a checkout. Nothing of vLLM is
imported: files on disk say whether it is a build for CPUs, by what vLLM itself goes by. Invariant: what cannot be used
is a `NotHere` with what to do about it, before any process starts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline_api.v1alpha1 import Lengths, LLMService
from paceline_engine.launch import model_path
from paceline_planner.roofline.shape import ShapeUnknown, from_config

MAKE = Path(__file__).parents[2] / "images" / "vllm" / "build.sh"  # only in a checkout


class NotHere(Exception):
    """What is missing and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Program:
    """The `vllm` command. `for_cpu`: a build that computes on CPUs; `models`: the folder of those made with it."""

    file: Path
    for_cpu: bool
    models: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine. `kv_bytes_per_token` is None for a family whose shape is not known."""

    name: str
    context_tokens: int | None
    kv_bytes_per_token: int | None


def find_program(environ: Mapping[str, str] = os.environ, make: Path = MAKE) -> Program:
    """NotHere where neither PATH nor `make vllm` has one."""
    if on_path := shutil.which("vllm", path=environ.get("PATH", "")):
        return Program(Path(on_path), is_for_cpu(Path(on_path)))
    if made := _made(environ, make):
        return made
    raise NotHere(
        "vllm is not installed here: PATH has no command `vllm`, and there is no environment of `make vllm` (CPU, "
        "7 GB, 4 min); make it, install vLLM, or add --engine simulated"
    )


def is_for_cpu(program: Path) -> bool:
    """vLLM takes the platform from the version of its own package: 0.32.0+cpu."""
    library = program.resolve().parents[1] / "lib"
    return any(library.glob("python3*/*-packages/vllm-*cpu*.dist-info"))


def _made(environ: Mapping[str, str], make: Path) -> Program | None:
    """That of the environment of `make vllm`; the script knows where it lies."""
    if not make.is_file():
        return None
    env = {**environ, "PYTHON": sys.executable}
    where = subprocess.run([make, "where"], env=env, capture_output=True, text=True, check=False)
    if where.returncode:
        return None
    environment, models = map(Path, where.stdout.splitlines())
    return Program(environment / "bin" / "vllm", for_cpu=True, models=models)


def read_model(uri: str) -> ModelFolder:
    """What the config.json of a file:// model says. NotHere where there is none."""
    folder = Path(model_path(uri))
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as e:
        raise NotHere(f"model {uri}: {path}: {e.strerror}; name a folder as Hugging Face has it") from e
    except ValueError as e:
        raise NotHere(f"model {uri}: {path} is no JSON: {e}; name a folder as Hugging Face has it") from e
    if not isinstance(config, dict):
        raise NotHere(f"model {uri}: {path} holds no object; name a folder as Hugging Face has it")
    context = config.get("max_position_embeddings")
    try:
        kv_bytes = from_config(config, folder.name).kv_bytes_per_token
    except (ShapeUnknown, TypeError, ValueError):
        kv_bytes = None
    return ModelFolder(folder.name, context if isinstance(context, int) else None, kv_bytes)


def clip_context(service: LLMService, model: ModelFolder) -> LLMService:
    """The service with no longer a context than its model takes, and no longer a workload's hint than that."""
    asked = service.spec.model
    if model.context_tokens is None or asked.max_context_tokens <= model.context_tokens:
        return service
    most = model.context_tokens
    spec = service.spec.model_copy(update={"model": asked.model_copy(update={"max_context_tokens": most})})
    if hint := spec.workload:
        clipped = {"prompt_tokens": _clip(hint.prompt_tokens, most), "output_tokens": _clip(hint.output_tokens, most)}
        spec = spec.model_copy(update={"workload": hint.model_copy(update=clipped)})
    return service.model_copy(update={"spec": spec})


def _clip(lengths: Lengths, most: int) -> Lengths:
    return Lengths(mean=min(lengths.mean, most), p90=min(lengths.p90, most))
