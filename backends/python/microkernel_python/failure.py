"""How an exception of model code is put into the text of an error."""

import os
import traceback
from pathlib import Path

import microkernel
from microkernel import error_summary

_SKIPPED = (
    "<frozen importlib",
    *(f"{Path(file).parent}{os.sep}" for file in (__file__, str(microkernel.__file__))),
)


def describe(error: BaseException) -> str:
    """`TypeName: message`, a blank line, `At:`, and `  file(line): function` per frame of the
    model's code, the innermost first.

    Frames of the server itself and of the import machinery are left out; with no frame left, as
    after a syntax error, so is `At:`.
    """
    summary = error_summary(error)
    frames = [
        f"  {frame.f_code.co_filename}({line}): {frame.f_code.co_name}\n"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_SKIPPED)
    ]
    if not frames:
        return summary
    return f"{summary}\n\nAt:\n{''.join(reversed(frames))}"


def failed(instance: str, reason: str) -> str:
    """The message of requests that an instance could not process."""
    return f"Failed to process the request(s) for model '{instance}', message: {reason}"
