"""What kind of file is it? The server turns the content into numbers and these into a score per
kind; here the best one is named."""

import argparse
import json
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from client import Client, add_options, connect, strings

BLOCK = 4096
FEWEST = 8
PADDING = 256


class Rule(TypedDict):
    """What one output of the network stands for: `label` where its score reaches `threshold`, else
    `otherwise`."""

    label: str
    threshold: float
    otherwise: str


def excerpt(path: Path) -> bytes:
    """The file's first and last 4096 bytes, all of it where it has no more: the model looks at
    nothing else."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= 2 * BLOCK:
            return file.read()
        begin = file.read(BLOCK)
        file.seek(size - BLOCK)
        return begin + file.read()


def without_model(content: bytes, features: npt.NDArray[np.int32]) -> str:
    """The kind of a file with fewer than eight bytes beside white space, on which the network was
    not trained; "" where it is to be asked."""
    if not content:
        return "empty"
    if features[FEWEST - 1] != PADDING:
        return ""
    try:
        content[:BLOCK].decode()
    except UnicodeDecodeError:
        return "unknown"
    return "txt"


def decide(scores: npt.NDArray[np.float32], rules: list[Rule]) -> tuple[str, float]:
    """The label of the highest score, and that score."""
    best = int(scores.argmax())
    rule, score = rules[best], float(scores[best])
    return rule["label"] if score >= rule["threshold"] else rule["otherwise"], score


def file_type(client: Client, content: bytes, rules: list[Rule]) -> tuple[str, float]:
    """The kind of a file and how sure that is, 0 to 1."""
    numbers = client.infer("file_bytes", {"content": strings([content])}, ("features",))["features"]
    if label := without_model(content, numbers[0]):
        return label, 1.0
    scores = client.infer("magika", {"bytes": numbers}, ("target_label",))["target_label"]
    return decide(scores[0], rules)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--labels", type=Path, default=Path("models/magika/labels.json"))
    add_options(parser)
    options = parser.parse_args()
    rules = json.loads(options.labels.read_text())
    with connect(options) as client:
        for path in options.files:
            label, score = file_type(client, excerpt(path), rules)
            print(f"{path}: {label} ({score:.2f})")


if __name__ == "__main__":
    main()
