"""Model configurations, as files and as load requests bring them."""

import json
from random import Random

from fuzz_mutations import json_bytes, mutate_bytes, mutate_json, mutate_message
from fuzz_targets import Target
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from microkernel import InvalidArgument, ModelConfig
from microkernel.config.codec import config_from_json, config_to_json, config_to_text
from microkernel.config.parse import parse_text
from microkernel.config.proto import config_message
from microkernel.config.validate import ignored, problems
from microkernel.models.checking import RequestChecker
from microkernel.repository.override import Override, Unpacked
from microkernel.workers.descriptors import Schema
from microkernel_grpc.encode import model_config as grpc_config

_TEXT = """
name: "m"
backend: "onnxruntime"
max_batch_size: 8
input [
  { name: "A" data_type: TYPE_FP32 dims: [ 3, -1 ] reshape { shape: [ -1 ] } },
  { name: "B" data_type: TYPE_STRING dims: 1 optional: true }
]
output { name: "C" data_type: TYPE_INT8 dims: [ 2 ] label_filename: "labels.txt" }
version_policy { latest { num_versions: 2 } }
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_GPU gpus: [ 0, 1 ] } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  priority_levels: 2
  priority_queue_policy { key: 1 value { timeout_action: DELAY } }
}
parameters { key: "a" value { string_value: "b" } } # a comment
optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }
model_warmup { name: "w" batch_size: 1 inputs { key: "A" value { dims: 3 zero_data: true } } }
response_cache { enable: true }
"""
_SEQUENCE = """
max_batch_size: 2
sequence_batching {
  oldest { max_candidate_sequences: 4 }
  max_sequence_idle_microseconds: 5
  control_input { name: "S" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
  state { input_name: "I" output_name: "O" data_type: TYPE_FP32 dims: -1 }
}
"""
_ENSEMBLE = """
platform: "ensemble"
ensemble_scheduling { step { model_name: "x" model_version: -1 input_map { key: "A" value: "B" } } }
"""


def _seeds() -> list[bytes]:
    texts = (_TEXT, _SEQUENCE, _ENSEMBLE)
    documents = [config_to_json(parse_text(text, "seed")) for text in texts]
    return [
        *(b"t" + text.encode() for text in texts),
        *(b"j" + json.dumps(document).encode() for document in documents),
        *(b"f" + path for path in (b"1/model.py", b"../up", b"a\0b", b"x" * 300, b"")),
    ]


def _change(data: bytes, rng: Random) -> bytes:
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"j":
            return kind + json_bytes(mutate_json(json.loads(rest), rng), rng)
        if kind == b"t":
            message = config_message()()
            text_format.Parse(rest.decode(), message)
            mutate_message(message, rng)
            return kind + text_format.MessageToString(message).encode()
    except (ValueError, RecursionError, DecodeError, text_format.ParseError):
        pass
    return kind + mutate_bytes(rest, rng)


def _read(data: bytes) -> ModelConfig | None:
    """A configuration; None where it is refused, and for a file that goes beside one."""
    kind, text = data[:1], data[1:].decode("utf-8", "replace")
    try:
        if kind == b"f":
            Unpacked("m", {text: b""}).close()
            return None
        if kind == b"j":
            override = Override.of(text, {})
            return override.config if override is not None else None
        return parse_text(text, "fuzz")
    except InvalidArgument as error:
        str(error).encode("utf-8", "backslashreplace")
        return None


def _check(config: ModelConfig) -> None:
    """A configuration survives its own forms and can be judged; one without faults can be told to
    clients, and serve."""
    once = parse_text(config_to_text(config), "again")
    text = config_to_text(once)
    # A NaN equals nothing, and numbers of 32 bits lose the digits that they cannot hold.
    assert once == config or any(word in text for word in ("nan", "fp32", "minimum_slot"))
    document = json.dumps(config_to_json(once))
    for again in (parse_text(text, "again"), config_from_json(document)):
        assert again == once or "nan" in text
    ignored(config)
    if not problems(config):
        grpc_config(config).SerializeToString()
        RequestChecker(config)
        Schema.of(config)


CONFIGURATION = Target("configuration", _read, _check, _seeds(), _change)
