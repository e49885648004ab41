"""Runs models without a server: `run_directly.py REPOSITORY CALLS RESULTS MODEL=THREADS...`.

CALLS is an npz file of arrays named `model/call/input`; the calls of a model are made in the order
of their numbers, their inputs given in the order of the file. RESULTS gets the first result of each
under `model/call`. A script of its own, for a framework's threads are set once per process.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Model = Callable[[dict[str, Array]], Array]


def script(path: Path, threads: int) -> Model:
    """A TorchScript model. An input of shape [1] stands for a number."""
    import torch

    module: Any = torch.jit.load(path)  # type: ignore[no-untyped-call]

    def run(inputs: dict[str, Array]) -> Array:
        torch.set_num_threads(threads)
        arrays = inputs.values()
        arguments = [a.item() if a.shape == (1,) else torch.from_numpy(a) for a in arrays]
        with torch.inference_mode():
            result: Array = module(*arguments).numpy()
        return result

    return run


def graph(path: Path, threads: int) -> Model:
    """An ONNX model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Array]) -> Array:
        result: Array = session.run(None, inputs)[0]
        return result

    return run


def open_model(folder: Path, threads: int) -> Model:
    """The model of a folder by the file that it has."""
    if (folder / "model.pt").exists():
        return script(folder / "model.pt", threads)
    return graph(folder / "model.onnx", threads)


def main(repository: Path, calls: Path, results: Path, threads: dict[str, int]) -> None:
    """Run from the command line."""
    grouped: dict[str, dict[int, dict[str, Array]]] = {}
    with np.load(calls) as arrays:
        for key in arrays.files:
            model, call, name = key.split("/")
            grouped.setdefault(model, {}).setdefault(int(call), {})[name] = arrays[key]
    found: dict[str, Array] = {}
    for model, numbered in grouped.items():
        run = open_model(repository / model / "1", threads[model])
        for call in sorted(numbered):
            found[f"{model}/{call}"] = run(numbered[call])
    np.savez(results, **found)  # type: ignore[arg-type]  # its stub takes a flag by keyword too


if __name__ == "__main__":
    first, second, third, *pairs = sys.argv[1:]
    counts = {name: int(count) for name, count in (pair.split("=") for pair in pairs)}
    main(Path(first), Path(second), Path(third), counts)
