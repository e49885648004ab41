"""The documents tell the truth about commands, links and settings."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from microkernel.options import build, options_of

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".", "docs", "examples", "benchmarks")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
PLUGINS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
    "microkernel.plugins"
]


def code(text: str) -> str:
    """What a reader may copy: fenced blocks, indented blocks and inline code."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(.*)$", rest, re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", rest)
    return "\n".join([*fenced, *indented, *inline])


def make_targets(text: str) -> set[str]:
    """The targets of the `make` commands in a text, variables on the command line left out."""
    return set(re.findall(r"^\s*make(?: [A-Z]+=\S+)* ([a-z][a-z-]*)", text, re.MULTILINE))


def with_samples(text: str) -> dict[str, dict[str, Any]]:
    """The tables of plugins.toml with the settings that are commented out switched on."""
    live = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    tables: dict[str, dict[str, Any]] = tomllib.loads(live)["plugins"]
    return tables


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    match = re.match(r"# Microkernel\n\n```sh\n(.*?)```\n", text, re.DOTALL)
    assert match is not None
    commands = [line.split("#")[0].strip() for line in match.group(1).splitlines()]
    assert commands == ["make serve", "make test"]


def test_a_make_command_is_recognised() -> None:
    text = "Prose may make sense. `make test`\n\n    make PYTHON=python3.12 serve\n"
    assert make_targets(code(text)) == {"test", "serve"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_exists(document: Path) -> None:
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert make_targets(code(document.read_text())) - defined == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_resolves(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    relative = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in relative if not (document.parent / link).exists()] == []


def test_the_changelog_has_an_unreleased_section() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_sample_settings_name_every_built_in_plug_in() -> None:
    tables = tomllib.loads((ROOT / "plugins.toml").read_text())["plugins"]
    assert set(tables) == set(PLUGINS)
    assert all(table["enabled"] is True for table in tables.values())


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_the_sample_settings_are_known_to_the_plug_in(name: str) -> None:
    table = with_samples((ROOT / "plugins.toml").read_text())[name]
    values = {key: value for key, value in table.items() if key != "enabled"}
    declared: list[type[object]] = []
    module = importlib.import_module(PLUGINS[name])
    if hasattr(module, "register_options"):
        module.register_options(declared.append)
    if declared:
        build(declared[0], values, "plugins.toml")
    else:
        assert values == {}


COMPATIBILITY = (ROOT / "docs" / "compatibility.md").read_text()
VERDICTS = ("same", "more: ", "differs: ", "no effect: ", "ours: ", "not here: ")


def verdicts(title: str) -> dict[str, str]:
    """The names that stand in the first column of a table of docs/compatibility.md, each with what
    is said of it."""
    section = COMPATIBILITY.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
    pairs = [(name, verdict) for names, verdict in rows for name in re.findall(r"`([^`]+)`", names)]
    assert len(dict(pairs)) == len(pairs), "a name stands twice"
    return dict(pairs)


def offered(title: str) -> set[str]:
    """The names that a table says are here."""
    return {name for name, text in verdicts(title).items() if not text.startswith("not here: ")}


def absent(title: str) -> set[str]:
    """The names that a table says are not here."""
    return verdicts(title).keys() - offered(title)


def variants(path: str, optional: str) -> list[str]:
    """A path with and without its optional part, which a pattern of two groups finds."""
    found = re.search(optional, path)
    if found is None:
        return [path]
    before, after = path[: found.start()], path[found.end() :]
    return [form for part in ("", found[1]) for form in variants(before + part + after, optional)]


def documented_routes() -> set[str]:
    rows = [name.split(" ") for name in offered("Endpoints")]
    return {
        f"{method} {re.sub('{[a-z]}', '{}', form)}"
        for method, path in rows
        for form in variants(path, r"\[([^\]]*)\]")
    }


def served_routes() -> set[str]:
    """Every route of the router, whose patterns become paths: groups with a name are parts that
    the client chooses, groups without one are optional."""
    table = importlib.import_module("microkernel_http.routes")._TABLE
    found = set()
    for pattern, methods, _ in table:
        text = re.sub(r"\(\?P<kind>system\|cuda\)", "<kind>", pattern.pattern)
        text = re.sub(r"\(\?P<\w+>[^()]*\)|\[\^/\]\+", "{}", text)
        forms = variants(text, r"\(\?:([^()]*)\)\?")
        paths = [form.replace("<kind>", kind) for form in forms for kind in ("system", "cuda")]
        found |= {f"{method} {path}" for method in methods for path in paths}
    return found


def test_every_route_is_compared_and_no_other() -> None:
    assert documented_routes() == served_routes()


def test_every_rpc_is_compared_and_no_other() -> None:
    pytest.importorskip("google.protobuf")
    methods = importlib.import_module("microkernel_grpc.schema").methods()
    served = {path.removeprefix("/") for path in methods}
    assert offered("RPCs") == served
    assert not absent("RPCs") & served


def test_every_flag_is_compared_and_no_other() -> None:
    declared: list[type[object]] = [importlib.import_module("microkernel.settings").ServerSettings]
    for module in map(importlib.import_module, PLUGINS.values()):
        if hasattr(module, "register_options"):
            module.register_options(declared.append)
    options = [spec for settings in declared for _, spec, _ in options_of(settings).values()]
    taken = {flag for spec in options for flag in spec.flag.split()}
    assert offered("Flags") == taken | {"--help", "--plugins"}


@pytest.mark.parametrize("settings", ["microkernel.accepted"])
def test_flags_without_effect_are_called_so(settings: str) -> None:
    accepted = importlib.import_module(settings).AcceptedSettings
    flags = {flag for _, spec, _ in options_of(accepted).values() for flag in spec.flag.split()}
    said = verdicts("Flags")
    assert {flag for flag in flags if not said[flag].startswith("no effect: ")} == set()


def test_every_extension_is_compared_and_no_other() -> None:
    extensions = importlib.import_module("microkernel.server").EXTENSIONS
    assert offered("Extensions") == set(extensions)
    assert [name for name in verdicts("Extensions") if name in extensions] == list(extensions)


def test_every_family_of_metrics_is_compared_and_no_other() -> None:
    folder = ROOT / "kernel" / "microkernel" / "metrics"
    sources = "\n".join(path.read_text() for path in folder.glob("*.py"))
    named = set(re.findall(r'"((?:nv|microkernel)_\w+)"', sources))
    models = importlib.import_module("microkernel.metrics.models").FAMILIES
    assert offered("Metrics") == named | {family.name for family in models}


def test_every_front_end_is_compared() -> None:
    frontends = {name for name, module in PLUGINS.items() if _has_frontends(module)}
    assert offered("Front ends") == frontends


def _has_frontends(module: str) -> bool:
    return hasattr(importlib.import_module(module), "register_frontends")


@pytest.mark.parametrize(
    "title", ["Endpoints", "RPCs", "Extensions", "Flags", "Metrics", "Front ends"]
)
def test_every_verdict_is_one(title: str) -> None:
    for name, text in verdicts(title).items():
        assert text.startswith(VERDICTS), (name, text)
