"""Files as YAML: what is read, and what breaks without a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories_api import make_manifest, make_service, to_yaml
from file_problems import problems
from paceline_api.validate import InvalidFile, load_service, parse_service

FIX = "correct the YAML there (often an indentation, a missing quote or a tab)"


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        pytest.param("a: b\n c: d\n", 2, "mapping values are not allowed here", id="indentation"),
        pytest.param('a: "b\n', 2, "found unexpected end of stream", id="an open quote"),
        pytest.param("a:\n\tb: c\n", 2, "found character '\\t' that cannot start any token", id="a tab"),
        pytest.param("a: &x [*x]\n", 1, "its aliases repeat without end", id="an alias of itself"),
        pytest.param("a: !!binary aGk=\n", 1, "tag:yaml.org,2002:binary is no JSON value", id="a binary value"),
        pytest.param("? [a]\n: b\n", 1, "a key must be a plain word", id="a list as a key"),
        pytest.param("a: \x07\n", 0, "unacceptable character #x0007: special characters are not allowed", id="a bell"),
    ],
)
def test_broken_yaml_names_its_line(text: str, line: int, cause: str) -> None:
    [problem] = problems(text)
    assert (problem.line, problem.fix) == (line, FIX)
    assert cause in problem.message


def test_aliases_cannot_blow_up() -> None:
    rows = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    [problem] = problems("\n".join(rows))
    assert problem.message == "its aliases repeat without end"


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    [problem] = problems("[" * 1500 + "]" * 1500)
    assert str(problem) == "YAML: is nested too deeply; flatten it"


def test_a_key_twice_names_both_lines() -> None:
    text = to_yaml(make_manifest()).replace("spec:\n", "spec:\n  topology: Auto\n  topology: Auto\n")
    [problem] = problems(text)
    assert (problem.line, str(problem)) == (7, "spec.topology: is already in line 6; keep one of the two")


def test_anchors_and_merge_keys_are_read() -> None:
    manifest = to_yaml(make_manifest(pools=[]))
    pools = "pools:\n  - &p {name: a, role: Mixed, accelerator: h100-sxm, replicas: 1}\n  - {<<: *p, name: b}\n"
    service = parse_service(manifest.replace("pools: []\n", pools))
    assert [(p.name, p.replicas) for p in service.spec.pools] == [("a", 1), ("b", 1)]


def test_other_kinds_beside_the_service_are_left_alone() -> None:
    assert parse_service("kind: Namespace\n---\n" + to_yaml(make_manifest())) == make_service()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param(None, "cannot be read: No such file or directory; name a file with an LLMService", id="missing"),
        pytest.param(b"\xff\xfe", "is not UTF-8 text; save it as UTF-8", id="not text"),
        pytest.param(b"#" * (2**20 + 1), "has 1048577 bytes; write at most 1048576", id="huge"),
    ],
)
def test_an_unreadable_file(tmp_path: Path, content: bytes | None, line: str) -> None:
    path = tmp_path / "chat.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidFile) as e:
        load_service(path)
    assert str(e.value) == f"{path}: file: {line}"
