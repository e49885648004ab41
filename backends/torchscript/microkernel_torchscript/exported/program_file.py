"""From a file of `torch.export.save` to an exported program.

torch's own loader unpickles the example inputs that lie in the file, which may run anything. They
are left out here, and weights are taken as plain bytes, by mapping the file where processes shall
share them.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from microkernel import Internal
from microkernel_torchscript.exported.archive import archive_members, read_member
from microkernel_torchscript.failures import headline

_MODEL = "model"
_STORED = "is held as a pickled object, which is not loaded because it may run any code"


def load_program(name: str, path: Path, *, mapped: bool) -> torch.export.ExportedProgram:
    """Load an exported program to the host.

    With `mapped` its weights are the file's own pages, which all processes share; the file may be
    replaced, but must not be written to or cut short while the model is loaded. Raises Internal,
    beginning with `failed to load model`, for a file that torch cannot load.
    """
    check_program_file(name, path)
    try:
        return _deserialized(path, mapped=mapped)
    except Exception as error:  # noqa: BLE001 - torch raises several kinds for a bad file
        first = headline(error) or type(error).__name__
        raise Internal(f"failed to load model '{name}': '{path}': {first}") from None


def check_program_file(name: str, path: Path) -> None:
    """Raises Internal, with the cure, for a file that cannot be a program this torch reads."""
    fault = _fault(name, path)
    if fault:
        raise Internal(f"failed to load model '{name}': '{path}' {fault}")


def _fault(name: str, path: Path) -> str:
    members = archive_members(name, path)
    if f"models/{_MODEL}.json" in members:
        return _version_fault(path)
    if "serialized_exported_program.json" in members:
        return "was saved by torch 2.7 or older; load it there and save it with a newer torch"
    if "constants.pkl" in members:
        return "is TorchScript, not a .pt2: call it model.pt, or set platform to pytorch_libtorch"
    if "data.pkl" in members:
        return (
            "is a checkpoint, not an exported program: it holds weights and no code; export the "
            "module with torch.export.export and torch.export.save"
        )
    others = sorted(m[7:-5] for m in members if m.startswith("models/") and m.endswith(".json"))
    if others:
        return f"holds programs called {', '.join(others)}; the one to serve must be called 'model'"
    return "is neither an exported program (torch.export.save) nor an AOTInductor package"


def _version_fault(path: Path) -> str:
    from torch._export.serde.schema import SCHEMA_VERSION  # noqa: PLC0415 - slow, and not for all

    try:
        saved = json.loads(read_member(path, f"models/{_MODEL}.json"))
        major, by = int(saved["schema_version"]["major"]), saved.get("torch_version", "another")
    except (ValueError, KeyError, TypeError, RecursionError):
        return "holds a program that is not what torch writes"
    if major == SCHEMA_VERSION[0]:
        return ""
    return (
        f"was saved by torch {by} in version {major} of the format; torch {torch.__version__} "
        f"reads version {SCHEMA_VERSION[0]}: export the model again with this torch"
    )


def _deserialized(path: Path, *, mapped: bool) -> torch.export.ExportedProgram:
    from torch._export.serde import schema, serialize  # noqa: PLC0415 - slow, and not for all

    saved = json.loads(read_member(path, f"models/{_MODEL}.json"))
    program = _made(schema.ExportedProgram, saved, serialize)
    records = _Records(path, mapped=mapped)
    weights = records.tensors("data/weights/", f"{_MODEL}_weights_config.json", schema, serialize)
    constants = records.tensors(
        "data/constants/", f"{_MODEL}_constants_config.json", schema, serialize
    )
    deserializer = serialize.ExportedProgramDeserializer()
    return deserializer.deserialize(program, weights, constants, None)


def _made(kind: Any, saved: Any, serialize: Any) -> Any:
    return serialize._dict_to_dataclass(kind, saved)  # noqa: SLF001 - torch offers no other way


class _Records:
    """The plain bytes in the archive, as tensors."""

    def __init__(self, path: Path, *, mapped: bool) -> None:
        self._path, self._mapped = path, mapped
        self._reader: Any = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001 - as above
        self._whole: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def tensors(
        self, folder: str, config: str, schema: Any, serialize: Any
    ) -> dict[str, torch.Tensor]:
        """The tensors that a list in the archive names. Those that are one record share it."""
        saved = json.loads(read_member(self._path, folder + config))
        listed = _made(schema.PayloadConfig, saved, serialize)
        flat: dict[str, torch.Tensor] = {}
        return {
            name: self._tensor(folder, name, meta, flat, serialize)
            for name, meta in listed.config.items()
        }

    def _tensor(
        self, folder: str, name: str, meta: Any, flat: dict[str, torch.Tensor], serialize: Any
    ) -> torch.Tensor:
        if meta.tensor_meta is None or meta.use_pickle:
            return self._unpickled(folder, name, meta)
        shape = meta.tensor_meta
        if meta.path_name not in flat:
            dtype = serialize.deserialize_scalar_type(shape.dtype)
            flat[meta.path_name] = self._flat(folder + meta.path_name, dtype)
        record = flat[meta.path_name]
        tensor = torch.as_strided(
            record,
            serialize.deserialize_size(shape.sizes),
            serialize.deserialize_stride(shape.strides),
            record.storage_offset() + serialize.deserialize_storage_offset(shape.storage_offset),
        )
        return torch.nn.Parameter(tensor, requires_grad=False) if meta.is_param else tensor

    def _unpickled(self, folder: str, name: str, meta: Any) -> torch.Tensor:
        pickled = BytesIO(read_member(self._path, folder + meta.path_name))
        try:
            value = torch.load(pickled, weights_only=True, map_location="cpu")
        except Exception:  # noqa: BLE001 - torch raises several kinds for what it will not unpickle
            value = None
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"'{name}' {_STORED}")
        return value

    def _flat(self, record: str, dtype: torch.dtype) -> torch.Tensor:
        """A record's bytes: a view on the mapped file, or a copy of it."""
        begin = self._reader.get_record_offset(record)
        count = self._reader.get_record_size(record) // dtype.itemsize
        if not count:
            return torch.zeros(0, dtype=dtype)
        if begin % dtype.itemsize:
            part = torch.empty(0, dtype=torch.uint8).set_(
                self._whole, begin, (count * dtype.itemsize,), (1,)
            )
            return part.clone().view(dtype)
        view = torch.empty(0, dtype=dtype).set_(
            self._whole, begin // dtype.itemsize, (count,), (1,)
        )
        return view if self._mapped else view.clone()
