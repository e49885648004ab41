"""Filling in the inputs and outputs of a configuration from a TorchScript file.

Triton's backend completes nothing. Here a traced file tells its inputs, the first layer hints at
them, and trial runs tell the outputs and the sizes that vary. What cannot be told is asked for,
with the configuration to paste.
"""

import contextlib
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
    sequence_inputs,
    state_outputs,
)
from microkernel_torchscript.batching import cannot_batch, suggest_batching, written
from microkernel_torchscript.gpu.baked import check_devices
from microkernel_torchscript.inputs import InputPlan, check_kinds, plan_inputs
from microkernel_torchscript.made_up import PATIENCE, Purpose, told_when_long
from microkernel_torchscript.naming import index_of
from microkernel_torchscript.probing.examples import (
    CannotTell,
    Example,
    configured_examples,
    discovered_examples,
    is_ragged,
)
from microkernel_torchscript.probing.skeleton import unfinished
from microkernel_torchscript.probing.survey import Survey, survey
from microkernel_torchscript.script.files import load_module
from microkernel_torchscript.sequences import sequence_position
from microkernel_torchscript.signature import Signature, signature_of


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
    check_devices(config.name, module)
    signature = signature_of(module)
    if not signature.arguments:
        raise InvalidArgument(
            f"unable to complete the configuration of model '{config.name}': its 'forward' takes "
            f"no arguments, and a model must have at least one input ('{path}')"
        )
    if not signature.takes_dictionary:
        check_kinds(signature.arguments)
    subject = Subject(
        forward=module.forward,
        signature=signature,
        plan=lambda listed: plan_inputs(listed, signature),
        guesses=lambda: discovered_examples(module, signature),
    )
    return completed(config, path, subject)


def completed(
    config: ModelConfig, path: Path, subject: Subject, patience: float = PATIENCE
) -> ModelConfig:
    """What `complete` gives for a model of any kind, loaded from the file `path`. The log hears of
    trial runs that go on for longer than the seconds of `patience`."""
    signature = subject.signature
    try:
        watched = told_when_long(config, Purpose.COMPLETING, patience)
        with watched, _one_thread(), torch.inference_mode():
            examples, found = _find(config, subject)
    except CannotTell as reason:
        lacking = f"'{path}' does not tell {reason}"
        raise unfinished(config, _listed(config, signature), path, lacking) from None
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
    names = [entry.name for entry in state_outputs(config)]
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
    if is_ragged(config):
        raise CannotTell("the inputs and outputs, because a ragged batch cannot be made up")
    if not config.input:
        names = _made(config, subject.signature)
        return (
            tuple(replace(e, name=names.get(e.name, e.name)) for e in examples)
            for examples in subject.guesses()
        )
    return configured_examples(config, subject.plan(config).kinds)


def _check_batching(config: ModelConfig, found: Survey) -> None:
    if config.max_batch_size > 0 and not found.batches:
        raise cannot_batch(config.name)
    if not config.max_batch_size and found.batches:
        suggest_batching(config)


def _input(config: ModelConfig, example: Example, shape: tuple[int, ...]) -> ModelInput:
    dims, reshape = written(shape, config.max_batch_size)
    return ModelInput(example.name, example.data_type, dims=dims, reshape=reshape)


def _output(config: ModelConfig, name: str, kind: str, shape: tuple[int, ...]) -> ModelOutput:
    dims, reshape = written(shape, config.max_batch_size)
    return ModelOutput(name, kind, dims=dims, reshape=reshape)


def _listed(config: ModelConfig, signature: Signature) -> Signature:
    """The signature without the arguments that controls and states feed."""
    made = _made(config, signature)
    return replace(signature, arguments=tuple(a for a in signature.arguments if a.name not in made))


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
