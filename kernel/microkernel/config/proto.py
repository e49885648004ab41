"""The protobuf class behind `config.pbtxt`.

It lives in a descriptor pool of its own: the default pool refuses the same names twice, and user
code imports `tritonclient` into this process.
"""

import functools
from importlib import resources

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass


@functools.cache
def config_message() -> type[Message]:
    """The class of the message `inference.ModelConfig`; the same one on every call."""
    packed = resources.files("microkernel.config").joinpath("model_config.binpb").read_bytes()
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(packed).file:
        pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
