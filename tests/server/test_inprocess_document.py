"""docs/python-api.md: its examples run, and print what it says."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inprocess_models import own_log, write_counting, write_line
from server_harness import write_python_model

import microkernel.inprocess as tritonserver

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "python-api.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

SHOUT = """
max_batch_size: 8
input { name: "WORDS" data_type: TYPE_STRING dims: [ -1 ] }
output { name: "SAID" data_type: TYPE_STRING dims: [ -1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
SHOUT_BODY = """
def execute(self, requests):
    return [answer(SAID=np.char.upper(read(r, "WORDS").astype(bytes)).astype(object))
            for r in requests]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("document")
    write_line(place / "models", "line")
    write_counting(place / "models", "count")
    write_python_model(place / "models", "shout", SHOUT, SHOUT_BODY)
    with own_log():
        yield place


def promised(block: str) -> list[str]:
    """What the comments beside `print` say it prints."""
    return re.findall(r"^\s*print\(.*\)  # (.*)$", block, re.MULTILINE)


def run(block: str) -> None:
    """Run a block as a program that has the names of the first one."""
    names: dict[str, Any] = {}
    exec("import numpy as np\nimport microkernel\n", names)
    exec(compile(block, "docs/python-api.md", "exec"), names)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_every_example_prints_what_it_says(
    number: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(place)
    await asyncio.to_thread(run, BLOCKS[number])
    said = promised(BLOCKS[number])
    assert said
    printed = capsys.readouterr().out.splitlines()
    if said == ["0, 1, 2"]:
        printed = [", ".join(printed)]
    assert printed == said


@pytest.mark.parametrize("name", [n for n in tritonserver.__all__ if n.endswith("Error")])
def test_every_error_is_named(name: str) -> None:
    assert f"`{name}`" in TEXT
