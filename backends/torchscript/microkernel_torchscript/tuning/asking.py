"""Having an interpreter of our own measure a model, so that no torch comes into this process and a
model that crashes or hangs takes nothing along. No torch."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microkernel import (
    ModelConfig,
    ModelParameter,
    config_from_json,
    config_to_json,
    error_from,
)
from microkernel_torchscript.tuning.compiled.ordering import LEAST_SECONDS, MOST_SECONDS, PACKAGE
from microkernel_torchscript.tuning.interpreter import Errand, NotDone, documents
from microkernel_torchscript.tuning.record import Measured, measured_from_json
from microkernel_torchscript.tuning.trial import AOTI

Heard = Callable[[str], None]

_ERRAND = Errand(
    "microkernel_torchscript.tuning.child",
    "the measuring process",
    "the model was still running when measuring had to be over",
)
_START_SECONDS = 60.0
"""For importing torch and loading the model, beside twice the time for measuring."""


class NotMeasured(Exception):
    """The interpreter ended or hung; the text says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The complete configuration of a model, the key of a record of it, and what was measured:
    None where the model is no TorchScript, or nothing was asked for. `package` is the compiled
    model where that was chosen; it is gone with the folder that it was made in."""

    config: ModelConfig
    key: Mapping[str, str]
    measured: Measured | None
    package: Path | None = None


@contextlib.contextmanager
def workshop() -> Iterator[Path | None]:
    """A folder to compile in, which is removed at the end; None where there can be none."""
    with contextlib.ExitStack() as kept:
        folder: Path | None = None
        with contextlib.suppress(OSError):
            made = tempfile.TemporaryDirectory(
                prefix="microkernel-tune-", ignore_cleanup_errors=True
            )
            folder = Path(kept.enter_context(made))
        yield folder


def ask(
    config: ModelConfig, files: Path, seconds: float, heard: Heard, folder: Path | None = None
) -> Answer:
    """Complete a model's configuration and measure it for about so many seconds, not at all for 0.
    `heard` gets news as it goes. Given a `folder`, it is compiled there as well where that may pay,
    which takes more time. Raises what the model's files are refused for, and NotMeasured."""
    order = {
        "config": config_to_json(_without_tuning(config)),
        "files": str(files.absolute()),
        "seconds": seconds,
        "folder": None if folder is None else str(folder),
    }
    limit = _limit(seconds, compiles=folder is not None)
    try:
        with contextlib.closing(documents(_ERRAND, order, limit, _environment(folder))) as told:
            for document in told:
                if "news" not in document:
                    return _read(document, folder)
                heard(str(document["news"]))
        raise AssertionError("an interpreter that ends without an answer is an error")
    except NotDone as reason:
        raise NotMeasured(str(reason)) from None


def _limit(seconds: float, *, compiles: bool) -> float:
    """When the interpreter must be done."""
    more = MOST_SECONDS + _START_SECONDS if compiles and seconds >= LEAST_SECONDS else 0.0
    return 2 * seconds + _START_SECONDS + more


def _without_tuning(config: ModelConfig) -> ModelConfig:
    """The configuration of the model that is measured, which must not be tuned in turn."""
    return replace(config, parameters={**config.parameters, "AUTOTUNE": ModelParameter("off")})


def _environment(folder: Path | None) -> dict[str, str]:
    """Has all that a compiler leaves behind lie in the folder, nothing in the user's home."""
    if folder is None:
        return {}
    return {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}


def _read(document: dict[str, Any], folder: Path | None) -> Answer:
    """The answer in a document; raises the error that it tells of."""
    try:
        if (failed := document.get("failed")) is not None:
            raise error_from(*failed)
        config = config_from_json(document["config"])
        given, key = document.get("measured"), document["key"]
        measured = None if given is None else measured_from_json(given)
    except (ValueError, KeyError, TypeError) as error:
        raise NotDone(f"{_ERRAND.what} answers what is no answer: {error}") from None
    chosen = measured is not None and measured.decision.choice.variant == AOTI
    return Answer(config, key, measured, folder / PACKAGE if folder and chosen else None)
