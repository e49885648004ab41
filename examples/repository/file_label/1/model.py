"""The scores of Magika's network to the kind of a file, by the rules of labels.json, which lies in
the model's folder: one for each score, the `label` to show where it reaches `threshold`, and the
one to show `otherwise`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

BLOCK = 4096
FEWEST = 8
PADDING = 256


def without_model(content: bytes, features: npt.NDArray[np.int32]) -> str:
    """The kind of a file with fewer than eight bytes beside white space, on which the network was
    not trained; "" where its scores count."""
    if not content:
        return "empty"
    if features[FEWEST - 1] != PADDING:
        return ""
    try:
        content[:BLOCK].decode()
    except UnicodeDecodeError:
        return "unknown"
    return "txt"


def decide(scores: npt.NDArray[np.float32], rules: list[dict[str, Any]]) -> tuple[str, float]:
    """The label of the highest score, and that score."""
    best = int(scores.argmax())
    rule, score = rules[best], float(scores[best])
    return rule["label"] if score >= rule["threshold"] else rule["otherwise"], score


class TritonPythonModel:
    """Inputs `content` BYTES [B, 1], `features` INT32 [B, 2048] and `scores` FP32 [B, N]; outputs
    `label` BYTES [B, 1] and `score` FP32 [B, 1], 0 to 1."""

    def initialize(self, args: dict[str, str]) -> None:
        path = Path(args["model_repository"]) / "labels.json"
        self._rules = json.loads(path.read_text())

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        names = ("content", "features", "scores")
        tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in names]
        contents, features, scores = (tensor.as_numpy() for tensor in tensors)
        rows = [
            self._kind(*row) for row in zip(contents.reshape(-1), features, scores, strict=True)
        ]
        labels = np.array([[label.encode()] for label, _ in rows], np.object_)
        sure = np.array([[score] for _, score in rows], np.float32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("label", labels), pb_utils.Tensor("score", sure)]
        )

    def _kind(
        self, content: bytes, features: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]
    ) -> tuple[str, float]:
        if label := without_model(content, features):
            return label, 1.0
        return decide(scores, self._rules)
