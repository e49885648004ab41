"""A server that follows what changes in its repositories."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from server_harness import Running, write_python_model

CONFIG = """
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
X = ("X", "INT32", [7])
FLAGS = ("--model-control-mode=poll", "--repository-poll-secs=1")


def write(repository: Path, name: str, factor: int) -> Path:
    """A model that multiplies; written whole elsewhere, and then put in place of what is there."""
    body = f'def execute(self, requests):\n    return [answer(Y=read(r, "X") * {factor})'
    body += " for r in requests]\n"
    made = write_python_model(repository.parent / "drafts", name, CONFIG, body)
    stamp = (made / "1" / "model.py").stat().st_mtime_ns + factor * 10**9
    os.utime(made / "1" / "model.py", ns=(stamp, stamp))
    place = repository / name
    if not place.exists():
        made.rename(place)
    else:
        (made / "1" / "model.py").replace(place / "1" / "model.py")
    return place


def seven(server: Running, name: str) -> object:
    found = server.infer(name, X)
    return found.json["outputs"][0]["data"][0] if found.status == 200 else found.error


@pytest.mark.slow
def test_models_come_change_and_go(tmp_path: Path, start_server: Callable[..., Running]) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    write(repository, "first", 1)
    server = start_server(repository, *FLAGS)
    assert seven(server, "first") == 7

    place = write(repository, "second", 2)
    server.until(lambda: seven(server, "second") == 14)
    assert seven(server, "second") == 14

    since = len(server.log.lines)
    write(repository, "second", 3)
    server.until(lambda: seven(server, "second") != 14)
    assert seven(server, "second") == 21
    server.log.wait("model unloaded", since=since)

    since = len(server.log.lines)
    (place / "config.pbtxt").write_text("no { such: thing }")
    server.log.wait("model cannot be loaded", since=since)
    assert seven(server, "second") == 21

    shutil.rmtree(place)
    server.until(lambda: server.index()["second"][0] == "UNAVAILABLE")
    assert server.index()["second"] == ("UNAVAILABLE", "unloaded")
    assert (
        seven(server, "second") == "Request for unknown model: 'second' has no available versions"
    )
    assert server.get("/v2/health/ready").status == 200
    assert seven(server, "first") == 7


@pytest.mark.parametrize("action", ["load", "unload"])
def test_models_are_not_loaded_by_request(
    tmp_path: Path, start_server: Callable[..., Running], action: str
) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    server = start_server(repository, *FLAGS)
    found = server.post(f"/v2/repository/models/any/{action}", json.dumps({}).encode())
    text = "explicit model load / unload is not allowed if polling is enabled"
    assert (found.status, found.error) == (503, text)
