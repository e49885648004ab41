"""A backend of a third party: each output is an input multiplied, by two unless told otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microkernel import (
    Backend,
    BackendType,
    Batch,
    Instance,
    InvalidArgument,
    Model,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Outcome,
    Placement,
    RegisterBackend,
    RegisterOptions,
    Tensor,
    hookimpl,
    option,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The plug-in's table in `plugins.toml`, and its flag."""

    factor: int = option(2, flag="--doubler-factor", about="What inputs are multiplied by.")


class DoublerBackend(Backend):
    """Serves a file `double.txt` that holds the length of the vectors it takes."""

    def __init__(self, settings: Settings) -> None:
        self._factor = settings.factor

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """The input and the output by the length in the file, in batches of up to eight."""
        text = (files / "double.txt").read_text().strip()
        if not text.isdecimal():
            raise InvalidArgument(f"double.txt must hold a length, got '{text}'")
        return replace(
            config,
            max_batch_size=8,
            input=(ModelInput("x", "TYPE_FP32", dims=(int(text),)),),
            output=(ModelOutput("y", "TYPE_FP32", dims=(int(text),)),),
        )

    def load(self, config: ModelConfig, files: Path) -> Model:
        """Nothing is left to load."""
        return _DoublerModel(self._factor)


class _DoublerModel(Model):
    def __init__(self, factor: int) -> None:
        self._factor = factor

    def instance(self, placement: Placement) -> Instance:
        return _DoublerInstance(self._factor)


class _DoublerInstance(Instance):
    def __init__(self, factor: int) -> None:
        self._factor = factor

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        product = batch.stacked["x"].as_numpy() * self._factor
        return batch.split([Tensor.from_numpy("y", product)])


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(Settings)


@hookimpl
def register_backends(register: RegisterBackend) -> None:
    register(
        BackendType(
            name="doubler",
            filenames=("double.txt",),
            factory="doubler_plugin:DoublerBackend",
            preload=("numpy",),
        )
    )
