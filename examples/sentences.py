"""What are sentences about, and how alike are they? An ensemble on the server turns text into
tokens, these into vectors, and finds the nearest topic; here the vectors' angles are compared."""

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from client import Array, Client, add_options, connect, strings

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
    return _ask(client, sentences, "embedding")


def topics(client: Client, sentences: Sequence[str]) -> list[str]:
    """What each sentence is about."""
    return [topic.decode() for topic in _ask(client, sentences, "topic")[:, 0]]


def _ask(client: Client, sentences: Sequence[str], output: str) -> Array:
    """One output of the ensemble, which runs only the steps that it needs."""
    parts = [
        client.infer(
            "sentences", {"text": strings(sentences[start : start + MODEL_BATCH])}, (output,)
        )
        for start in range(0, len(sentences), MODEL_BATCH)
    ]
    return np.concatenate([part[output] for part in parts])


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
        for number, topic in enumerate(topics(client, options.sentences), 1):
            print(f"{number:2} is about {topic}")


if __name__ == "__main__":
    main()
