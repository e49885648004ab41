"""The words of torch's exceptions, arranged for a client."""

_INTERPRETER = "The following operation failed in the TorchScript interpreter."


def load_failure(text: str) -> str:
    """What is wrong with a file that torch would not load: the first clause, without the advice
    that follows it."""
    if "constants.pkl" in text:
        return (
            "this is a checkpoint, not TorchScript: it holds weights and no code; export the "
            "module with torch.jit.script or torch.jit.trace and save that"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")
    return first.split(". ", 1)[0].rstrip(".")


def execute_failure(error: Exception) -> str:
    """The message for an exception of `forward`: what went wrong first, then the TorchScript
    traceback if there is one."""
    if isinstance(error, UnicodeDecodeError):
        return "PyTorch execute failure: the model returned a string that is not valid UTF-8"
    text = str(error).strip() or type(error).__name__
    if text.startswith(_INTERPRETER):
        text = f"{text.splitlines()[-1]}\n{text}"
    return f"PyTorch execute failure: {text}"
