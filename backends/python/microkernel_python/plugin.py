"""The plug-in: announces the Python backend to the server."""

from microkernel import BackendType, RegisterBackend, hookimpl


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
        )
    )
