"""Checks dashboards against Grafana's schema: the types of @grafana/schema, by TypeScript's compiler.

The dashboards are made with the Python builders, whose own reader would forgive what those write wrong. Here the JSON
is a literal of the published type (support/grafana/dashboard.ts): an unknown field, a missing one, and a word that an
enum does not have are errors of the compiler. Both packages are pinned by grafana/npm-shrinkwrap.json, which names no
host, and cached outside the tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCES = Path(__file__).parent / "grafana"
PACKAGES = ("package.json", "npm-shrinkwrap.json")
FLAGS = ("--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022")
LITERAL = 'import type {{ Dashboard }} from "./dashboard";\nexport const dashboard: Dashboard = {json};\n'


def missing() -> str | None:
    """Why this machine cannot check; None where it can. The first call installs the packages."""
    if not (shutil.which("npm") and shutil.which("node")):
        return "npm and node are not on PATH"
    try:
        packages()
    except subprocess.CalledProcessError as e:
        return f"npm could not install @grafana/schema: {e.stderr.strip()[-200:]}"
    return None


def packages(cache: Path | None = None) -> Path:
    """The folder with node_modules, made once for each content of the lock file. CalledProcessError where npm fails."""
    root = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline" / "grafana"
    key = hashlib.sha256(b"".join((SOURCES / name).read_bytes() for name in PACKAGES)).hexdigest()[:12]
    folder = root / key
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            made = Path(scratch) / "packages"
            made.mkdir()
            for name in PACKAGES:
                shutil.copy(SOURCES / name, made)
            install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(install, cwd=made, check=True, capture_output=True, text=True, timeout=300)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another run made it meanwhile
                    raise
    return folder


def problems(dashboards: Mapping[str, str], installed: Path) -> list[str]:
    """The compiler's errors on dashboards (name → JSON), each naming its dashboard; none: they fit the schema."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "node_modules").symlink_to(installed / "node_modules")
        shutil.copy(SOURCES / "dashboard.ts", folder)
        for name, json in dashboards.items():
            (folder / f"{name}.ts").write_text(LITERAL.format(json=json), encoding="utf-8")
        compiler = str(installed / "node_modules" / "typescript" / "bin" / "tsc")
        command = ["node", compiler, "--noEmit", *FLAGS, *(f"{name}.ts" for name in dashboards)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    found = [line for line in done.stdout.splitlines() if ": error " in line]
    if done.returncode and not found:
        raise RuntimeError(done.stdout + done.stderr)
    return found
