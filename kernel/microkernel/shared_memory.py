"""Regions of shared memory that clients register, to read inputs from and write outputs to."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from microkernel.cuda_ipc import CudaDriver, cuda_driver
from microkernel.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from microkernel.open_files import most_open_files
from microkernel.port import CudaRegion, SystemRegion
from microkernel.regions import OpenCudaRegion, OpenSystemRegion, Region, check_key
from microkernel.request import InferRequest, InferResponse, RegionPart
from microkernel.responses import ResponseStream
from microkernel.tensor import Tensor

Infer: TypeAlias = Callable[[InferRequest], Awaitable[InferResponse]]
Stream: TypeAlias = Callable[[InferRequest], Awaitable[ResponseStream]]
Check: TypeAlias = Callable[[InferRequest], None]
Regions: TypeAlias = Mapping[str, Region]

MOST_REGIONS = 4096
"""How many regions may be registered at once, where the server may have twice as many files open;
else half of those, for the others are the connections'."""

MUCH = 1 << 20
"""A request that has more bytes than this in shared memory is checked before they are read, and
once more with them, like every other."""


def _any(_: InferRequest) -> None:
    return None


class SharedMemory:
    """The regions of both kinds by name. `allowed` is the master switch: without it none can be
    registered. `cuda` gives the driver of the GPUs, None without any; it is asked in a thread, and
    only when a client registers memory of a GPU."""

    def __init__(
        self, *, allowed: bool, cuda: Callable[[], CudaDriver | None] = cuda_driver
    ) -> None:
        self._allowed = allowed
        self._cuda = cuda
        self._regions: dict[str, OpenSystemRegion | OpenCudaRegion] = {}
        self._opening: set[str] = set()
        self._leaving: dict[str, weakref.ref[Region]] = {}

    def register(self, about: SystemRegion) -> None:
        """Open an object of POSIX shared memory. Raises, in this order: Unsupported where the
        switch is off, InvalidArgument for a name or key that cannot be one, AlreadyExists for a
        name that is taken, which one that was unregistered is while a request still uses it,
        Internal where the object cannot be opened, and InvalidArgument where the region does not
        lie within it."""
        self._check_allowed()
        _check_name(about.name)
        check_key(about)
        self._check_free(about.name)
        self._regions[about.name] = OpenSystemRegion(about)

    async def register_cuda(self, about: CudaRegion) -> None:
        """Map an allocation of a GPU. Raises, in this order: Unsupported where the switch is off,
        InvalidArgument for no name and where there is no GPU, AlreadyExists for a name that is
        taken, and what `OpenCudaRegion` raises."""
        self._check_allowed()
        _check_name(about.name)
        driver = await asyncio.to_thread(self._cuda)
        if driver is None:
            raise InvalidArgument(
                f"failed to register CUDA shared memory region: '{about.name}', GPUs not supported"
            )
        self._check_free(about.name)
        self._opening.add(about.name)
        try:
            region = await asyncio.to_thread(OpenCudaRegion, about, driver)
        finally:
            self._opening.remove(about.name)
        self._regions[about.name] = region

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Unsupported(
                "Client shared memory is disabled. Start the server with "
                "'--allow-client-shm=true' to enable."
            )

    def _check_free(self, name: str) -> None:
        leaving = self._leaving.get(name, _nobody)()
        if name in self._regions or name in self._opening or leaving is not None:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        most = _most_regions(most_open_files())
        if len(self._regions) + len(self._opening) >= most:
            raise InvalidArgument(f"no more than {most} regions can be registered")

    def status(self, name: str = "") -> Sequence[SystemRegion]:
        """The regions of the system in name order, or the one of that name. Raises NotFound."""
        found = {n: r for n, r in self._regions.items() if isinstance(r, OpenSystemRegion)}
        if name and name not in found:
            raise self._not_found(name, "system")
        return [found[n].about for n in ([name] if name else sorted(found))]

    def cuda_status(self, name: str = "") -> Sequence[CudaRegion]:
        """The regions of GPUs in name order, or the one of that name. Raises NotFound."""
        found = {n: r for n, r in self._regions.items() if isinstance(r, OpenCudaRegion)}
        if name and name not in found:
            raise self._not_found(name, "cuda")
        return [found[n].about for n in ([name] if name else sorted(found))]

    def _not_found(self, name: str, kind: str) -> NotFound:
        if name not in self._regions:
            return NotFound(f"Unable to find {kind} shared memory region: '{name}'")
        wanted = "CUDA" if kind == "cuda" else kind
        return NotFound(
            f"The region named '{name}' is registered as {self._regions[name].kind} shared memory, "
            f"not as {wanted} shared memory"
        )

    def unregister(self, name: str = "") -> None:
        """Forget a region of the system, or all; an unknown name and one of the other kind are left
        alone. Raises Unsupported where the switch is off."""
        self._forget(name, OpenSystemRegion)

    def unregister_cuda(self, name: str = "") -> None:
        """Forget a region of a GPU, or all, as `unregister` does."""
        self._forget(name, OpenCudaRegion)

    def _forget(self, name: str, kind: type[Region]) -> None:
        self._check_allowed()
        for gone in [name] if name else list(self._regions):
            region = self._regions.get(gone)
            if isinstance(region, kind):
                del self._regions[gone]
                self._leaving[gone] = weakref.ref(region, partial(self._left, gone))

    def _left(self, name: str, region: "weakref.ref[Region]") -> None:
        del self._leaving[name]

    def find(self, part: RegionPart) -> Region:
        """The region of a part, which lies within it. Raises NotFound and InvalidArgument."""
        region = self._regions.get(part.region)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{part.region}'")
        region.check(part)
        return region

    async def infer(self, request: InferRequest, run: Infer, check: Check = _any) -> InferResponse:
        """Run a request whose tensors lie in regions: inputs are read from them before `run`, and
        outputs written to them after it. The regions are held until then, whatever a client
        unregisters meanwhile. `check` is asked before much is read, and raises where that would be
        in vain. Raises what `find`, `check`, `Region.read`, `Region.write` and `run` do."""
        outputs = {name: self.find(part) for name, part in request.shared_outputs.items()}
        return await _placed(await run(await self._filled(request, check)), request, outputs)

    async def stream(
        self, request: InferRequest, run: Stream, check: Check = _any
    ) -> ResponseStream:
        """As `infer`, for a request with a stream of responses: each of them is written to the same
        places, and one that cannot be becomes an error."""
        regions = {name: self.find(part) for name, part in request.shared_outputs.items()}
        stream = await run(await self._filled(request, check))
        if regions:
            stream.then(partial(_placed, request=request, regions=regions))
        return stream

    async def _filled(self, request: InferRequest, check: Check) -> InferRequest:
        parts = request.shared_inputs
        regions = {name: self.find(part) for name, part in parts.items()}
        # A few bytes may name an input again and again, and each would be read.
        if sum(parts[t.name].byte_size for t in request.inputs if t.name in parts) > MUCH:
            check(request)
        inputs = []
        for tensor in request.inputs:
            if (region := regions.get(tensor.name)) is not None:
                tensor = await _read(tensor, region, parts[tensor.name])
            inputs.append(tensor)
        return replace(request, inputs=tuple(inputs))


async def _read(tensor: Tensor, region: Region, part: RegionPart) -> Tensor:
    """The tensor with its data."""
    if region.is_slow(part.byte_size):
        return replace(tensor, data=await asyncio.to_thread(region.read, part))
    return replace(tensor, data=region.read(part))


async def _placed(
    response: InferResponse, request: InferRequest, regions: Regions
) -> InferResponse:
    """The response with those outputs written to their regions that have one."""
    outputs, placed = [], {}
    for tensor in response.outputs:
        if (region := regions.get(tensor.name)) is not None:
            placed[tensor.name] = part = request.shared_outputs[tensor.name]
            if region.is_slow(tensor.nbytes):
                await asyncio.to_thread(region.write, part, tensor.data, tensor.name)
            else:
                region.write(part, tensor.data, tensor.name)
            tensor = replace(tensor, data=b"")
        outputs.append(tensor)
    return replace(response, outputs=tuple(outputs), shared_outputs=placed)


def _nobody() -> None:
    return None


def _most_regions(open_files: int) -> int:
    return MOST_REGIONS if open_files < 0 else min(MOST_REGIONS, open_files // 2)


def _check_name(name: str) -> None:
    if not name:
        raise InvalidArgument("'region name' is necessary to register shared memory region")
