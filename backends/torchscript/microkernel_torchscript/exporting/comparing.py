"""Whether a file gives what the module gives, by serving it as the server would."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from microkernel import (
    Batch,
    InferRequest,
    InferResponse,
    InvalidArgument,
    MicrokernelError,
    Model,
    ModelConfig,
    Placement,
    Tensor,
)
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.conversion import STRING, from_torch, to_torch
from microkernel_torchscript.exporting.trial import Trial
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.probing.examples import Example
from microkernel_torchscript.signature import SCALARS

_LOOSE = (torch.float16, torch.bfloat16)

Values = dict[str, Any]


def compare(trial: Trial, files: Path) -> float:
    """Serve the file of a version's directory without a configuration, and hold its answers on
    random inputs of several sizes against the module's; the largest difference.

    Raises InvalidArgument where the file does not serve as it is described, or an output differs
    by more than its type explains.
    """
    backend = PyTorchBackend()
    bare = ModelConfig(name=trial.config.name, backend="pytorch", platform=_platform(files))
    try:
        config = backend.complete(bare, files)
        _check_description(trial.config, config)
        model = backend.load(config, files)
    except MicrokernelError as error:
        raise InvalidArgument(f"the file that was made does not serve: {error}") from None
    return max(_differences(trial, config, model))


def _platform(files: Path) -> str:
    return "torch_aoti" if (files / "model.pt2").exists() else "pytorch_libtorch"


def _check_description(wanted: ModelConfig, found: ModelConfig) -> None:
    same = (wanted.max_batch_size, wanted.input, wanted.output) == (
        *(found.max_batch_size, found.input, found.output),
    )
    if not same:
        raise InvalidArgument("what the file says of itself is not what was written into it")


def _differences(trial: Trial, config: ModelConfig, model: Model) -> Iterator[float]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    instance = model.instance(Placement("export_0", "KIND_CPU", threads=threads))
    try:
        for examples in variations(trial.examples):
            values = {e.name: _random(e) for e in examples}
            expected = _expected(trial, config, values)
            if expected is None:
                continue
            (outcome,) = instance.execute(_batch(config, examples, values))
            if not isinstance(outcome, InferResponse):
                raise InvalidArgument(
                    f"the file that was made fails where the module does not: {outcome}"
                )
            for own, other in zip(expected, outcome.outputs, strict=True):
                yield _difference(own, other, [e.shape for e in examples])
    finally:
        instance.close()
        model.unload()


def variations(examples: Sequence[Example]) -> list[tuple[Example, ...]]:
    """The examples as they are, with each first dimension that varies one, three and one larger,
    and with all others that vary twice as large."""
    rows = [tuple(e.grown(0, n) if 0 in e.axes else e for e in examples) for n in (1, 3)]
    return list(dict.fromkeys([tuple(examples), *rows, tuple(map(_doubled, examples))]))


def _doubled(example: Example) -> Example:
    for axis in example.axes - {0}:
        example = example.grown(axis, 2 * example.shape[axis])
    return example


def _expected(trial: Trial, config: ModelConfig, values: Values) -> list[Tensor] | None:
    """What the module gives; None where it does not run on these sizes."""
    copies = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in values.items()}
    try:
        result = trial.call(copies)
    except Exception:  # noqa: BLE001 - a module refuses an input by raising what it likes
        return None
    return [_kept(tensor) for tensor in plan_outputs(config).tensors(result)]


def _kept(tensor: Tensor) -> Tensor:
    """A tensor that stays as it is whatever becomes of the memory it lay in."""
    return replace(tensor, data=bytes(tensor.data))


def _batch(config: ModelConfig, examples: Sequence[Example], values: Values) -> Batch:
    tensors = {e.name: _tensor(e, values[e.name]) for e in examples}
    request = InferRequest(config.name, tuple(tensors.values()))
    rows = examples[0].shape[0] if config.max_batch_size > 0 else 1
    return Batch([request], tensors, [rows])


def _tensor(example: Example, value: Any) -> Tensor:
    if example.kind in SCALARS:
        return from_torch(example.name, torch.tensor([value]).to(_dtype(example)))
    if example.data_type == STRING:
        value = list(value)
    tensor = from_torch(example.name, value)
    return replace(tensor, data=bytearray(tensor.data))


def _random(example: Example) -> Any:
    """A value of an example's shape. Whole numbers are 0 and 1, which every table has."""
    if example.kind in SCALARS:
        return example.value(other=True)
    if example.data_type == STRING:
        return [f"text {i}" for i in range(example.shape[0])]
    dtype = _dtype(example)
    if dtype.is_floating_point:
        return torch.randn(example.shape).to(dtype)
    return torch.randint(0, 2, example.shape).to(dtype)


def _dtype(example: Example) -> torch.dtype:
    value = replace(example, kind="tensor", shape=(1,)).value(other=False)
    dtype: torch.dtype = value.dtype
    return dtype


def _difference(own: Tensor, other: Tensor, shapes: Sequence[tuple[int, ...]]) -> float:
    """The largest difference between an output of the module and the file's."""
    where = f"output '{own.name}' for inputs of the shapes {', '.join(map(str, shapes))}"
    if own.shape != other.shape:
        raise InvalidArgument(
            f"{where} has the shape {list(other.shape)}, the module gives {list(own.shape)}"
        )
    if own.datatype.config_name == STRING:
        if bytes(own.data) != bytes(other.data):
            raise InvalidArgument(f"{where} differs from what the module gives")
        return 0.0
    return _distance(to_torch(own), to_torch(_kept(other)), where)


def _distance(own: torch.Tensor, other: torch.Tensor, where: str) -> float:
    loose = own.dtype in _LOOSE
    one, two = own.to(torch.float64), other.to(torch.float64)
    gap = (one - two).abs().nan_to_num(0.0, posinf=math.inf)
    largest = float(gap.max()) if gap.numel() else 0.0
    tolerance = 1e-2 if loose else 1e-4
    if not torch.allclose(one, two, rtol=tolerance, atol=tolerance / 10, equal_nan=True):
        raise InvalidArgument(
            f"{where} differs from what the module gives by up to {largest:.3g}; a module must "
            "give the same every time, and a traced one must not branch on its inputs"
        )
    return largest
