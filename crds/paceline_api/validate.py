"""Checks an LLMService file without a cluster, as the API server would: all problems at once, each with its remedy.

In the server's order: unknown fields, defaults, the CRD's own schema by jsonschema, unique list-map keys, then the
CRD's own CEL strings. Invariant: what passes is what the API server admits (but for `file://`, which `local` permits),
and parses.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from paceline_api.cel import check_rules
from paceline_api.crdgen import openapi
from paceline_api.documents import Document, Found, InvalidFile, Path, Problem, read_documents, show
from paceline_api.v1alpha1 import API_VERSION, LLMService

__all__ = ["InvalidFile", "Problem", "load_service", "parse_service"]

MAX_BYTES = 2**20
KIND = "LLMService"
METADATA = ("name", "namespace", "labels", "annotations")  # what a person writes
METADATA_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields")
METADATA_OTHER = ("generateName", "finalizers", "ownerReferences", "deletionGracePeriodSeconds", "selfLink")
WORDS = {"object": "a mapping", "array": "a list", "string": "a string", "integer": "an integer"}


def load_service(path: FilePath | str, *, local: bool = False) -> LLMService:
    """The one LLMService in the file; `local` permits file:// models. InvalidFile carries every problem."""
    try:
        data = FilePath(path).read_bytes()
        if len(data) > MAX_BYTES:
            raise InvalidFile(str(path), [Problem("file", f"has {len(data)} bytes", f"write at most {MAX_BYTES}")])
        text = data.decode()
    except OSError as e:
        cause = f"cannot be read: {e.strerror}"
        raise InvalidFile(str(path), [Problem("file", cause, "name a file with an LLMService")]) from e
    except UnicodeDecodeError as e:
        raise InvalidFile(str(path), [Problem("file", "is not UTF-8 text", "save it as UTF-8")]) from e
    return parse_service(text, str(path), local=local)


def parse_service(text: str, source: str = "text", *, local: bool = False) -> LLMService:
    """As `load_service`, of a text; `source` is what problems call it."""
    document = _choose(read_documents(text, source), source)
    schema = _schema(local)
    value = with_defaults(schema, document.value)
    found = [*_check_identity(document.value), *_check_unknown(schema, document.value, ())]
    meant = {f.meant for f in found}
    found += [f for f in _check_schema(local, value) if f.path not in meant]
    found += _check_list_maps(schema, value, ())
    found += check_rules(schema, value, [path for f in found for path in (f.path, f.meant) if path is not None])
    problems = [Problem(show(f.path), f.cause, f.fix, document.line_of(f.path)) for f in found]
    problems += document.problems
    if problems:
        raise InvalidFile(source, problems)
    try:
        return LLMService.model_validate(value)
    except ValidationError as e:  # only if the CRD admits what the models do not
        raise InvalidFile(source, [_of_pydantic(error["loc"], error["msg"]) for error in e.errors()]) from e


def _of_pydantic(location: Path, message: str) -> Problem:
    return Problem(show(location), message, "change the value")


def _choose(documents: list[Document], source: str) -> Document:
    """The document to check: the only LLMService, or the only document whatever it is."""
    services = [d for d in documents if isinstance(d.value, dict) and d.value.get("kind") == KIND]
    if len(services) == 1:
        return services[0]
    if services:
        lines = ", ".join(str(d.line_of(())) for d in services)
        cause = f"has {len(services)} LLMServices (lines {lines})"
        raise InvalidFile(source, [Problem("file", cause, "put each into a file of its own")])
    if len(documents) == 1 and isinstance(documents[0].value, dict):
        return documents[0]
    cause = f"has {len(documents)} documents, none of kind {KIND}" if documents else "is empty"
    raise InvalidFile(source, [Problem("file", cause, f"write one document with kind: {KIND}")])


def _check_identity(value: Mapping[str, Any]) -> Iterator[Found]:
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if key not in value:
            yield Found((key,), "is missing", f"add {key}: {wanted}")
        elif value[key] != wanted:
            yield Found((key,), f"is {_brief(value[key])}", f"write {key}: {wanted}")
    metadata = value.get("metadata")
    if isinstance(metadata, dict):
        for key in sorted(metadata.keys() - {*METADATA, *METADATA_SERVER, *METADATA_OTHER}):
            yield _unknown(("metadata",), key, METADATA)
        if metadata.get("name") is None:
            yield Found(
                ("metadata", "name"),
                "is missing",
                "add it: at most 30 characters, a DNS label that begins with a letter",
            )


@functools.cache
def _schema(local: bool) -> dict[str, Any]:
    return openapi(LLMService, local=local)


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """`value` with the schema's defaults, as the API server applies them: an empty field counts as absent."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        out = {k: with_defaults(properties.get(k, {}), v) for k, v in value.items()}
        for name, child in properties.items():
            if out.get(name) is None and "default" in child:
                out[name] = with_defaults(child, copy.deepcopy(child["default"]))
        return out
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), v) for v in value]
    return value


def _check_unknown(schema: Mapping[str, Any], value: Any, path: Path) -> Iterator[Found]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _check_unknown(schema.get("items", {}), item, (*path, i))
    if not isinstance(value, dict) or "properties" not in schema or path == ("metadata",):
        return
    for key, child in value.items():
        if key in schema["properties"]:
            yield from _check_unknown(schema["properties"][key], child, (*path, key))
        else:
            yield _unknown(path, key, schema["properties"])


def _unknown(path: Path, key: str, known: Iterable[str]) -> Found:
    close = _closest(key, known)
    fix = f"did you mean {close}?" if close else f"remove it; there are {', '.join(known)}"
    return Found((*path, key), "is no field here", fix, (*path, close) if close else None)


def _closest(wrong: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant, case aside."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), lower, n=1, cutoff=0.6)
    return lower[close[0]] if close else None


@functools.cache
def _validator(local: bool) -> Any:
    """jsonschema over the CRD's schema. Stricter than JSON schema where Kubernetes is: 2.0 is no integer."""
    import jsonschema
    from jsonschema import validators

    def is_integer(_: object, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    base = jsonschema.Draft202012Validator
    checker = base.TYPE_CHECKER.redefine("integer", is_integer)
    strict: type[jsonschema.Draft202012Validator] = validators.extend(base, type_checker=checker)  # type: ignore[no-untyped-call]  # untyped in its stubs
    return strict(_json_schema(_schema(local)))


def _json_schema(node: Any) -> Any:
    """The CRD's schema in plain JSON schema: int-or-string as a type, `$` as the very end of a string."""
    if isinstance(node, list):
        return [_json_schema(child) for child in node]
    if not isinstance(node, dict):
        return node
    out = {key: _json_schema(child) for key, child in node.items()}
    if "x-kubernetes-int-or-string" in node:
        out["type"] = ["integer", "string"]
    if isinstance(pattern := node.get("pattern"), str) and pattern.endswith("$"):
        out["pattern"] = pattern[:-1] + r"\Z"
    return out


def _check_schema(local: bool, value: Any) -> Iterator[Found]:
    seen: set[Path] = set()
    for error in _validator(local).iter_errors(value):
        path = tuple(error.absolute_path)
        if error.validator == "required":
            for name in error.validator_value:
                missing = (*path, name)
                if name not in error.instance and missing not in seen:
                    seen.add(missing)
                    about = error.schema["properties"][name].get("description", "")
                    yield Found(missing, "is missing", f"add it: {about}" if about else "add it")
        elif path not in seen:  # one problem for each value
            seen.add(path)
            cause, fix = _explain(error.validator, error.validator_value, error.instance, error.schema)
            yield Found(path, cause, fix)


def _explain(keyword: str, limit: Any, value: Any, schema: Mapping[str, Any]) -> tuple[str, str]:
    """Cause and fix of one broken schema keyword."""
    about = f" ({schema['description'].rstrip('.')})" if "description" in schema else ""
    match keyword:
        case "type" if value is None:
            return "is empty", f"give it a value{about}, or remove the line"
        case "type" if isinstance(value, float):
            quoted = "x-kubernetes-int-or-string" in schema
            return f"is the float {value}", f'write "{value}" in quotes' if quoted else f"write an integer{about}"
        case "type":
            words = limit if isinstance(limit, list) else [limit]
            return f"is {_brief(value)}", f"write {' or '.join(WORDS[w] for w in words)}{about}"
        case "enum":
            close = _closest(value, limit) if isinstance(value, str) else None
            hint = f"; did you mean {close}?" if close else ""
            return f"is {_brief(value)}", f"write one of {', '.join(limit)}{hint}"
        case "minimum":
            return f"is {value}, below {limit}", f"write at least {limit}{about}"
        case "maximum":
            return f"is {value}, above {limit}", f"write at most {limit}{about}"
        case "minLength" | "minItems":
            return "is empty" if not value else f"has only {len(value)}", f"write at least {limit}{about}"
        case "maxLength":
            return f"has {len(value)} characters", f"write at most {limit}{about}"
        case "maxItems":
            return f"has {len(value)} entries", f"write at most {limit}{about}"
        case "pattern":
            return f"is {_brief(value)}", f"write what matches {_ecma(limit)}{about}"
        case _:
            return f"breaks {keyword}", f"write {limit}{about}"


def _ecma(pattern: str) -> str:
    return pattern.replace(r"\Z", "$")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _check_list_maps(schema: Mapping[str, Any], value: Any, path: Path) -> Iterator[Found]:
    if isinstance(value, dict):
        for key, child in schema.get("properties", {}).items():
            if key in value:
                yield from _check_list_maps(child, value[key], (*path, key))
    elif isinstance(value, list):
        first: dict[Any, int] = {}
        for i, item in enumerate(value):
            yield from _check_list_maps(schema.get("items", {}), item, (*path, i))
            for key in schema.get("x-kubernetes-list-map-keys", []):
                name = item.get(key) if isinstance(item, dict) else None
                if isinstance(name, str) and first.setdefault(name, i) != i:
                    where = (*path, i, key)
                    yield Found(where, f"is {name!r}, as in {show((*path, first[name]))}", f"give each its own {key}")
