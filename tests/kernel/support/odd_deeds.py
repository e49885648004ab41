"""What the odd backend is asked to do, and what it answers."""

from microkernel import InferResponse


def deed(name: str) -> int:
    """The number that has the odd backend do so. Its folder must be on the path."""
    from odd_backend import DEEDS  # type: ignore[import-not-found]  # on the path in the tests

    number: int = DEEDS[name]
    return number


def stream_deed(name: str) -> int:
    """The same where the model is decoupled."""
    from odd_streams import STREAM_DEEDS  # type: ignore[import-not-found]  # as above

    number: int = STREAM_DEEDS[name]
    return number


def rows(response: InferResponse) -> list[list[int]]:
    """The only output."""
    values: list[list[int]] = response.outputs[0].as_numpy().tolist()
    return values
