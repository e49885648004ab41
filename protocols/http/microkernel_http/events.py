"""Responses as server-sent events, sent as they come.

The status is that of the first response; a later error is an event under it. Nothing is read from
the model's stream while the client has not taken what was sent, so a slow reader slows the model
down and fills no memory here.
"""

import asyncio
import re
from collections.abc import Callable, Mapping

from aiohttp import web

from microkernel import InferRequest, InferResponse, MicrokernelError, ResponseStream
from microkernel_http.body import LARGE
from microkernel_http.decode import ALL_JSON
from microkernel_http.encode import Buffer, json_size
from microkernel_http.exchange import stated
from microkernel_http.status import error_body, status_of
from microkernel_http.traced import sending

EVENT_STREAM = "text/event-stream"
_HEADERS: Mapping[str, str] = {"Content-Type": f"{EVENT_STREAM}; charset=utf-8"}
_WEIGHT = re.compile(r"(?:^|;)\s*q\s*=\s*([01](?:\.[0-9]*)?)")


def wants_events(accepted: str | None) -> bool:
    """Whether the request's `Accept` puts an event stream first: of the types with the highest
    weight it is the first."""
    if accepted is None or EVENT_STREAM not in accepted.lower():
        return False
    types = [item.partition(";") for item in accepted.lower().split(",")]
    name, _, rest = max(types, key=lambda parts: _weight(parts[2]))
    return name.strip() == EVENT_STREAM and _weight(rest) > 0


def _weight(rest: str) -> float:
    found = _WEIGHT.search(rest)
    return 1.0 if found is None else float(found[1])


async def send_events(
    request: web.BaseRequest,
    decoded: InferRequest,
    responses: ResponseStream,
    encode: Callable[[InferResponse], Buffer],
) -> web.StreamResponse:
    """Send each response as an event, with the JSON that `encode` makes of it, until the final one.
    A stream without any is an empty 200. However this ends, the stream is closed."""
    answer: web.StreamResponse | None = None
    try:
        async for response in responses:
            if response.flag_only:
                continue
            status, data = await _told(response, encode)
            if answer is None:
                answer = await _started(request, decoded, status)
            await answer.write(b"".join((b"data: ", data, b"\n\n")))
        if answer is None:
            answer = await _started(request, decoded, 200)
        await answer.write_eof()
    except Exception:
        if answer is not None and request.transport is not None:
            request.transport.abort()  # what was cut short must not look whole
        raise
    finally:
        responses.close()
    return answer


async def _told(
    response: InferResponse, encode: Callable[[InferResponse], Buffer]
) -> tuple[int, Buffer]:
    """The status that a response stands for, and what is told of it as JSON, which holds no line
    break."""
    try:
        if response.error is None:
            if json_size(response, ALL_JSON) > LARGE:
                return 200, await asyncio.to_thread(encode, response)
            return 200, encode(response)
        error = response.error
    except MicrokernelError as unfit:
        error = unfit
    return status_of(error), error_body(str(error))


async def _started(
    request: web.BaseRequest, decoded: InferRequest, status: int
) -> web.StreamResponse:
    answer = stated(request, web.StreamResponse(status=status, headers=_HEADERS))
    sending(decoded)
    await answer.prepare(request)
    return answer
