"""Statistics: their JSON, and their routes with the official client."""

import asyncio
import json
from typing import Any

import pytest

from microkernel import (
    Compute,
    Duration,
    ModelStatistics,
    ModelStats,
    ResponseStats,
    statistics_document,
)
from microkernel.testing import FakeServer

client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")


def compute(count: int, *ns: int) -> Compute:
    return Compute(*(Duration(count, each) for each in ns))


def duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


STATS = ModelStats(
    success=Duration(5, 900),
    fail=Duration(2, 70),
    queue=Duration(5, 100),
    compute=compute(5, 10, 20, 30),
    batches={4: compute(1, 4, 5, 6), 1: compute(2, 1, 2, 3)},
    responses={"0": ResponseStats(*(Duration(n, 10 * n) for n in range(6)))},
    inference_count=6,
    execution_count=3,
    last_inference_ms=1_700_000_000_123,
)
EXPECTED = {
    "name": "addsub",
    "version": "1",
    "last_inference": 1_700_000_000_123,
    "inference_count": 6,
    "execution_count": 3,
    "inference_stats": {
        "success": duration(5, 900),
        "fail": duration(2, 70),
        "queue": duration(5, 100),
        "compute_input": duration(5, 10),
        "compute_infer": duration(5, 20),
        "compute_output": duration(5, 30),
        "cache_hit": duration(0, 0),
        "cache_miss": duration(0, 0),
    },
    "response_stats": {
        "0": {
            "compute_infer": duration(0, 0),
            "compute_output": duration(1, 10),
            "success": duration(2, 20),
            "fail": duration(3, 30),
            "empty_response": duration(4, 40),
            "cancel": duration(5, 50),
        }
    },
    "batch_stats": [
        {
            "batch_size": 1,
            "compute_input": duration(2, 1),
            "compute_infer": duration(2, 2),
            "compute_output": duration(2, 3),
        },
        {
            "batch_size": 4,
            "compute_input": duration(1, 4),
            "compute_infer": duration(1, 5),
            "compute_output": duration(1, 6),
        },
    ],
    "memory_usage": [],
}


def test_every_field_has_its_place() -> None:
    answer = statistics_document([ModelStatistics("addsub", "1", STATS)])
    assert json.dumps(answer) == json.dumps({"model_stats": [EXPECTED]})  # the order counts too


def test_no_models() -> None:
    assert statistics_document([]) == {"model_stats": []}


async def test_the_official_client_reads_statistics(server: FakeServer, http_port: int) -> None:
    server.models["addsub"].stats = STATS

    def use() -> list[Any]:
        with client.InferenceServerClient(f"127.0.0.1:{http_port}") as connected:
            return [
                connected.get_inference_statistics(),
                connected.get_inference_statistics("addsub"),
                connected.get_inference_statistics("addsub", "1"),
            ]

    everything, model, version = await asyncio.to_thread(use)
    assert {entry["name"] for entry in everything["model_stats"]} == set(server.models)
    assert model == version == {"model_stats": [EXPECTED]}


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("absent", "", "[400] requested model 'absent' is not available"),
        ("addsub", "7", "[400] requested model version is not available for model 'addsub'"),
    ],
)
async def test_models_without_statistics(
    http_port: int, name: str, version: str, message: str
) -> None:
    def use() -> None:
        with client.InferenceServerClient(f"127.0.0.1:{http_port}") as connected:
            connected.get_inference_statistics(name, version)

    with pytest.raises(client.InferenceServerException) as caught:
        await asyncio.to_thread(use)
    assert str(caught.value) == message
