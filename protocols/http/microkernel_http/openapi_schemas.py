"""The JSON schemas of what is the same for every model; nothing here knows aiohttp."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from microkernel import DATA_TYPES

Schema: TypeAlias = dict[str, Any]


def members(required: str = "", /, **properties: Schema) -> Schema:
    """An object with these members, those named in `required` always there."""
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required.split()} if required else schema


def array(items: Schema) -> Schema:
    """An array of such items."""
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    """One of these words."""
    return {"type": "string", "enum": list(values)}


def ref(name: str) -> Schema:
    """A reference to a schema of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
_SHAPE = array(COUNT)
_DATA_TYPE = one_of(*DATA_TYPES)
_PARAMETER: Schema = {"type": ["string", "number", "boolean"]}
_ELEMENT: Schema = {"type": ["number", "string", "boolean", "array"]}
_NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
_DURATION = ref("Duration")
_COMPUTE = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _DURATION)
PLACE: Mapping[str, Schema] = {
    "shared_memory_region": TEXT,
    "shared_memory_byte_size": COUNT,
    "shared_memory_offset": COUNT,
}
OUTPUT_PARAMETERS = members(binary_data=FLAG, classification=COUNT, **PLACE)
REQUEST_PARAMETERS: Schema = {
    **members(
        sequence_id={"type": ["integer", "string"]},
        sequence_start=FLAG,
        sequence_end=FLAG,
        priority=COUNT,
        timeout={**COUNT, "description": "microseconds in the queue"},
        binary_data_output=FLAG,
    ),
    "additionalProperties": _PARAMETER,
}
OUTPUT = members(
    "name datatype shape",
    name=TEXT,
    datatype=_DATA_TYPE,
    shape=_SHAPE,
    data=array(_ELEMENT),
    parameters=members(binary_data_size=COUNT),
)
_LOG: Mapping[str, Schema] = {
    "log_info": FLAG,
    "log_warning": FLAG,
    "log_error": FLAG,
    "log_verbose_level": COUNT,
    "log_format": one_of("default", "ISO8601"),
}
_INDEX_LINE = members("name", name=TEXT, version=TEXT, state=TEXT, reason=TEXT)
_LOAD = {
    **members(config={**TEXT, "description": "a model configuration as JSON text"}),
    "additionalProperties": {
        **TEXT,
        "description": "'file:<version>/<name>': the contents of a file as base64",
    },
}

SCHEMAS: Mapping[str, Schema] = {
    "Error": members("error", error=TEXT),
    "ServerMetadata": members(
        "name version extensions", name=TEXT, version=TEXT, extensions=array(TEXT)
    ),
    "TensorMetadata": members(
        "name datatype shape",
        name=TEXT,
        datatype=_DATA_TYPE,
        shape={**array({"type": "integer"}), "description": "-1 stands for any size"},
    ),
    "ModelMetadata": members(
        "name versions platform inputs outputs",
        name=TEXT,
        versions=array(TEXT),
        platform=TEXT,
        inputs=array(ref("TensorMetadata")),
        outputs=array(ref("TensorMetadata")),
    ),
    "ModelConfig": members("name", name=TEXT),
    "Duration": members("count ns", count=COUNT, ns=COUNT),
    "Statistics": members("model_stats", model_stats=array(ref("ModelStatistics"))),
    "ModelStatistics": members(
        "name version",
        name=TEXT,
        version=TEXT,
        last_inference=COUNT,
        inference_count=COUNT,
        execution_count=COUNT,
        inference_stats=members(
            success=_DURATION,
            fail=_DURATION,
            queue=_DURATION,
            cache_hit=_DURATION,
            cache_miss=_DURATION,
            **_COMPUTE,
        ),
        response_stats={"type": "object"},
        batch_stats=array(members("batch_size", batch_size=COUNT, **_COMPUTE)),
        memory_usage=array({"type": "object"}),
    ),
    "InferRequest": members(
        "inputs",
        id=TEXT,
        parameters=REQUEST_PARAMETERS,
        inputs=array(
            members(
                "name datatype shape",
                name=TEXT,
                datatype=_DATA_TYPE,
                shape=_SHAPE,
                data=array(_ELEMENT),
                parameters=members(binary_data_size=COUNT, **PLACE),
            )
        ),
        outputs=array(members("name", name=TEXT, parameters=OUTPUT_PARAMETERS)),
    ),
    "InferResponse": members(
        "model_name model_version outputs",
        id=TEXT,
        model_name=TEXT,
        model_version=TEXT,
        parameters={"type": "object", "additionalProperties": _PARAMETER},
        outputs=array(OUTPUT),
    ),
    "GenerateRequest": members(id=TEXT, parameters={"type": "object"}),
    "GenerateResponse": members(
        "model_name model_version", id=TEXT, model_name=TEXT, model_version=TEXT
    ),
    "RepositoryIndexRequest": members(ready=FLAG),
    "RepositoryIndex": array(_INDEX_LINE),
    "LoadRequest": members(parameters=_LOAD),
    "UnloadRequest": members(parameters=members(unload_dependents=FLAG)),
    "SystemRegion": members("key byte_size", key=TEXT, offset=COUNT, byte_size=COUNT),
    "SystemRegions": array(
        members("name key offset byte_size", name=TEXT, key=TEXT, offset=COUNT, byte_size=COUNT)
    ),
    "CudaRegion": members(
        "raw_handle device_id byte_size",
        raw_handle=members("b64", b64=TEXT),
        device_id=COUNT,
        byte_size=COUNT,
    ),
    "CudaRegions": array(
        members("name device_id byte_size", name=TEXT, device_id=COUNT, byte_size=COUNT)
    ),
    "LogSettings": members(" ".join(("log_file", *_LOG)), log_file=TEXT, **_LOG),
    "LogChanges": members(
        **{name: {"anyOf": [schema, {"type": "null"}]} for name, schema in _LOG.items()}
    ),
    "TraceSettings": {
        **members(
            "trace_level trace_rate trace_count trace_mode",
            trace_file=TEXT,
            trace_level=array(TEXT),
            trace_rate=TEXT,
            trace_count=TEXT,
            log_frequency=TEXT,
            trace_mode=TEXT,
        ),
        "additionalProperties": TEXT,
    },
    "TraceChanges": members(
        trace_level={
            "type": ["array", "null"],
            "items": {**TEXT, "description": "OFF, TIMESTAMPS or TENSORS"},
        },
        trace_rate=_NULLABLE_TEXT,
        trace_count=_NULLABLE_TEXT,
        log_frequency=_NULLABLE_TEXT,
    ),
}
"""The schemas that are the same for every model."""
