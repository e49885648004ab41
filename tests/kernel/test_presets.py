"""Defaults that plug-ins change, and flags that several plug-ins have."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from microkernel import InvalidArgument, app, cli, option
from microkernel.app import Setup
from microkernel.plugins import Plugin, Plugins, discover


@dataclass(frozen=True, slots=True)
class Near:
    """Settings with a flag of their own and one that others have."""

    own: int = option(1, flag="--near", about="Near.")
    both: int = option(2, flag="--both --also", about="Both.")
    words: tuple[str, ...] = option((), flag="--words", about="Words.", many=True)


@dataclass(frozen=True, slots=True)
class Far:
    """Settings that share flags under another name."""

    shared: int = option(3, flag="--both --also", about="Both.")
    hidden: int = option(4, about="Not a flag.")


def plugins(presets: Mapping[str, Any], **tables: Mapping[str, Any]) -> Plugins:
    near = Plugin("near", "d", "1", settings_type=Near)
    far = Plugin("far", "d", "1", settings_type=Far, presets=dict(presets))
    return Plugins([near, far], Path("operator.toml"), tables)


def settings(found: Plugins, **flags: Any) -> tuple[Near, Far]:
    near, far = found.all
    return found.settings(near, flags), found.settings(far, {})


def test_without_presets_the_defaults_hold() -> None:
    assert settings(plugins({})) == (Near(), Far())


def test_a_preset_is_a_default_of_every_plug_in() -> None:
    found = plugins({"--both": 7, "--near": 8, "--words": ("a",), "--nobody": 9})
    assert settings(found) == (Near(own=8, both=7, words=("a",)), Far(shared=7))
    assert found.presets(Near) == {"own": 8, "both": 7, "words": ("a",)}


def test_what_the_operator_says_beats_a_preset() -> None:
    found = plugins({"--both": 7, "--near": 8}, near={"own": 5})
    assert settings(found) == (Near(own=5, both=7), Far(shared=7))
    assert settings(found, own=6)[0] == Near(own=6, both=7)


def test_what_the_file_says_of_a_shared_flag_counts_for_both() -> None:
    assert settings(plugins({"--both": 7}, near={"both": 5})) == (Near(both=5), Far(shared=5))
    found = plugins({}, near={"both": 5, "words": ["a"]}, far={"shared": 6, "hidden": 1})
    assert settings(found) == (Near(both=5, words=("a",)), Far(shared=6, hidden=1))


def test_presets_of_a_plug_in_that_is_off_do_not_count() -> None:
    found = plugins({"--both": 7})
    found.all[1].enabled = False
    assert settings(found) == (Near(), Far())


def test_a_preset_that_cannot_be_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="preset of a plug-in: 'own' must be of type int"):
        settings(plugins({"--near": "8x"}))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real_log: None
) -> Callable[..., dict[str, Any]]:
    """`run("--id=x")`: what `microkernel run` would serve with, by plug-in; "" for the server."""
    seen: list[Setup] = []
    monkeypatch.chdir(tmp_path)

    def record(setup: Setup) -> int:
        seen.append(setup)
        return 0

    monkeypatch.setattr(app, "run", record)

    def make(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["microkernel", "run", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        (setup,) = seen
        found = {plugin.name: setup.plugin_settings(plugin) for plugin in setup.plugins.all}
        return {"": setup.settings, **found}

    return make


def test_a_flag_of_several_plug_ins_is_given_once(run: Callable[..., dict[str, Any]]) -> None:
    found = run("--http-max-input-size=5", "--http-restricted-api=health:a=b")
    for name in ("http", "sagemaker", "vertex_ai"):
        assert (found[name].max_input_size, found[name].restricted_api) == (5, ("health:a=b",))


def test_vertex_ai_is_served_and_nothing_else_where_it_runs_the_server(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    monkeypatch.setenv("AIP_HTTP_PORT", "8999")
    monkeypatch.setenv("AIP_STORAGE_URI", "/some/models")
    found = run("--allow-grpc")
    assert (found["vertex_ai"].allow_vertex_ai, found["vertex_ai"].port) == (True, 8999)
    assert (found["http"].allow_http, found["grpc"].allow_grpc) == (False, True)
    assert found[""].model_repository == ("/some/models",)


def test_presets_are_those_of_the_installed_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HTTP_PORT", "8x")
    found = discover()
    vertex_ai = next(plugin for plugin in found.all if plugin.name == "vertex_ai")
    with pytest.raises(InvalidArgument, match="'port' must be of type int, got '8x'"):
        found.settings(vertex_ai, {})
