"""The content of a file to the numbers that Magika's network takes: what stands at its beginning
and at its end, without the white space around it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

BLOCK = 4096
SIDE = 1024
PADDING = 256


def features(content: bytes) -> npt.NDArray[np.int32]:
    """2048 numbers: the first 1024 bytes of the first block without leading white space, filled up
    at the end, then the last 1024 bytes of the last block without trailing white space, filled up
    at the front. 256 fills up."""
    begin = content[:BLOCK].lstrip()[:SIDE]
    end = content[-BLOCK:].rstrip()[-SIDE:]
    numbers = np.full(2 * SIDE, PADDING, np.int32)
    numbers[: len(begin)] = np.frombuffer(begin, np.uint8)
    numbers[2 * SIDE - len(end) :] = np.frombuffer(end, np.uint8)
    return numbers


class TritonPythonModel:
    """Input `content` BYTES [B, 1]; output `features` INT32 [B, 2048]."""

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        content = pb_utils.get_input_tensor_by_name(request, "content").as_numpy()
        rows = [features(element) for element in content.reshape(-1)]
        return pb_utils.InferenceResponse([pb_utils.Tensor("features", np.stack(rows))])
