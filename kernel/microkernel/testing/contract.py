"""The contract that every backend keeps, as checks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microkernel.backend import Backend, BackendType
from microkernel.config.model import ModelConfig
from microkernel.repository.complete import merge_completed, normalise
from microkernel.request import InferRequest
from microkernel.testing.served import Served, same, served
from microkernel.testing.streaming import check_streams
from microkernel.workers.hosting import make_backend


def check_backend(  # noqa: PLR0913 - what is optional is named in the call
    kind: BackendType,
    config: ModelConfig,
    files: Path,
    requests: Sequence[InferRequest],
    *,
    settings: Any = None,
    failing: InferRequest | None = None,
    rtol: float = 1e-5,
) -> None:
    """Check that a backend does with one model what every backend promises; raises AssertionError
    with the promise that it broke.

    `config` is the model's configuration as its `config.pbtxt` would have it, `files` its version
    directory, and `requests` good requests, two or more that can share a batch where the model
    batches. `failing` is a request that the checks let pass and the model answers with an error.
    `settings` is the plug-in's settings object, None where it declares none.

    It completes the configuration twice, loads the model, makes two instances each on a thread of
    its own, runs each request alone, all in one batch and for each output alone, compares the
    results within `rtol`, and closes, unloads and loads again. The model must be deterministic.

    A decoupled model is streamed in the same way: each request gets any number of responses, the
    same ones in the same order each time, and exactly one final, within half a minute, with nothing
    after it, also where nobody waits for the responses.
    """
    backend = make_backend(kind.factory, settings)
    config = _completed(backend, kind, config, files)
    for _ in range(2):  # what was unloaded can be loaded again
        model = backend.load(config, files)
        with served(model, config, 0) as first, served(model, config, 1) as second:
            if config.decoupled:
                check_streams(first, second, requests, failing, rtol)
            else:
                _check_answers(first, second, requests, failing, rtol)
        model.unload()


def _check_answers(
    first: Served,
    second: Served,
    requests: Sequence[InferRequest],
    failing: InferRequest | None,
    rtol: float,
) -> None:
    alone = [first.answer(request) for request in requests]
    same([second.answer(request) for request in requests], alone, rtol, "an instance")
    first.check_together(requests, alone, rtol)
    first.check_selection(requests[0], alone[0], rtol)
    if failing is not None:
        first.check_failure(failing)
    same([first.answer(requests[0])], alone[:1], rtol, "the same instance, later,")


def _completed(
    backend: Backend, kind: BackendType, config: ModelConfig, files: Path
) -> ModelConfig:
    completed = merge_completed(config, backend.complete(config, files))
    again = merge_completed(completed, backend.complete(completed, files))
    assert again == completed, "complete() changes a configuration that it completed"
    return normalise(completed, kind, gpus=0)
