"""Weights of a TorchScript file as views on the file itself, so that processes share them.

The page cache holds a mapped file once, however many workers have it loaded. A TorchScript file is
an archive whose tensors lie in it as they do in memory; its pickled part tells which attribute is
which. Nothing of that is believed unseen: a tensor is replaced only by one that is equal to it.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

_TYPES: Mapping[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""What the classes of storages hold, which are only named here: asking them makes them complain."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies: the record of the archive, and its place in that by elements."""

    record: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Object:
    """Stands for an object of the module's own classes; `attributes` are what was pickled of it."""

    def __init__(self, *_: Any) -> None:
        self.attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Reads the pickled part of an archive. It makes nothing but the classes of this module, so
    that no code of the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _stored
        if module == "torch" and name.endswith("Storage"):
            return name
        return _Object

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _stored(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Stored | None:
    _, kind, record, *_ = storage
    dtype = _TYPES.get(kind)
    if dtype is None:
        return None
    return Stored(f"data/{record}", dtype, int(offset), tuple(shape), tuple(stride))


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Where the tensors that are attributes of a module lie in its file, by their names from the
    outermost module on. Empty for a file whose pickled part is not what torch writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(
                n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")
            )
            root = _Reader(BytesIO(archive.read(name))).load()
    except Exception:  # noqa: BLE001 - unpickling raises what it likes, and nothing depends on it
        return {}
    return dict(_tensors(root, ""))


def _tensors(value: Any, prefix: str) -> Iterator[tuple[str, Stored]]:
    attributes = value.attributes if isinstance(value, _Object) else {}
    for name, inner in attributes.items():
        if isinstance(inner, Stored):
            yield prefix + name, inner
        else:
            yield from _tensors(inner, f"{prefix}{name}.")


def share_weights(module: torch.jit.ScriptModule, path: Path) -> int:
    """Have the weights of a module, loaded from that file to the CPU, lie in the mapped file; the
    number of bytes that do so now. What is not found there stays as it is.

    The file may be replaced afterwards, but must not be written to or cut short: what is mapped
    would change under the model.
    """
    stored = stored_tensors(path)
    if not stored:
        return 0
    whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    reader = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001 - nothing public tells offsets
    shared = 0
    for prefix, part in module.named_modules():
        for name, tensor in _own(part):
            place = stored.get(f"{prefix}.{name}" if prefix else name)
            mapped = None if place is None else _mapped(whole, reader, place)
            if mapped is not None and _same(tensor, mapped):
                _bind(part, name, tensor, mapped)
                shared += mapped.nbytes
    return shared


def _own(part: Any) -> list[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a module itself."""
    parameters = part.named_parameters(recurse=False, remove_duplicate=False)
    return [*parameters, *part.named_buffers(recurse=False, remove_duplicate=False)]


def _mapped(whole: Any, reader: Any, place: Stored) -> torch.Tensor | None:
    if not reader.has_record(place.record):
        return None
    begin, size = reader.get_record_offset(place.record), place.dtype.itemsize
    extent = sum((n - 1) * step for n, step in zip(place.shape, place.stride, strict=True)) + 1
    if begin % size or 0 in place.shape:
        return None
    if begin + (place.offset + extent) * size > whole.nbytes():
        return None
    empty = torch.empty(0, dtype=place.dtype)
    return empty.set_(whole, begin // size + place.offset, place.shape, place.stride)


def _same(tensor: torch.Tensor, mapped: torch.Tensor) -> bool:
    """Whether the bytes are the same, which holds for what is not a number, too."""
    if (tensor.dtype, tensor.shape, tensor.device) != (mapped.dtype, mapped.shape, mapped.device):
        return False
    return torch.equal(_bytes(tensor), _bytes(mapped))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _bind(part: Any, name: str, tensor: torch.Tensor, mapped: torch.Tensor) -> None:
    if isinstance(tensor, torch.nn.Parameter):
        mapped = torch.nn.Parameter(mapped, requires_grad=tensor.requires_grad)
    part._c.setattr(name, mapped)  # noqa: SLF001 - a script module takes buffers in no other way
