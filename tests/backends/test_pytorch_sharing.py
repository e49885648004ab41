"""Modules that keep state, and instances that share their weights."""

import logging
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn
from torch_models import Counter

from microkernel import (
    Batch,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
)
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.script.state import kept_state

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]


class Pure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


class Row(Counter):
    """Writes through a view."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.view(1, 1)[0].copy_(x.sum())
        return x


class Rebound(Counter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + x
        return self.count


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


class Listed(nn.Module):
    seen: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.seen = [torch.zeros(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x * len(self.seen)


class Element(Listed):
    """Writes to what a list holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for held in self.seen:
            held.add_(x)
        return x


class Keyed(nn.Module):
    last: dict[str, torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.last = {"x": torch.zeros(4)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.last["x"]
        self.last["x"] = x
        return before


class Intermediate(nn.Module):
    """Works in place on what it has made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.relu(self.linear(x))]
        for i in range(3):
            parts.append(parts[i] + 1)
            parts[0].add_(i)
        return torch.stack(parts).sum(0)


class Mixed(Counter):
    """Puts a part of itself among other things and writes to one of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x + 1]
        parts.append(self.count)
        parts[int(x.shape[0]) % 2].add_(1)
        return parts[0]


class Input(Counter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1) + self.count


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.linear(x))
        return result


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Pure(), Counter()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() > 1:
            x = self.second(self.first(x))
        return x


class Method(Counter):
    def count_up(self) -> torch.Tensor:
        for _ in range(2):
            self.count.add_(1)
        return self.count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.count_up()


class Forked(Method):
    """Writes in a branch that runs beside the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = torch.jit.fork(self.count_up)  # type: ignore[no-untyped-call]
        result: torch.Tensor = torch.jit.wait(branch) + x  # type: ignore[no-untyped-call]
        return result


class Awaited(Counter):
    """Writes to a part of itself that a branch hands over."""

    def part(self) -> torch.Tensor:
        return self.count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = torch.jit.fork(self.part)  # type: ignore[no-untyped-call]
        result: torch.Tensor = torch.jit.wait(branch).add_(1) + x  # type: ignore[no-untyped-call]
        return result


class Never(Counter):
    """Would keep state if it were switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.counts and self.training:
            self.count += 1
        return x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.lstm(x)[0]
        return result


def scripted(module: nn.Module, *example: torch.Tensor, training: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")
        module.train(training)
        if example:
            return torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        return torch.jit.script(module)


STATEFUL: list[tuple[type[nn.Module], str]] = [
    (Counter, "it changes its attribute 'count' in place (aten::add_)"),
    (Row, "it changes its attribute 'count' in place (aten::copy_)"),
    (Rebound, "it sets its attribute 'count'"),
    (Number, "it sets its attribute 'calls'"),
    (Listed, "it changes its attribute 'seen' in place (aten::append)"),
    (Element, "it changes its attribute 'seen' in place (aten::add_)"),
    (Keyed, "it changes its attribute 'last' in place (aten::_set_item)"),
    (Mixed, "it changes its attribute 'count' in place (aten::add_)"),
    (Inner, "it changes its attribute 'second.count' in place (aten::add_)"),
    (Method, "it changes its attribute 'count' in place (aten::add_)"),
    (Forked, "it changes its attribute 'count' in place (aten::add_)"),
    (Awaited, "it changes its attribute 'count' in place (aten::add_)"),
]


@pytest.mark.parametrize(("kind", "expected"), STATEFUL)
def test_what_a_module_keeps_is_told(kind: type[nn.Module], expected: str) -> None:
    assert kept_state(scripted(kind())) == expected


@pytest.mark.parametrize("kind", [Pure, Intermediate, Input, Normalised, Never, Recurrent])
def test_what_keeps_nothing_is_known_to(kind: type[nn.Module]) -> None:
    assert kept_state(scripted(kind())) == ""


@pytest.mark.parametrize(
    ("module", "training", "expected"),
    [
        (Normalised(), False, ""),
        (Normalised(), True, "'norm.num_batches_tracked' in place"),
        (nn.BatchNorm1d(4), True, "'num_batches_tracked' in place"),
        (nn.InstanceNorm1d(4, track_running_stats=True), True, "running_mean"),
        (Counter(), False, "'count' in place"),
    ],
)
def test_traced_modules_are_told_alike(module: nn.Module, training: bool, expected: str) -> None:
    example = torch.ones(2, 4, 4) if isinstance(module, nn.InstanceNorm1d) else torch.ones(2, 4)
    found = kept_state(scripted(module, example, training=training))
    assert (expected in found) if expected else found == ""


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)

    @torch.jit.interface
    class Step(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[empty-body]
            pass


class Replaceable(nn.Module):
    """Calls what may be put in its place after it was compiled."""

    step: Step

    def __init__(self) -> None:
        super().__init__()
        self.step = Pure()  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step.forward(x)


def test_what_cannot_be_looked_into_is_taken_to_keep_state() -> None:
    assert kept_state(scripted(Replaceable())) == "it calls code that is not known before it runs"


def test_what_cannot_be_followed_is_taken_to_keep_state() -> None:
    unheard_of: Any = object()
    assert "cannot be followed" in kept_state(unheard_of)


def test_running_statistics_are_state_while_training() -> None:
    class Statistics(nn.Module):
        mean: torch.Tensor
        variance: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("variance", torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.batch_norm(x, self.mean, self.variance, training=True)

    found = kept_state(scripted(Statistics(), torch.ones(2, 4)))
    assert found == "it updates its running statistics 'mean'"


def test_frozen_modules_are_told_alike() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        assert kept_state(torch.jit.freeze(scripted(Normalised()))) == ""
        assert "in place" in kept_state(torch.jit.freeze(scripted(Counter())))


@pytest.mark.parametrize("kind", [kind for kind, _ in STATEFUL if kind not in (Forked, Awaited)])
def test_what_is_said_to_keep_state_does(kind: type[nn.Module]) -> None:
    """The modules of the table are no strawmen: what they hold after a call is different."""
    module = kind().eval()

    def held() -> str:
        return repr([[(k, str(v)) for k, v in sorted(vars(m).items())] for m in module.modules()])

    before = held()
    module(torch.ones(1, 4) if kind in (Inner, Mixed) else torch.ones(4))
    assert held() != before


CONFIG = ModelConfig(
    name="m",
    max_batch_size=4,
    input=(ModelInput("x", "TYPE_FP32", dims=(4,)),),
    output=(ModelOutput("y__0", "TYPE_FP32", dims=(4,)),),
    instance_group=(InstanceGroup(kind="KIND_CPU", count=3),),
)
SHARING = replace(CONFIG, parameters={"ENABLE_WEIGHT_SHARING": ModelParameter("true")})
REUSING = "Reusing TorchScript model for instance 'm'"


def module_of(served: Any) -> Any:
    return served._instance._forward.owner


def addresses(served: list[Any]) -> set[int]:
    return {module_of(s).getattr("linear").getattr("weight").data_ptr() for s in served}


@pytest.mark.parametrize(("config", "copies", "lines"), [(SHARING, 1, 2), (CONFIG, 3, 0)])
def test_instances_share_weights_when_asked_to(
    tmp_path: Path,
    save_module: Save,
    host: Serve,
    caplog: pytest.LogCaptureFixture,
    config: ModelConfig,
    copies: int,
    lines: int,
) -> None:
    caplog.set_level(logging.INFO)
    model = PyTorchBackend().load(config, save_module(Pure(), tmp_path))
    served = [host(model) for _ in range(3)]
    assert len(addresses(served)) == copies
    assert [r.getMessage() for r in caplog.records].count(REUSING) == lines


@pytest.mark.parametrize("kind", [Counter, Number])
@pytest.mark.parametrize("config", [SHARING, CONFIG])
def test_what_keeps_state_is_never_shared(
    tmp_path: Path,
    save_module: Save,
    host: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    caplog: pytest.LogCaptureFixture,
    kind: type[nn.Module],
    config: ModelConfig,
) -> None:
    model = PyTorchBackend().load(config, save_module(kind(), tmp_path))
    served = [host(model) for _ in range(2)]
    batch = make_batch([{"x": np.zeros((1, 4), np.float32)}])
    counts = [output_of(s.execute(batch)[0], "y__0")[0, 0] for s in (*served, served[0])]
    assert counts == [1, 1, 2]
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == (config is SHARING)
    assert all("ENABLE_WEIGHT_SHARING is not heeded" in text for text in warned)
    assert all(kept_state(scripted(kind())) in text for text in warned)


def test_a_single_instance_takes_the_module_that_was_loaded(
    tmp_path: Path, save_module: Save, host: Serve, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    single = replace(CONFIG, instance_group=(InstanceGroup(kind="KIND_CPU", count=1),))
    model: Any = PyTorchBackend().load(single, save_module(Counter(), tmp_path))
    served = host(model)
    (modules,) = model._source._modules.values()
    own = module_of(served).getattr("count").data_ptr()
    assert own == modules._pristine.count.data_ptr()
    batch = make_batch([{"x": np.zeros((1, 4), np.float32)}])
    assert output_of(served.execute(batch)[0], "y__0")[0, 0] == 1


def test_copies_are_as_warm_as_the_first(
    tmp_path: Path, save_module: Save, host: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The compiled code is there before a copy was ever called by itself."""
    model = PyTorchBackend().load(CONFIG, save_module(Pure(), tmp_path))
    served = [host(model) for _ in range(2)]
    plans = [module_of(s).get_debug_state().execution_plans for s in served]
    assert [len(plan) for plan in plans] == [1, 1]


def test_sharing_instances_answer_many_requests_at_once(
    tmp_path: Path, save_module: Save, host: Serve, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    module = Pure().eval()
    model = PyTorchBackend().load(SHARING, save_module(module, tmp_path))
    served = [host(model) for _ in range(3)]
    rows = np.random.default_rng(0).standard_normal((48, 1, 4), dtype=np.float32)
    with ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(
                lambda i: output_of(
                    served[i % 3].execute(make_batch([{"x": rows[i]}]))[0], "y__0"
                ).copy(),
                range(len(rows)),
            )
        )
    with torch.inference_mode():
        expected = [module(torch.from_numpy(row)).numpy() for row in rows]
    np.testing.assert_allclose(answers, expected, rtol=1e-6)
