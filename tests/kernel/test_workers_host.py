"""What a worker is given: a share of the machine, and its settings."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from microkernel import host, option
from microkernel.factories import resolve
from microkernel.workers.hosting import make_backend, settings_from_json, settings_to_json


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "400000 0\n"}, 0),
        ({"cpu.max": "nonsense"}, 0),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 0),
    ],
)
def test_the_quota_of_a_cgroup(tmp_path: Path, files: dict[str, str], quota: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host._quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("affinity", "quota", "processors"), [(8, 0, 8), (8, 3, 3), (2, 3, 2), (1, 0, 1)]
)
def test_processors_are_those_one_may_use(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: int, processors: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(host, "_quota", lambda root: quota)
    assert host.processors() == processors


def test_a_system_without_affinity_counts_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(host, "_quota", lambda root: 0)
    assert host.processors() == 5


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, 4), ("0,2", 2), ("", 0), ("-1", 0), ("0,1,2,3,4,5", 4)]
)
def test_gpus_are_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: int
) -> None:
    devices = [Path(f"/dev/nvidia{number}") for number in range(4)]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: devices)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert host.gpus() == gpus


@dataclass(frozen=True, slots=True)
class Depth:
    """Settings of a plug-in."""

    depth: int = option(1, about="How deep.")
    words: tuple[str, ...] = option((), about="Some words.", many=True)


def test_settings_survive_the_way_to_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, Depth.__module__, sys.modules[__name__])
    settings = Depth(7, ("a", "b"))
    document = json.loads(json.dumps(settings_to_json(settings)))
    assert settings_from_json(document) == settings
    assert settings_from_json(json.loads(json.dumps(settings_to_json(None)))) is None


def test_a_backend_is_made_with_its_settings_or_with_nothing() -> None:
    assert resolve("json:dumps") is json.dumps
    assert make_backend("builtins:dict", None) == {}  # type: ignore[comparison-overlap]
    assert make_backend("builtins:dict", {"a": 1}) == {"a": 1}  # type: ignore[comparison-overlap]
