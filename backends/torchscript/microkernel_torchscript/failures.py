"""The words of torch's exceptions, arranged for a client."""

import re

FAILURE = "PyTorch execute failure: "
"""What Triton begins the message of every failed execution with."""

_INTERPRETER = "The following operation failed in the TorchScript interpreter."
_ORIGIN = re.compile(r"^\[enforce fail at [^\]]*\] \. ")
_MOST = 6000
"""Characters of a message: a client must be able to receive it, and a model may raise anything."""


def load_failure(text: str) -> str:
    """What torch says of a file that it would not load: the first clause, without the place in its
    source and the advice that follows."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")
    return _ORIGIN.sub("", first).split(". ", 1)[0].rstrip(".")


def headline(error: Exception) -> str:
    """The first line of what an exception says, "" where it says nothing."""
    return str(error).strip().partition("\n")[0]


def execute_failure(error: Exception) -> str:
    """The message for an exception of `forward`: what went wrong first, then the TorchScript
    traceback if there is one. A text of many thousand characters loses its middle."""
    if isinstance(error, UnicodeDecodeError):
        return f"{FAILURE}the model returned a string that is not valid UTF-8"
    text = str(error).strip() or type(error).__name__
    if text.startswith(_INTERPRETER):
        text = f"{_reason(text)}\n{text}"
    return FAILURE + _shortened(text)


def first_line(error: Exception) -> str:
    """What went wrong in `forward`, in one line."""
    return execute_failure(error).removeprefix(FAILURE).splitlines()[0]


def _reason(trace: str) -> str:
    """The first line of what was raised: it is the first that is not indented below the last line
    of code, which is marked by `<--- HERE`."""
    lines = trace.splitlines()
    marks = [index for index, line in enumerate(lines) if line.endswith("<--- HERE")]
    after = lines[marks[-1] + 1 :] if marks else lines[-1:]
    return next((line for line in after if line and not line[0].isspace()), lines[-1])


def _shortened(text: str) -> str:
    if len(text) <= _MOST:
        return text
    kept = _MOST // 2
    return f"{text[:kept]}\n[{len(text) - 2 * kept} characters left out]\n{text[-kept:]}"
