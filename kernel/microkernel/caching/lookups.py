"""The responses of one loaded version of a model in the server's cache."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from microkernel.cache import Cache
from microkernel.caching.entries import decode_entry, encode_entry
from microkernel.caching.keys import content_digest, model_digest, request_key
from microkernel.config.model import ModelConfig
from microkernel.request import InferRequest
from microkernel.tensor import BY_CONFIG_NAME, Buffer, DataType, Tensor

log = structlog.get_logger()

LARGE = 1 << 20
"""From so many bytes on a request is hashed, and a response copied, in a thread."""

SILENCE = 10.0
"""Seconds for which a cache that fails is not mentioned again."""


@dataclass(slots=True)
class Lookup:
    """What came of looking for the response to a request: its outputs, None for a miss. `began` is
    on the monotonic clock; `ns` is how long it took. `counted` is for whoever counts misses."""

    cache: "ModelCache"
    key: bytes
    began: int
    ns: int
    outputs: tuple[Tensor, ...] | None
    counted: bool = False

    async def keep(self, outputs: tuple[Tensor, ...]) -> int:
        """Keep the outputs of the response that was missed; how many nanoseconds the cache took of
        the request in all."""
        began = time.monotonic_ns()
        await self.cache.keep(self.key, outputs)
        return self.ns + time.monotonic_ns() - began


class ModelCache:
    """Finds and keeps responses. Whatever the cache does, no request fails of it."""

    def __init__(self, cache: Cache, config: ModelConfig, version: int, content: bytes) -> None:
        """`config` is complete; `content` stands for what the version was loaded from, see
        `content_digest`."""
        self._cache = cache
        self._digest = model_digest(config, version, content)
        self._datatypes: Mapping[str, DataType] = {
            output.name: BY_CONFIG_NAME[output.data_type] for output in config.output
        }
        self._log = log.bind(model=config.name, version=version)
        self._loop = asyncio.get_running_loop()
        self._silent_until = 0.0
        self._looking = 0
        self._settled = asyncio.Event()

    @property
    def identity(self) -> bytes:
        """What stands for the version: the same for one with the same configuration and files, also
        in another server."""
        return self._digest.digest()

    def covers(self, request: InferRequest) -> bool:
        """Whether the request may be answered from the cache: not one of a sequence. Inputs in
        shared memory have been copied, and outputs are yet to be."""
        return not request.sequence.id

    async def look(self, request: InferRequest) -> Lookup:
        """Look for the response to a request that was checked and is covered."""
        began = time.monotonic_ns()
        self._looking += 1
        try:
            if sum(len(tensor.data) for tensor in request.inputs) > LARGE:
                key = await asyncio.to_thread(request_key, self._digest, request)
            else:
                key = request_key(self._digest, request)
            outputs = await self._find(key)
        finally:
            self._looking -= 1
            if not self._looking:
                self._settled.set()
        return Lookup(self, key, began, time.monotonic_ns() - began, outputs)

    async def _find(self, key: bytes) -> tuple[Tensor, ...] | None:
        try:
            value = await self._cache.lookup(key)
            return None if value is None else await self._decoded(value, key)
        except ValueError as error:
            self._log.debug("kept response cannot be used", reason=str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's code, without which all goes on
            self._complain(error)
        return None

    async def _decoded(self, value: Buffer, key: bytes) -> tuple[Tensor, ...]:
        trusted = self._cache.trusted
        if not trusted and len(value) > LARGE:
            return await asyncio.to_thread(
                decode_entry, value, key, self._datatypes, trusted=trusted
            )
        return decode_entry(value, key, self._datatypes, trusted=trusted)

    def _complain(self, error: BaseException) -> None:
        now = self._loop.time()
        if now >= self._silent_until:
            self._silent_until = now + SILENCE
            self._log.warning("response cache failed", error=repr(error))

    async def keep(self, key: bytes, outputs: tuple[Tensor, ...]) -> None:
        """Keep outputs under a key that `look` gave."""
        try:
            if sum(len(tensor.data) for tensor in outputs) > LARGE:
                value = await asyncio.to_thread(encode_entry, key, outputs)
            else:
                value = encode_entry(key, outputs)
            await self._cache.insert(key, value)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            self._log.debug("response not kept", reason=str(error))

    async def settled(self) -> None:
        """Wait until no lookup is under way."""
        while self._looking:
            self._settled.clear()
            await self._settled.wait()


def wants_cache(config: ModelConfig) -> bool:
    """Whether a model's configuration asks for its responses to be kept."""
    return config.response_cache is not None and config.response_cache.enable


async def model_cache(
    cache: Cache | None, config: ModelConfig, directory: Path, version: int
) -> ModelCache | None:
    """The cache of a version that is about to be loaded from a directory; None where the model
    wants none or the server has none."""
    if cache is None or not wants_cache(config):
        return None
    content = await asyncio.to_thread(content_digest, directory, version)
    return ModelCache(cache, config, version, content)
