"""Every route of the front end as OpenAPI describes it; nothing here knows aiohttp."""

from collections.abc import Sequence
from dataclasses import dataclass

from microkernel_http.routes import Endpoint

_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"
_STORED = "/v2/repository/models/{model}"
_OTHER = "/v2/repository/{repository}"
_TRACE = ("/v2/trace/setting", _MODEL + "/trace/setting")
_UNNAMED = "Not offered: repositories have no names"


@dataclass(frozen=True, slots=True)
class Operation:
    """What can be asked for in the same way at several paths. `answer` and `body` name schemas, ""
    for nothing."""

    endpoint: Endpoint
    method: str
    paths: Sequence[str]
    summary: str
    answer: str = ""
    body: str = ""


def _get(endpoint: Endpoint, paths: Sequence[str], summary: str, answer: str = "") -> Operation:
    return Operation(endpoint, "get", paths, summary, answer)


def _post(
    endpoint: Endpoint, paths: Sequence[str], summary: str, answer: str = "", body: str = ""
) -> Operation:
    return Operation(endpoint, "post", paths, summary, answer, body)


def _model(suffix: str) -> tuple[str, str]:
    return _MODEL + suffix, _VERSION + suffix


def _regions(kind: str, name: str) -> tuple[Operation, ...]:
    start = f"/v2/{kind}sharedmemory"

    def paths(suffix: str) -> tuple[str, str]:
        return start + suffix, start + "/region/{region}" + suffix

    schema = f"{kind.capitalize()}Region"
    return (
        _get(
            Endpoint.REGION_STATUS,
            paths("/status"),
            f"The registered regions of {name} shared memory",
            f"{schema}s",
        ),
        _post(
            Endpoint.REGION_REGISTER,
            paths("/register"),
            f"Register a region of {name} shared memory, which must be named",
            body=schema,
        ),
        _post(
            Endpoint.REGION_UNREGISTER,
            paths("/unregister"),
            f"Forget a region of {name} shared memory, or all of them",
        ),
    )


OPERATIONS: Sequence[Operation] = (
    _get(Endpoint.LIVE, ("/v2/health/live",), "Whether the server has started"),
    _get(Endpoint.READY, ("/v2/health/ready",), "Whether the server is ready for requests"),
    _get(Endpoint.MODEL_READY, _model("/ready"), "Whether a model is ready"),
    _get(
        Endpoint.SERVER_METADATA,
        ("/v2",),
        "Name, version and extensions of the server",
        "ServerMetadata",
    ),
    _get(
        Endpoint.MODEL_METADATA,
        _model(""),
        "Versions, inputs and outputs of a model",
        "ModelMetadata",
    ),
    _get(Endpoint.MODEL_CONFIG, _model("/config"), "The configuration of a model", "ModelConfig"),
    _get(
        Endpoint.STATISTICS,
        ("/v2/models/stats", *_model("/stats")),
        "What models have done",
        "Statistics",
    ),
    _post(Endpoint.INFER, _model("/infer"), "Run a model", "InferResponse", "InferRequest"),
    _post(
        Endpoint.GENERATE,
        _model("/generate"),
        "Run a model that answers once",
        "GenerateResponse",
        "GenerateRequest",
    ),
    _post(
        Endpoint.GENERATE_STREAM,
        _model("/generate_stream"),
        "Run a model, with an event for each response",
        body="GenerateRequest",
    ),
    _post(
        Endpoint.REPOSITORY_INDEX,
        ("/v2/repository/index", _OTHER + "/index"),
        "The models of the repository",
        "RepositoryIndex",
        "RepositoryIndexRequest",
    ),
    _post(
        Endpoint.LOAD, (_STORED + "/load",), "Load a model, or load it again", body="LoadRequest"
    ),
    _post(Endpoint.UNLOAD, (_STORED + "/unload",), "Unload a model", body="UnloadRequest"),
    _post(Endpoint.LOAD, (_OTHER + "/models/{model}/load",), _UNNAMED, body="LoadRequest"),
    _post(Endpoint.UNLOAD, (_OTHER + "/models/{model}/unload",), _UNNAMED, body="UnloadRequest"),
    *_regions("system", "system"),
    *_regions("cuda", "CUDA"),
    _get(Endpoint.TRACE, _TRACE, "How requests are traced", "TraceSettings"),
    _post(
        Endpoint.TRACE,
        _TRACE,
        "Change how requests are traced; null takes a change back",
        "TraceSettings",
        "TraceChanges",
    ),
    _get(Endpoint.LOGGING, ("/v2/logging",), "What is logged", "LogSettings"),
    _post(Endpoint.LOGGING, ("/v2/logging",), "Change what is logged", "LogSettings", "LogChanges"),
    _get(Endpoint.OPENAPI, ("/openapi.json",), "This document"),
    _get(Endpoint.DOCS, ("/docs",), "This document to read and to try"),
)
"""Every route."""

MAY_BE_UNSUPPORTED = frozenset(
    {
        *(Endpoint.INFER, Endpoint.GENERATE, Endpoint.GENERATE_STREAM),
        *(Endpoint.LOAD, Endpoint.UNLOAD),
        *(Endpoint.REGION_REGISTER, Endpoint.REGION_UNREGISTER),
        *(Endpoint.TRACE, Endpoint.LOGGING),
    }
)
"""What may be understood and still not be offered."""

OPTIONAL_BODIES = frozenset({Endpoint.REPOSITORY_INDEX, Endpoint.LOAD, Endpoint.UNLOAD})
"""What may be asked for with an empty body."""
