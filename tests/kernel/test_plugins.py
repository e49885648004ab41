"""Finding plug-ins: strangers' distributions on the path, and what an operator's file says."""

import itertools
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from microkernel.errors import InvalidArgument
from microkernel.hookspecs import ENTRY_POINT_GROUP
from microkernel.plugins import Plugin, discover

Install = Callable[..., str]
BUILT_IN = {"torchscript", "python", "onnx", "http", "sagemaker", "vertex_ai", "grpc"}
_numbers = itertools.count()

BACKEND = """
from dataclasses import dataclass
from microkernel import BackendType, hookimpl, option

@dataclass(frozen=True, slots=True)
class Settings:
    depth: int = option(1, about="How deep.", flag="--stranger-depth")
    words: tuple[str, ...] = option((), about="Some words.", many=True)

@hookimpl
def register_options(register):
    register(Settings)

@hookimpl
def register_backends(register):
    register(BackendType("strange", "{module}:make", requires={requires}, extra="{extra}"))
"""

FRONTEND = """
from microkernel import hookimpl

@hookimpl
def register_frontends(register):
    make = lambda server, settings: None
    register("carrier", make, requires={requires}, extra="{extra}", last=True)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without a plugins.toml."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("stranger", source)`: a distribution `stranger-dist` 1.2 that brings a plug-in of
    that name; the name of its module."""

    def make(name: str, source: str, requires: tuple[str, ...] = (), extra: str = "") -> str:
        module, site = f"a_plug_in_{next(_numbers)}", tmp_path / f"site_{name}"
        info = site / f"{name}_dist-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {module}\n")
        text = textwrap.dedent(source)
        for key, value in {"module": module, "requires": repr(requires), "extra": extra}.items():
            text = text.replace("{" + key + "}", value)
        (site / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(str(site))
        return module

    return make


def find(name: str, file: Path | None = None) -> Plugin:
    return next(plugin for plugin in discover(file).all if plugin.name == name)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "operator.toml"
    file.write_text(textwrap.dedent(text))
    return file


def test_the_built_in_plug_ins_are_found_like_any_other() -> None:
    assert {plugin.name for plugin in discover().all} >= BUILT_IN
    python = find("python")
    assert (python.distribution, python.kind, python.enabled) == ("microkernel", "backend", True)
    assert find("http").kind == "frontend"


def test_a_stranger_s_backend(install: Install) -> None:
    module = install("stranger", BACKEND)
    plugin = find("stranger")
    assert (plugin.distribution, plugin.version, plugin.kind) == ("stranger-dist", "1.2", "backend")
    assert [backend.factory for backend in plugin.backends] == [f"{module}:make"]
    assert (plugin.error, plugin.remedy()) == ("", "")
    assert plugin.name in [usable.name for usable in discover().usable()]


def test_a_stranger_s_frontend(install: Install) -> None:
    install("pigeon", FRONTEND)
    (frontend,) = find("pigeon").frontends
    assert (frontend.name, frontend.last, frontend.requires) == ("carrier", True, ())
    assert find("pigeon").settings_type is None


def test_a_plug_in_that_brings_backends_and_frontends(install: Install) -> None:
    install("both", BACKEND + FRONTEND.replace("from microkernel import hookimpl", ""))
    assert find("both").kind == "backend, frontend"


def test_a_plug_in_that_brings_nothing(install: Install) -> None:
    install("idle", "")
    assert (find("idle").kind, find("idle").remedy()) == ("none", "")


@pytest.mark.parametrize(
    ("requires", "extra", "remedy"),
    [
        (("json",), "x", ""),
        (("no_such",), "fast", "needs no_such: pip install 'stranger-dist[fast]'"),
        (
            ("json", "no_such", "another"),
            "fast",
            "needs another, no_such: pip install 'stranger-dist[fast]'",
        ),
        (("no_such",), "", "needs no_such: pip install 'no_such'"),
        (("no_such.inner",), "fast", "needs no_such.inner: pip install 'stranger-dist[fast]'"),
        (("json.no_such",), "fast", "needs json.no_such: pip install 'stranger-dist[fast]'"),
    ],
)
@pytest.mark.parametrize("source", [BACKEND, FRONTEND])
def test_what_is_missing_is_said_with_the_command_that_brings_it(
    install: Install, source: str, requires: tuple[str, ...], extra: str, remedy: str
) -> None:
    install("stranger", source, requires, extra)
    plugins = discover()
    plugin = next(plugin for plugin in plugins.all if plugin.name == "stranger")
    assert plugin.remedy() == remedy
    assert (plugin in plugins.usable()) is not bool(remedy)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such", "cannot be used: ModuleNotFoundError: No module named 'no_such'"),
        ("1 / 0", "cannot be used: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "cannot be used: SystemExit: 3"),
        (
            BACKEND + "\n@hookimpl\ndef register_typos(register): ...\n",
            "cannot be used: PluginValidationError: unknown hook 'register_typos'",
        ),
        (
            BACKEND + "\n@hookimpl\ndef register_frontends(registrar): ...\n",
            "cannot be used: PluginValidationError: ",
        ),
        (
            BACKEND + "\n@hookimpl\ndef register_frontends(register): register()\n",
            "cannot be used: TypeError: ",
        ),
    ],
)
def test_a_plug_in_that_fails_stops_no_other(install: Install, source: str, error: str) -> None:
    install("broken", source)
    install("stranger", BACKEND)
    plugin = find("broken")
    assert plugin.remedy().startswith(error)
    assert (plugin.backends, plugin.frontends) == ([], [])
    usable = [usable.name for usable in discover().usable()]
    assert "stranger" in usable
    assert "broken" not in usable


def test_the_operator_s_order_comes_first(tmp_path: Path, install: Install) -> None:
    install("stranger", BACKEND)
    file = written(tmp_path, "[plugins.stranger]\n[plugins.http]\n")
    names = [plugin.name for plugin in discover(file).all]
    assert names[:2] == ["stranger", "http"]
    assert names[2:] == sorted(names[2:])


def test_a_disabled_plug_in_is_listed_and_not_used(tmp_path: Path, install: Install) -> None:
    install("stranger", BACKEND)
    plugins = discover(written(tmp_path, "[plugins.stranger]\nenabled = false\n"))
    plugin = next(plugin for plugin in plugins.all if plugin.name == "stranger")
    assert not plugin.enabled
    assert plugin not in plugins.usable()


def test_the_working_directory_s_file_is_read(install: Install) -> None:
    install("stranger", BACKEND)
    Path("plugins.toml").write_text("[plugins.stranger]\nenabled = false\n")
    assert not find("stranger").enabled


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("", {}, (1, ())),
        ("[plugins.stranger]\nenabled = true\n", {}, (1, ())),
        ("[plugins.stranger]\ndepth = 5\nwords = ['a', 'b']\n", {}, (5, ("a", "b"))),
        ("[plugins.stranger]\ndepth = 5\n", {"depth": 7}, (7, ())),
        ("", {"words": ("x",)}, (1, ("x",))),
    ],
)
def test_a_flag_beats_the_file_and_the_file_the_default(
    tmp_path: Path, install: Install, text: str, flags: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    install("stranger", BACKEND)
    file = written(tmp_path, text)
    settings = discover(file).settings(find("stranger", file), flags)
    assert (settings.depth, settings.words) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[plugins.stranger]\ndeep = 5\n",
            "[plugins.stranger]: unknown key 'deep'; it knows depth, words",
        ),
        (
            "[plugins.stranger]\ndepth = 'five'\n",
            "[plugins.stranger]: 'depth' must be of type int, got 'five'",
        ),
        ("[plugins.pigeon]\nport = 1\n", "[plugins.pigeon]: unknown key 'port'; no keys here"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_file_and_key(
    tmp_path: Path, install: Install, text: str, message: str
) -> None:
    install("stranger", BACKEND)
    install("pigeon", FRONTEND)
    file = written(tmp_path, text)
    plugins = discover(file)
    with pytest.raises(InvalidArgument) as caught:
        plugins.settings(plugins.all[0], {})
    assert str(caught.value) == f"{file}: {message}"


def test_a_plug_in_without_settings_gets_none(install: Install) -> None:
    install("pigeon", FRONTEND)
    assert discover().settings(find("pigeon"), {}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[plugins.nobody]\n", "[plugins.nobody]: no such plug-in; there are "),
        ("[plugin.http]\n", "unknown key 'plugin'; only 'plugins' is known"),
        ("plugins = 3\n", "'plugins' must be a table"),
        ("[plugins]\nhttp = 3\n", "'plugins.http' must be a table"),
        ("[plugins.http]\nenabled = 'yes'\n", "[plugins.http]: 'enabled' must be true or false"),
        ("[plugins.http\n", "Expected ']' at the end of a table declaration (at line 1, column 14"),
    ],
)
def test_a_file_that_is_wrong_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InvalidArgument) as caught:
        discover(file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "operator.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match=r"operator\.toml: 'utf-8' codec can't decode"):
        discover(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"none\.toml: cannot be read: No such file"):
        discover(tmp_path / "none.toml")


def test_entry_points_are_the_only_way_in(install: Install) -> None:
    install("stranger", BACKEND)
    names = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    assert {plugin.name for plugin in discover().all} == names
