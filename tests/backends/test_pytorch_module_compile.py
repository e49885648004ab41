"""`torch.compile` for Python modules: its parameter, key by key, and what it does."""

import gc
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from module_files import forward, module_config, with_parameters, write_module

from microkernel import Batch, Internal, InvalidArgument, MicrokernelError, Placement
from microkernel_torchscript.compiling import policy as compiling
from microkernel_torchscript.compiling.parameters import PARAMETER, parse_compile_options
from microkernel_torchscript.compiling.policy import CompileFailed
from microkernel_torchscript.module.source import ModuleSource
from microkernel_torchscript.warming import NoWarmUp

# Importing Inductor uses parts of torch.jit that torch has retired.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Serve = Callable[..., Any]

PLACE = Placement("m_0", "KIND_CPU")
CPU = torch.device("cpu")
ROW = np.array([1, 2, 3, 4], dtype=np.float32)
BROKEN = "print(x.sum().item())\nreturn x * 2"
"""A `forward` with a place that cannot be compiled."""


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    yield
    torch._dynamo.reset()
    gc.collect()


def options(**arguments: Any) -> Any:
    return written(json.dumps(arguments))


def written(text: str) -> Any:
    """A configuration whose parameter is this text."""
    return with_parameters(module_config(), **{PARAMETER: text})


def callable_of(files: Path, source: str, config: Any) -> Any:
    made = ModuleSource(config, write_module(files, source)).forward(PLACE, CPU)
    with torch.inference_mode():
        return made


# The parameter


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("{}", {}),
        ("", {}),
        (" { } ", {}),
        ('{"fullgraph": true, "dynamic": null, "backend": "eager"}',
         {"fullgraph": True, "dynamic": None, "backend": "eager"}),
        ('{"mode": "default", "options": {"max_autotune": true}}',
         {"mode": "default", "options": {"max_autotune": True}}),
        ('{"mode": "max-autotune", "options": {}}', {"mode": "max-autotune", "options": {}}),
        ('{"disable": true, "name": "n", "recompile_limit": 3, "isolate_recompiles": false}',
         {"disable": True, "name": "n", "recompile_limit": 3, "isolate_recompiles": False}),
        ('{"shapes_spec": null, "mode": null}', {"shapes_spec": None, "mode": None}),
    ],
)  # fmt: skip
def test_options_that_are_well_formed(text: str, arguments: dict[str, Any]) -> None:
    found = parse_compile_options(written(text))
    assert found.arguments == arguments
    assert found.written


def test_without_the_parameter_nothing_is_asked_for() -> None:
    found = parse_compile_options(module_config())
    assert (found.arguments, found.written, found.backend, found.disabled) == (
        {}, False, "inductor", False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not valid JSON: .* at line 1, column 2"),
        ("{'dynamic': true}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (
            '{"dynamic": true, "dynamic": false}',
            "not valid JSON: the key 'dynamic' stands there twice",
        ),
        ("true", r'must be a JSON object such as \{"dynamic": true\}, got true'),
        ("[1]", "must be a JSON object .* got a list"),
        ("null", "must be a JSON object .* got null"),
        ('{"model": "x"}', "'model' is not an optional parameter for 'torch.compile'"),
        ('{"fulgraph": true}', "unknown key 'fulgraph'; the keys are fullgraph, dynamic, backend"),
        ('{"fullgraph": "true"}', "'fullgraph' must be true or false, got \"true\""),
        ('{"fullgraph": 1}', "'fullgraph' must be true or false, got 1"),
        ('{"dynamic": "no"}', "'dynamic' must be true, false or null"),
        ('{"backend": null}', "'backend' must be the name of a compiler, got null"),
        ('{"backend": ""}', "'backend' must be the name of a compiler"),
        ('{"mode": 3}', "'mode' must be a string or null"),
        ('{"options": "max_autotune"}', "'options' must be an object of settings or null"),
        ('{"disable": null}', "'disable' must be true or false"),
        ('{"name": []}', "'name' must be a string or null, got a list"),
        ('{"recompile_limit": 0}', "'recompile_limit' must be a whole number of at least 1"),
        ('{"recompile_limit": true}', "'recompile_limit' must be a whole number"),
        ('{"isolate_recompiles": {}}', "'isolate_recompiles' must be true or false, got an object"),
        ('{"shapes_spec": 1}', "'shapes_spec' must be an object or null"),
        ('{"mode": "max-autotune", "options": {"max_autotune": true}}', "exclude each other"),
    ],
)
def test_options_that_are_not(text: str, fault: str) -> None:
    start = f"^failed to load model 'm': parameter {PARAMETER}: "
    with pytest.raises(InvalidArgument, match=start + f".*{fault}"):
        parse_compile_options(written(text))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"backend": "nvcc"}, "unknown backend 'nvcc'; the usual ones are .*inductor.*'eager'"),
        ({"mode": "fast"}, "unknown mode 'fast'; the modes are default, .*max-autotune"),
        ({"options": {"max_autotun": True}}, "unknown option 'max_autotun' of Inductor; did"),
        ({"options": {"zzzzzzzz": True}}, "unknown option 'zzzzzzzz' of Inductor$"),
        ({"options": {"max_autotune": "yes"}}, "max_autotune, got str should be bool"),
    ],
)  # fmt: skip
def test_names_that_torch_does_not_know(files: Path, arguments: Any, fault: str) -> None:
    with pytest.raises(InvalidArgument, match=f"parameter {PARAMETER}: .*{fault}"):
        callable_of(files, forward("return x"), options(**arguments))


@pytest.mark.parametrize("key", ["name", "recompile_limit", "isolate_recompiles", "shapes_spec"])
def test_keys_of_newer_versions_are_refused_by_older_ones(
    files: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    def compile_of_old(model: Any = None, *, fullgraph: bool = False) -> Any:
        return model

    monkeypatch.setattr(torch, "compile", compile_of_old)
    value = {"recompile_limit": 3, "isolate_recompiles": True}.get(key)
    with pytest.raises(
        InvalidArgument, match=f"torch {torch.__version__.split('+')[0]}.* has no '{key}'"
    ):
        callable_of(files, forward("return x"), options(**{key: value}))


# Its effect


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture
def count_graphs() -> Callable[[], int]:
    torch._dynamo.utils.counters.clear()
    return graphs


@pytest.mark.parametrize(
    ("arguments", "compiled"),
    [
        # Sizes 2, 3, 5: each for itself, or the first and then any, or any at once.
        ({"dynamic": False}, 3),
        ({"dynamic": True}, 1),
        ({"dynamic": None}, 2),
        ({"dynamic": True, "disable": True}, 0),
        ({"dynamic": False, "recompile_limit": 2}, 2),
    ],
)
def test_dynamic_decides_how_many_shapes_are_compiled_for(
    files: Path, count_graphs: Callable[[], int], arguments: dict[str, Any], compiled: int
) -> None:
    run = callable_of(files, forward("return x * 2"), options(backend="eager", **arguments))
    for size in (2, 3, 5):
        assert run(torch.ones(size)).tolist() == [2] * size
    assert count_graphs() == compiled


def test_sizes_that_the_configuration_leaves_open_are_compiled_for_at_once(
    files: Path, count_graphs: Callable[[], int]
) -> None:
    config = module_config({"x": ("FP32", -1, 4)})
    config = with_parameters(config, **{PARAMETER: '{"backend": "eager"}'})
    run = callable_of(files, forward("return x * 2"), config)
    for size in (2, 3, 5):
        run(torch.ones(size, 4))
    assert count_graphs() == 1


@pytest.mark.parametrize(
    ("dims", "sizes"), [((-1, 4), (1, 3, 5)), ((-1, -1), (1, 3, 5)), ((4,), ())]
)
def test_clients_with_other_sizes_do_not_wait_for_the_compiler(
    files: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    count_graphs: Callable[[], int],
    dims: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    config = module_config({"x": ("FP32", *dims)}, {"y": ("FP32", *dims)})
    config = with_parameters(config, **{PARAMETER: '{"backend": "eager"}'})
    served = serve_module(config, write_module(files, forward("return x * 2")))
    compiled = count_graphs()
    assert compiled > 0
    for size in sizes:
        rows = np.stack([ROW] * size)
        [outcome] = served.execute(make_batch([{"x": rows}], batching=False))
        assert output_of(outcome, "y").tolist() == (rows * 2).tolist()
    assert count_graphs() == compiled


def test_the_call_for_open_sizes_may_fail(files: Path) -> None:
    from microkernel_torchscript.module.warming import call_with_more

    shapes: list[tuple[int, ...]] = []

    def refuse(x: torch.Tensor) -> None:
        shapes.append(tuple(x.shape))
        raise SystemExit(1)

    config = module_config({"x": ("FP32", -1, 4)})
    source = ModuleSource(options(disable=True), write_module(files, forward("return x")))
    call_with_more(config, source.inputs, refuse)
    assert shapes
    assert all(shape[0] > 1 for shape in shapes)


def test_a_whole_graph_is_refused_where_there_is_none(files: Path) -> None:
    source = ModuleSource(
        options(backend="eager", fullgraph=True), write_module(files, forward(BROKEN))
    )

    class Calls(NoWarmUp):
        def first_calls(self, forward: Any) -> Any:
            with pytest.raises(MicrokernelError):
                forward(torch.ones(4))
            return super().first_calls(forward)

    with pytest.raises(CompileFailed, match=f"cannot be compiled as parameter {PARAMETER} asks"):
        source.prepare(PLACE, CPU, Calls())


def test_a_load_fails_where_a_whole_graph_is_asked_for_and_there_is_none(
    files: Path, serve_module: Serve
) -> None:
    config = options(backend="eager", fullgraph=True)
    with pytest.raises(Internal, match=f"cannot be compiled as parameter {PARAMETER} asks"):
        serve_module(config, write_module(files, forward(BROKEN)))


def test_a_graph_may_break_otherwise(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = callable_of(files, forward(BROKEN), options(backend="eager"))
    assert run(torch.ones(3)).tolist() == [2, 2, 2]
    assert capsys.readouterr().out == "3.0\n"


def test_more_shapes_than_are_allowed_run_uncompiled(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = options(backend="eager", fullgraph=True, dynamic=False, recompile_limit=1)
    run = callable_of(files, forward("return x * 2"), config)
    for size in (2, 3, 4, 5):
        assert run(torch.ones(size)).tolist() == [2] * size
    told = [m for m in caplog.messages if "as many shapes as 'torch.compile' allows" in m]
    assert len(told) == 1


def test_inputs_that_do_not_fit_fail_in_plain_words_and_leave_the_model_as_it_was(
    files: Path, count_graphs: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    source = forward("return x @ torch.ones(4, 4)")
    run = callable_of(files, source, options(backend="eager"))
    run(torch.ones(2, 4))
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 shapes cannot be multiplied"):
        run(torch.ones(2, 5))
    before = count_graphs()
    assert run(torch.ones(2, 4)).shape == (2, 4)
    assert count_graphs() == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_forward_raises_is_not_the_compilers_fault(files: Path) -> None:
    run = callable_of(files, forward("raise ValueError('boom')"), options(backend="eager"))
    with pytest.raises(ValueError, match=r"^boom$"):
        run(torch.ones(1))


def fail_to_compile(graph: Any, inputs: Any) -> Any:
    raise OSError("no space left on device")


@pytest.fixture
def failing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor, on a host where what it starts fails."""
    real: Any = torch.compile

    def compile_badly(model: Any, **arguments: Any) -> Any:
        return real(model, backend=fail_to_compile)

    monkeypatch.setattr(torch, "compile", compile_badly)
    monkeypatch.setattr(compiling, "missing_compiler", lambda: "")


def test_a_compiler_that_fails_unasked_leaves_the_model_uncompiled(
    files: Path, failing_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = callable_of(files, forward("return x * 2"), module_config())
    for _ in range(2):
        assert run(torch.ones(1)).tolist() == [2]
    [told] = [m for m in caplog.messages if "runs uncompiled" in m]
    assert "no space left on device" in told


def test_a_compiler_that_fails_when_asked_for_fails_the_load(
    files: Path, failing_compiler: None, serve_module: Serve
) -> None:
    with pytest.raises(Internal, match=r"cannot be compiled .* no space left on device"):
        serve_module(options(), write_module(files, forward("return x * 2")))


@pytest.fixture
def no_compiler(tmp_path: Path) -> Iterator[None]:
    from torch._inductor import config

    with config.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),)}):
        yield


def test_without_a_compiler_a_model_that_did_not_ask_for_one_runs_as_it_is(
    files: Path, no_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = callable_of(files, forward("return x * 2"), module_config())
    assert run(torch.ones(1)).tolist() == [2]
    [told] = [r for r in caplog.records if "runs uncompiled: there is no C++ compiler" in r.message]
    assert told.levelno == logging.WARNING
    assert "install g++" in told.message


@pytest.mark.parametrize("arguments", [{}, {"backend": "inductor"}, {"mode": "max-autotune"}])
def test_without_a_compiler_one_that_did_is_refused(
    files: Path, no_compiler: None, arguments: dict[str, Any]
) -> None:
    with pytest.raises(Internal, match=r'no C\+\+ compiler.*install g\+\+.*\{"disable": true\}'):
        callable_of(files, forward("return x"), options(**arguments))


@pytest.mark.parametrize("arguments", [{"disable": True}, {"backend": "eager"}])
def test_without_a_compiler_the_cures_work(
    files: Path, no_compiler: None, arguments: dict[str, Any]
) -> None:
    assert callable_of(files, forward("return x"), options(**arguments))(ROW) is ROW


def test_the_headers_of_python_are_needed_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert compiling.missing_compiler() == ""
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert compiling.missing_compiler() == f"there is no 'Python.h' in '{tmp_path}'"


# The real compiler


@pytest.mark.slow
@pytest.mark.skipif(bool(compiling.missing_compiler()), reason="there is no C++ compiler")
@pytest.mark.parametrize("arguments", [None, {"dynamic": True}, {"mode": "max-autotune"}])
def test_inductor_compiles_before_the_first_request_and_leaves_no_process(
    files: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    count_graphs: Callable[[], int],
    arguments: Any,
) -> None:
    source = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4))

        def forward(self, x):
            return self.layers(x)
    """
    parameters = {} if arguments is None else {PARAMETER: json.dumps(arguments)}
    config = with_parameters(module_config(max_batch_size=8), **parameters)
    before = set(psutil.Process().children(recursive=True))
    served = serve_module(config, write_module(files, source))
    compiled = count_graphs()
    assert compiled > 0
    plain = callable_of(files, source, options(disable=True))
    for size in (8, 3, 1, 5):
        rows = np.random.default_rng(size).standard_normal((size, 4), dtype=np.float32)
        [outcome] = served.execute(make_batch([{"x": rows}]))
        with torch.inference_mode():
            expected = plain(torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(output_of(outcome, "y"), expected, rtol=1e-4, atol=1e-5)
    assert count_graphs() == compiled
    assert set(psutil.Process().children(recursive=True)) == before
