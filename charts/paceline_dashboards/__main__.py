"""Writes the chart's dashboards: `python -m paceline_dashboards [--check]`.

`--check` writes nothing and exits 1 when a committed file differs, is missing, or belongs to no dashboard.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paceline_dashboards.build import render
from paceline_dashboards.dashboards import DASHBOARDS

FOLDER = Path(__file__).parents[1] / "paceline" / "dashboards"


def stale(folder: Path, texts: dict[str, str]) -> list[str]:
    """Names of files that are not as they should be."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in {*there, *texts} if there.get(name) != texts.get(name))


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> int:
    parser = argparse.ArgumentParser(prog="python -m paceline_dashboards", description="Write Grafana's dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a committed file differs")
    check = parser.parse_args(argv).check
    texts = {f"{dashboard.uid}.json": render(dashboard) for dashboard in DASHBOARDS}
    names = stale(folder, texts)
    if check:
        if names:
            print(f"stale: {', '.join(names)}; run `python -m paceline_dashboards`", file=sys.stderr)
        return 1 if names else 0
    folder.mkdir(exist_ok=True)
    for name in names:
        if name in texts:
            (folder / name).write_text(texts[name], encoding="utf-8")
        else:
            (folder / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
