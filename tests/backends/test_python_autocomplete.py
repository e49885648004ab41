"""`auto_complete_config`: the methods of `pb_utils.ModelConfig`, and the hook in a model."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from microkernel import (
    DynamicBatching,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
    TransactionPolicy,
    Unsupported,
    config_to_json,
)
from microkernel_python.autocomplete import ModelConfig as Completion
from microkernel_python.backend import PythonBackend

EMPTY = ModelConfig(name="m")
FILLED = ModelConfig(
    name="m",
    max_batch_size=6,
    input=(ModelInput("X", "TYPE_INT32", dims=(16,)),),
    output=(ModelOutput("Y", "TYPE_INT32", dims=(16,)),),
    model_transaction_policy=TransactionPolicy(decoupled=False),
)


def completion(config: ModelConfig) -> Completion:
    return Completion(json.dumps(config_to_json(config)))


def x(**changes: Any) -> dict[str, Any]:
    return {"name": "X", "data_type": "TYPE_INT32", "dims": [16]} | changes


def test_new_tensors_are_appended() -> None:
    config = completion(FILLED)
    config.add_input(x(name="Z", optional=True))
    config.add_output(x(name="W"))
    document = config.as_dict()
    assert document["input"][1] == x(name="Z", optional=True)
    assert document["output"][1] == x(name="W")


def test_a_listed_tensor_is_filled_in() -> None:
    config = completion(ModelConfig(name="m", input=(ModelInput("X"),)))
    config.add_input(x(optional=False))
    (entry,) = config.as_dict()["input"]
    assert (entry["data_type"], entry["dims"]) == ("TYPE_INT32", [16])
    config.add_input(x(dims=(16,)))
    assert len(config.as_dict()["input"]) == 1


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"name": "X", "data_type": "TYPE_INT32"}, "input 'X' .* is missing 'dims' property."),
        ({"name": "X", "dims": [1]}, "is missing 'data_type' property."),
        ({"data_type": "TYPE_INT32", "dims": [1]}, "input is missing 'name' property."),
        (
            x(reshape={}),
            "contains property other than 'name', 'data_type', 'dims' and 'optional'.",
        ),
        (
            x(data_type="TYPE_FP32"),
            "configuration expects datatype TYPE_INT32 for input 'X', model provides TYPE_FP32",
        ),
        (
            x(dims=[4]),
            r"the model expects dims \[4\] but the model configuration specifies dims \[16\]",
        ),
        (x(optional=True), "model expects optional True but .* specifies optional False"),
    ],
)
def test_an_input_that_contradicts(entry: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        completion(FILLED).add_input(entry)


def test_an_output_has_no_optional() -> None:
    text = "contains property other than 'name', 'data_type' and 'dims'."
    with pytest.raises(ValueError, match=text):
        completion(FILLED).add_output(x(optional=True))


def test_the_batch_size_may_only_grow() -> None:
    config = completion(FILLED)
    config.set_max_batch_size(8)
    assert config.as_dict()["max_batch_size"] == 8
    text = (
        "configuration specified max_batch_size 8, but in auto-complete-config function for "
        "model 'm' specified max_batch_size 4"
    )
    with pytest.raises(ValueError, match=text):
        config.set_max_batch_size(4)


def test_dynamic_batching_is_added_once() -> None:
    config = completion(EMPTY)
    config.set_dynamic_batching()
    assert config.as_dict()["dynamic_batching"] == {}
    present = completion(
        ModelConfig(name="m", dynamic_batching=DynamicBatching(max_queue_delay_microseconds=7))
    )
    present.set_dynamic_batching()
    assert present.as_dict()["dynamic_batching"]["max_queue_delay_microseconds"] == 7


@pytest.mark.parametrize("other", ["sequence_batching", "ensemble_scheduling"])
def test_dynamic_batching_beside_another_scheduler(other: str) -> None:
    with pytest.raises(ValueError, match=f"configuration specified {other}"):
        Completion(json.dumps({"name": "m", other: {}})).set_dynamic_batching()


def test_the_transaction_policy() -> None:
    config = completion(EMPTY)
    config.set_model_transaction_policy({"decoupled": True})
    assert config.as_dict()["model_transaction_policy"] == {"decoupled": True}
    with pytest.raises(ValueError, match="specified decoupled False"):
        completion(FILLED).set_model_transaction_policy({"decoupled": True})
    with pytest.raises(ValueError, match="contains property other than 'decoupled'"):
        completion(EMPTY).set_model_transaction_policy({"coupled": True})


# Through the backend


def folder_with(tmp_path: Path, body: str) -> Path:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(
        "import triton_python_backend_utils as pb_utils\n"
        "IMPORTS = []\n"
        "class TritonPythonModel:\n"
        "    @staticmethod\n"
        "    def auto_complete_config(config):\n"
        f"        {body}\n"
        "    def initialize(self, args):\n"
        "        raise ValueError(args['model_config'])\n"
    )
    return folder


def test_the_completed_configuration_reaches_initialize(tmp_path: Path) -> None:
    body = (
        "config.add_input({'name': 'X', 'data_type': 'TYPE_FP32', 'dims': (-1,)}); "
        "config.as_dict()['output'].append({'name': 'Y', 'data_type': 'TYPE_FP32', 'dims': [2]}); "
        "config.set_max_batch_size(4); config.set_dynamic_batching(); return config"
    )
    folder = folder_with(tmp_path, body)
    backend = PythonBackend()
    completed = backend.complete(EMPTY, folder)
    assert completed == replace(
        EMPTY,
        max_batch_size=4,
        input=(ModelInput("X", "TYPE_FP32", dims=(-1,)),),
        output=(ModelOutput("Y", "TYPE_FP32", dims=(2,)),),
        dynamic_batching=DynamicBatching(),
    )
    with pytest.raises(Internal) as caught:
        backend.load(completed, folder).instance(Placement("m_0_0", "KIND_CPU"))
    text = str(caught.value).removeprefix("ValueError: ").split("\n", 1)[0]
    assert json.loads(text) == config_to_json(completed)


def test_a_load_after_completion_imports_once(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "IMPORTS.append(1); return config")
    backend = PythonBackend()
    backend.complete(EMPTY, folder)
    module = sys.modules["1.model"]
    backend.load(EMPTY, folder)
    assert sys.modules["1.model"] is module
    assert vars(module)["IMPORTS"] == [1]
    backend.load(EMPTY, folder)
    assert sys.modules["1.model"] is not module


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (
            "pass",
            Internal,
            "auto_complete_config function in model 'm' must return a valid pb.ModelConfig object.",
        ),
        ("return {}", Internal, "must return a valid pb.ModelConfig object."),
        (
            "config.add_input({'name': 'X'})",
            Internal,
            r"^ValueError: input 'X' .* is missing 'data_type' property.\n\nAt:\n  .*model\.py\(6\)"
            r": auto_complete_config\n$",
        ),
        ("raise KeyboardInterrupt('k')", Internal, r"^KeyboardInterrupt: k\n\nAt:\n"),
        (
            "config.as_dict()['no'] = 1; return config",
            InvalidArgument,
            "unknown field 'no' in model configuration",
        ),
    ],
)
def test_a_completion_that_fails(
    tmp_path: Path, body: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        PythonBackend().complete(EMPTY, folder_with(tmp_path, body))


def test_the_model_directory_is_known_while_completing(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "raise ValueError(pb_utils.get_model_dir())")
    with pytest.raises(Internal) as caught:
        PythonBackend().complete(EMPTY, folder)
    assert str(caught.value).startswith(f"ValueError: {folder}\n")


def test_parameters_are_checked_before_the_import(tmp_path: Path) -> None:
    config = replace(EMPTY, parameters={"EXECUTION_ENV_PATH": ModelParameter("/env")})
    with pytest.raises(Unsupported, match="EXECUTION_ENV_PATH"):
        PythonBackend().complete(config, tmp_path / "none")
