"""Filling in the inputs and outputs of a configuration from a TorchScript file.

Triton's backend completes nothing. Here a traced file tells its inputs, the first layer hints at
them, and trial runs tell the outputs and the sizes that vary. What cannot be told is asked for,
with the configuration to paste.
"""

import contextlib
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from microkernel import (
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Reshape,
    model_outputs,
)
from microkernel_torchscript.inputs import InputPlan, check_kinds, plan_inputs
from microkernel_torchscript.naming import index_of
from microkernel_torchscript.probing.examples import (
    CannotTell,
    Example,
    configured_examples,
    discovered_examples,
)
from microkernel_torchscript.probing.skeleton import skeleton
from microkernel_torchscript.probing.survey import Survey, survey
from microkernel_torchscript.script.files import load_module
from microkernel_torchscript.sequences import sequence_inputs, sequence_position
from microkernel_torchscript.signature import Signature, signature_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to complete a configuration for: what runs it, and what that takes. `plan` lays the
    inputs of a configuration out for it; `guesses` are inputs to try where none are listed, which
    may raise CannotTell."""

    forward: Callable[..., Any]
    signature: Signature
    plan: Callable[[ModelConfig], InputPlan]
    guesses: Callable[[], Iterator[tuple[Example, ...]]]


def complete(config: ModelConfig, path: Path) -> ModelConfig:
    """The configuration with inputs and outputs; a side that it lists stays as it is.

    `max_batch_size` stays as well, since no trial shows that rows of a batch do not touch each
    other. Raises InvalidArgument, with a configuration to fill in, for what the file does not tell,
    and where the model cannot batch though `max_batch_size` says so.
    """
    with torch.inference_mode():
        module = load_module(config.name, path, device="cpu", restore_shapes=_is_traced(path))
    signature = signature_of(module)
    if not signature.takes_dictionary:
        check_kinds(signature.arguments)
    subject = Subject(
        forward=module.forward,
        signature=signature,
        plan=lambda listed: plan_inputs(listed, signature),
        guesses=lambda: discovered_examples(module, signature),
    )
    return completed(config, path, subject)


def completed(config: ModelConfig, path: Path, subject: Subject) -> ModelConfig:
    """What `complete` gives for a model of any kind, loaded from the file `path`."""
    signature = subject.signature
    try:
        with _one_thread(), torch.inference_mode():
            examples, found = _find(config, subject)
    except CannotTell as reason:
        raise InvalidArgument(_request(config, path, signature, reason)) from None
    _check_batching(config, found)
    made, states = _made(config, signature).values(), _state_outputs(config)
    return replace(
        config,
        input=config.input
        or tuple(_input(config, e, found.inputs[e.name]) for e in examples if e.name not in made),
        output=config.output
        or tuple(_output(config, n, *found.outputs[n]) for n in found.outputs if n not in states),
    )


def _made(config: ModelConfig, signature: Signature) -> Mapping[str, str]:
    """The arguments that controls and states feed, and what feeds them."""
    arguments = [argument.name for argument in signature.arguments]
    names = [entry.name for entry in sequence_inputs(config)]
    if signature.takes_dictionary:
        return dict(zip(names, names, strict=True))
    places = [sequence_position(name, arguments) for name in names]
    return {arguments[i]: n for i, n in zip(places, names, strict=True) if i < len(arguments)}


def _state_outputs(config: ModelConfig) -> set[str]:
    """The states among the results, by the names that a survey gives them."""
    names = [entry.name for entry in model_outputs(config)[len(config.output) :]]
    return {*names, *(f"OUTPUT__{index_of(name)}" for name in names)}


def _find(config: ModelConfig, subject: Subject) -> tuple[tuple[Example, ...], Survey]:
    """The first set of examples that the model runs on, and what the runs showed."""
    reason = CannotTell("the inputs, because no layer hints at their shape")
    made = _made(config, subject.signature).values()
    for examples in _candidates(config, subject):
        told = (ModelInput(e.name, e.data_type) for e in examples if e.name not in made)
        # The names of outputs are not known yet, so those of states are not held against them.
        named = config.output or (ModelOutput("OUTPUT__0"),)
        listed = replace(config, input=config.input or tuple(told), output=named)
        plan = subject.plan(listed)

        def call(values: Mapping[str, Any], plan: Any = plan) -> Any:
            result = subject.forward(*plan.lay_out(values))
            # States are found by their index, so the other outputs are called by theirs.
            return tuple(result) if made and isinstance(result, tuple) else result

        try:
            found = survey(call, examples)
        except CannotTell as failure:
            reason = failure
            continue
        if not found.outputs and not config.output:
            raise CannotTell("the outputs, because the model returns none that can be served")
        return examples, found
    raise reason


def _candidates(config: ModelConfig, subject: Subject) -> Iterator[tuple[Example, ...]]:
    if config.batch_input or any(entry.allow_ragged_batch for entry in config.input):
        raise CannotTell("the inputs and outputs, because a ragged batch cannot be made up")
    if not config.input:
        names = _made(config, subject.signature)
        return (
            tuple(replace(e, name=names.get(e.name, e.name)) for e in examples)
            for examples in subject.guesses()
        )
    plan = subject.plan(config)
    return configured_examples(config, {feed.name: feed.kind for feed in plan.feeds})


def _check_batching(config: ModelConfig, found: Survey) -> None:
    if config.max_batch_size > 0 and not found.batches:
        raise InvalidArgument(
            f"autofill failed for model '{config.name}': model does not support batching while "
            "non-zero max_batch_size is specified"
        )
    if not config.max_batch_size and found.batches:
        logger.info(
            "model '%s': the first dimension of every tensor varies; if its rows do not depend on "
            "each other, set max_batch_size to have requests batched",
            config.name,
        )


def _input(config: ModelConfig, example: Example, shape: tuple[int, ...]) -> ModelInput:
    dims, reshape = _dims(config, shape)
    return ModelInput(example.name, example.data_type, dims=dims, reshape=reshape)


def _output(config: ModelConfig, name: str, kind: str, shape: tuple[int, ...]) -> ModelOutput:
    dims, reshape = _dims(config, shape)
    return ModelOutput(name, kind, dims=dims, reshape=reshape)


def _dims(config: ModelConfig, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Reshape | None]:
    """A shape as the configuration writes it; one that is only the batch dimension needs a
    dimension of 1 for clients to send."""
    if config.max_batch_size <= 0:
        return shape, None
    return (shape[1:], None) if len(shape) > 1 else ((1,), Reshape(()))


def _request(config: ModelConfig, path: Path, signature: Signature, reason: CannotTell) -> str:
    made = _made(config, signature)
    listed = tuple(a for a in signature.arguments if a.name not in made)
    return (
        f"unable to complete the configuration of model '{config.name}': '{path}' does not tell "
        f"{reason}. Write '{path.parent.parent / 'config.pbtxt'}' like this and fill in what is "
        f"marked:\n\n{skeleton(config, replace(signature, arguments=listed))}"
    )


def _is_traced(path: Path) -> bool:
    """Whether the file remembers example inputs; asking torch for those of another file makes it
    complain on the standard error output."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/traced_inputs" in name for name in archive.namelist())


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Trial runs are small; more threads would only leave a pool behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
