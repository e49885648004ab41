"""Custom batching: where a strategy is found, what it decides, and what its faults do."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from microkernel import (
    BackendType,
    BatchingStrategy,
    DynamicBatching,
    InferRequest,
    InvalidArgument,
    ModelConfig,
    ModelParameter,
    OpenBatch,
    Tensor,
)
from microkernel.app import Setup
from microkernel.hookspecs import ENTRY_POINT_GROUP
from microkernel.log import LogControl
from microkernel.models.strategies import Guarded, Strategies
from microkernel.plugins import Plugins, discover
from microkernel.port import LogSettings
from microkernel.scheduling.pending import Pending, Reply
from microkernel.scheduling.policy import Batching, Dispatch, Joins, Wait
from microkernel.settings import ServerSettings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
BACKEND = BackendType("odd", "backend_of_strategies.backend:Odd")
NOBODY: Reply = object()  # type: ignore[assignment]  # never looked at

FILE = """
from microkernel import BatchingStrategy, OpenBatch

class Same(BatchingStrategy):
    def __init__(self, config):
        self.what = config.parameter("SAME", "id")

    def open_batch(self):
        return Batch(self.what)

class Batch(OpenBatch):
    def __init__(self, what):
        self.what, self.value = what, None

    def include(self, request):
        value = request.parameters.get(self.what)
        self.value = self.value or value
        return self.value == value

batching_strategy = Same
"""


def config(**parameters: str) -> ModelConfig:
    given = {name: ModelParameter(value) for name, value in parameters.items()}
    return ModelConfig(
        name="m", max_batch_size=8, dynamic_batching=DynamicBatching(), parameters=given
    )


def waiting(size: int = 1, tokens: int = 0, **parameters: Any) -> Pending:
    inputs = (Tensor.from_numpy("TOKENS", np.zeros((1, tokens), np.int32)),)
    return Pending(InferRequest("m", inputs, parameters=parameters), size, "", NOBODY, 0.0, 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's directory with one version."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    return tmp_path / "m"


@pytest.fixture
def budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The strategy of docs/plugins.md as an importable module."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    (source,) = [block for block in blocks if "register_batching_strategies" in block]
    (tmp_path / "budget_of_the_document.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("budget_of_the_document")


def batches(joins: Callable[[], Joins] | None, *queue: Pending) -> list[int]:
    """How many requests each batch has, in a queue that is full."""
    policy, left, sizes = Batching(8, frozenset({8}), 0.0, joins), list(queue), []
    while left:
        decision = policy.decide(left, 0.0)
        assert isinstance(decision, Dispatch)
        sizes.append(decision.count)
        left = left[decision.count :]
    return sizes


def test_the_documented_strategy_keeps_to_its_budget(budget: Any, model: Path) -> None:
    registered: dict[str, Any] = {}
    budget.register_batching_strategies(registered.__setitem__)
    asked = config(BATCH_STRATEGY="budget", BATCH_TOKENS="10")
    joins = Strategies(registered).of(asked, model, 1, BACKEND)
    queue = [waiting(tokens=tokens) for tokens in (4, 4, 4, 10, 99, 1, 9, 1)]
    assert batches(joins, *queue) == [2, 1, 1, 1, 2, 1]


def test_a_plug_in_s_strategies_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: Any
) -> None:
    for name in ("one", "two"):
        info = tmp_path / f"{name}_of_strategies-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[{ENTRY_POINT_GROUP}]\n{name} = budget_of_the_document\n"
        )
    monkeypatch.chdir(tmp_path)
    found = [plugin for plugin in discover().all if plugin.name in ("one", "two")]
    assert [(p.kind, p.error, list(p.strategies)) for p in found] == [
        ("batching", "", ["budget"])
    ] * 2
    setup = Setup(ServerSettings(), Plugins(found, None, {}), {}, LogControl(LogSettings()))
    with pytest.raises(InvalidArgument, match="two plug-ins offer a batching strategy 'budget'"):
        setup.loader()


def test_a_refusal_ends_the_wait_for_others(model: Path) -> None:
    (model / "batchstrategy.py").write_text(FILE)
    joins = Strategies({}).of(config(), model, 1, BACKEND)
    policy = Batching(8, frozenset({8}), 5.0, joins)
    one, same, other = waiting(id="x"), waiting(id="x"), waiting(id="y")
    assert policy.decide([one, same], 0.0) == Wait(5.0)
    assert policy.decide([one, other], 0.0) == Dispatch(1)


@pytest.mark.parametrize("place", ["m/1", "m", "backend_of_strategies"])
def test_a_file_is_found(place: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model.parent / place
    folder.mkdir(exist_ok=True)
    (folder / "batchstrategy.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(model.parent))
    assert Strategies({}).of(config(), model, 1, BACKEND) is not None


def test_the_version_s_file_beats_the_model_s(model: Path) -> None:
    (model / "batchstrategy.py").write_text("raise RuntimeError('not this one')")
    (model / "1" / "batchstrategy.py").write_text(FILE)
    assert Strategies({}).of(config(), model, 1, BACKEND) is not None


def test_a_parameter_names_a_file(model: Path) -> None:
    (model / "own").mkdir()
    (model / "own" / "mine.py").write_text(FILE)
    asked = config(TRITON_BATCH_STRATEGY_PATH="own/mine.py", SAME="who")
    joins = Strategies({}).of(asked, model, 1, BACKEND)
    assert batches(joins, *(waiting(who=who) for who in "aabccc")) == [2, 1, 3]


def test_without_one_nobody_is_asked(model: Path) -> None:
    assert Strategies({"other": lambda _: _Yes()}).of(config(), model, 1, BACKEND) is None


def test_a_model_without_a_dynamic_batcher_has_none(model: Path) -> None:
    (model / "batchstrategy.py").write_text("raise RuntimeError('must not run')")
    assert Strategies({}).of(ModelConfig(name="m"), model, 1, BACKEND) is None


class _Yes(BatchingStrategy):
    def open_batch(self) -> OpenBatch:
        raise NotImplementedError


def _broken(_: ModelConfig) -> BatchingStrategy:
    raise ValueError("no idea")


def _leaving(_: ModelConfig) -> BatchingStrategy:
    sys.exit("I quit")


@pytest.mark.parametrize(
    ("parameters", "files", "fault"),
    [
        (
            {"BATCH_STRATEGY": "x"},
            {},
            "'BATCH_STRATEGY' .* names 'x', .* offer: broken, leaving, none$",
        ),
        ({"BATCH_STRATEGY": "leaving"}, {}, "cannot be made: SystemExit: I quit"),
        ({"BATCH_STRATEGY": "broken"}, {}, "cannot be made: ValueError: no idea"),
        ({"BATCH_STRATEGY": "none"}, {}, "must be a microkernel.BatchingStrategy, got int"),
        ({"TRITON_BATCH_STRATEGY_PATH": "x.py"}, {}, "names 'x.py', but .*x.py is not a file"),
        ({"TRITON_BATCH_STRATEGY_PATH": "../x.py"}, {"../x.py": FILE}, "must name a file inside"),
        ({"TRITON_BATCH_STRATEGY_PATH": "/etc/x.py"}, {}, "must name a file inside"),
        (
            {"TRITON_BATCH_STRATEGY_PATH": "x.so"},
            {"x.so": ""},
            "are Python here, not libraries: put a 'batchstrategy.py' that defines",
        ),
        ({}, {"1/batchstrategy.so": ""}, "batchstrategy.so: batching strategies are Python here"),
        ({}, {"batchstrategy.py": "1 +"}, "batchstrategy.py: cannot be loaded: SyntaxError"),
        ({}, {"batchstrategy.py": "raise SystemExit(3)"}, "cannot be loaded: SystemExit: 3"),
        ({}, {"batchstrategy.py": "x = 1"}, "does not define 'batching_strategy\\(config\\)'"),
    ],
)
def test_what_cannot_be_loaded(
    parameters: dict[str, str], files: dict[str, str], fault: str, model: Path
) -> None:
    for name, text in files.items():
        (model / name).write_text(text)
    registered = {"broken": _broken, "leaving": _leaving, "none": lambda _: 7}
    strategies = Strategies(registered)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=fault):
        strategies.of(config(**parameters), model, 1, BACKEND)


class Faulty(BatchingStrategy, OpenBatch):
    """Fails where it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        self._where = where
        self._error = error

    def open_batch(self) -> OpenBatch:
        if self._where == "open_batch":
            raise self._error
        return self

    def include(self, request: InferRequest) -> bool:
        raise self._error


@pytest.mark.parametrize("where", ["open_batch", "include"])
@pytest.mark.parametrize("error", [RuntimeError("no answer"), SystemExit(3)])
def test_faults_are_logged_once_and_mean_yes(where: str, error: BaseException) -> None:
    guarded = Guarded("m", Faulty(where, error))
    with capture_logs() as logs:
        for _ in range(3):
            assert batches(guarded.open_batch, waiting(), waiting(), waiting()) == [3]
    (line,) = logs
    assert line["event"] == "batching strategy failed, further faults are not logged"
    assert (line["model"], line["log_level"]) == ("m", "error")
