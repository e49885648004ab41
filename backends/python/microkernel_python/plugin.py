"""The plug-in: announces the Python backend to the server."""

from microkernel import BackendType, RegisterBackend, hookimpl

_NO_REGION = "tensors travel in blocks of memory that grow with the batches"
_IGNORED = {
    "shm-default-byte-size": _NO_REGION,
    "shm-growth-byte-size": _NO_REGION,
    "shm-region-prefix-name": "the memory that tensors travel in has no name",
    "shm_message_queue_size": "messages travel over a socket",
    "stub-timeout-seconds": "Triton does not use it either; a model may take any time to load",
    "thread-pool-size": "there is no pool of threads",
}
"""What Triton's Python backend can be told and this one has no use for."""


@hookimpl
def register_backends(register: RegisterBackend) -> None:
    """One process per instance, because the models hold the GIL and own their main thread."""
    register(
        BackendType(
            name="python",
            factory="microkernel_python.backend:PythonBackend",
            filenames=("model.py",),
            worker="instance",
            gpu=True,
            preload=("microkernel_python.backend",),
            ignored_settings=_IGNORED,
        )
    )
