"""PyTorch models, as Triton's `pytorch` backend serves them. This module imports no torch."""

from dataclasses import dataclass

from microkernel import BackendType, RegisterBackend, RegisterOptions, hookimpl, option
from microkernel_torchscript.kinds import hosting, recognise


@dataclass(frozen=True, slots=True)
class Settings:
    """The plug-in's table in `plugins.toml`."""

    inter_op_threads: int = option(
        1,
        about="Threads for branches that a model runs in parallel, where the model's parameter "
        "INTER_OP_THREAD_COUNT does not say; one number per worker.",
    )


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(Settings)


@hookimpl
def register_backends(register: RegisterBackend) -> None:
    register(
        BackendType(
            name="pytorch",
            platform="pytorch_libtorch",
            filenames=("model.pt", "model.pt2"),
            factory="microkernel_torchscript.backend:PyTorchBackend",
            recognise=recognise,
            hosting=hosting,
            preload=("torch",),
            # Threads that spin at barriers starve each other on a busy host.
            environment={"OMP_WAIT_POLICY": "passive"},
            requires=("torch",),
            extra="torchscript",
        )
    )
