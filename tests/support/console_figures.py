"""`console_figures.py URL PROFILE [PNG]`: one router's console in Chromium beside its /metrics, as JSON.

A program, so that it can run inside the cluster's network. Prints {"shown", "metrics", "decisions", "problems"}.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from console_page import chromium, metrics_figures, pool_figures

DECISIONS = "return Array.from(document.querySelectorAll('#decisions li'), node => node.textContent)"


def main(url: str, profile: Path, picture: Path | None = None) -> None:
    with chromium(profile) as page:
        page.open(url)
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            exposition = answer.read().decode()
        page.refreshed()
        said = {
            "shown": page.figures(),
            "metrics": metrics_figures(exposition) | pool_figures(exposition),
            "decisions": page.run(DECISIONS),
            "problems": page.problems(),
        }
        if picture:
            page.save(picture)
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
