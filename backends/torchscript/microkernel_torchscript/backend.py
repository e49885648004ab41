"""Loading PyTorch models of every kind."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from microkernel import Backend, Model, ModelConfig
from microkernel_torchscript import Settings
from microkernel_torchscript.exported.package import PackageSource, complete_package
from microkernel_torchscript.exported.program import ProgramSource, complete_program
from microkernel_torchscript.kinds import RUNTIME, Kind, check_runtime, kind_of, package_name
from microkernel_torchscript.merging import with_description
from microkernel_torchscript.model import PyTorchModel
from microkernel_torchscript.module.completion import complete_module
from microkernel_torchscript.module.options import module_options, report_threads
from microkernel_torchscript.module.source import ModuleSource
from microkernel_torchscript.options import Options, described, parse_options
from microkernel_torchscript.probing.completion import complete
from microkernel_torchscript.script.files import expect_read_only_buffers, model_file
from microkernel_torchscript.script.source import ScriptSource
from microkernel_torchscript.source import Source
from microkernel_torchscript.tuning.compiled.source import compiled_source
from microkernel_torchscript.tuning.loading import Autotune, Tuned
from microkernel_torchscript.tuning.trial import PLAIN

logger = logging.getLogger(__name__)


class PyTorchBackend(Backend):
    """Serves PyTorch models of every kind."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._autotune = Autotune()
        expect_read_only_buffers()

    def load(self, config: ModelConfig, files: Path) -> Model:
        """Load the files and check the configuration against what they tell."""
        check_runtime(config)
        kind = kind_of(config, files)
        options = _options(config)
        _report(config, options)
        _set_inter_op_threads(options.inter_op_threads or max(1, self._settings.inter_op_threads))
        tuned = self._autotune.choice(config, files)
        options = replace(options, intra_op_threads=options.intra_op_threads or tuned.threads)
        source = _source(kind, config, files, options, tuned)
        return PyTorchModel(config, files.name, source, options)

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """See `_completed`; the parameter AUTOTUNE may add instances and batching."""
        return self._autotune.completed(self._completed(config, files), files)

    def _completed(self, config: ModelConfig, files: Path) -> ModelConfig:
        """Fill in inputs and outputs that the configuration leaves out, from what the file says of
        itself and else from what it shows; see `completion`."""
        check_runtime(config)
        kind = kind_of(config, files)
        config = with_description(config, files)
        if config.input and config.output:
            return config
        if kind is Kind.PROGRAM:
            return complete_program(config, files / package_name(config))
        if kind is Kind.PACKAGE:
            return complete_package(config, files / package_name(config))
        if kind is Kind.MODULE:
            return complete_module(config, files)
        return complete(config, model_file(config, files))


def _options(config: ModelConfig) -> Options:
    return module_options(config) if config.runtime == RUNTIME else parse_options(config)


def _source(kind: Kind, config: ModelConfig, files: Path, options: Options, tuned: Tuned) -> Source:
    sharing = bool(options.weight_sharing)
    if kind is Kind.MODULE:
        return ModuleSource(config, files, mapped=sharing)
    if kind is Kind.PROGRAM:
        return ProgramSource(config, files / package_name(config), mapped=sharing)
    if kind is Kind.PACKAGE:
        return PackageSource(config, files / package_name(config))
    path = model_file(config, files)
    if config.runtime == RUNTIME:
        logger.info("Loading '%s' as TorchScript", config.name)
    if tuned.package is not None:
        compiled = compiled_source(config, path, tuned.package)
        if compiled is not None:
            return compiled
    return ScriptSource(
        config,
        path,
        inference_mode=options.inference_mode,
        sharing=sharing,
        variant=PLAIN if tuned.package else tuned.variant,
    )


def _report(config: ModelConfig, options: Options) -> None:
    if config.runtime == RUNTIME:
        report_threads(config.name, options)
    else:
        for line in described(config.name, options):
            logger.info("%s", line)
    for notice in options.notices:
        logger.warning("model '%s': %s", config.name, notice)


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
