"""What the operator is told at its start: images, accelerators and names that the chart chose.

The accelerators' file is the chart value of that name (DESIGN §3). Invariant: Settings are whole and valid; every
problem of the file is one line that names the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from paceline_api.catalog import ACCELERATORS, Accelerator
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

MANAGER = "paceline-operator"  # field manager, and the value of app.kubernetes.io/managed-by


class SettingsError(Exception):
    """The operator cannot start; one line per problem."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`engine_image` is the default of the VLLM runtime, `control_image` runs everything else."""

    control_image: str
    engine_image: str
    image_pull_policy: str = "IfNotPresent"
    router_cluster_role: str = "paceline-router"
    accelerators: Mapping[str, Accelerator] = field(default_factory=lambda: ACCELERATORS)


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)
    table: str = ""
    memory_gib: int = Field(alias="memoryGiB", ge=1)
    gpus_per_node: int = Field(ge=1)
    resource_name: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = Field(default={})
    tolerations: tuple[dict[str, Any], ...] = ()


def read_accelerators(path: Path) -> Mapping[str, Accelerator]:
    """The entries of a YAML or JSON file; SettingsError with every problem."""
    try:
        entries = TypeAdapter(dict[str, _Entry]).validate_python(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError) as e:
        raise SettingsError(f"{path}: cannot be read: {e}") from e
    except ValidationError as e:
        lines = [f"{path}: {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in e.errors(include_url=False)]
        raise SettingsError("\n".join(lines)) from e
    return {name: Accelerator(name, **{f: getattr(e, f) for f in _Entry.model_fields}) for name, e in entries.items()}
