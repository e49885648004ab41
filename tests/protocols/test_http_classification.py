"""The classification extension with the official client."""

import asyncio
from typing import Any

import numpy as np
import pytest

from microkernel.testing import FakeServer

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")


def infer(port: int, name: str, inputs: dict[str, Any], outputs: list[Any]) -> Any:
    tensors = []
    for key, value in inputs.items():
        tensor = client.InferInput(key, value.shape, "FP32" if value.dtype.kind == "f" else "INT32")
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
        return connected.infer(name, tensors, outputs=outputs)


@pytest.mark.parametrize("binary", [True, False])
async def test_classes_of_one_output_beside_another(
    server: FakeServer, http_port: int, binary: bool
) -> None:
    server.models["addsub"].labels = {"SUM": ("north", "", "south")}
    values = np.array([1, 5, 3, 4], np.int32)
    wanted = [
        client.InferRequestedOutput("SUM", binary_data=binary, class_count=3),
        client.InferRequestedOutput("DIFF", binary_data=binary),
    ]
    given = {"A": values, "B": values}
    result = await asyncio.to_thread(infer, http_port, "addsub", given, wanted)
    assert result.get_output("SUM")["datatype"] == "BYTES"
    found = [c if isinstance(c, str) else c.decode() for c in result.as_numpy("SUM").tolist()]
    assert found == ["10:1", "8:3", "6:2:south"]
    assert result.as_numpy("DIFF").tolist() == [0, 0, 0, 0]


async def test_classes_of_each_entry_of_a_batch(http_port: int) -> None:
    values = np.array([[0.25, 0.75, 0], [3, 2, 1]], np.float32)
    wanted = [client.InferRequestedOutput("OUTPUT0", class_count=2)]
    result = await asyncio.to_thread(infer, http_port, "identity", {"INPUT0": values}, wanted)
    assert result.as_numpy("OUTPUT0").tolist() == [
        [b"0.750000:1", b"0.250000:0"],
        [b"3.000000:0", b"2.000000:1"],
    ]


async def test_an_output_without_classes(server: FakeServer, http_port: int) -> None:
    wanted = [client.InferRequestedOutput("FP16_OUT", class_count=1)]
    tensor = client.InferInput("FP16", [1], "FP16")
    tensor.set_data_from_numpy(np.ones(1, np.float16))

    def use() -> None:
        with client.InferenceServerClient(f"127.0.0.1:{http_port}") as connected:
            connected.infer("types", [tensor], outputs=wanted)

    with pytest.raises(client.InferenceServerException) as caught:
        await asyncio.to_thread(use)
    assert caught.value.status() == "400"
    assert "class result not available for output due to unsupported type" in str(caught.value)
