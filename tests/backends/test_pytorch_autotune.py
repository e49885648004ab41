"""The parameter AUTOTUNE: what a load takes from a record, and what it makes of bad ones."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn

from microkernel import (
    Batch,
    DynamicBatching,
    InstanceGroup,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    processors,
)
from microkernel.config.model import SequenceBatching
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.tuning import key, loading, places
from microkernel_torchscript.tuning.asking import Answer, NotMeasured
from microkernel_torchscript.tuning.deciding import Decision
from microkernel_torchscript.tuning.keeping import made_now
from microkernel_torchscript.tuning.record import Measured, record_to_text
from microkernel_torchscript.tuning.trial import FROZEN, OPTIMIZED, PLAIN, Candidate

Save = Callable[..., Path]
Lines = Callable[[int], list[str]]

FOUND = Measured(Decision(Candidate(OPTIMIZED, 1, 1, 4), "it is faster", 1.5, 2.0, 1e-7))

pytestmark = pytest.mark.usefixtures("own_cache")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


def config(autotune: str = "load", **parameters: str) -> ModelConfig:
    given = {"AUTOTUNE": autotune, **parameters}
    return ModelConfig(
        name="net",
        backend="pytorch",
        max_batch_size=8,
        input=(ModelInput("x", "TYPE_FP32", dims=(4,)),),
        output=(ModelOutput("OUTPUT__0", "TYPE_FP32", dims=(3,)),),
        parameters={name: ModelParameter(text) for name, text in given.items()},
    )


@pytest.fixture
def files(saved_net: Callable[[nn.Module], Path]) -> Path:
    """A version directory of a model 'net'."""
    return saved_net(Net())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """`lines(level)`: what tuning has logged at a level."""
    caplog.set_level(logging.INFO)
    return lambda level: [
        record.getMessage()
        for record in caplog.records
        if record.levelno == level and ".tuning." in record.name
    ]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[float]]:
    """`measured(what)`: measuring finds that, or raises it; the seconds of each time it was
    asked."""

    def found(what: Any) -> list[float]:
        asked: list[float] = []

        def ask(config: ModelConfig, files: Path, seconds: float, *_: Any) -> Answer:
            asked.append(seconds)
            if isinstance(what, Exception):
                raise what
            return Answer(config, {}, what)

        monkeypatch.setattr(loading, "ask", ask)
        return asked

    return found


def store(files: Path, what: Measured = FOUND, **changes: str) -> Path:
    """Keep a record of the model, whose key may be changed."""
    fitting = key.key_of(config(), files / "model.pt", torch.__version__)
    path = places.places(files)[0]
    places.write(path, made_now({**fitting, **changes}, what))
    return path


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        *((text, loading.Mode.OFF) for text in ("off", "false", "0", "Off")),
        *((text, loading.Mode.LOAD) for text in ("load", "LOAD")),
        *((text, loading.Mode.MEASURE) for text in ("true", "on", "1", "True")),
    ],
)
def test_words_of_the_parameter(text: str, mode: loading.Mode) -> None:
    assert loading.mode_of(config(text)) is mode


def test_it_is_off_where_nothing_is_said() -> None:
    assert loading.mode_of(replace(config(), parameters={})) is loading.Mode.OFF
    assert loading.seconds_of(config()) == 60.0
    assert loading.seconds_of(config(AUTOTUNE_SECONDS="2.5")) == 2.5


@pytest.mark.parametrize("text", ["", "yes", "load ", "2"])
def test_another_word_fails_the_load(text: str, files: Path) -> None:
    with pytest.raises(InvalidArgument, match="must be one of off, load, true, got '"):
        PyTorchBackend().complete(config(text), files)
    with pytest.raises(InvalidArgument, match="parameter 'AUTOTUNE' of model 'net'"):
        PyTorchBackend().load(config(text), files)


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "1e9", "inf", "nan"])
def test_another_limit_fails_the_load(text: str, files: Path) -> None:
    with pytest.raises(InvalidArgument, match="'AUTOTUNE_SECONDS' of model 'net' must be a number"):
        PyTorchBackend().complete(config("true", AUTOTUNE_SECONDS=text), files)


GROUP = (InstanceGroup("g", "KIND_CPU", 3),)


@pytest.mark.parametrize(
    ("before", "choice", "groups", "batching"),
    [
        (config(), (2, 8), (InstanceGroup(count=2),), DynamicBatching((8,))),
        (config(), (1, 1), (), None),
        (config(), (1, 4), (), DynamicBatching((4,))),
        (config(), (1, 16), (), None),  # more than the model takes
        (replace(config(), max_batch_size=0), (2, 4), (InstanceGroup(count=2),), None),
        (replace(config(), instance_group=GROUP), (2, 4), GROUP, DynamicBatching((4,))),
        (
            replace(config(), dynamic_batching=DynamicBatching((2,))),
            (1, 4),
            (),
            DynamicBatching((2,)),
        ),
        (replace(config(), sequence_batching=SequenceBatching()), (1, 4), (), None),
    ],
)
def test_only_what_is_not_written_is_filled_in(
    before: ModelConfig,
    choice: tuple[int, int],
    groups: tuple[InstanceGroup, ...],
    batching: DynamicBatching | None,
) -> None:
    instances, batch = choice
    after = loading.arranged(before, Candidate(PLAIN, 1, instances, batch))
    assert (after.instance_group, after.dynamic_batching) == (groups, batching)


def test_a_record_that_fits_is_applied_and_answers_stay(
    files: Path,
    lines: Lines,
    host: Callable[..., Any],
    make_batch: Callable[..., Batch],
    output_of: Callable[..., Any],
) -> None:
    store(files)
    backend = PyTorchBackend()
    completed = backend.complete(config(), files)
    assert completed.dynamic_batching == DynamicBatching((4,))
    batch = make_batch([{"x": np.random.default_rng(0).random((3, 4), np.float32)}])
    (tuned,) = host(backend.load(completed, files)).execute(batch)
    (plain,) = host(PyTorchBackend().load(config("off"), files)).execute(batch)
    tuned, plain = output_of(tuned, "OUTPUT__0"), output_of(plain, "OUTPUT__0")
    np.testing.assert_allclose(tuned, plain, rtol=1e-4, atol=1e-5)
    assert lines(logging.INFO) == [
        "model 'net': tuning chose 'optimize_for_inference' in 1 instances with 1 threads each, "
        "batches of 4: it is faster; results differ by at most 1e-07 from the plain module's"
    ]


def test_the_chosen_variant_and_threads_are_those_that_run(
    files: Path, host: Callable[..., Any]
) -> None:
    store(files, Measured(Decision(Candidate(FROZEN, 1, 1, 1), "")))
    for parameters, threads in (({}, 1), ({"INTRA_OP_THREAD_COUNT": "3"}, 3)):
        served = host(PyTorchBackend().load(config("load", **parameters), files), threads=2)
        forward = served._instance._forward
        assert "prim::GetAttr" not in str(forward.graph)  # its weights are constants
        assert served.on_thread(torch.get_num_threads) == threads
    store(files, Measured(Decision(Candidate(FROZEN, 1, 2, 1), "")))
    served = host(PyTorchBackend().load(config(), files), threads=2)
    assert served.on_thread(torch.get_num_threads) == 2  # chosen for two instances, there is one


def test_without_the_parameter_a_record_is_not_looked_at(files: Path, lines: Lines) -> None:
    store(files).write_text("nothing")
    backend, plain = PyTorchBackend(), config("off")
    assert backend.complete(plain, files) == plain
    backend.load(plain, files)
    assert lines(logging.WARNING) == lines(logging.INFO) == []


@pytest.mark.parametrize("part", ["file", "torch", "cpu", "cores", "configuration"])
def test_a_record_of_something_else_is_ignored_with_a_line(
    part: str, files: Path, lines: Lines
) -> None:
    path = store(files, FOUND, **{part: "2048"})
    backend = PyTorchBackend()
    assert backend.complete(config(), files) == config()
    backend.load(config(), files)
    told = f"model 'net': the record of tuning '{path}' is for another {part} and is ignored"
    assert lines(logging.INFO) == [told]


def test_a_record_that_is_none_is_ignored_with_a_warning(files: Path, lines: Lines) -> None:
    store(files).write_text("{")
    backend = PyTorchBackend()
    assert backend.complete(config(), files) == config()
    backend.load(config(), files)
    (warning,) = lines(logging.WARNING)
    assert "is no record of tuning" in warning
    assert warning.endswith("it is ignored")


def test_a_changed_file_makes_its_record_another_models(
    files: Path, save_module: Save, lines: Lines
) -> None:
    store(files)
    save_module(nn.Linear(4, 3), files)
    PyTorchBackend().load(config(), files)
    assert lines(logging.INFO)[0].endswith("is for another file and is ignored")


def test_measuring_is_done_once_and_kept(
    files: Path, lines: Lines, measured: Callable[[Any], list[float]]
) -> None:
    asked = measured(FOUND)
    wanted = config("true", AUTOTUNE_SECONDS="7")
    for _ in range(2):
        completed = PyTorchBackend().complete(wanted, files)
        assert completed.dynamic_batching == DynamicBatching((4,))
    assert asked == [7.0]
    kept = places.read(places.places(files)[0])
    assert kept is not None
    assert kept.measured == FOUND
    assert lines(logging.INFO) == ["model 'net': tuning measures for about 7 s"]
    assert not list(files.parent.glob("*.json"))  # nothing of it lies in the repository


def test_what_is_asked_to_load_never_measures(
    files: Path, measured: Callable[[Any], list[float]]
) -> None:
    asked = measured(FOUND)
    assert PyTorchBackend().complete(config("load"), files) == config("load")
    PyTorchBackend().load(config("true"), files)
    assert asked == []


def test_a_record_that_cannot_be_kept_there_goes_to_the_cache(
    files: Path, lines: Lines, measured: Callable[[Any], list[float]]
) -> None:
    measured(FOUND)
    files.parent.parent.with_name("models.tuned").write_text("a file is in the way")
    PyTorchBackend().complete(config("true"), files)
    (warning,) = lines(logging.WARNING)
    assert "the record of tuning cannot be kept in" in warning
    assert places.read(places.places(files)[1]) is not None


def test_what_can_be_kept_nowhere_serves_once(
    files: Path, tmp_path: Path, lines: Lines, measured: Callable[[Any], list[float]]
) -> None:
    measured(FOUND)
    files.parent.parent.with_name("models.tuned").write_text("a file is in the way")
    (tmp_path / "cache").write_text("here, too")
    backend = PyTorchBackend()
    completed = backend.complete(config("true"), files)
    backend.load(completed, files)
    assert len(lines(logging.WARNING)) == 2
    assert "tuning chose 'optimize_for_inference'" in lines(logging.INFO)[-1]


def test_a_model_that_ends_its_interpreter_stays_as_it_is(
    files: Path, lines: Lines, measured: Callable[[Any], list[float]]
) -> None:
    asked = measured(NotMeasured("the measuring process ended with signal 9"))
    for _ in range(2):  # the second time it is known
        assert PyTorchBackend().complete(config("true"), files) == config("true")
    assert asked == [60.0]
    assert lines(logging.WARNING) == [
        "model 'net': tuning failed: the measuring process ended with signal 9"
    ]
    kept = places.read(places.places(files)[0])
    assert kept is not None
    assert kept.measured.decision.choice == Candidate(PLAIN, threads=processors())


def test_what_the_model_is_refused_for_is_left_to_its_load(
    files: Path, measured: Callable[[Any], list[float]]
) -> None:
    measured(Internal("failed to load model 'net': it is broken"))
    assert PyTorchBackend().complete(config("true"), files) == config("true")
    assert places.read(places.places(files)[0]) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"runtime": "model.py"}, "not a model of the kind 'Python module'"),
        ({"instance_group": (InstanceGroup("g", "KIND_GPU", 1),)}, "instances of KIND_CPU only"),
        ({"instance_group": (InstanceGroup("g", "KIND_MODEL", 1),)}, "instances of KIND_CPU only"),
    ],
)
def test_what_is_not_measured_is_told_of(
    change: dict[str, Any], told: str, files: Path, lines: Lines
) -> None:
    (files / "model.py").write_text("")
    wanted = replace(config("true"), **change)
    autotune = loading.Autotune()
    assert autotune.completed(wanted, files) is wanted
    assert autotune.choice(wanted, files) == loading.Tuned()
    (warning,) = lines(logging.WARNING)
    assert warning.startswith("model 'net': AUTOTUNE has no effect: ")
    assert told in warning


def test_a_record_that_another_process_made_meanwhile_is_taken(
    files: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[[Any], list[float]]
) -> None:
    asked = measured(FOUND)
    alone = places.alone

    def others_first() -> Any:
        store(files)
        return alone()

    monkeypatch.setattr(places, "alone", others_first)
    completed = PyTorchBackend().complete(config("true"), files)
    assert completed.dynamic_batching == DynamicBatching((4,))
    assert asked == []


def test_the_record_names_its_key_and_tolerance(files: Path) -> None:
    document = json.loads(store(files).read_text())
    assert document["key"]["torch"] == torch.__version__
    assert set(document) >= {"largest_difference", "tolerance", "choice", "rows", "made"}
    assert record_to_text(made_now(document["key"], FOUND)).endswith("}\n")
