"""The words of torch's exceptions, arranged for a client."""

import re
import sysconfig
import traceback
from pathlib import Path

FAILURE = "PyTorch execute failure: "
"""What Triton begins the message of every failed execution with."""

_INTERPRETER = "The following operation failed in the TorchScript interpreter."
_TRACED = re.compile(r"Traceback of TorchScript, |.+\(\d+\): \S+$")
"""What begins a trace, and a call in that of a traced module: `file.py(7): forward`."""
_ORIGIN = re.compile(r"^\[enforce fail at [^\]]*\] \. ")
_LIBRARIES = (
    f"{Path(__file__).parent}/",
    *{f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib", "stdlib", "platstdlib")},
    "<",  # code that torch wrote
)
"""Where code lies that is not the model's."""
_MOST = 6000
"""Characters of a message: a client must be able to receive it, and a model may raise anything."""


def load_failure(text: str) -> str:
    """What torch says of a file that it would not load: the first clause, without the place in its
    source and the advice that follows."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")
    return _ORIGIN.sub("", first).split(". ", 1)[0].rstrip(".")


def headline(error: BaseException) -> str:
    """The first line of what an exception says, "" where it says nothing."""
    return _said(error).partition("\n")[0]


def execute_failure(error: BaseException) -> str:
    """The message for an exception of `forward`: what went wrong first, then the TorchScript
    traceback if there is one. What Python code raises is told with its type, but for RuntimeError,
    which torch itself raises, and with the line in the model's own files. A text of many thousand
    characters loses its middle."""
    if isinstance(error, UnicodeDecodeError):
        return f"{FAILURE}the model returned a string that is not valid UTF-8"
    text = _said(error)
    if text.startswith(_INTERPRETER):
        text = f"{_reason(text)}\n{text}"
    elif type(error) is not RuntimeError or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    first, end, rest = text.partition("\n")
    return FAILURE + _shortened(f"{first}{_place(error)}{end}{rest}")


def first_line(error: BaseException) -> str:
    """What went wrong in `forward`, in one line."""
    return execute_failure(error).removeprefix(FAILURE).splitlines()[0]


def _said(error: BaseException) -> str:
    """What an exception says; "" where it cannot."""
    try:
        return str(error).strip()
    except Exception:  # noqa: BLE001 - a model may raise what it likes
        return ""


def _place(error: BaseException) -> str:
    """The last line of the model's own Python code that an exception went through, "" for none."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_LIBRARIES)
    ]
    return f" ({Path(frames[-1][0]).name}, line {frames[-1][1]})" if frames else ""


def _reason(trace: str) -> str:
    """The first line of what was raised: it is the first that is not indented below the last line
    of code, which is marked by `<--- HERE`, and the calls that were traced."""
    lines = trace.splitlines()
    marks = [index for index, line in enumerate(lines) if line.endswith("<--- HERE")]
    after = lines[marks[-1] + 1 :] if marks else lines[-1:]
    told = (line for line in after if line and not line[0].isspace() and not _TRACED.match(line))
    return next(told, lines[-1])


def _shortened(text: str) -> str:
    if len(text) <= _MOST:
        return text
    kept = _MOST // 2
    return f"{text[:kept]}\n[{len(text) - 2 * kept} characters left out]\n{text[-kept:]}"
