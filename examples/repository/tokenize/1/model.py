"""Sentences to token numbers, with the tokenizer.json that lies in the model's folder."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

MAX_TOKENS = 256


class TritonPythonModel:
    """Input `text` BYTES [B, 1]; outputs `input_ids` and `attention_mask` INT64 [B, T], padded to
    the longest sentence of the request, at most 256 tokens."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        try:
            sentences = [element.decode() for element in text.reshape(-1)]
        except UnicodeDecodeError as error:
            message = f"input 'text' must be UTF-8: {error}"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            )
        rows = self._tokenizer.encode_batch(sentences)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", np.array([row.ids for row in rows], np.int64)),
                pb_utils.Tensor(
                    "attention_mask", np.array([row.attention_mask for row in rows], np.int64)
                ),
            ]
        )
