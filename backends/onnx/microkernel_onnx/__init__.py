"""ONNX models, as Triton's `onnxruntime` backend serves them. Nothing heavy is imported here."""

from dataclasses import dataclass

from microkernel import BackendType, RegisterBackend, RegisterOptions, hookimpl, option

_OWN_THREADS = (
    "each session has threads of its own, see the parameters intra_op_thread_count and "
    "inter_op_thread_count of a model"
)
_IGNORED = dict.fromkeys(
    ("enable-global-threadpool", "intra_op_thread_count", "inter_op_thread_count"), _OWN_THREADS
)
"""What Triton's ONNX Runtime backend can be told and this one has no use for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The plug-in's table in `plugins.toml`."""

    default_max_batch_size: int = option(
        4,
        about="max_batch_size of models that can batch and whose configuration gives none; 0 for "
        "no batching.",
    )


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(Settings)


@hookimpl
def register_backends(register: RegisterBackend) -> None:
    register(
        BackendType(
            name="onnxruntime",
            platform="onnxruntime_onnx",
            filenames=("model.onnx",),
            factory="microkernel_onnx.backend:OnnxBackend",
            worker="process",
            preload=("onnxruntime",),
            requires=("onnxruntime",),
            extra="onnx",
            cpu_instances=2,
            ignored_settings=_IGNORED,
        )
    )
