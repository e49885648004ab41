"""Regions of shared memory that clients register, to read inputs from and write outputs to.

A region is read and written through its descriptor and never mapped: a client may truncate its
object at any time, and touching a mapping beyond the end would kill the server.
"""

import mmap
import os
import re
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from microkernel.errors import AlreadyExists, Internal, InvalidArgument, NotFound, Unsupported
from microkernel.port import SystemRegion
from microkernel.request import InferRequest, InferResponse, RegionPart
from microkernel.tensor import Buffer

Infer: TypeAlias = Callable[[InferRequest], Awaitable[InferResponse]]

_FOLDER = Path("/dev/shm")
_RESERVED = "triton_python_backend_shm_region_"
_KEY = re.compile(r"[^/\0]{1,255}")
_LARGEST = 2**63 - 1
MOST_REGIONS = 4096
"""How many regions may be registered at once."""
LARGEST_INPUT = 2**31 - 1
"""The most bytes that one input may take from a region: what a message may hold, too."""


class Region:
    """A registered region. Its object stays open as long as somebody holds the region."""

    def __init__(self, about: SystemRegion, descriptor: int) -> None:
        self.about = about
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def check(self, part: RegionPart) -> None:
        """Raise InvalidArgument for a part that does not lie within the region."""
        name, end = self.about.name, part.offset + part.byte_size
        if end > _LARGEST:
            raise InvalidArgument(f"Integer overflow detected for shared memory region: '{name}'")
        if not 0 <= part.offset < self.about.byte_size:
            raise InvalidArgument(f"Invalid offset for shared memory region: '{name}'")
        if part.byte_size < 0 or end > self.about.byte_size:
            raise InvalidArgument(f"Invalid offset + byte size for shared memory region: '{name}'")

    def read(self, part: RegionPart) -> Buffer:
        """The bytes of a part. Raises InvalidArgument where the client has cut its object short."""
        self.check(part)
        if part.byte_size > LARGEST_INPUT:  # an object may be larger than the memory it has
            raise InvalidArgument(
                f"an input in shared memory region '{self.about.name}' may have at most "
                f"{LARGEST_INPUT} bytes, got {part.byte_size}"
            )
        data = bytearray(part.byte_size)
        done = os.preadv(self._descriptor, [data], self.about.offset + part.offset)
        if done != part.byte_size:
            raise InvalidArgument(
                f"shared memory region '{self.about.name}' has become shorter than it was when it "
                "was registered"
            )
        return data

    def write(self, part: RegionPart, data: Buffer, output: str) -> None:
        """Write an output into a part. Raises Internal where it does not fit or the client's object
        cannot take it."""
        if len(data) > part.byte_size:
            raise Internal(
                f"shared memory size specified with the request for output '{output}' "
                f"({part.byte_size} bytes) should be at least {len(data)} bytes to hold the results"
            )
        start = self.about.offset + part.offset
        try:
            fits = start + len(data) <= os.fstat(self._descriptor).st_size
            done = os.pwritev(self._descriptor, [data], start) if fits and data else 0
        except OSError:
            done = -1
        if done != len(data):
            raise Internal(
                f"output '{output}' cannot be written to shared memory region "
                f"'{self.about.name}', which has become shorter or is full"
            )


class SharedMemory:
    """The regions by name. `allowed` is the master switch: without it none can be registered."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._regions: dict[str, Region] = {}
        self._leaving: dict[str, weakref.ref[Region]] = {}

    def register(self, about: SystemRegion) -> None:
        """Open an object of POSIX shared memory. Raises, in this order: Unsupported where the
        switch is off, InvalidArgument for a name or key that cannot be one, AlreadyExists for a
        name that is taken, which one that was unregistered is while a request still uses it,
        Internal where the object cannot be opened, and InvalidArgument where the region does not
        lie within it."""
        self._check_allowed()
        key = _key(about)
        leaving = self._leaving.get(about.name, _nobody)()
        if about.name in self._regions or leaving is not None:
            raise AlreadyExists(f"shared memory region '{about.name}' already in manager")
        if len(self._regions) >= MOST_REGIONS:
            raise InvalidArgument(f"no more than {MOST_REGIONS} regions can be registered")
        self._regions[about.name] = _opened(about, key)

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Unsupported(
                "Client shared memory is disabled. Start the server with "
                "'--allow-client-shm=true' to enable."
            )

    def status(self, name: str = "") -> Sequence[SystemRegion]:
        """All regions in name order, or the one of that name. Raises NotFound."""
        if not name:
            return [self._regions[n].about for n in sorted(self._regions)]
        if name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return [self._regions[name].about]

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; an unknown name is left alone. Raises Unsupported where the
        switch is off."""
        self._check_allowed()
        for gone in [name] if name else list(self._regions):
            region = self._regions.pop(gone, None)
            if region is not None:
                self._leaving[gone] = weakref.ref(region)

    def find(self, part: RegionPart) -> Region:
        """The region of a part, which lies within it. Raises NotFound and InvalidArgument."""
        region = self._regions.get(part.region)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{part.region}'")
        region.check(part)
        return region

    async def infer(self, request: InferRequest, run: Infer) -> InferResponse:
        """Run a request whose tensors lie in regions: inputs are read from them before `run`, and
        outputs written to them after it. The regions of outputs are held until then, whatever a
        client unregisters meanwhile. Raises what `find`, `read`, `write` and `run` do."""
        regions = {o: self.find(part) for o, part in request.shared_outputs.items()}
        inputs = tuple(
            tensor
            if (part := request.shared_inputs.get(tensor.name)) is None
            else replace(tensor, data=self.find(part).read(part))
            for tensor in request.inputs
        )
        response = await run(replace(request, inputs=inputs))
        outputs, placed = [], {}
        for tensor in response.outputs:
            if (region := regions.get(tensor.name)) is not None:
                placed[tensor.name] = part = request.shared_outputs[tensor.name]
                region.write(part, tensor.data, tensor.name)
                tensor = replace(tensor, data=b"")
            outputs.append(tensor)
        return replace(response, outputs=tuple(outputs), shared_outputs=placed)


def _nobody() -> None:
    return None


def _key(about: SystemRegion) -> str:
    """The object's file name. Raises InvalidArgument for what cannot be one."""
    if not about.name:
        raise InvalidArgument("'region name' is necessary to register shared memory region")
    key = about.key.strip("/")
    if not _KEY.fullmatch(key) or key in (".", ".."):
        raise InvalidArgument(
            f"failed to register shared memory region '{about.name}': invalid shm key '{about.key}'"
        )
    if key.startswith(_RESERVED):
        raise InvalidArgument(
            f"cannot register shared memory region '{about.name}' with key '{about.key}' as the "
            f"key contains the reserved prefix '{_RESERVED}'"
        )
    return key


def _opened(about: SystemRegion, key: str) -> Region:
    try:
        descriptor = os.open(_FOLDER / key, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        raise Internal(f"Unable to open shared memory region: '{about.key}'") from None
    region = Region(about, descriptor)  # which closes it whatever comes
    size = os.fstat(descriptor).st_size
    aligned = about.offset % mmap.ALLOCATIONGRANULARITY == 0
    if about.byte_size <= 0 or not 0 <= about.offset <= size - about.byte_size or not aligned:
        raise InvalidArgument(
            f"failed to register shared memory region '{about.name}': invalid args"
        )
    return region
