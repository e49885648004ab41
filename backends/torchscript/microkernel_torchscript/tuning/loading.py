"""The parameter AUTOTUNE: what a load takes from tuning."""

import logging
import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import torch

from microkernel import (
    DynamicBatching,
    InstanceGroup,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    processors,
)
from microkernel_torchscript.kinds import Kind, kind_of
from microkernel_torchscript.script.files import model_file
from microkernel_torchscript.tuning import places
from microkernel_torchscript.tuning.asking import NotMeasured, ask, workshop
from microkernel_torchscript.tuning.compiled.conditions import not_alone
from microkernel_torchscript.tuning.deciding import threads_for, unchanged
from microkernel_torchscript.tuning.keeping import Kept, find, keep, made_now
from microkernel_torchscript.tuning.key import key_of
from microkernel_torchscript.tuning.record import Measured
from microkernel_torchscript.tuning.trial import AOTI, PLAIN, Candidate

logger = logging.getLogger(__name__)

_SECONDS = 60.0
_MOST_SECONDS = 86400
_MODES = {"false": "off", "0": "off", "on": "true", "1": "true"}


class Mode(Enum):
    """What AUTOTUNE asks for: nothing; to use a record that fits; to make one where none does."""

    OFF = "off"
    LOAD = "load"
    MEASURE = "true"


@dataclass(frozen=True, slots=True)
class Tuned:
    """How to run a model: its variant, intra-op threads per instance, 0 for the usual, and the
    `package` of a model that is compiled."""

    variant: str = PLAIN
    threads: int = 0
    package: Path | None = None


def mode_of(config: ModelConfig) -> Mode:
    """What the model's parameter asks for. Raises InvalidArgument for another word."""
    given = config.parameter("AUTOTUNE", "off")
    word = _MODES.get(given.lower(), given.lower())
    if word not in {mode.value for mode in Mode}:
        raise InvalidArgument(
            f"parameter 'AUTOTUNE' of model '{config.name}' must be one of off, load, true, got "
            f"'{given}'"
        )
    return Mode(word)


def seconds_of(config: ModelConfig) -> float:
    """For how long a load may measure. Raises InvalidArgument for anything but a number of seconds
    above 0 and up to a day."""
    given = config.parameter("AUTOTUNE_SECONDS", str(_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MOST_SECONDS:
        raise InvalidArgument(
            f"parameter 'AUTOTUNE_SECONDS' of model '{config.name}' must be a number of seconds "
            f"above 0 and up to {_MOST_SECONDS}, got '{given}'"
        )
    return seconds


def arranged(config: ModelConfig, choice: Candidate) -> ModelConfig:
    """The configuration with the chosen instances and batches where it does not say: no instance
    group is written, or no scheduling is chosen and the model batches."""
    if choice.instances > 1 and not config.instance_group:
        config = replace(config, instance_group=(InstanceGroup(count=choice.instances),))
    scheduled = (config.dynamic_batching, config.sequence_batching, config.ensemble_scheduling)
    if any(one is not None for one in scheduled):
        return config
    if not 1 < choice.batch <= config.max_batch_size:
        return config
    return replace(config, dynamic_batching=DynamicBatching(preferred_batch_size=(choice.batch,)))


class Autotune:
    """What one backend knows of records; they are read once."""

    def __init__(self) -> None:
        self._known: dict[Path, Kept | None] = {}

    def completed(self, config: ModelConfig, files: Path) -> ModelConfig:
        """A complete configuration with what tuning adds; measures first where that is asked for
        and no record fits. Raises InvalidArgument for wrong parameters."""
        mode, seconds = mode_of(config), seconds_of(config)
        if mode is Mode.OFF or _not_tunable(config, files):
            return config
        kept = self._kept(config, files)
        if kept is None and mode is Mode.MEASURE:
            kept = self._known[files] = _measured(config, files, seconds)
        return config if kept is None else arranged(config, kept.record.measured.decision.choice)

    def choice(self, config: ModelConfig, files: Path) -> Tuned:
        """How to run the model of a normalised configuration: as usual where no record fits."""
        if mode_of(config) is Mode.OFF:
            return Tuned()
        if reason := _not_tunable(config, files):
            logger.warning("model '%s': AUTOTUNE has no effect: %s", config.name, reason)
            return Tuned()
        kept = self._kept(config, files)
        if kept is None:
            return Tuned()
        measured = kept.record.measured
        chosen = measured.decision.choice
        try:
            package = _package(config, files, kept) if chosen.variant == AOTI else None
        except (OSError, ValueError) as reason:
            logger.warning("model '%s' runs as it was saved: %s", config.name, reason)
            return Tuned()
        count = sum(group.count for group in config.instance_group if not group.passive) or 1
        usual = max(1, processors() // count)
        threads = threads_for(measured.rows, chosen, count, usual)
        tuned = Tuned(chosen.variant, threads, package)
        _tell(config.name, count, tuned, measured)
        return tuned

    def _kept(self, config: ModelConfig, files: Path) -> Kept | None:
        if files not in self._known:
            key = key_of(config, model_file(config, files), torch.__version__)
            self._known[files] = find(config.name, places.places(files), key)
        return self._known[files]


def _package(config: ModelConfig, files: Path, kept: Kept) -> Path:
    """The compiled model. Raises ValueError and OSError, which say why, where it cannot serve."""
    if reason := not_alone(config):
        raise ValueError(f"tuning chose '{AOTI}', but {reason}")
    return kept.package(files)


def _measured(config: ModelConfig, files: Path, seconds: float) -> Kept | None:
    """Measure and keep the record; None where the model's files are refused, which loading them
    will tell."""
    key = key_of(config, model_file(config, files), torch.__version__)
    candidates = places.places(files)
    with places.alone(), workshop() as folder:
        # Another process may have measured it while this one waited.
        if (kept := find(config.name, candidates, key)) is not None:
            return kept
        logger.info("model '%s': tuning measures for about %g s", config.name, seconds)
        package: Path | None = None
        try:
            answer = ask(config, files, seconds, logger.debug, folder)
            measured = answer.measured or Measured(unchanged(processors(), "it is no TorchScript"))
            package = answer.package
        except NotMeasured as error:
            logger.warning("model '%s': tuning failed: %s", config.name, error)
            measured = Measured(unchanged(processors(), str(error)))
        except MicrokernelError as error:
            logger.warning("model '%s': tuning failed: %s", config.name, error)
            return None
        return keep(config.name, candidates, made_now(key, measured), package)


def _not_tunable(config: ModelConfig, files: Path) -> str:
    """Why tuning measures no model of this kind or on these devices: "" where it does."""
    kind = kind_of(config, files)
    if kind is not Kind.SCRIPT:
        return f"it measures TorchScript, not a model of the kind '{kind.value}'"
    kinds = {group.kind for group in config.instance_group} or {"KIND_AUTO"}
    if kinds <= {"KIND_CPU"} or (kinds <= {"KIND_CPU", "KIND_AUTO"} and not _has_gpu()):
        return ""
    return "it measures instances of KIND_CPU only"


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _tell(name: str, count: int, tuned: Tuned, measured: Measured) -> None:
    decision = measured.decision
    threads = f"{tuned.threads} threads each" if tuned.threads else "as many threads as usual"
    logger.info(
        "model '%s': tuning chose '%s' in %d instances with %s, batches of %d: %s; results differ "
        "by at most %.3g from the plain module's",
        name,
        tuned.variant,
        count,
        threads,
        decision.choice.batch,
        decision.reason,
        decision.difference,
    )
