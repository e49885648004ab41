"""How alike are sentences? The server turns text into tokens and tokens into vectors; here their
angles are compared."""

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from client import Client, add_options, connect, strings

Vectors = npt.NDArray[np.float32]

MODEL_BATCH = 16
SENTENCES = (
    "The cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "The stock market fell sharply today.",
    "Shares lost much of their value this morning.",
)


def embed(client: Client, sentences: Sequence[str]) -> Vectors:
    """One unit vector per sentence, [N, 384]."""
    parts = [
        _embed_batch(client, sentences[start : start + MODEL_BATCH])
        for start in range(0, len(sentences), MODEL_BATCH)
    ]
    return np.concatenate(parts)


def _embed_batch(client: Client, sentences: Sequence[str]) -> Vectors:
    names = ("input_ids", "attention_mask")
    tokens = client.infer("tokenize", {"text": strings(sentences)}, names)
    return client.infer("minilm", tokens, ("embedding",))["embedding"]


def table(sentences: Sequence[str], vectors: Vectors) -> str:
    """A line per sentence with its likeness to each, 1.00 for the same meaning."""
    width = max(len(sentence) for sentence in sentences)
    lines = [" " * (width + 3) + "".join(f"{i + 1:6}" for i in range(len(sentences)))]
    # Adding zero turns a rounded -0.0 into 0.0.
    likenesses = np.round(vectors @ vectors.T, 2) + 0.0
    for i, (sentence, row) in enumerate(zip(sentences, likenesses, strict=True)):
        numbers = "".join(f"{likeness:6.2f}" for likeness in row)
        lines.append(f"{i + 1:2} {sentence:{width}}{numbers}")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentences", nargs="*", default=SENTENCES, metavar="SENTENCE")
    add_options(parser)
    options = parser.parse_args()
    with connect(options) as client:
        print(table(options.sentences, embed(client, options.sentences)))


if __name__ == "__main__":
    main()
