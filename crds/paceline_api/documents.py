"""Reads YAML into plain values and remembers the line of each, so that a problem can point at it.

Stricter than a YAML library: a key given twice is a problem and not a silent last-one-wins, dates stay strings as in
Kubernetes, and aliases cannot blow a small file up. Invariant: values are JSON values with string keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

MAX_NODES = 100_000
TIMESTAMP = "tag:yaml.org,2002:timestamp"

Path = tuple[str | int, ...]


class Found(NamedTuple):
    """A problem at a path; `meant` is the field that an unknown one was probably meant to be."""

    path: Path
    cause: str
    fix: str
    meant: Path | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, why, and what to change. `line` counts from 1; 0: none."""

    path: str
    message: str
    fix: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.message}; {self.fix}"


class InvalidFile(Exception):
    """Everything that is wrong with one file, in the order of its lines."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems, key=lambda p: p.line))
        super().__init__("\n".join(f"{source}:{p.line}: {p}" if p.line else f"{source}: {p}" for p in self.problems))


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document as plain values, the line of each path in it, and the keys that it gives twice."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: Path) -> int:
        """Line of `path`, or of the nearest thing around it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def show(path: Path) -> str:
    """`spec.pools[1].role`; a key that is no plain word is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f"{'.' if text else ''}{part if part.isidentifier() else repr(part)}"
    return text or "file"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own protocol
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_documents(text: str, source: str) -> list[Document]:
    """The documents that are not empty; InvalidFile when `text` is no YAML."""
    loader = None
    try:
        loader = _Loader(text)
        documents = []
        while loader.check_node():
            document, node = Document(None), loader.get_node()
            assert node is not None  # check_node says so
            value = _Builder(loader, document).build(node, (), ())
            if value is not None:
                documents.append(Document(value, document.lines, document.problems))
        return documents
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None) or getattr(e, "context_mark", None)
        cause = " ".join(str(getattr(e, "problem", None) or e).split())
        fix = "correct the YAML there (often an indentation, a missing quote or a tab)"
        raise InvalidFile(source, [Problem("YAML", cause, fix, mark.line + 1 if mark else 0)]) from e
    except RecursionError as e:
        raise InvalidFile(source, [Problem("YAML", "is nested too deeply", "flatten it")]) from e
    finally:
        if loader is not None:
            loader.dispose()


class _Builder:
    """Turns nodes into values; what it meets on the way goes into `document`."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self._loader = loader
        self._document = document
        self._nodes = 0

    def build(self, node: yaml.Node, path: Path, within: tuple[yaml.Node, ...]) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or any(node is outer for outer in within):
            raise yaml.MarkedYAMLError(problem="its aliases repeat without end", problem_mark=node.start_mark)
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        within = (*within, node)
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path, within)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i), within) for i, child in enumerate(node.value)]
        value = self._loader.construct_object(node)
        if not isinstance(value, str | int | float | None):
            raise yaml.MarkedYAMLError(problem=f"{node.tag} is no JSON value", problem_mark=node.start_mark)
        return value

    def _build_mapping(self, node: yaml.MappingNode, path: Path, within: tuple[yaml.Node, ...]) -> dict[str, Any]:
        written: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = self._key(key_node), key_node.start_mark.line + 1
            if key in written:
                cause = f"is already in line {written[key]}"
                self._document.problems.append(Problem(show((*path, key)), cause, "keep one of the two", line))
            written.setdefault(key, line)
        self._loader.flatten_mapping(node)  # the merge key `<<`
        value: dict[str, Any] = {}
        for key_node, child in node.value:
            key = self._key(key_node)
            self._document.lines[(*path, key)] = key_node.start_mark.line + 1
            value[key] = self.build(child, (*path, key), within)
        return value

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=node.start_mark)
        return str(node.value)
