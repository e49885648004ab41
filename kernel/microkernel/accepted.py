"""Flags of Triton that mean nothing here. They are taken, so that start scripts run as they are,
and checked, so that they go on running; each that is given says in one warning why it does nothing.
"""

from dataclasses import dataclass

from microkernel.options import Between, Shaped, option

_GPU_BYTES = Shaped("<gpu>:<bytes>", r"[0-9]+:[0-9]+")
_GPU_FRACTION = Shaped(
    "<gpu>:<fraction>, the fraction from 0 to 1", r"[0-9]+:(0|0?\.[0-9]+|1(\.0+)?)"
)
_NO_POOL = "each worker takes the memory that its batches need, there is no pool"


@dataclass(frozen=True, slots=True)
class AcceptedSettings:
    """The flags without effect, with Triton's spellings and defaults."""

    model_namespacing: bool = option(
        False,
        flag="--model-namespacing",
        no_effect="a model whose name stands in two repositories is refused",
    )
    model_load_gpu_limit: tuple[str, ...] = option(
        (),
        flag="--model-load-gpu-limit",
        many=True,
        check=_GPU_FRACTION,
        no_effect="a load is not refused before the memory of the GPU is used up",
    )
    enable_peer_access: bool = option(
        True,
        flag="--enable-peer-access",
        no_effect="tensors go from one GPU to another by way of the host",
    )
    backend_directory: str = option(
        "/opt/tritonserver/backends",
        flag="--backend-directory",
        no_effect="backends are plug-ins, which are installed with pip",
    )
    repoagent_directory: str = option(
        "/opt/tritonserver/repoagents",
        flag="--repoagent-directory",
        no_effect="there are no repository agents",
    )
    cache_directory: str = option(
        "/opt/tritonserver/caches",
        flag="--cache-directory",
        no_effect="caches are plug-ins, which are installed with pip",
    )
    pinned_memory_pool_byte_size: int = option(
        1 << 28, flag="--pinned-memory-pool-byte-size", check=Between(0), no_effect=_NO_POOL
    )
    cuda_memory_pool_byte_size: tuple[str, ...] = option(
        (), flag="--cuda-memory-pool-byte-size", many=True, check=_GPU_BYTES, no_effect=_NO_POOL
    )
    cuda_virtual_address_size: tuple[str, ...] = option(
        (),
        flag="--cuda-virtual-address-size",
        many=True,
        check=_GPU_BYTES,
        no_effect="the state of sequences does not grow in the memory of GPUs",
    )
    min_supported_compute_capability: float = option(
        6.0,
        flag="--min-supported-compute-capability",
        check=Between(0),
        no_effect="every GPU is used that the installed frameworks can use",
    )
    buffer_manager_thread_count: int = option(
        0,
        flag="--buffer-manager-thread-count",
        check=Between(0),
        no_effect="inputs are gathered by the thread that dispatches them",
    )
