"""What kind of file is it? An ensemble on the server turns the content into numbers, these into a
score per kind, and names the best one."""

import argparse
from pathlib import Path

from client import Client, add_options, connect, strings

BLOCK = 4096


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


def file_type(client: Client, content: bytes) -> tuple[str, float]:
    """The kind of a file and how sure that is, 0 to 1."""
    found = client.infer("file_type", {"content": strings([content])}, ("label", "score"))
    return found["label"][0, 0].decode(), float(found["score"][0, 0])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_options(parser)
    options = parser.parse_args()
    with connect(options) as client:
        for path in options.files:
            label, score = file_type(client, excerpt(path))
            print(f"{path}: {label} ({score:.2f})")


if __name__ == "__main__":
    main()
