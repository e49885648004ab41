"""The documents tell the truth about commands, links and settings."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from microkernel.options import build

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
