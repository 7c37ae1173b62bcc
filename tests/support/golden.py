"""Golden files: text under tests/golden/ that a test's output must equal, byte for byte.

`make golden` writes them; the diff is then reviewed like code. Used through conftest's `golden` fixture.
"""

from __future__ import annotations

from pathlib import Path


def compare(path: Path, text: str, *, write: bool) -> None:
    """AssertionError where the file differs or is missing; with `write` the file is made equal first."""
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == expected, f"{path.name} differs; if the change is meant, run `make golden` and review the diff"
