"""What a file is that torch does not take for TorchScript, told by its bytes. Nothing is run."""

import pickletools
import zipfile
from pathlib import Path

from microkernel_torchscript.kinds import holds_machine_code

_CHECKPOINT = (
    "this is a checkpoint, not TorchScript: it holds {what} and no code; export the module with "
    "torch.jit.script or torch.jit.trace and save that, or write its class into 'model.py' beside "
    '{weights} and set runtime: "model.py"'
)
_PACKAGE = (
    "this is {what}, not TorchScript: call it 'model.pt2' and set platform: \"torch_aoti\" instead"
)


def fault_of(path: Path) -> str:
    """What is wrong with a file that should hold TorchScript, and what would be right, as a
    sentence without its end; "" where the file looks as it should. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return "the file is empty; copy or save it again"
    if head == b"PK":
        return _archive_fault(path)
    if head[:1] == b"\x80":
        return _CHECKPOINT.format(what="pickled Python objects", weights="its state_dict()")
    return "this is no TorchScript file; write one with torch.jit.save"


def weights_fault(path: Path) -> str:
    """What is wrong with a file that torch does not read as a state dictionary, and what would be
    right; "" where only torch can tell. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty; copy or save it again"
    if head.startswith(b"PK"):
        return _weights_archive_fault(path)
    if head.startswith(b"version https://git-lfs"):
        return "this is a pointer of Git LFS, not the file; fetch it with git lfs pull"
    if head[8:9] == b"{":
        return (
            "this is a safetensors file; write what safetensors.torch.load_file gives with "
            "torch.save"
        )
    if head[:1] == b"\x80":
        return "it holds pickled Python objects; write module.state_dict() with torch.save"
    return "this is no file of torch; write module.state_dict() with torch.save"


def _weights_archive_fault(path: Path) -> str:
    names: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        damaged = path.name
    if damaged is not None:
        return "the file is cut off or damaged; copy or save it again"
    if holds_machine_code(names) or _has(names, "/archive_format"):
        return "this is a package of torch.export; write module.state_dict() with torch.save"
    if not _has(names, "/data.pkl"):
        return "this is an archive of something else; write module.state_dict() with torch.save"
    return ""


def _archive_fault(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickle = next((name for name in names if name.endswith("/data.pkl")), "")
            whole = bool(pickle) and _holds_modules(archive.read(pickle))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return "the file is cut off or damaged; copy or save it again"
    return "" if _has(names, "/constants.pkl") else _other_archive(names, pickle, whole=whole)


def _other_archive(names: list[str], pickle: str, *, whole: bool) -> str:
    if holds_machine_code(names):
        return _PACKAGE.format(what="a package that AOTInductor compiled")
    if _has(names, "/archive_format"):
        return _PACKAGE.format(what="a program of torch.export")
    if whole:
        return _CHECKPOINT.format(what="a pickled module", weights="its state_dict()")
    if pickle:
        return _CHECKPOINT.format(what="weights", weights="them")
    return "this is an archive of something else; write a TorchScript file with torch.jit.save"


def _has(names: list[str], ending: str) -> bool:
    return any(name.endswith(ending) for name in names)


def _holds_modules(pickle: bytes) -> bool:
    """Whether a pickle names classes other than those that tensors are made of."""
    plain = ("torch _utils", "torch._utils", "torch ", "collections ", "__builtin__ ", "builtins ")
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name == "GLOBAL" and not str(argument).startswith(plain):
            return True
    return False
