"""Loading TorchScript files, and what an instance does to its thread."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn
from torch_models import FROZEN, Counter, Drop, Perceptron, save_frozen

from microkernel import (
    Batch,
    Internal,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
    Unavailable,
)
from microkernel_torchscript.backend import PyTorchBackend

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]


class Methodless(nn.Module):
    @torch.jit.export
    def other(self, x: torch.Tensor) -> torch.Tensor:
        return x


CONFIG = ModelConfig(
    name="m",
    input=(ModelInput("x", "TYPE_FP32", dims=(4,)),),
    output=(ModelOutput("y", "TYPE_FP32", dims=(3,)),),
)
ROW = np.array([1, 2, 3, 4], np.float32)


def with_parameters(**texts: str) -> ModelConfig:
    return replace(CONFIG, parameters={key: ModelParameter(text) for key, text in texts.items()})


@pytest.mark.parametrize(
    ("parameters", "threads", "expected"),
    [({}, 2, 2), ({"INTRA_OP_THREAD_COUNT": "3"}, 2, 3), ({"INTRA_OP_THREAD_COUNT": "0"}, 1, 1)],
)
def test_an_instance_has_its_own_number_of_threads(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    parameters: dict[str, str],
    threads: int,
    expected: int,
) -> None:
    served = serve_module(
        with_parameters(**parameters), save_module(Perceptron(), tmp_path), threads
    )
    assert served.on_thread(torch.get_num_threads) == expected


@pytest.mark.parametrize(("text", "expected"), [("false", True), ("true", False)])
def test_optimised_execution_is_a_setting_of_the_thread(
    tmp_path: Path, save_module: Save, serve_module: Serve, text: str, expected: bool
) -> None:
    config = with_parameters(DISABLE_OPTIMIZED_EXECUTION=text)
    served = serve_module(config, save_module(Perceptron(), tmp_path))
    state: Any = torch._C._get_graph_executor_optimize
    assert served.on_thread(state) is expected
    assert state() is True


def test_a_closed_instance_leaves_its_thread_as_it_was(tmp_path: Path, save_module: Save) -> None:
    model = PyTorchBackend().load(CONFIG, save_module(Perceptron(), tmp_path))
    seen: list[bool] = []

    def work() -> None:
        instance = model.instance(Placement("m_0", "KIND_CPU"))
        seen.append(torch.is_inference_mode_enabled())
        instance.close()
        seen.append(torch.is_inference_mode_enabled())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert seen == [True, False]


def test_instances_keep_their_own_state(
    tmp_path: Path, save_module: Save, host: Serve, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    model = PyTorchBackend().load(CONFIG, save_module(Counter(), tmp_path))
    first, second = host(model), host(model)
    batch = make_batch([{"x": np.zeros(4, np.float32)}], batching=False)
    counts = [output_of(s.execute(batch)[0], "y")[0] for s in (first, first, second)]
    assert counts == [1, 2, 1]


def test_an_instance_without_a_device_leaves_tensors_where_they_were_saved(
    tmp_path: Path, save_module: Save, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    model = PyTorchBackend().load(CONFIG, save_module(Perceptron(), tmp_path))
    instance = model.instance(Placement("m_0", "KIND_MODEL"))
    (response,) = instance.execute(make_batch([{"x": ROW}], batching=False))
    instance.close()
    assert output_of(response, "y").shape == (3,)


def test_parameters_are_reported(
    tmp_path: Path, save_module: Save, serve_module: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = with_parameters(
        INFERENCE_MODE="false", INTRA_OP_THREAD_COUNT="1", ENABLE_CACHE_CLEANING="true"
    )
    serve_module(config, save_module(Perceptron(), tmp_path))
    texts = [record.getMessage() for record in caplog.records]
    assert "Optimized execution is enabled for model instance 'm'" in texts
    assert "Inference Mode is disabled for model instance 'm'" in texts
    assert "Intra op thread count is set to 1 for model instance 'm'" in texts
    assert "Cache Cleaning is enabled for model instance 'm'" in texts


def test_a_model_saved_in_training_mode_is_evaluated(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = save_module(Drop(), tmp_path, training=True)
    served = serve_module(CONFIG, files)
    (response,) = served.execute(make_batch([{"x": ROW}], batching=False))
    assert output_of(response, "y").tolist() == ROW.tolist()
    assert any("saved in training mode" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("form", FROZEN)
def test_frozen_modules_are_completed_and_served(
    tmp_path: Path, serve_module: Serve, make_batch: MakeBatch, output_of: OutputOf, form: str
) -> None:
    """They have no modes: `training` is not among their attributes."""
    files = save_frozen(form, Perceptron(), tmp_path)
    served = serve_module(replace(CONFIG, max_batch_size=4, output=()), files)
    rows = np.stack([ROW, -ROW])
    (response,) = served.execute(make_batch([{"x": rows}]))
    expected = Perceptron()(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(output_of(response, "OUTPUT__0"), expected, rtol=1e-5)


def test_a_missing_file_is_named(tmp_path: Path, serve_module: Serve) -> None:
    with pytest.raises(Unavailable) as caught:
        serve_module(CONFIG, tmp_path)
    path = tmp_path / "model.pt"
    assert str(caught.value) == f"unable to find '{path}' for model instance 'm'"


def test_bad_files_say_what_is_wrong(
    tmp_path: Path, save_module: Save, serve_module: Serve
) -> None:
    path = tmp_path / "model.pt"
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: path.write_bytes(b"junk"), "PytorchStreamReader failed reading zip archive"),
        (lambda: path.write_bytes(b""), "PytorchStreamReader failed"),
        (
            lambda: torch.save(Perceptron().state_dict(), path),
            "this is a checkpoint, not TorchScript",
        ),
        (lambda: save_module(Methodless(), tmp_path), "the module has no method 'forward'"),
    ]
    for make, text in wrong:
        make()
        with pytest.raises(Internal) as caught:
            serve_module(CONFIG, tmp_path)
        assert str(caught.value).startswith(f"failed to load model 'm': {text}")
        assert "corrupted" not in str(caught.value)


def test_a_directory_is_no_file(tmp_path: Path, serve_module: Serve) -> None:
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(Internal, match=r"model\.pt' is a directory, a TorchScript file"):
        serve_module(CONFIG, tmp_path)


def test_a_fork_after_the_import_can_run_a_model(tmp_path: Path, save_module: Save) -> None:
    """The fork server imports torch and nothing else; its children complete, load and run."""
    save_module(Perceptron(), tmp_path)
    script = f"""
import torch, os, sys
child = os.fork()
if child == 0:
    import pathlib
    import numpy as np
    from microkernel import Batch, InferRequest, ModelConfig, Placement, Tensor
    from microkernel_torchscript.backend import PyTorchBackend
    files = pathlib.Path({str(tmp_path)!r})
    backend = PyTorchBackend()
    config = backend.complete(ModelConfig(name="m", max_batch_size=64), files)
    instance = backend.load(config, files).instance(Placement("m_0", "KIND_CPU", threads=2))
    x = Tensor.from_numpy("x", np.zeros((64, 4), np.float32))
    (response,) = instance.execute(Batch([InferRequest("m", (x,))], {{"x": x}}, [64]))
    sys.stdout.write(str(response.outputs[0].shape) + str(torch.get_num_interop_threads()))
    sys.stdout.flush()
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "(64, 3)1"), ended.stderr


def test_the_plug_in_is_light_and_registers_one_backend() -> None:
    script = (
        "import sys, microkernel_torchscript as plugin\n"
        "found = []\n"
        "plugin.register_backends(found.append)\n"
        "plugin.register_options(found.append)\n"
        "module, _, name = found[0].factory.partition(':')\n"
        "assert 'torch' not in sys.modules\n"
        "assert found[0].requires == ('torch',)\n"
        "assert found[0].extra == 'torchscript'\n"
        "__import__(module)\n"
        "getattr(sys.modules[module], name)(found[1]())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
