"""Vectors of sentences to the nearest of the topics that lie in the model's folder: topics.txt has
their names, one a line, and topics.npy a vector of length 1 for each."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Input `embedding` FP32 [B, 384], vectors of length 1; outputs `topic` BYTES [B, 1] and
    `likeness` FP32 [B, 1], the cosine of the angle between the sentence and its topic."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"])
        names = (folder / "topics.txt").read_text().splitlines()
        self._names = np.array([name.encode() for name in names], np.object_)
        self._vectors = np.load(folder / "topics.npy")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        vectors = pb_utils.get_input_tensor_by_name(request, "embedding").as_numpy()
        likenesses = vectors @ self._vectors.T
        best = likenesses.argmax(axis=1)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("topic", self._names[best][:, None]),
                pb_utils.Tensor("likeness", likenesses.max(axis=1, keepdims=True)),
            ]
        )
