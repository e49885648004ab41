"""What does padding gain where requests differ in length? A sentence encoder is served twice, once
with padding."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias

from benchmarks.calm import calm_rounds
from benchmarks.cases import MINILM, Case, Feed
from benchmarks.children import Child
from benchmarks.measuring import Plan
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer
from benchmarks.wire import write_requests

LENGTHS: Mapping[str, Sequence[int]] = {
    "alike": (20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35),
    "mixed": (4, 7, 9, 12, 14, 17, 20, 23, 27, 31, 36, 42, 50, 61, 78, 110),
}
"""Tokens per sentence; each connection sends one length. The second are those of a text."""
CONCURRENCY = 32
LARGEST = 16
PADDED = {"PAD_TO_LONGEST": "input_ids", "PAD_MASK": "attention_mask"}
MODELS: Mapping[str, Mapping[str, str]] = {
    "alone": {},
    "padded": PADDED,
    "limited": {**PADDED, "PAD_LIMIT": "1.25"},
}
WARM_UP, SECONDS = 3.0, 6.0
"""Per round. TorchScript takes long with the first batches of every length, and the answers of a
batch come together, so that a short round would tell little."""

Round: TypeAlias = Mapping[tuple[str, str], tuple[float, float]]
"""Requests per second, and the server's processor seconds per request, by model and lengths."""


def padding(models: Path, folder: Path, plan: Plan) -> Report:
    """Rate and processor time of lengths that are alike and of mixed ones, with and without."""
    if not (models / f"{MINILM.name}.pt").exists():
        return Report(
            remarks=["Padding was left out: the package with MiniLM's weights is missing."]
        )
    for name, parameters in MODELS.items():
        case = Case(name, MINILM, max_batch_size=LARGEST)
        add_model(folder / "models", case, models)
        config = folder / "models" / name / "config.pbtxt"
        config.write_text(_of_any_length(config.read_text()) + _parameters(parameters))
        for length in {length for lengths in LENGTHS.values() for length in lengths}:
            _write_request(case, length, folder)
    with RunningServer(folder / "models") as server, Child("load") as load:
        seen = calm_rounds(plan.large.rounds, partial(_round, load, server, folder))
    padded = [name for name in MODELS if name != "alone"]
    return Report(checks=[_gain(seen, kind, name) for kind in LENGTHS for name in padded])


def _of_any_length(config: str) -> str:
    return config.replace(f"dims: [{MINILM.feeds[0].shape[1]}]", "dims: [-1]")


def _parameters(parameters: Mapping[str, str]) -> str:
    return "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in parameters.items()
    )


def _write_request(case: Case, length: int, folder: Path) -> None:
    """A request of that many tokens."""
    feeds: Sequence[Feed] = [replace(feed, shape=(1, length)) for feed in case.network.feeds]
    place = folder / str(length)
    place.mkdir(exist_ok=True)
    write_requests(replace(case, network=replace(case.network, feeds=feeds)), place)


def _round(load: Child, server: RunningServer, folder: Path) -> Round:
    """Everything once, one shortly after the other."""
    return {(m, kind): _measured(load, server, folder, m, kind) for kind in LENGTHS for m in MODELS}


def _measured(
    load: Child, server: RunningServer, folder: Path, model: str, kind: str
) -> tuple[float, float]:
    before = server.cpu()
    seen = load.call(
        "measure",
        protocol="http",
        port=server.ports["http"],
        files=[str(folder / str(length) / f"{model}.http") for length in LENGTHS[kind]],
        concurrency=CONCURRENCY,
        warm_up=WARM_UP,
        seconds=SECONDS,
    )
    return seen["rate"], (server.cpu() - before) / seen["total"]


def _gain(seen: Sequence[Round], kind: str, name: str) -> Check:
    rates, each = (
        [median(round_[model, kind][i] for round_ in seen) for model in (name, "alone")]
        for i in (0, 1)
    )
    return Check(
        f"server CPU per request, {kind} lengths, {name}, of that without padding",
        100 * median(round_[name, kind][1] / round_["alone", kind][1] for round_ in seen),
        "%",
        100.0 if name == "limited" else None,
        note=f"{each[0] * 1e3:.1f} ms and {each[1] * 1e3:.1f} ms; {rates[0]:.0f}/s and "
        f"{rates[1]:.0f}/s",
    )
