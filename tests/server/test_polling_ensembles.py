"""A server that follows its repositories, with ensembles in them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from server_harness import Running, write_python_model

INTEGER = "data_type: TYPE_INT32 dims: [ 1 ]"
CONFIG = f"""
input {{ name: "X" {INTEGER} }}
output {{ name: "Y" {INTEGER} }}
instance_group {{ kind: KIND_CPU count: 1 }}
"""
ENSEMBLE = f"""
platform: "ensemble"
input {{ name: "a" {INTEGER} }}
output {{ name: "y" {INTEGER} }}
ensemble_scheduling {{ step {{
  model_name: "model" model_version: -1
  input_map {{ key: "X" value: "a" }} output_map {{ key: "Y" value: "y" }}
}} }}
"""
BODY = "def execute(self, requests):\n    return [answer(Y=read(r, 'X') * {}) for r in requests]\n"
FLAGS = ("--model-control-mode=poll", "--repository-poll-secs=1")


def write(repository: Path, factor: int, config: str = CONFIG) -> None:
    """The model, written whole elsewhere and then put in place of what is there."""
    made = write_python_model(
        repository.parent / f"draft{factor}", "model", config, BODY.format(factor)
    )
    stamp = (made / "1" / "model.py").stat().st_mtime_ns + factor * 10**9
    os.utime(made / "1" / "model.py", ns=(stamp, stamp))
    place = repository / "model"
    if place.exists():
        place.rename(repository.parent / f"before{factor}")
    made.rename(place)


def seven(server: Running) -> object:
    found = server.infer("e", ("a", "INT32", [7]))
    return found.json["outputs"][0]["data"][0] if found.status == 200 else found.error


@pytest.mark.slow
def test_an_ensemble_follows_its_model(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    repository = tmp_path / "models"
    (repository / "e" / "1").mkdir(parents=True)
    (repository / "e" / "config.pbtxt").write_text(ENSEMBLE)
    server = start_server(repository, *FLAGS, "--exit-on-error=false")
    state, reason = server.index()["e"]
    assert state == "UNAVAILABLE"
    assert reason.endswith("contains models that are not available or ambiguous: model")

    write(repository, 1)
    server.log.wait("ensemble loaded")
    server.until(lambda: seven(server) == 7)
    assert seven(server) == 7

    write(repository, 2)
    server.until(lambda: seven(server) == 14)
    assert seven(server) == 14

    write(repository, 3, CONFIG.replace("[ 1 ]", "[ 2 ]"))
    server.log.wait("ensemble cannot serve any more")
    server.until(lambda: server.index()["e"][0] == "UNAVAILABLE")
    assert "inconsistent shape" in server.index()["e"][1]
    assert seven(server) == "Request for unknown model: 'e' has no available versions"

    write(repository, 4)
    server.until(lambda: seven(server) == 28)
    assert seven(server) == 28

    shutil.rmtree(repository / "model")
    server.until(lambda: {state for state, _ in server.index().values()} == {"UNAVAILABLE"})
    assert server.index()["e"] == ("UNAVAILABLE", "unloaded")
    assert server.get("/v2/health/ready").status == 200

    write(repository, 5)
    server.until(lambda: seven(server) == 35)
    assert seven(server) == 35
