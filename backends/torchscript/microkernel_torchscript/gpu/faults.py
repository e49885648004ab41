"""What an error of a GPU means: for the batch, or for the whole process."""

import logging
import traceback
from collections.abc import Callable
from enum import Enum

import torch

from microkernel import Internal, MicrokernelError, Unavailable, WorkerFailed

logger = logging.getLogger(__name__)


class Fault(Enum):
    """What failed: the model; the GPU had no memory left; the process can compute nothing on the
    GPU any more; or one of these, which only trying can tell."""

    MODEL = "model"
    MEMORY = "memory"
    STICKY = "sticky"
    DOUBTFUL = "doubtful"


_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_STICKY = (
    "device-side assert triggered",
    "an illegal memory access was encountered",
    "unspecified launch failure",
    "misaligned address",
    "an illegal instruction was encountered",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "hardware stack error",
    "the launch timed out and was terminated",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "peer GPU memory over nvlink or a hardware error",
)
"""Words of CUDA for errors after which every call fails until the process has ended."""
_FROM_CUDA = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
_FROM_ITS_LIBRARIES = ("CUBLAS_STATUS_", "CUDNN_STATUS_", "CUSOLVER_STATUS_", "CUFFT_", "cuSPARSE")
_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
_ACCELERATOR = getattr(torch, "AcceleratorError", ())  # torch has it since 2.8


def classify(error: BaseException) -> Fault:
    """What an exception of a model that runs on a GPU is, by its type and, since the TorchScript
    interpreter makes all of them RuntimeErrors, by its words."""
    text = str(error)
    if isinstance(error, _OUT_OF_MEMORY) or any(words in text for words in _MEMORY):
        return Fault.MEMORY
    of_cuda = isinstance(error, _ACCELERATOR) or any(words in text for words in _FROM_CUDA)
    if of_cuda and any(words in text for words in _STICKY):
        return Fault.STICKY
    if of_cuda or any(words in text for words in _FROM_ITS_LIBRARIES):
        return Fault.DOUBTFUL
    return Fault.MODEL


def device_failure(error: BaseException, text: str, probe: Callable[[], None]) -> MicrokernelError:
    """The error for a batch that failed on a GPU, whose message is `text`: WorkerFailed where the
    process can go on no more. `probe` uses the GPU, and raises where that cannot be done. After a
    lack of memory what is free is given back to the GPU."""
    fault = classify(error)
    if fault is Fault.DOUBTFUL:
        fault = Fault.STICKY if _fails(probe) else Fault.MODEL
    if fault is Fault.STICKY:
        return WorkerFailed(f"{text}\nThe GPU is of no use to this process any more.")
    if fault is Fault.MEMORY:
        traceback.clear_frames(error.__traceback__)  # which hold tensors of the batch
        torch.cuda.empty_cache()
        return Unavailable(text)
    return Internal(text)


def _fails(probe: Callable[[], None]) -> bool:
    try:
        probe()
    except RuntimeError as error:
        logger.warning("after an error of the GPU the next call fails as well: %s", error)
        return classify(error) is not Fault.MEMORY
    return False
