"""Which bytes go over the wire? Binary tensors, in requests made with Triton's client library."""

from pathlib import Path

import tritonclient.http as http_client
from tritonclient.grpc import service_pb2

from benchmarks.cases import Case

PROTOCOLS = ("http", "grpc")


def write_requests(case: Case, folder: Path) -> None:
    """The request of one row as `MODEL.http`, a whole HTTP/1.1 request, and `MODEL.grpc`, the
    message of a ModelInfer call."""
    (folder / f"{case.model}.http").write_bytes(_http(case))
    (folder / f"{case.model}.grpc").write_bytes(_grpc(case))


def _http(case: Case) -> bytes:
    inputs = []
    for feed in case.network.feeds:
        tensor = http_client.InferInput(feed.name, list(feed.shape), feed.datatype)
        tensor.set_data_from_numpy(feed.values(1), binary_data=True)
        inputs.append(tensor)
    output = http_client.InferRequestedOutput(case.network.output, binary_data=True)
    body, header_length = http_client.InferenceServerClient.generate_request_body(
        inputs, outputs=[output]
    )
    head = (
        f"POST /v2/models/{case.model}/infer HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {header_length}\r\n\r\n"
    )
    return head.encode() + bytes(body)


def _grpc(case: Case) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=case.model)
    for feed in case.network.feeds:
        request.inputs.add(name=feed.name, datatype=feed.datatype, shape=feed.shape)
        request.raw_input_contents.append(feed.values(1).tobytes())
    request.outputs.add(name=case.network.output)
    packed: bytes = request.SerializeToString()
    return packed
