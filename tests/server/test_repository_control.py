"""Loading and unloading models of a running server through the official clients."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_harness import PATIENCE, Answer, Gate, Running, write_python_model

CONFIG = """
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output [
  { name: "TAG" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "PID" data_type: TYPE_INT32 dims: [ 1 ] }
]
instance_group { kind: KIND_CPU count: 1 }
"""
BODY = """
def initialize(self, args):
    if self.TAG < 0:
        raise ValueError("this is no good")

def execute(self, requests):
    gate = os.path.dirname(os.path.dirname(__file__)) + "/gate"
    if os.path.exists(gate):
        open(gate).read()
    found = [np.array([number], np.int32) for number in (self.TAG, os.getpid())]
    return [answer(TAG=found[0], PID=found[1]) for request in requests]
"""
BROKEN = -1
X = ("X", "INT32", [7])


def overriding(**changes: Any) -> str:
    """The configuration of CONFIG as JSON, with changes."""
    document = {
        "backend": "python",
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [
            {"name": name, "data_type": "TYPE_INT32", "dims": [1]} for name in ("TAG", "PID")
        ],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        **changes,
    }
    return json.dumps(document)


class Model:
    """A model of the repository and one way to control it. Its tag is what it answers."""

    def __init__(self, name: str, repository: Path, server: Running, protocol: str) -> None:
        self.name, self.repository, self.server = name, repository, server
        self._written = 0
        kind = f"tritonclient.{protocol}"
        self.kinds = pytest.importorskip(kind, reason=f"tritonclient[{protocol}] is missing")
        url = {"http": server.http_url, "grpc": server.grpc_url}[protocol]
        self.calls = self.kinds.InferenceServerClient(url)

    def write(self, tag: int, config: str = CONFIG) -> Path:
        """Write the model with that tag; returns its directory. Every writing has another size,
        for Python runs what it compiled before where size and second of a file are the same."""
        self._written += 1
        body = f"TAG = {tag}\n{BODY}{'##' * self._written}"
        return write_python_model(self.repository, self.name, config, body)

    def load(self, **override: Any) -> None:
        """Load it over the protocol."""
        self.calls.load_model(self.name, **override)

    def refused(self, **override: Any) -> str:
        """The message of the error that loading must raise."""
        with pytest.raises(self.kinds.InferenceServerException) as caught:
            self.load(**override)
        return str(caught.value.message())

    def infer(self) -> Answer:
        """The answer to a request."""
        return self.server.infer(self.name, X)

    def numbers(self) -> dict[str, int]:
        """The outputs of a request that must succeed."""
        found = self.infer()
        assert found.status == 200, found.body
        return {output["name"]: output["data"][0] for output in found.json["outputs"]}

    @property
    def tag(self) -> int:
        """What it answers."""
        return self.numbers()["TAG"]

    def state(self) -> tuple[str, str]:
        """Its state and reason in the index."""
        return self.server.index()[self.name]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("control") / "models"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def server(repository: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(repository, "--model-control-mode=explicit")


@pytest.fixture(params=["http", "grpc"])
def model(request: pytest.FixtureRequest, repository: Path, server: Running) -> Iterator[Model]:
    """A model of the test's own, controlled over each protocol and unloaded at the end."""
    made = Model(request.node.name, repository, server, request.param)
    yield made
    made.calls.unload_model(made.name)
    made.calls.close()


class Askers:
    """Threads that ask a model without a pause; `seen` are the tags that each has got."""

    def __init__(self, model: Model, number: int) -> None:
        self.seen: list[list[int]] = [[] for _ in range(number)]
        self.errors: list[BaseException] = []
        self._model = model
        self._changed = threading.Condition()
        self._over = False

    @contextmanager
    def running(self) -> Iterator["Askers"]:
        """They ask while the block lasts."""
        threads = [threading.Thread(target=self._ask, args=(tags,)) for tags in self.seen]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over = True
            for thread in threads:
                thread.join(PATIENCE)

    def _ask(self, tags: list[int]) -> None:
        while not (self._over or self.errors):
            try:
                found = [self._model.tag]
            except (Exception, AssertionError) as error:  # noqa: BLE001 - shown by the test
                self.errors.append(error)
                found = []
            with self._changed:
                tags += found
                self._changed.notify_all()

    def wait(self, tag: int) -> None:
        """Wait until every one has got that tag; fails where a request has failed."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.errors or all(tag in tags for tags in self.seen), PATIENCE
            )
        assert self.errors == []


def test_reloading_under_load_loses_no_request(model: Model) -> None:
    model.write(0)
    model.load()
    with Askers(model, 3).running() as askers:
        askers.wait(0)
        for tag in range(1, 6):
            model.write(tag)
            model.load()
            assert model.tag == tag
            askers.wait(tag)
    assert askers.errors == []
    assert all(tags == sorted(tags) for tags in askers.seen)


def test_what_did_not_change_is_not_loaded_again(model: Model) -> None:
    model.write(1)
    model.load()
    pid = model.numbers()["PID"]
    model.load()
    assert model.numbers()["PID"] == pid


def test_a_reload_that_fails_keeps_what_serves(model: Model) -> None:
    folder = model.write(1)
    model.load()
    pid = model.numbers()["PID"]
    model.write(BROKEN)
    for _ in range(2):  # what failed is tried again
        error = model.refused()
        assert error.startswith(
            f"load failed for model '{model.name}': version 1 is at UNAVAILABLE state: Internal: "
        )
        assert "this is no good" in error
    (folder / "config.pbtxt").write_text('backend: "python"\nno_such_field: 1\n')
    polled = f"failed to load '{model.name}', failed to poll from model repository"
    assert model.refused() == polled
    assert model.numbers() == {"TAG": 1, "PID": pid}
    assert model.state() == ("READY", "")
    model.write(2)
    model.load()
    assert model.tag == 2


def test_a_first_load_that_fails(model: Model) -> None:
    model.write(BROKEN)
    assert model.refused().startswith(f"load failed for model '{model.name}': version 1 is at UNA")
    state, reason = model.state()
    assert state == "UNAVAILABLE"
    assert reason.startswith("Internal: ")
    assert not model.calls.is_model_ready(model.name)
    found = model.infer()
    unknown = f"Request for unknown model: '{model.name}' has no available versions"
    assert (found.status, found.error) == (404, unknown)
    model.write(1)
    model.load()
    assert model.tag == 1


def shape(model: Model) -> list[int]:
    """The shape of the input in the metadata."""
    found: list[int] = model.server.get(f"/v2/models/{model.name}").json["inputs"][0]["shape"]
    return found


def test_a_configuration_that_comes_along(model: Model) -> None:
    model.write(1)
    model.load()
    assert shape(model) == [1]
    model.load(config=overriding(max_batch_size=4))
    assert shape(model) == [-1, 1]
    assert model.server.infer(model.name, ("X", "INT32", [[1], [2]])).status == 200
    polled = f"failed to load '{model.name}', failed to poll from model repository"
    assert model.refused(config="{not json") == polled
    assert shape(model) == [-1, 1]
    model.load()  # nothing has changed on disk, so it sticks
    assert shape(model) == [-1, 1]
    model.calls.unload_model(model.name)
    model.load()
    assert shape(model) == [1]
    assert model.tag == 1


def test_files_that_come_along(model: Model) -> None:
    folder = model.write(1)
    source = (folder / "1" / "model.py").read_bytes()
    model.load()
    polled = f"failed to load '{model.name}', failed to poll from model repository"
    given = {"file:7/model.py": source.replace(b"TAG = 1\n", b"TAG = 70\n")}
    assert model.refused(files=given) == polled
    assert model.tag == 1
    model.load(config=overriding(), files=given)
    assert model.tag == 70
    metadata = model.server.get(f"/v2/models/{model.name}").json
    assert metadata["versions"] == ["7"]
    model.write(2)
    assert model.tag == 70
    model.load()  # goes back to the repository's
    assert model.tag == 2
    assert model.server.infer(model.name, X, version="7").status in (404, 503)


@pytest.mark.parametrize("place", ["absolute", "up", "around"])
def test_files_cannot_leave_the_model(model: Model, tmp_path: Path, place: str) -> None:
    stray = tmp_path / "stray"
    path = {"absolute": f"{stray}", "up": "../stray", "around": "1/../../stray"}[place]
    model.write(1)
    model.load()
    source = (model.repository / model.name / "1" / "model.py").read_bytes()
    since = len(model.server.log.lines)
    files = {"file:1/model.py": source, f"file:{path}": b"x"}
    polled = f"failed to load '{model.name}', failed to poll from model repository"
    assert model.refused(config=overriding(), files=files) == polled
    line = model.server.log.wait("model cannot be loaded", since=since)
    assert line["reason"] == f"file override '{path}' leaves the model's directory"
    assert not stray.exists()
    assert model.tag == 1


def test_unloading_lets_a_running_request_finish(model: Model) -> None:
    folder = model.write(1)
    model.load()
    worker = psutil.Process(model.numbers()["PID"])
    gate = Gate(folder / "gate")
    ends: list[Answer] = []
    thread = threading.Thread(target=lambda: ends.append(model.infer()))
    thread.start()
    descriptor = gate.reached()
    gate.path.unlink()
    try:
        model.calls.unload_model(model.name)
        assert model.state()[0] == "UNLOADING"
        assert worker.is_running()
        unknown = f"Request for unknown model: '{model.name}' has no available versions"
        assert (model.infer().status, model.infer().error) == (404, unknown)
        assert not model.calls.is_model_ready(model.name)
    finally:
        gate.open(descriptor)
        thread.join(PATIENCE)
    (found,) = ends
    assert found.status == 200
    assert found.json["outputs"][0]["data"] == [1]
    assert psutil.wait_procs([worker], PATIENCE)[1] == []
    model.server.until(lambda: model.state()[0] != "UNLOADING")
    assert model.state() == ("UNAVAILABLE", "unloaded")
    model.load()
    assert model.tag == 1


def test_a_model_that_is_nowhere(model: Model) -> None:
    polled = f"failed to load '{model.name}', failed to poll from model repository"
    assert model.refused() == polled
    model.calls.unload_model("nobody")


@pytest.fixture(scope="module")
def fixed(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """A server that loads what is there at its start, and nothing on request."""
    repository = tmp_path_factory.mktemp("fixed") / "models"
    write_python_model(repository, "stays", CONFIG, f"TAG = 1\n{BODY}")
    return start_server(repository)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nothing_is_loaded_or_unloaded_unless_the_mode_is_explicit(
    fixed: Running, tmp_path: Path, protocol: str
) -> None:
    model = Model("stays", tmp_path, fixed, protocol)
    text = "explicit model load / unload is not allowed if polling is enabled"
    assert model.refused() == text
    with pytest.raises(model.kinds.InferenceServerException, match=text):
        model.calls.unload_model("stays")
    assert model.tag == 1
    model.calls.close()
