"""`python -m paceline_engine.vllm MODEL FLAGS…` becomes `vllm serve MODEL FLAGS…` with what our plugin needs around it.

A fresh folder carries metrics between vLLM's processes (PROMETHEUS_MULTIPROC_DIR must be empty at the start: counters
of an earlier run would come back), and links to our packages let an interpreter of vLLM's own import them. The folder
bears this process's id, which `exec` keeps: whoever starts next removes those of the dead.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from paceline_engine.vllm.metrics import DIRECTORY
from paceline_engine.vllm.rules import STARTED_S, InvalidRules, read_rules

PACKAGES = ("paceline_api", "paceline_engine")
PLUGINS = ("progress_thread:tame", "seeds:keep")  # modules of ours and what vLLM calls there
PREFIX = "paceline-vllm-"


def sweep(parent: Path, is_alive: Callable[[int], bool]) -> None:
    """Remove the folders of processes that are gone."""
    for folder in parent.glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX)
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def surround(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of vLLM, with `folder` filled for it: for metrics, and links to our packages and no others."""
    metrics, packages = folder / "metrics", folder / "packages"
    metrics.mkdir(parents=True)
    packages.mkdir()
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        (packages / name).symlink_to(Path(spec.submodule_search_locations[0]).resolve())
    plugin = packages / "paceline_plugin-0.dist-info"  # what makes vLLM load a plugin from a path
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: paceline-plugin\nVersion: 0\n")
    entries = [f"paceline_{each.partition(':')[0]} = {__package__}.{each}" for each in PLUGINS]
    (plugin / "entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *entries, ""]))
    path = os.pathsep.join(filter(None, (str(packages), environ.get("PYTHONPATH"))))
    return {**environ, DIRECTORY: str(metrics), "PYTHONPATH": path}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # a folder of our own number is an earlier process's


def main(argv: list[str]) -> NoReturn:
    started_s = time.time()
    program = shutil.which("vllm")
    if program is None:
        sys.exit("paceline_engine.vllm: PATH has no vllm; where there is no GPU, `make vllm` makes one")
    try:
        read_rules(os.environ)  # within vLLM, a border that cannot be made would only be logged
    except InvalidRules as e:
        sys.exit(f"paceline_engine.vllm: {e}")
    parent = Path(tempfile.gettempdir())
    sweep(parent, _is_alive)
    env = surround(parent / f"{PREFIX}{os.getpid()}", os.environ)
    sys.stdout.flush()
    os.execve(program, [program, "serve", *argv], {**env, STARTED_S: str(started_s)})


if __name__ == "__main__":
    main(sys.argv[1:])
