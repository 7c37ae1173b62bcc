"""Where vLLM's environment lies and what is said where it is missing; nothing is installed here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from vllm_engine import ROOT, Environment, look

BUILD = ROOT / "images/vllm/build.sh"


def where() -> tuple[Path, Path]:
    ran = subprocess.run([BUILD, "where"], capture_output=True, text=True, check=False)
    folder, models = ran.stdout.split()
    return Path(folder), Path(models)


def test_a_missing_environment_is_named_with_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    missing = look()
    assert isinstance(missing, str)
    assert "make vllm" in missing


def test_it_counts_once_it_and_its_models_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, models = where()
    assert tmp_path in folder.parents
    for made in (folder, models):
        assert isinstance(look(), str)
        made.mkdir(parents=True)
        (made / ".made").touch()
    assert look() == Environment(folder, models)


def test_an_unknown_command_is_refused() -> None:
    ran = subprocess.run([BUILD, "remove"], capture_output=True, text=True, check=False)
    assert (ran.returncode, "no command remove" in ran.stderr) == (1, True)
