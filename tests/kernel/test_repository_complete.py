"""What the server fills into a configuration."""

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from microkernel.backend import BackendType
from microkernel.config.codec import config_to_json
from microkernel.config.model import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    SequenceBatching,
    TransactionPolicy,
)
from microkernel.config.parse import parse_text, read_config
from microkernel.config.validate import problems
from microkernel.errors import InvalidArgument
from microkernel.repository.complete import complete, merge_completed, normalise

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"

ONNX = BackendType(
    "onnxruntime", "x:y", ("model.onnx",), platform="onnxruntime_onnx", cpu_instances=2
)
TORCH = BackendType("pytorch", "x:y", ("model.pt", "model.pt2"), platform="pytorch_libtorch")
PYTHON = BackendType("python", "x:y", ("model.py",), worker="instance")
OTHER = BackendType("other", "x:y")
OWN = BackendType("own", "x:y", ("model.own",), platform="own_platform")
BACKENDS = (ONNX, TORCH, PYTHON, OTHER, OWN)


def model(root: Path, name: str, *files: str) -> Path:
    directory = root / name
    directory.mkdir()
    for file in files:
        path = directory / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    return directory


def of(text: str) -> ModelConfig:
    return parse_text(text, "here")


@pytest.mark.parametrize(
    ("text", "files", "wanted"),
    [
        ('backend: "python"', [], ("python", "", "model.py")),
        ('backend: "python" default_model_filename: "a.py"', [], ("python", "", "a.py")),
        ('backend: "python" platform: "mine"', [], ("python", "mine", "model.py")),
        ('backend: "other"', ["1/model.py"], ("other", "", "")),
        ('backend: "own"', [], ("own", "own_platform", "model.own")),
        ('backend: "onnxruntime"', [], ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ('platform: "onnxruntime_onnx"', [], ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ('platform: "own_platform"', [], ("own", "own_platform", "model.own")),
        ("", ["1/model.onnx"], ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("", ["1/model.py", "1/model.onnx"], ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("", ["1/model.py", "1/model.pt"], ("pytorch", "pytorch_libtorch", "")),
        ("", ["1/model.pt2"], ("pytorch", "torch_aoti", "model.pt2")),
        ("", ["1/model.py"], ("python", "", "model.py")),
        ("", ["10/model.py", "2/model.onnx"], ("python", "", "model.py")),
        ("", [".checkpoints/x", "1/model.py"], ("python", "", "model.py")),
        ('backend: "pytorch"', [], ("pytorch", "pytorch_libtorch", "")),
        ('platform: "pytorch_libtorch"', [], ("pytorch", "pytorch_libtorch", "")),
        ('platform: "torch_aoti"', [], ("pytorch", "torch_aoti", "model.pt2")),
        (
            'backend: "pytorch" platform: "torch_aoti"',
            [],
            ("pytorch", "torch_aoti", "model.pt2"),
        ),
        ('default_model_filename: "model.pt2"', [], ("pytorch", "torch_aoti", "model.pt2")),
        ('default_model_filename: "model.pt"', [], ("pytorch", "pytorch_libtorch", "model.pt")),
        (
            'backend: "pytorch" default_model_filename: "net.pt"',
            [],
            ("pytorch", "pytorch_libtorch", "net.pt"),
        ),
        ('default_model_filename: "model.py"', ["1/model.onnx"], ("python", "", "model.py")),
    ],
)
def test_backend_platform_and_file(
    tmp_path: Path, text: str, files: list[str], wanted: tuple[str, str, str]
) -> None:
    config = complete(of(text), model(tmp_path, "m", *files), BACKENDS)
    assert (config.backend, config.platform, config.default_model_filename) == wanted
    assert config.name == "m"
    assert problems(config) == []
    assert complete(config, tmp_path / "m", BACKENDS) == config


def test_the_name_s_suffix_is_the_last_resort(tmp_path: Path) -> None:
    config = complete(ModelConfig(), model(tmp_path, "m.other"), BACKENDS)
    assert (config.backend, config.default_model_filename) == ("other", "model.other")


def test_an_ensemble_gets_its_name_only(tmp_path: Path) -> None:
    config = of('platform: "ensemble" ensemble_scheduling { }')
    done = complete(config, model(tmp_path, "m", "1/model.py"), BACKENDS)
    assert (done.name, done.backend, done.default_model_filename) == ("m", "", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name: "other" backend: "python"',
            "unexpected directory name 'm' for model 'other', directory name must equal model name",
        ),
        (
            "",
            "Invalid model name: Could not determine backend for model 'm' with no backend in "
            "model configuration. Expected model name of the form 'model.<backend_name>'.",
        ),
        ('default_model_filename: "net.bin"', "Could not determine backend for model 'm'"),
        ('platform: "tensorrt_plan"', "unexpected platform type 'tensorrt_plan' for m"),
        (
            'backend: "fortran"',
            "unable to find backend library for backend 'fortran', try specifying runtime on the "
            "model configuration. Known backends: onnxruntime, pytorch, python, other, own.",
        ),
        (
            'backend: "python" platform: "onnxruntime_onnx"',
            "unexpected 'platform' and 'backend' pair, got:onnxruntime_onnx, python",
        ),
        (
            'backend: "onnxruntime" platform: "mine"',
            "unexpected 'platform' and 'backend' pair, got:mine, onnxruntime",
        ),
        (
            'backend: "own" platform: "mine"',
            "unexpected 'platform' and 'backend' pair, got:mine, own",
        ),
        (
            'platform: "libtorch"',
            "unexpected 'platform' and 'backend' pair, got:libtorch, pytorch",
        ),
    ],
)
def test_what_cannot_be_completed_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        complete(of(text), model(tmp_path, "m"), BACKENDS)
    assert message in str(caught.value)


def test_without_any_backend_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="Known backends: none"):
        complete(of('backend: "python"'), model(tmp_path, "m"), ())


def test_a_missing_model_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"'{tmp_path}/m'"):
        complete(ModelConfig(), tmp_path / "m", BACKENDS)


def group(
    name: str, count: int = 1, kind: str = "KIND_CPU", gpus: tuple[int, ...] = ()
) -> InstanceGroup:
    return InstanceGroup(name=name, count=count, kind=kind, gpus=gpus)


@pytest.mark.parametrize(
    ("text", "backend", "gpus", "wanted"),
    [
        ("", PYTHON, 0, [group("m")]),
        ("", ONNX, 0, [group("m", 2)]),
        ("", PYTHON, 2, [group("m", 1, "KIND_GPU", (0, 1))]),
        ("", ONNX, 2, [group("m", 1, "KIND_GPU", (0, 1))]),
        ("instance_group { }", PYTHON, 0, [group("m_0")]),
        ('instance_group { } instance_group { name: "g" }', PYTHON, 0, [group("m_0"), group("g")]),
        ("instance_group { kind: KIND_CPU }", ONNX, 2, [group("m_0", 2)]),
        ("instance_group { kind: KIND_CPU count: 1 }", ONNX, 0, [group("m_0")]),
        ("instance_group { count: -3 }", PYTHON, 0, [group("m_0")]),
        ("instance_group { kind: KIND_MODEL }", ONNX, 2, [group("m_0", 1, "KIND_MODEL")]),
        ("instance_group { gpus: [ 1 ] }", PYTHON, 2, [group("m_0", 1, "KIND_GPU", (1,))]),
        (
            "instance_group { kind: KIND_GPU count: 3 }",
            PYTHON,
            1,
            [group("m_0", 3, "KIND_GPU", (0,))],
        ),
    ],
)
def test_instance_groups_are_written_out(
    text: str, backend: BackendType, gpus: int, wanted: list[InstanceGroup]
) -> None:
    config = normalise(of('name: "m"' + text), backend, gpus)
    assert list(config.instance_group) == wanted
    assert normalise(config, backend, gpus) == config


@pytest.mark.parametrize(
    ("text", "gpus", "message"),
    [
        ("kind: KIND_CPU gpus: [ 0 ]", 1, "has kind KIND_CPU but specifies one or more GPUs"),
        ("kind: KIND_MODEL gpus: [ 0 ]", 1, "has kind KIND_MODEL but specifies one or more GPUs"),
        ("gpus: [ 7 ]", 1, "has kind KIND_CPU but specifies one or more GPUs"),
        ("kind: KIND_GPU", 0, "has kind KIND_GPU but no GPUs are available"),
        (
            "kind: KIND_GPU gpus: [ 0, 42 ]",
            2,
            "specifies invalid or unsupported gpu id 42. GPUs with at least the minimum required "
            "CUDA compute compatibility are: 0, 1",
        ),
        ("kind: KIND_GPU gpus: [ -1 ]", 1, "specifies invalid or unsupported gpu id -1."),
        ('profile: "1"', 0, "only supported for TensorRT models"),
    ],
)
def test_groups_this_host_cannot_provide_are_refused(text: str, gpus: int, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        normalise(of(f'name: "m" instance_group {{ {text} }}'), PYTHON, gpus)
    assert str(caught.value).startswith("instance group m_0 of model m ")
    assert message in str(caught.value)


def test_every_gpu_counts_towards_the_most_instances() -> None:
    config = of('name: "m" instance_group { kind: KIND_GPU count: 512 }')
    normalise(config, PYTHON, 2)
    with pytest.raises(InvalidArgument, match="have 1536 instances, more than the 1024"):
        normalise(config, PYTHON, 3)


def test_defaults_are_written_out_as_in_the_minimal_example() -> None:
    config = normalise(
        of('name: "m" backend: "python" max_batch_size: 4 dynamic_batching { }'), PYTHON, 0
    )
    assert config == of(
        'name: "m" backend: "python" max_batch_size: 4 '
        "version_policy { latest { num_versions: 1 } } "
        "dynamic_batching { preferred_batch_size: [ 4 ] } "
        'instance_group [ { name: "m" count: 1 kind: KIND_CPU } ] '
        "optimization { input_pinned_memory { enable: true } "
        "output_pinned_memory { enable: true } }"
    )


@pytest.mark.parametrize(
    "text",
    [
        "version_policy { all { } }",
        "version_policy { latest { } }",
        "dynamic_batching { }",
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 2 ] }",
        "sequence_batching { max_sequence_idle_microseconds: 5 oldest { } }",
        "optimization { input_pinned_memory { } output_pinned_memory { } }",
    ],
)
def test_what_is_written_stays(text: str) -> None:
    config = of('name: "m" instance_group { name: "g" count: 1 kind: KIND_CPU }' + text)
    done = normalise(config, PYTHON, 0)
    assert done.version_policy == config.version_policy or config.version_policy is None
    assert done.dynamic_batching == config.dynamic_batching
    assert done.sequence_batching == config.sequence_batching
    assert done.optimization == config.optimization or config.optimization is None
    assert done.instance_group == config.instance_group


def test_sequences_get_their_idle_time_and_preferred_size() -> None:
    config = normalise(
        of('name: "m" max_batch_size: 4 sequence_batching { oldest { } }'), PYTHON, 0
    )
    assert config.sequence_batching is not None
    assert config.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    assert config.sequence_batching.oldest is not None
    assert config.sequence_batching.oldest.preferred_batch_size == (4,)


def test_an_ensemble_has_neither_instances_nor_optimization() -> None:
    config = normalise(of('name: "m" platform: "ensemble" ensemble_scheduling { }'), PYTHON, 1)
    assert (config.instance_group, config.optimization) == ((), None)
    assert config.version_policy is not None


def test_a_backend_completes_some_parts_and_no_others() -> None:
    before = ModelConfig(name="m", backend="python", parameters={"k": ModelParameter("v")})
    completed = ModelConfig(
        max_batch_size=4,
        input=(ModelInput(name="A"),),
        output=(ModelOutput(name="B"),),
        model_transaction_policy=TransactionPolicy(decoupled=True),
        dynamic_batching=DynamicBatching(),
    )
    after = ModelConfig(
        name="n",
        backend="other",
        max_batch_size=completed.max_batch_size,
        input=completed.input,
        output=completed.output,
        model_transaction_policy=completed.model_transaction_policy,
        dynamic_batching=completed.dynamic_batching,
        instance_group=(group("g", 2),),
    )
    assert merge_completed(before, after) == ModelConfig(
        name="m",
        backend="python",
        parameters={"k": ModelParameter("v")},
        max_batch_size=4,
        input=completed.input,
        output=completed.output,
        model_transaction_policy=TransactionPolicy(decoupled=True),
        dynamic_batching=DynamicBatching(),
        instance_group=(InstanceGroup(count=2),),
    )


def test_instance_groups_are_kept_as_they_were_written() -> None:
    before = ModelConfig(instance_group=(group("g"),))
    after = ModelConfig(instance_group=(group("g", 4),))
    assert merge_completed(before, after) == before
    one = ModelConfig(instance_group=(group("g", 1),))
    assert merge_completed(ModelConfig(), one) == ModelConfig()


def test_a_scheduling_choice_is_kept_as_it_was_written() -> None:
    before = ModelConfig(dynamic_batching=DynamicBatching(max_queue_delay_microseconds=5))
    after = ModelConfig(dynamic_batching=DynamicBatching(max_queue_delay_microseconds=9))
    assert merge_completed(before, after) == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            ModelConfig(dynamic_batching=DynamicBatching()),
            ModelConfig(sequence_batching=SequenceBatching()),
        ),
        (ModelConfig(sequence_batching=SequenceBatching()), ModelConfig()),
    ],
)
def test_a_scheduling_choice_cannot_be_changed(before: ModelConfig, after: ModelConfig) -> None:
    with pytest.raises(InvalidArgument, match=r"^Cannot update scheduling choice"):
        merge_completed(before, after)


def recorded(name: str) -> dict[str, Any]:
    """The answer that Triton gave to a request for a model's configuration."""
    for line in (GOLDEN / "http.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["request"]["path"] == f"/v2/models/{name}/config":
            answer: dict[str, Any] = json.loads(base64.b64decode(entry["answer"]["body"]))
            return answer
    raise AssertionError(f"no recorded configuration of '{name}'")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the recorded conversations with Triton")
@pytest.mark.parametrize("name", ["addsub", "identity", "strings", "types"])
def test_effective_configurations_are_tritons(name: str) -> None:
    directory = GOLDEN / "repository" / name
    config = complete(read_config(directory / "config.pbtxt"), directory, [PYTHON])
    assert config_to_json(normalise(config, PYTHON, 0)) == recorded(name)
    assert problems(config) == []


def test_a_backend_may_recognise_what_no_file_name_tells(tmp_path: Path) -> None:
    def recognise(config: ModelConfig, files: Path) -> ModelConfig | None:
        told = (files / "net.py").exists()
        return replace(config, runtime="net.py") if told else None

    backend = BackendType(name="nets", factory="nets:make", recognise=recognise)
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="Could not determine backend"):
        complete(ModelConfig(), tmp_path / "m", [backend])
    (tmp_path / "m" / "1" / "net.py").touch()
    found = complete(ModelConfig(), tmp_path / "m", [backend])
    assert (found.name, found.backend, found.runtime) == ("m", "nets", "net.py")


def test_one_that_would_end_the_server_fails_the_load(tmp_path: Path) -> None:
    def recognise(config: ModelConfig, files: Path) -> ModelConfig | None:
        sys.exit("not here")

    backend = BackendType(name="nets", factory="nets:make", recognise=recognise)
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="recognise of a plug-in ended with SystemExit: not"):
        complete(ModelConfig(), tmp_path / "m", [backend])
