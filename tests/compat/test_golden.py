"""Every request of a recorded conversation with the real server, sent to ours in the same order:
the answer is the same, or the reason why it is not stands here."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_harness import Running, ask

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
HEADERS = ("content-type", "inference-header-content-length", "content-encoding")
VOLATILE = frozenset({"ns", "last_inference"})

pytestmark = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the recorded conversation is not beside the repository"
)

REASONS: dict[str, tuple[int, ...]] = {
    "newer versions refuse compressed data that is corrupt": (66,),
    "newer versions have a message of its own for too few elements": (100,),
    "newer versions refuse an output that is named twice": (105,),
    "newer versions refuse a header length that is no number": (124,),
    "only the content type differs: the strings are checked here, not by the backend": (119,),
    "what the model answers with an error counts as failed here, not as a success": (152,),
}
DIFFERENT = {index: reason for reason, indices in REASONS.items() for index in indices}
"""Which answers differ by number, and why they may."""


def recorded() -> list[dict[str, Any]]:
    file = GOLDEN / "http.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


GONE = {"state": "UNAVAILABLE", "reason": "unloaded"}


def steady(value: Any) -> Any:
    """A document without what differs from run to run. How soon a model is gone does, too."""
    if isinstance(value, dict):
        if value.get("state") == "UNLOADING":
            value = {**value, **GONE}
        return {key: steady(v) for key, v in sorted(value.items()) if key not in VOLATILE}
    return [steady(v) for v in value] if isinstance(value, list) else value


def comparable(status: int, headers: dict[str, str], body: bytes) -> tuple[object, ...]:
    """What two answers must share: the status, what clients read of the headers, JSON by value
    and all other bytes."""
    kept = {name: value for name, value in headers.items() if name in HEADERS}
    length = kept.pop("inference-header-content-length", None)
    head, tail = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
    try:
        # As text, in which NaN equals NaN and numbers show whether they are integers.
        text = repr(steady(json.loads(head)))
    except ValueError:
        text = repr(head)
    return status, kept, length is not None, text, tail


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> list[tuple[tuple[object, ...], tuple[object, ...]]]:
    """For each request, what the real server and ours answered."""
    repository = tmp_path_factory.mktemp("golden") / "models"
    shutil.copytree(GOLDEN / "repository", repository, copy_function=shutil.copyfile)
    server = start_server(repository, "--model-control-mode=explicit", "--load-model=*")
    pairs = []
    for line in recorded():
        sent, real = line["request"], line["answer"]
        body = base64.b64decode(sent["body"])
        here = ask(server.http, sent["method"], sent["path"], body, sent["headers"])
        pairs.append(
            (
                comparable(real["status"], real["headers"], base64.b64decode(real["body"])),
                comparable(here.status, dict(here.headers), here.body),
            )
        )
    return pairs


def title(index: int) -> str:
    sent = recorded()[index]["request"]
    body = base64.b64decode(sent["body"])[:60].decode("ascii", "replace")
    return f"{index} {sent['method']} {sent['path']} {body}".strip()


@pytest.mark.parametrize("index", range(len(recorded())), ids=str)
def test_the_answer_is_that_of_the_real_server(
    answers: list[tuple[tuple[object, ...], tuple[object, ...]]], index: int
) -> None:
    real, here = answers[index]
    if index in DIFFERENT:
        assert here != real, f"no longer '{DIFFERENT[index]}': {title(index)}"
    else:
        assert here == real, title(index)
