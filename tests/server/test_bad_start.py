"""What is wrong at start: one line that names the thing, and exit code 1; or, where the server is
told to go on, the reason in the index."""

import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from server_harness import ADDRESS, COMMAND, Running, launch, write_python_model

TENSORS = """
input { name: "X" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 3 ] }
"""
ECHO = """
def execute(self, requests):
    return [answer(Y=read(r, "X")) for r in requests]
"""
PYTORCH = f'platform: "pytorch_libtorch"\n{TENSORS}'
ONNX = f'backend: "onnxruntime"\n{TENSORS}'


def _misspelt_field(folder: Path) -> None:
    text = f'backend: "python"\nmax_batch_size: 4\n{TENSORS}'
    (folder / "config.pbtxt").write_text(text.replace("data_type", "data_typ", 1))


def _file(name: str, content: str, config: str = "") -> Callable[[Path], None]:
    """What makes a model of one file in its version directory."""

    def make(folder: Path) -> None:
        if config:
            (folder / "config.pbtxt").write_text(config)
        if name:
            (folder / "1" / name).write_text(content)

    return make


def _no_version(folder: Path) -> None:
    write_python_model(folder.parent, folder.name, TENSORS, ECHO)
    (folder / "1" / "model.py").unlink()
    (folder / "1").rmdir()


def _initialize_raises(folder: Path) -> None:
    body = 'def initialize(self, args):\n    raise ValueError("no weights today")\n' + ECHO
    write_python_model(folder.parent, folder.name, TENSORS, body)


def _no_state(folder: Path) -> None:
    state = """
sequence_batching { state {
  input_name: "S" output_name: "T" data_type: TYPE_FP32 dims: [ 1 ]
  initial_state { name: "first" data_type: TYPE_FP32 dims: [ 1 ] data_file: "first" }
} }
"""
    write_python_model(folder.parent, folder.name, f"max_batch_size: 2\n{state}{TENSORS}", ECHO)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "misspelt": (
        _misspelt_field,
        r"Invalid argument: failed to read text proto from \S*/misspelt/config.pbtxt: "
        r'line 4, column \d+: .*"data_typ"',
    ),
    "no_python_file": (
        _file("", "", f'backend: "python"\n{TENSORS}'),
        r"Python model file not found in '\S*/no_python_file/1/model.py'",
    ),
    "no_pytorch_file": (
        _file("", "", PYTORCH),
        r"Unavailable: unable to find '\S*/no_pytorch_file/1/model.pt' for model instance "
        "'no_pytorch_file'",
    ),
    "no_onnx_file": (
        _file("", "", ONNX),
        r"Unavailable: unable to find '\S*/no_onnx_file/1/model.onnx' for model instance "
        "'no_onnx_file'",
    ),
    "corrupt_pytorch": (
        _file("model.pt", "this is no archive", PYTORCH),
        "Internal: failed to load model 'corrupt_pytorch': .*not a ZIP archive",
    ),
    "corrupt_onnx": (
        _file("model.onnx", "this is no graph"),
        r"Internal: onnx runtime error 7: Load model from \S*/corrupt_onnx/1/model.onnx failed",
    ),
    "raises": (
        _initialize_raises,
        r"Internal: ValueError: no weights today\s+At:\s+\S*/raises/1/model.py\(\d+\): initialize",
    ),
    "no_version": (
        _no_version,
        "Invalid argument: at least one version must be available under the version policy of "
        "model 'no_version'",
    ),
    "strange_backend": (
        _file("", "", f'backend: "tensorrt"\n{TENSORS}'),
        r"Invalid argument: \S*/strange_backend/config.pbtxt: unable to find backend library for "
        "backend 'tensorrt'.* Known backends: .*python",
    ),
    "nothing_known": (
        _file("weights.bin", "?"),
        "Invalid argument: .*nothing_known",
    ),
    "no_state": (
        _no_state,
        "Invalid argument: file 'first' of the initial state of 'S' cannot be read: No such file",
    ),
}
NEVER_LOADED = {"misspelt", "no_version", "strange_backend", "nothing_known", "twice"}
"""Those that fail before anything is loaded, so that they have no version either."""


def ended(repository: Path, *flags: str) -> tuple[int, list[str], str]:
    """Exit code, the events of the error lines, and everything logged by a server that is expected
    to end by itself."""
    running = launch(repository, *flags)
    code = running.wait_exit()
    errors = [line["event"] for line in running.log.lines if line.get("level") == "error"]
    return code, errors, running.log.text


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two: one with a good model and every broken one, another with a model that both have."""
    pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    first, second = (tmp_path_factory.mktemp(name) / "models" for name in ("first", "second"))
    for name, (make, _) in BROKEN.items():
        (first / name / "1").mkdir(parents=True)
        make(first / name)
    write_python_model(first, "good", TENSORS, ECHO)
    for repository in (first, second):
        write_python_model(repository, "twice", TENSORS, ECHO)
    return [first, second]


@pytest.fixture(scope="module")
def tolerant(repositories: list[Path], start_server: Callable[..., Running]) -> Running:
    """A server that goes on whatever failed."""
    return start_server(repositories, "--exit-on-error=false")


@pytest.mark.parametrize("name", BROKEN)
def test_the_reason_stands_in_the_index(tolerant: Running, name: str) -> None:
    state, reason = tolerant.index()[name]
    assert state == "UNAVAILABLE"
    assert re.search(BROKEN[name][1], reason)


def test_a_name_in_two_repositories_is_served_from_neither(tolerant: Running) -> None:
    expected = ("UNAVAILABLE", "model appears in two or more repositories")
    assert tolerant.index()["twice"] == expected


@pytest.mark.parametrize("name", [*BROKEN, "twice"])
def test_a_model_that_failed_is_not_found(tolerant: Running, name: str) -> None:
    assert tolerant.get(f"/v2/models/{name}/ready").status == 400
    found = tolerant.infer(name, ("X", "FP32", [1, 2, 3]))
    words = "is not found" if name in NEVER_LOADED else "has no available versions"
    assert (found.status, found.error) == (404, f"Request for unknown model: '{name}' {words}")


def test_the_others_serve(tolerant: Running) -> None:
    assert tolerant.index()["good"] == ("READY", "")
    found = tolerant.infer("good", ("X", "FP32", [1, 2, 3]))
    assert found.json["outputs"][0]["data"] == [1, 2, 3]
    assert tolerant.get("/v2/health/live").status == 200


def test_strict_readiness_needs_every_model(tolerant: Running) -> None:
    assert tolerant.get("/v2/health/ready").status == 400


def test_loose_readiness_does_not(
    repositories: list[Path], start_server: Callable[..., Running]
) -> None:
    flags = ["--exit-on-error=false", "--strict-readiness=false", "--model-control-mode=explicit"]
    server = start_server(repositories, *flags, "--load-model=good", "--load-model=misspelt")
    assert server.get("/v2/health/ready").status == 200
    assert server.get("/v2/models/misspelt/ready").status == 400
    index = server.index()
    assert {name for name, (state, _) in index.items() if state} == {"good", "misspelt", "twice"}
    assert index.keys() == {"good", "twice", *BROKEN}


def test_a_model_that_fails_ends_the_server_and_is_named(repositories: list[Path]) -> None:
    running = launch(repositories)
    assert running.wait_exit() == 1
    last = [line for line in running.log.lines if line.get("level") == "error"][-1]
    assert last["event"].startswith("failed to load all models")
    assert set(last["models"]) == {*BROKEN, "twice"}
    for name, (_, pattern) in BROKEN.items():
        lines = [line for line in running.log.lines if line.get("model") == name]
        reasons = [line["reason"] for line in lines if line["level"] == "error"]
        assert len(reasons) == 1
        assert re.search(pattern.partition(": ")[2] or pattern, reasons[0])


@pytest.mark.parametrize(
    ("flags", "phrase"),
    [
        (["--load-model=good"], "--load-model needs --model-control-mode=explicit"),
        (
            ["--model-control-mode=explicit", "--load-model=*", "--load-model=good"],
            "Wildcard model name '*' must be the ONLY startup model if specified at all.",
        ),
        (
            ["--model-control-mode=explicit", "--load-model=absent"],
            "model 'absent' of --load-model is in no repository",
        ),
        (["--model-repository="], "--model-repository is empty"),
        (["--http-auth-file=/nope"], "/nope"),
        (["--http-header-forward-pattern=["], "--http-header-forward-pattern"),
        (["--http-restricted-api=foo:a=b"], "--http-restricted-api"),
        (["--http-cors-origin=https://*.example"], "--http-cors-origin"),
        (["--grpc-use-ssl=true"], "--grpc-server-cert must name a PEM file"),
        (["--grpc-restricted-protocol=foo:a=b"], "--grpc-restricted-protocol"),
        (["--model-repository=nowhere"], "nowhere': No such file or directory"),
        (
            ["--http-port=18765", "--metrics-port=18765"],
            "--http-port and --metrics-port must differ on one address, both are 18765",
        ),
        (
            ["--backend-config=onnxruntime,default-max-batch-size=many"],
            "--backend-config onnxruntime,default-max-batch-size=many: the value must be of type "
            "int",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, flags: list[str], phrase: str) -> None:
    write_python_model(tmp_path / "models", "good", TENSORS, ECHO)
    code, errors, log = ended(tmp_path / "models", *flags)
    assert (code, len(errors)) == (1, 1), log
    assert phrase in errors[0]
    assert "model loaded" not in log
    assert "Started " not in log


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["run", "--no-such-flag=1"], "No such option '--no-such-flag'"),
        (["run", "--http-port=many"], "'many' is not a valid integer"),
        (["run", "--model-control-mode=often"], "'often' is not one of"),
        (["run", "--modle-repository=x"], "--model-repository"),
        (["run", "--backend-config=python"], "must have the form <backend>,<key>=<value>"),
        (["run", "--metrics-port=65536"], "'65536' must be from 0 to 65535"),
        (["run", "--log-file=no/log"], "log_file: cannot write 'no/log': No such file"),
        (["run"], "--model-repository must be given at least once"),
        (["run", "--plugins=absent.toml"], "absent.toml: cannot be read: No such file"),
        (["walk"], "No such command 'walk'"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, arguments: list[str], phrase: str) -> None:
    command = [str(COMMAND), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert phrase in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_plugins_file_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "plugins.toml").write_text("[plugins.http]\nprot = 1\n")
    code, errors, log = ended(tmp_path / "models")
    assert (code, len(errors)) == (1, 1), log
    assert "plugins.toml: [plugins.http]: unknown key 'prot'" in errors[0]


@pytest.mark.parametrize("protocol", ["http", "grpc", "metrics"])
def test_a_port_that_is_taken(tmp_path: Path, protocol: str) -> None:
    (tmp_path / "models").mkdir()
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        code, errors, log = ended(tmp_path / "models", f"--{protocol}-port={port}")
    assert (code, errors) == (1, [f"Socket '{ADDRESS}:{port}' already in use"]), log
