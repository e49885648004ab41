"""The Python backend loads real model files: import, `initialize`, `finalize`, log lines."""

import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from python_models import executing

from microkernel import (
    Batch,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
    Unsupported,
)
from microkernel_python.backend import PythonBackend
from microkernel_python.instance import PythonInstance

PLACEMENT = Placement("m_0_0", "KIND_CPU")
ONE = np.array([1.0], dtype=np.float32)
CONFIG = ModelConfig(
    name="m",
    backend="python",
    input=(ModelInput("A", "TYPE_FP32", dims=(-1,)),),
    output=(ModelOutput("B", "TYPE_FP32", dims=(-1,)),),
)

HEAD = "import numpy as np\nimport triton_python_backend_utils as pb_utils\n\n"
MakeBatch = Callable[..., Batch]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_interpreter_state() -> Iterator[None]:
    """A model's process is its own; here the next test gets the interpreter as it was."""
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if "pytest-of" in origin or "backend_utils" in name or name == "1":
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(source, **files)`: a version folder with `model.py` and other files; its path."""

    def make(source: str, /, **files: str) -> Path:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.py").write_text(HEAD + textwrap.dedent(source))
        for stem, text in files.items():
            (folder / f"{stem}.py").write_text(textwrap.dedent(text))
        return folder

    return make


def start(folder: Path, config: ModelConfig = CONFIG) -> PythonInstance:
    return PythonBackend().load(config, folder).instance(PLACEMENT)


# Import


def test_the_file_is_a_module_of_its_version_folder(write: Write) -> None:
    folder = write(
        """
        import os
        from . import beside
        from .beside import value
        import beside as again
        NAMES = (__name__, __package__, os.path.dirname(__file__), value, again is beside)
        class TritonPythonModel:
            def initialize(self, args):
                raise ValueError(repr(NAMES))
        """,
        beside="value = 42",
    )
    with pytest.raises(Internal) as caught:
        start(folder)
    expected = repr(("1.model", "1", str(folder), 42, False))
    assert str(caught.value).startswith(f"ValueError: {expected}\n\nAt:\n")


def test_the_three_folders_are_appended_in_order(write: Write) -> None:
    folder = write(executing("return []"))
    before = len(sys.path)
    model = PythonBackend().load(CONFIG, folder)
    added = sys.path[before:]
    assert added[:2] == [str(folder), str(folder.parent)]
    assert (Path(added[2]) / "triton_python_backend_utils.py").is_file()
    model.unload()
    assert str(folder) not in sys.path
    assert "1.model" not in sys.modules


def test_a_model_with_an_init_file_is_a_regular_package(write: Write) -> None:
    folder = write(
        """
        from . import greeting
        class TritonPythonModel:
            def initialize(self, args):
                raise ValueError(greeting)
        """,
        __init__="greeting = 'hello'",
    )
    with pytest.raises(Internal, match="ValueError: hello"):
        start(folder)


def test_a_reload_in_the_same_process_sees_the_new_file(
    write: Write, make_batch: MakeBatch
) -> None:
    for text in ("first", "second, longer"):
        folder = write(executing(f"raise ValueError({text!r})"))
        model = PythonBackend().load(CONFIG, folder)
        with pytest.raises(Internal, match=f"ValueError: {text}\n"):
            model.instance(PLACEMENT).execute(make_batch([{"A": ONE}]))
        model.unload()


def test_code_of_the_same_size_and_second_is_the_new_one(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for value in ("1", "2"):
        folder = write(
            f"""
            class TritonPythonModel:
                def initialize(self, args):
                    raise ValueError("value {value}")
            """
        )
        os.utime(folder / "model.py", (1_000_000_000, 1_000_000_000))
        with pytest.raises(Internal, match=f"value {value}"):
            start(folder)
        assert not (folder / "__pycache__").exists()


def test_a_copy_of_the_utilities_beside_the_model_is_not_taken(write: Write) -> None:
    folder = write(executing("return []"), triton_python_backend_utils="raise ImportError('mine')")
    start(folder)


def test_another_file_name(write: Write) -> None:
    folder = write("", other=executing("return []"))
    start(folder, replace(CONFIG, default_model_filename="other.py"))
    with pytest.raises(InvalidArgument, match=r"'model\.pt' of model 'm' must end in '\.py'"):
        start(folder, replace(CONFIG, default_model_filename="model.pt"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(Internal) as caught:
        PythonBackend().load(CONFIG, tmp_path / "m" / "1")
    assert str(caught.value) == f"Python model file not found in '{tmp_path / 'm/1/model.py'}'"


def test_a_missing_class(write: Write) -> None:
    with pytest.raises(Internal, match="must define a class 'TritonPythonModel'"):
        start(write("class Model: pass"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'\n\nAt:\n"),
        ("def broken(:", "SyntaxError: "),
        ("raise SystemExit(3)", "SystemExit: 3\n\nAt:\n"),
        ("raise KeyboardInterrupt(4)", "KeyboardInterrupt: 4\n\nAt:\n"),
        ("pb_utils.load_model", "AttributeError: 'triton_python_backend_utils.load_model' is not"),
        ("pb_utils.get_model_dir()", "AttributeError: 'triton_python_backend_utils.get_model_dir'"),
        ("pb_utils.nonsense", "AttributeError: 'triton_python_backend_utils.nonsense' does not"),
    ],
)
def test_what_the_import_raises_fails_the_load(write: Write, source: str, text: str) -> None:
    path = list(sys.path)
    with pytest.raises(Internal) as caught:
        start(write(source))
    assert str(caught.value).startswith(text)
    assert "1.model" not in sys.modules
    assert [entry for entry in sys.path if "pytest-of" in entry] == [
        entry for entry in path if "pytest-of" in entry
    ]


# initialize and finalize


def test_initialize_gets_seven_texts(write: Write) -> None:
    folder = write(
        """
        import json
        class TritonPythonModel:
            def initialize(self, args):
                raise ValueError(json.dumps([args, pb_utils.get_model_dir()]))
        """
    )
    config = replace(CONFIG, parameters={"key": ModelParameter("v")})
    with pytest.raises(Internal) as caught:
        PythonBackend().load(config, folder).instance(Placement("m_1_2", "KIND_GPU", 3))
    arguments, directory = json.loads(str(caught.value).splitlines()[0].removeprefix("ValueError:"))
    document = json.loads(arguments.pop("model_config"))
    assert document["input"][0]["dims"] == [-1]
    assert document["parameters"] == {"key": {"string_value": "v"}}
    assert arguments == {
        "model_instance_kind": "GPU",
        "model_instance_name": "m_1_2",
        "model_instance_device_id": "3",
        "model_repository": str(folder.parent),
        "model_version": "1",
        "model_name": "m",
    }
    assert directory == str(folder)


def test_a_load_error_lists_the_frames_from_the_innermost(write: Write) -> None:
    folder = write(
        """
        def inner():
            raise KeyError("k")
        class TritonPythonModel:
            def initialize(self, args):
                inner()
        """
    )
    with pytest.raises(Internal) as caught:
        start(folder)
    file = folder / "model.py"
    assert str(caught.value) == (
        f"KeyError: 'k'\n\nAt:\n  {file}(6): inner\n  {file}(9): initialize\n"
    )


def test_initialize_may_raise_what_is_no_exception_of_a_program(write: Write) -> None:
    folder = write(
        """
        import asyncio
        class TritonPythonModel:
            def initialize(self, args):
                raise asyncio.CancelledError("c")
        """
    )
    with pytest.raises(Internal, match=r"^CancelledError: c\n\nAt:\n"):
        start(folder)


def test_finalize_is_called_once_and_its_error_is_only_logged(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(
        """
        class TritonPythonModel:
            def execute(self, requests):
                return []
            def finalize(self):
                raise RuntimeError("too late")
        """
    )
    instance = start(folder)
    with caplog.at_level(logging.INFO, "microkernel.model"):
        instance.close()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "finalize of 'm_0_0' failed: RuntimeError: too late" in record.getMessage()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parameters": {"EXECUTION_ENV_PATH": ModelParameter("/e")}}, "'EXECUTION_ENV_PATH'"),
        (
            {"parameters": {"FORCE_CPU_ONLY_INPUT_TENSORS": ModelParameter("maybe")}},
            "'FORCE_CPU_ONLY_INPUT_TENSORS' of model 'm' must be 'yes' or 'no', got 'maybe'",
        ),
    ],
)
def test_what_is_not_offered_fails_the_load(
    write: Write, changes: dict[str, Any], text: str
) -> None:
    folder = write(executing("return []"))
    with pytest.raises(Unsupported, match=text):
        start(folder, replace(CONFIG, **changes))


@pytest.mark.parametrize("value", ["yes", "no"])
def test_force_cpu_takes_yes_and_no(write: Write, value: str) -> None:
    parameters = {"FORCE_CPU_ONLY_INPUT_TENSORS": ModelParameter(value)}
    start(write(executing("return []")), replace(CONFIG, parameters=parameters))


# Logger


def test_log_lines_carry_the_models_file_line_and_level(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(
        """
        class TritonPythonModel:
            def initialize(self, args):
                log = pb_utils.Logger
                log.log_info("i"); log.log_warn("w"); log.log_error("e"); log.log_verbose("v")
                log.log("d"); log.log("x", log.ERROR)
        """
    )
    with caplog.at_level(logging.DEBUG, "microkernel.model"):
        start(folder)
    assert [(r.getMessage(), r.levelname) for r in caplog.records] == [
        *(("i", "INFO"), ("w", "WARNING"), ("e", "ERROR"), ("v", "DEBUG")),
        *(("d", "INFO"), ("x", "ERROR")),
    ]
    assert {(r.pathname, r.lineno) for r in caplog.records} == {
        (str(folder / "model.py"), 8),
        (str(folder / "model.py"), 9),
    }
