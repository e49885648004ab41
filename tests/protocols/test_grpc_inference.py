import pytest

from microkernel import (
    Cancelled,
    Internal,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Unavailable,
    Unsupported,
)
from microkernel_grpc.inference import precedes_inference


@pytest.mark.parametrize(
    ("error", "precedes"),
    [
        (NotFound("Request for unknown model: 'm' is not found"), True),
        (Unavailable("Request for unknown model: 'm' version 1 is not at ready state"), True),
        (Unavailable("[request id: x] Exceeds maximum queue size"), True),
        (Unavailable("model 'm' has stopped accepting new inference requests"), True),
        (InvalidArgument("unexpected inference input"), True),
        (Unsupported("decoupled"), True),
        (Unavailable("[request id: x] Request timeout expired"), False),
        (Internal("failed"), False),
        (Cancelled("gone"), False),
    ],
)
def test_which_errors_precede_inference(error: MicrokernelError, precedes: bool) -> None:
    assert precedes_inference(error) is precedes
