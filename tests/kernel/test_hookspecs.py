"""The front door and the extension points: what is promised is there, with nothing heavy behind."""

import ast
import inspect
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import microkernel
from microkernel import hookspecs
from microkernel.hookspecs import ENTRY_POINT_GROUP, PROJECT, RegisterFrontend

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
HEAVY = ("torch", "onnxruntime", "onnx", "aiohttp", "grpc", "tokenizers")


def public_names() -> set[str]:
    """The public names that `microkernel/__init__.py` defines or imports, read from its source."""
    assert microkernel.__file__ is not None
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(microkernel.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module != "typing":
            names |= {alias.asname or alias.name for alias in node.names}
    return {name for name in names if not name.startswith("_")}


def test_the_front_door_offers_exactly_what_it_names() -> None:
    assert set(microkernel.__all__) == public_names() - {"hookspecs"}
    assert len(microkernel.__all__) == len(set(microkernel.__all__))


def test_every_name_of_the_front_door_opens() -> None:
    for name in microkernel.__all__:
        assert getattr(microkernel, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'microkernel' has no attribute 'nonsense'"):
        microkernel.nonsense  # noqa: B018 - the access is the test


def test_the_public_classes_and_functions_are_documented() -> None:
    for name in microkernel.__all__:
        thing = getattr(microkernel, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert (thing.__doc__ or "").strip(), name


def hooks() -> list[str]:
    return [n for n, thing in vars(hookspecs).items() if hasattr(thing, f"{PROJECT}_spec")]


def test_the_hooks_are_those_that_are_documented() -> None:
    assert hooks() == [
        "register_options",
        "register_presets",
        "register_backends",
        "register_frontends",
        "register_caches",
        "register_batching_strategies",
        "register_commands",
    ]


@pytest.mark.parametrize("name", hooks())
def test_each_hook_says_what_it_is_for(name: str) -> None:
    hook = getattr(hookspecs, name)
    arguments = ", ".join(inspect.signature(hook).parameters)
    assert (hook.__doc__ or "").strip().endswith(".")
    assert f"\n### {name}({arguments})\n" in DOCUMENT.read_text()


def test_the_description_of_a_register_cannot_be_used_by_itself() -> None:
    with pytest.raises(NotImplementedError):
        RegisterFrontend()("x", lambda server, settings: None)  # type: ignore[arg-type, return-value]


def loaded(code: str, *names: str) -> list[str]:
    """Which of the modules a fresh interpreter has imported after the code has run."""
    script = f"import sys\n{code}\nprint(*(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_the_front_door_imports_only_the_standard_library_and_numpy() -> None:
    others = ("google.protobuf", "pluggy", "structlog", "click", "prometheus_client")
    assert loaded("import microkernel", *others, *HEAVY) == []


def test_a_worker_s_own_modules_import_only_the_standard_library_and_numpy() -> None:
    others = ("google.protobuf", "pluggy", "structlog", "click", "prometheus_client")
    code = "import microkernel.workers.child, microkernel.workers.forkserver"
    assert loaded(code, *others, *HEAVY) == []


def test_the_server_and_all_its_plug_ins_import_no_framework() -> None:
    modules = sorted(point.value for point in entry_points(group=ENTRY_POINT_GROUP))
    assert len(modules) >= 5
    code = f"import microkernel.app, microkernel.cli, {', '.join(modules)}"
    assert loaded(code, *HEAVY) == []


def test_discovering_plug_ins_imports_no_framework() -> None:
    code = "from microkernel.plugins import discover\nassert discover().usable()"
    assert loaded(code, *HEAVY) == []
