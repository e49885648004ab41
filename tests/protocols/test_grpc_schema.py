import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from microkernel_grpc.schema import message, methods

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "protocols" / "grpc" / "microkernel_grpc"


def shapes(messages: list[DescriptorProto], prefix: str = "") -> dict[str, object]:
    """Every message by its full name with all that goes over the wire."""
    found: dict[str, object] = {}
    for each in messages:
        name = f"{prefix}{each.name}"
        found[name] = sorted(
            (f.number, f.name, f.type, f.label, f.type_name, f.HasField("oneof_index"))
            for f in each.field
        )
        found |= shapes(list(each.nested_type), f"{name}.")
    return found


def calls(file: FileDescriptorProto) -> set[tuple[object, ...]]:
    return {
        (m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming)
        for service in file.service
        for m in service.method
    }


@pytest.mark.skipif(find_spec("grpc_tools") is None, reason="grpcio-tools is missing")
def test_the_descriptor_set_is_that_of_the_proto_files(tmp_path: Path) -> None:
    target = tmp_path / "rebuilt.binpb"
    includes = ["-I", str(ROOT / "kernel/microkernel/config"), "-I", str(PACKAGE)]
    options = ["--include_imports", f"--descriptor_set_out={target}"]
    files = ["grpc_service.proto", "health.proto", "reflection.proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, *options, *files]
    subprocess.run(command, check=True)
    rebuilt = FileDescriptorSet.FromString(target.read_bytes())
    shipped = FileDescriptorSet.FromString((PACKAGE / "grpc_service.binpb").read_bytes())
    assert shipped == rebuilt


def test_the_official_client_has_the_same_messages_and_calls() -> None:
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")
    from tritonclient.grpc import model_config_pb2, service_pb2

    official = FileDescriptorProto.FromString(service_pb2.DESCRIPTOR.serialized_pb)
    config = FileDescriptorProto.FromString(model_config_pb2.DESCRIPTOR.serialized_pb)
    shipped = FileDescriptorSet.FromString((PACKAGE / "grpc_service.binpb").read_bytes())
    by_name = {file.name: file for file in shipped.file}
    ours = by_name["grpc_service.proto"]
    assert shapes(list(ours.message_type)) == shapes(list(official.message_type))
    assert shapes(list(by_name["model_config.proto"].message_type)) == shapes(
        list(config.message_type)
    )
    assert calls(ours) == calls(official)


def test_methods_by_path() -> None:
    infer = methods()["/inference.GRPCInferenceService/ModelInfer"]
    assert infer.request is message("ModelInferRequest")
    assert not infer.streams
    assert methods()["/inference.GRPCInferenceService/ModelStreamInfer"].streams
    assert methods()["/grpc.health.v1.Health/Check"].name == "Check"
