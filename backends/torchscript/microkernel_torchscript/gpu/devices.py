"""Where instances run: on the CPU, on one GPU, or wherever their weights were saved.

On a GPU an instance has a stream of its own, so that instances compute side by side. The inputs of
a batch are gathered in memory that the GPU reads by itself, and go there in one copy; outputs come
back the same way. The instance waits for the GPU once, before anybody reads an output.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from microkernel import InvalidArgument, Placement, WorkerFailed
from microkernel_torchscript.source import Forward, Warm, Warmth

_ALIGNMENT = 256
"""Bytes; as far apart as torch places the tensors that it makes on a GPU."""

_MOST_STAGED = 256 << 20
"""Bytes of a batch's inputs that are gathered. Memory that cannot be paged out is dear, and beside
the time that so much takes on its way, a copy per input is nothing."""


def device_of(name: str, placement: Placement) -> torch.device | None:
    """The device of an instance; None where each tensor stays where it was saved. Raises
    InvalidArgument for a GPU that torch cannot use."""
    if placement.kind == "KIND_MODEL":
        return None
    if placement.kind != "KIND_GPU":
        return torch.device("cpu")
    usable = torch.cuda.device_count()
    if placement.device_id >= usable:
        reason = (
            f"has {usable} of them" if torch.version.cuda else "was built without support for CUDA"
        )
        raise InvalidArgument(
            f"model '{name}': instance '{placement.name}' is to run on GPU {placement.device_id}, "
            f"but torch {reason}; use KIND_CPU, or a torch and a driver that fit the GPU"
        )
    return torch.device("cuda", placement.device_id)


def lane_of(device: torch.device | None) -> "Lane | None":
    """What brings tensors to a device and back; None where all there is is the CPU."""
    if device is None:
        return Lane(None) if torch.cuda.is_available() else None
    return Lane(device) if device.type == "cuda" else None


class Lane:
    """The way of one instance's tensors to its GPU and back. Belongs to one thread."""

    def __init__(self, device: torch.device | None) -> None:
        """With None the model moves its inputs itself, and only outputs are brought back."""
        self.device = device
        self._staging = None if device is None else Staging(device, pinned=True)

    def enter(self, modes: contextlib.ExitStack) -> None:
        """Let the calling thread compute on the device, on a stream of its own."""
        if self.device is not None:
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # not annotated
            modes.enter_context(torch.cuda.stream(stream))

    def bound(self, forward: Forward) -> Forward:
        """`forward` for arguments and results in the host's memory."""

        def on_device(*arguments: Any) -> Any:
            staged = arguments if self._staging is None else self._staging.moved(arguments)
            return fetched(forward(*staged), self.device)

        return on_device

    def probe(self) -> None:
        """Use the device; RuntimeError where it cannot be used."""
        device = self.device or torch.device("cuda")
        torch.zeros(1, device=device).add_(1).item()


class OnLane:
    """Makes the first calls of what runs on a device; see `Warm`."""

    def __init__(self, warm: Warm, lane: Lane) -> None:
        self._warm, self._lane = warm, lane

    def first_calls(self, forward: Forward) -> Warmth:
        """See `Warm.first_calls`. Raises WorkerFailed where they put the GPU out of use, as an
        index may that is beyond a table: everything after it would fail."""
        warmth = self._warm.first_calls(self._lane.bound(forward))
        if warmth.failure or warmth.left_out:
            self._check(warmth.failure)
        return warmth

    def _check(self, failure: str) -> None:
        try:
            self._lane.probe()
        except RuntimeError as error:
            raise WorkerFailed(
                "calling the model with made-up inputs has put the GPU out of use for this process "
                f"({failure or error}); set its parameter WARMUP to 'false', and give requests "
                "that it can answer in model_warmup"
            ) from error

    def touch(self, forward: Forward) -> None:
        """See `Warm.touch`."""
        self._warm.touch(self._lane.bound(forward))


class Staging:
    """Memory in which the tensors of a batch are gathered on their way to a device. What has been
    moved must have arrived before the next batch is."""

    def __init__(self, device: torch.device, *, pinned: bool) -> None:
        self._device, self._pinned = device, pinned
        self._block: torch.Tensor | None = None

    def moved(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """The arguments with their tensors on the device, also those in dictionaries and lists; the
        copies run on the current stream. They share memory there, which is theirs alone."""
        tensors = list(tensors_in(arguments))
        starts, total = plan_copies([tensor.nbytes for tensor in tensors])
        if 0 < total <= _MOST_STAGED:
            copies = self._gathered(tensors, starts, total)
        else:
            copies = [tensor.to(self._device) for tensor in tensors]
        result: Sequence[Any] = with_tensors(arguments, iter(copies))
        return result

    def _gathered(
        self, tensors: Sequence[torch.Tensor], starts: Sequence[int], total: int
    ) -> list[torch.Tensor]:
        here = self._room(total)
        for tensor, start in zip(tensors, starts, strict=True):
            _part(here, start, tensor).copy_(tensor)
        there = here.to(self._device, non_blocking=True)
        return [_part(there, start, t) for t, start in zip(tensors, starts, strict=True)]

    def _room(self, total: int) -> torch.Tensor:
        if self._block is None or self._block.nbytes < total:
            size = 1 << (total - 1).bit_length()  # so that ever larger batches find room soon
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._block[:total]


def _part(block: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """The place of a tensor in a block, in its type and shape."""
    return block[start : start + like.nbytes].view(like.dtype).view(like.shape)


def plan_copies(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where tensors of so many bytes lie in one block, and how many bytes that has."""
    starts, end = [], 0
    for size in sizes:
        starts.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        end = starts[-1] + size
    return starts, end


def fetched(result: Any, device: torch.device | None) -> Any:
    """A result whose tensors on GPUs have come to the host's memory, in the time that the longest
    copy takes; everything on the device has been done by then."""
    devices = set() if device is None else {device}
    copies = []
    for tensor in tensors_in(result):
        if tensor.is_cuda and _is_plain(tensor):
            devices.add(tensor.device)
            tensor = tensor.to("cpu", non_blocking=True)
        copies.append(tensor)
    for one in devices:
        torch.cuda.current_stream(one).synchronize()
    return with_tensors(result, iter(copies))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one that can be an output; the others are refused where they are read."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in what a model takes or returns, in the order of `with_tensors`."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from tensors_in(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from tensors_in(member)


def with_tensors(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """The value with other tensors in the place of its own, in their order."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: with_tensors(member, tensors) for key, member in value.items()}
    if isinstance(value, list | tuple):
        members = [with_tensors(member, tensors) for member in value]
        return _like(value, members)
    return value


def _like(value: list[Any] | tuple[Any, ...], members: list[Any]) -> Any:
    if isinstance(value, list):
        return members
    make: Callable[..., Any] = getattr(type(value), "_make", tuple)  # a NamedTuple keeps its fields
    return make(members)
