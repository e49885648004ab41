"""Having an interpreter of our own compile a model. No torch."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microkernel import ModelConfig, config_to_json
from microkernel_torchscript.tuning.interpreter import Errand, NotDone, documents
from microkernel_torchscript.tuning.trial import Unreadable, number

PACKAGE = "model.pt2"
"""The name of the package in the folder that it is made in."""

LEAST_SECONDS = 20.0
"""Who measures for less does not want to wait for a compiler, which takes about as long."""

MOST_SECONDS = 180.0
"""For compiling one model and comparing its results; what takes longer is given up."""

_ERRAND = Errand(
    "microkernel_torchscript.tuning.compiled.making",
    "the compiling process",
    f"compiling takes more than {MOST_SECONDS:g} s",
)
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Made:
    """What came of compiling: `fault` says why there is no package, "" where there is one, whose
    results differ by at most `difference` from the plain module's."""

    fault: str
    difference: float = 0.0


def order_package(config: ModelConfig, files: Path, sizes: Sequence[int], folder: Path) -> Made:
    """Have the model of a version directory compiled into a package in a folder, and its results
    compared in batches of these sizes. Never raises for what the compiler or the model does."""
    order = {
        "config": config_to_json(config),
        "files": str(files.absolute()),
        "sizes": list(sizes),
        "path": str(folder / PACKAGE),
    }
    try:
        with contextlib.closing(documents(_ERRAND, order, MOST_SECONDS, {})) as told:
            document = next(told)
            if "failed" in document:
                return Made(str(document["failed"][-1])[:_LONGEST])
            return Made(str(document["fault"])[:_LONGEST], number(document, "difference"))
    except (NotDone, OSError) as reason:
        return Made(str(reason))
    except (Unreadable, LookupError, TypeError) as error:
        return Made(f"{_ERRAND.what} answers what is no answer: {error}")
