"""Loading PyTorch models of every kind."""

import logging
from pathlib import Path

import torch

from microkernel import Backend, Model, ModelConfig, Unsupported
from microkernel_torchscript import Settings
from microkernel_torchscript.completion import complete
from microkernel_torchscript.files import expect_read_only_buffers, model_file
from microkernel_torchscript.kinds import Kind, kind_of
from microkernel_torchscript.model import PyTorchModel
from microkernel_torchscript.options import Options, parse_options
from microkernel_torchscript.script import ScriptSource
from microkernel_torchscript.source import Source

logger = logging.getLogger(__name__)


class PyTorchBackend(Backend):
    """Serves TorchScript files on the CPU."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        expect_read_only_buffers()

    def load(self, config: ModelConfig, files: Path) -> Model:
        """Load the files and check the configuration against what they tell."""
        kind = kind_of(config, files)
        options = parse_options(config)
        _report(config.name, options)
        _set_inter_op_threads(options.inter_op_threads or max(1, self._settings.inter_op_threads))
        return PyTorchModel(config.name, _source(kind, config, files, options), options)

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """Fill in inputs and outputs that the configuration leaves out; see `completion`."""
        kind = kind_of(config, files)
        if config.input and config.output:
            return config
        if kind is not Kind.SCRIPT:
            raise _not_served(kind, config)
        return complete(config, model_file(config, files))


def _source(kind: Kind, config: ModelConfig, files: Path, options: Options) -> Source:
    if kind is not Kind.SCRIPT:
        raise _not_served(kind, config)
    path = model_file(config, files)
    return ScriptSource(config, path, inference_mode=options.inference_mode)


def _not_served(kind: Kind, config: ModelConfig) -> Unsupported:
    return Unsupported(
        f"failed to load model '{config.name}': a model of the kind '{kind.value}' is not served, "
        "only TorchScript files are (platform 'pytorch_libtorch')"
    )


def _report(name: str, options: Options) -> None:
    for text, on in (
        ("Optimized execution", options.optimized_execution),
        ("Inference Mode", options.inference_mode),
    ):
        logger.info("%s is %s for model instance '%s'", text, "enabled" if on else "disabled", name)
    for text, count in (
        ("Intra op", options.intra_op_threads),
        ("Inter op", options.inter_op_threads),
    ):
        if count:
            logger.info("%s thread count is set to %d for model instance '%s'", text, count, name)
    for notice in options.notices:
        logger.warning("model '%s': %s", name, notice)


def _set_inter_op_threads(count: int) -> None:
    """The number holds for the process: torch accepts it once, so the first model decides."""
    if torch.get_num_interop_threads() == count:
        return
    try:
        torch.set_num_interop_threads(count)
    except RuntimeError:
        logger.warning(
            "%d inter-op threads were asked for, but this process already uses %d; a model that "
            "needs its own number needs its own worker",
            count,
            torch.get_num_interop_threads(),
        )
