"""A response per element of a request's input: the usual demonstration of a decoupled model."""

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """Input `IN` INT32 [N]; N responses with `OUT` INT32 [1], an element, and `IDX` UINT32 [1], its
    place. Optional inputs are milliseconds: `DELAY` UINT32 [N] before each response, `WAIT` UINT32
    [1] until the next request is taken."""

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            delays = _milliseconds(request, "DELAY", len(values))
            sender = request.get_response_sender()
            if len(delays) != len(values):
                message = f"DELAY has {len(delays)} elements, IN {len(values)}"
                sender.send(_error(message, pb_utils.TritonError.INVALID_ARG), FINAL)
                continue
            # The thread outlives this call, so `execute` can take the next request meanwhile.
            threading.Thread(target=_repeat, args=(sender, values, delays), daemon=True).start()
            time.sleep(_milliseconds(request, "WAIT", 1)[0] / 1000)


def _repeat(sender: Any, values: npt.NDArray[np.int32], delays: npt.NDArray[np.uint32]) -> None:
    for index, (value, delay) in enumerate(zip(values, delays, strict=True)):
        time.sleep(delay / 1000)
        if sender.is_cancelled():
            sender.send(_error("the client left", pb_utils.TritonError.CANCELLED), FINAL)
            return
        tensors = [
            pb_utils.Tensor("OUT", np.array([value], np.int32)),
            pb_utils.Tensor("IDX", np.array([index], np.uint32)),
        ]
        sender.send(pb_utils.InferenceResponse(tensors))
    sender.send(flags=FINAL)


def _milliseconds(request: Any, name: str, count: int) -> npt.NDArray[np.uint32]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return np.zeros(count, np.uint32) if tensor is None else tensor.as_numpy()


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
