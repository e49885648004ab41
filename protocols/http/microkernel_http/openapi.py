"""The OpenAPI document of a server; nothing here knows aiohttp.

It describes every route, and besides the inference routes of each model that serves, with the
schemas of its inputs and outputs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

from microkernel import ServerMetadata
from microkernel_http import openapi_models as of_model
from microkernel_http.authentication import OPEN
from microkernel_http.decode import HEADER_LENGTH
from microkernel_http.encode import JSON, TEXT
from microkernel_http.framing import BINARY
from microkernel_http.openapi_models import ModelEntry
from microkernel_http.openapi_routes import (
    MAY_BE_UNSUPPORTED,
    OPERATIONS,
    OPTIONAL_BODIES,
    Operation,
)
from microkernel_http.openapi_schemas import SCHEMAS, Schema, ref
from microkernel_http.restricted import GROUPS
from microkernel_http.routes import Endpoint

Document: TypeAlias = dict[str, Any]

EVENTS = "text/event-stream"
_ALWAYS = (400, 500, 503)
_ERRORS: Mapping[int, str] = {
    400: "Something about the request cannot be right, or the answer is no",
    401: "A key is needed",
    403: "The API is restricted, and its header is missing or wrong",
    404: "There is no such path, model, version or region",
    500: "The request could not be read, or the server or a model failed",
    501: "Understood, but not offered",
    503: "Not now: trying again later may help",
}
_STREAMING = frozenset({Endpoint.INFER, Endpoint.GENERATE_STREAM})
_NAMES = re.compile(r"\{(\w+)\}")
_VERSION: Schema = {"type": "string", "pattern": "^[0-9]+$"}
_SEGMENT: Schema = {"type": "string", "minLength": 1}
_KEYS: Mapping[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


@dataclass(frozen=True, slots=True)
class Guards:
    """What keeps callers out: the headers of restricted endpoints, and whether a key is needed."""

    headers: Mapping[Endpoint, str]
    keys: bool = False


def document(about: ServerMetadata, models: Sequence[ModelEntry], guards: Guards) -> Document:
    """The document of a server with these models, in OpenAPI 3.1."""
    paths: dict[str, Document] = {}
    for operation in OPERATIONS:
        for path in operation.paths:
            item = paths.setdefault(path, _item(path))
            item[operation.method] = _operation(operation, path, guards)
    for entry in models:
        for operation in OPERATIONS:
            if operation.endpoint in _OF_MODELS:
                made = _model_operation(operation, guards, entry)
                path = operation.paths[0].replace("{model}", quote(entry.about.name, safe=""))
                paths[path] = {operation.method: made}
    answer: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": about.name or "microkernel",
            "version": about.version,
            "description": f"Extensions of the V2 protocol: {', '.join(about.extensions)}",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS, "responses": _error_answers()},
    }
    if guards.keys:
        answer["components"]["securitySchemes"] = _KEYS
        answer["security"] = [{name: []} for name in _KEYS]
    return answer


def _item(path: str) -> Document:
    """A path's item without its operations: what the path names."""
    named = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _VERSION if name == "version" else _SEGMENT,
        }
        for name in _NAMES.findall(path)
    ]
    return {"parameters": named} if named else {}


def _operation(operation: Operation, path: str, guards: Guards) -> Document:
    endpoint = operation.endpoint
    described: Document = {
        "summary": operation.summary,
        "tags": [next(name for name, group in GROUPS.items() if endpoint in group)],
        "responses": _answers(operation, path, guards),
    }
    held = guards.headers.get(endpoint)
    headers = [] if held is None else [_header(held, required=True)]
    if endpoint is Endpoint.INFER:
        headers.append(_header(HEADER_LENGTH, required=False))
    if headers:
        described["parameters"] = headers
    if operation.body:
        described["requestBody"] = {
            "required": endpoint not in OPTIONAL_BODIES,
            "content": _received(endpoint, ref(operation.body)),
        }
    if guards.keys and endpoint in OPEN:
        described["security"] = []
    return described


def _header(name: str, *, required: bool) -> Document:
    return {"name": name, "in": "header", "required": required, "schema": {"type": "string"}}


def _received(endpoint: Endpoint, schema: Schema) -> Document:
    if endpoint is Endpoint.INFER:
        return {JSON: {"schema": schema}, BINARY: {}}
    return {JSON: {"schema": schema}}


def _answers(operation: Operation, path: str, guards: Guards) -> Document:
    """The answers of an operation by status."""
    endpoint, statuses = operation.endpoint, list(_ALWAYS)
    if "{" in path:
        statuses.append(404)
    if endpoint in MAY_BE_UNSUPPORTED:
        statuses.append(501)
    if guards.keys and endpoint not in OPEN:
        statuses.append(401)
    if endpoint in guards.headers:
        statuses.append(403)
    ending = "-events" if endpoint in _STREAMING else ""
    good = {"description": "Done", "content": _sent(operation)}
    errors = {
        str(status): {"$ref": f"#/components/responses/{status}{ending}"}
        for status in sorted(statuses)
    }
    return {"200": good, **errors, "default": {"$ref": "#/components/responses/default"}}


_EVENT: Schema = {
    "schema": {
        "type": "string",
        "description": "for each response a line 'data: <JSON>' and an empty line; an error is "
        "'data: {\"error\":...}'",
    }
}


_EMPTY: Document = {TEXT: {"schema": {"type": "string", "maxLength": 0}}}
_SPECIAL: Mapping[Endpoint, Document] = {
    Endpoint.LIVE: _EMPTY,
    Endpoint.READY: _EMPTY,
    Endpoint.MODEL_READY: _EMPTY,
    Endpoint.GENERATE_STREAM: {EVENTS: _EVENT},
    Endpoint.OPENAPI: {JSON: {"schema": {"type": "object"}}},
    Endpoint.DOCS: {"text/html": {}},
}
"""The types of the good answers that are no JSON of a schema."""


def _sent(operation: Operation) -> Document:
    """The types and schemas of a good answer."""
    if operation.endpoint in _SPECIAL:
        return _SPECIAL[operation.endpoint]
    if not operation.answer:
        return {JSON: {}}
    content = {JSON: {"schema": ref(operation.answer)}}
    if operation.endpoint is Endpoint.INFER:
        return {**content, BINARY: {}, EVENTS: _EVENT}
    return content


def _error_answers() -> Document:
    """The answers that say what went wrong, also as they are where events are sent."""
    forms = {JSON: {"schema": ref("Error")}, TEXT: {"schema": {"type": "string"}}}
    answers: Document = {"default": {"description": "Any other error", "content": forms}}
    for status, description in _ERRORS.items():
        answers[str(status)] = {"description": description, "content": forms}
        answers[f"{status}-events"] = {
            "description": description,
            "content": {**forms, EVENTS: _EVENT},
        }
    return answers


_OF_MODELS = {
    Endpoint.INFER: (of_model.infer_request, of_model.infer_response, of_model.infer_example),
    Endpoint.GENERATE: (
        *(of_model.generate_request, of_model.generate_response, of_model.generate_example),
    ),
    Endpoint.GENERATE_STREAM: (
        *(of_model.generate_request, of_model.generate_response, of_model.generate_example),
    ),
}
"""What makes the schemas of the requests and responses of a model, and an example."""


def _model_operation(operation: Operation, guards: Guards, entry: ModelEntry) -> Document:
    """An operation for one model, with the schemas of its tensors."""
    request, response, example = _OF_MODELS[operation.endpoint]
    described = _operation(operation, operation.paths[0], guards)
    asked = described["requestBody"]["content"][JSON]
    asked["schema"] = request(entry)
    if (given := example(entry)) is not None:
        asked["example"] = given
    content = described["responses"]["200"]["content"]
    if JSON in content:
        content[JSON] = {"schema": response(entry)}
    words = " (answers any number of times)" if entry.decoupled else ""
    return {
        **described,
        "tags": [f"model {entry.about.name}"],
        "summary": operation.summary + words,
    }
