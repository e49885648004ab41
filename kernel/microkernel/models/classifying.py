"""The classes that a request asks for in place of outputs."""

import asyncio
from functools import partial

from microkernel.classification import Labels, classify_outputs
from microkernel.request import InferRequest, InferResponse

_MANY = 64 << 10
"""The most bytes of an output whose classes are found at once."""


async def classified(
    request: InferRequest, response: InferResponse, labels: Labels, *, batches: bool
) -> InferResponse:
    """The response with the classes that were asked for; where they may be many, found in a thread.
    Raises InvalidArgument as `classify` does."""
    work = partial(classify_outputs, response, request.classifications, labels, batches=batches)
    if any(tensor.nbytes > _MANY for tensor in response.outputs):
        return await asyncio.to_thread(work)
    return work()
