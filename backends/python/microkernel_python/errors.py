"""What `triton_python_backend_utils` raises."""


class TritonModelException(Exception):
    """A call that has no meaning where it was made; `str(e)` is the message."""
