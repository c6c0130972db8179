"""The OpenAPI document, made of the table that the routes are made of. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from seer_sgl.router.http.operations import Answer, Operation, Parameter, Schema
from seer_sgl.version import __version__

COMPONENTS = "#/components/schemas/{name}"
BODY_ERRORS = (400, 408, 413)
"""What every operation answers to a body that is wrong, does not come, or is too large."""

_PLACEHOLDER = re.compile(r"{(\w+)(?::\w+)?}")


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    """`invalid_request_error` or `server_error`."""
    param: str | None
    """The field at fault, dotted."""
    code: str
    """A word for programs."""


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Every error has this shape."""

    error: ErrorBody


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1 of these operations, and of nothing else."""
    types: list[Any] = []
    for schema in _schemas(operations):
        if not isinstance(schema, dict) and schema not in types:
            types.append(schema)
    references, components = msgspec.json.schema_components(types, ref_template=COMPONENTS)
    refer = _Reference(types, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "seer-sgl",
            "version": __version__,
            "summary": "Many SGLang servers behind one address, with SGLang's and OpenAI's interfaces.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(operations, refer),
        "components": {"schemas": components},
    }


def _paths(operations: Sequence[Operation], refer: "_Reference") -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        item = paths.setdefault(documented_path(operation.path), {})
        for method in map(str.lower, operation.methods):
            if method in item:
                raise ValueError(f"{method} {operation.path} is served twice")
            item[method] = _operation(operation, method, refer)
            if method == "post":
                _link(item[method], operation, operations)
    return paths


def _link(made: dict[str, Any], operation: Operation, others: Sequence[Operation]) -> None:
    """Tell which operations take the `id` of what this one has made."""
    answer = operation.answers.get(200)
    kind = answer.schema if answer else None
    if not isinstance(kind, type) or "id" not in getattr(kind, "__struct_fields__", ()):
        return
    links = {}
    for other in others:
        if found := re.match(re.escape(operation.path) + r"/{(\w+)}", other.path):
            for method in map(str.lower, other.methods):
                name = _name(other, method)
                parameters = {found[1]: "$response.body#/id"}
                links[name] = {"operationId": name, "parameters": parameters}
    if links:
        made["responses"]["200"]["links"] = links


def documented_path(path: str) -> str:
    """A route's path without the kinds of its placeholders."""
    return _PLACEHOLDER.sub(r"{\1}", path)


def declared_errors(operation: Operation) -> set[int]:
    """Statuses that an operation may answer in the common error shape."""
    return {*operation.errors, *(BODY_ERRORS if operation.request is not None else ())}


class _Reference:
    """Schemas as they stand in the document: a struct is referred to."""

    def __init__(self, types: Sequence[Any], references: Iterable[dict[str, Any]]) -> None:
        self._known = list(zip(types, references, strict=True))  # not every type can be hashed

    def __call__(self, schema: Schema) -> dict[str, Any]:
        if isinstance(schema, dict):
            return schema
        return next(found for kind, found in self._known if kind == schema)


def _schemas(operations: Iterable[Operation]) -> Iterator[Schema]:
    yield ErrorAnswer
    for operation in operations:
        if operation.request is not None:
            yield operation.request
        for answer in operation.answers.values():
            if answer.schema is not None:
                yield answer.schema


def _operation(operation: Operation, method: str, refer: _Reference) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": _name(operation, method),
        "summary": operation.text,
        "tags": [operation.tag],
        "responses": _responses(operation, refer),
    }
    if parameters := [_parameter(each) for each in _parameters(operation)]:
        made["parameters"] = parameters
    if operation.request is not None:
        made["requestBody"] = {
            "required": operation.request_required,
            "content": {operation.request_media: {"schema": refer(operation.request)}},
        }
    if operation.hidden:
        made["deprecated"] = True
    return made


def _name(operation: Operation, method: str) -> str:
    return "_".join([method, *re.findall(r"\w+", documented_path(operation.path))])


def _parameters(operation: Operation) -> Iterator[Parameter]:
    yield from operation.parameters
    told = {each.name for each in operation.parameters if each.place == "path"}
    for name in _PLACEHOLDER.findall(operation.path):
        if name not in told:
            yield Parameter(name, "path", {"type": "string"})


def _parameter(parameter: Parameter) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required or parameter.place == "path",
        "schema": parameter.schema,
    }
    if parameter.text:
        made["description"] = parameter.text
    return made


def _responses(operation: Operation, refer: _Reference) -> dict[str, Any]:
    made = {status: _answer(answer, refer) for status, answer in operation.answers.items()}
    error = {"application/json": {"schema": refer(ErrorAnswer)}}
    for status in declared_errors(operation):
        # A status may also be an answer of its own: then its body has either shape.
        if status in made:
            _also(made[status], error)
        else:
            made[status] = {"description": HTTPStatus(status).phrase + ".", "content": dict(error)}
    return {str(status): made[status] for status in sorted(made)}


def _answer(answer: Answer, refer: _Reference) -> dict[str, Any]:
    made: dict[str, Any] = {"description": answer.text}
    if answer.media:
        schema = None if answer.schema is None else refer(answer.schema)
        content: dict[str, Any] = {answer.media: {} if schema is None else {"schema": schema}}
        if answer.streams:
            content["text/event-stream"] = {}
        made["content"] = content
    return made


def _also(response: dict[str, Any], content: dict[str, Any]) -> None:
    known = response.setdefault("content", {})
    for media, other in content.items():
        if media in known and "schema" in known[media]:
            known[media] = {"schema": {"anyOf": [known[media]["schema"], other["schema"]]}}
        elif media not in known:
            known[media] = dict(other)
