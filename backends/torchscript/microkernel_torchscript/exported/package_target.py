"""What an AOTInductor package was compiled for, against what this host is. Decided from strings."""

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from microkernel_torchscript.exported.archive import read_member
from microkernel_torchscript.kinds import COMPILED

_FLAGS: Mapping[str, frozenset[str]] = {
    "AVX2": frozenset(("avx2", "fma")),
    "AVX512": frozenset(("avx512f", "avx512dq", "avx512vl", "avx512bw")),
    "AVX512_VNNI": frozenset(("avx512_vnni",)),
    "AVX512_BF16": frozenset(("avx512_bf16",)),
    "AMX_TILE": frozenset(("amx_tile", "amx_int8", "amx_bf16")),
    "AMX_FP16": frozenset(("amx_fp16",)),
    "ASIMD": frozenset(("asimd",)),
    "SVE": frozenset(("sve",)),
    "SVE256": frozenset(("sve",)),
}
"""The instruction sets as torch calls them, by the flags that Linux has for them. One that is not
here is not checked."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a package was compiled for; "" where it does not say."""

    device: str = ""
    platform: str = ""
    machine: str = ""
    instructions: str = ""
    capability: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What machine code finds here. Without `flags` instruction sets are not checked. `capability`
    is that of the GPU, "" where there is none."""

    platform: str
    machine: str
    flags: frozenset[str]
    capability: str = ""


def package_target(path: Path, members: list[str], model: str) -> Target:
    """The target of the model of that name in a package, from the notes beside its code."""
    notes: dict[str, str] = {}
    for member in members:
        if member.startswith(f"{COMPILED}{model}/") and member.endswith("_metadata.json"):
            notes |= _note(path, member)
    return Target(
        device=notes.get("AOTI_DEVICE_KEY", ""),
        platform=notes.get("AOTI_PLATFORM", ""),
        machine=notes.get("AOTI_MACHINE", ""),
        instructions=notes.get("AOTI_CPU_ISA", ""),
        capability=notes.get("AOTI_COMPUTE_CAPABILITY", ""),
    )


def misfit(target: Target, host: Host) -> str:
    """Why the host cannot run what was compiled for the target, "" where it can."""
    made = f"{target.platform or host.platform} on {target.machine or host.machine}"
    here = f"{host.platform} on {host.machine}"
    if made != here:
        return f"was compiled for {made}, but this is {here}: compile it here"
    lacking = _lacking(target.instructions, host.flags)
    if lacking:
        return (
            f"was compiled for a CPU with {target.instructions}, but this one has no "
            f"{' and no '.join(lacking)}: compile it on a machine like this one"
        )
    if target.device in ("", "cpu"):
        return ""
    what = target.device + (
        f" (compute capability {target.capability})" if target.capability else ""
    )
    if not host.capability:
        return f"was compiled for {what}, but this host has no such device: compile it for the CPU"
    if target.capability and _digits(target.capability) != _digits(host.capability):
        return (
            f"was compiled for {what}, but the GPU of this host has compute capability "
            f"{host.capability}: compile it here"
        )
    return ""


def this_host(capability: str = "") -> Host:
    """The host as it is."""
    return Host(sys.platform, platform.machine(), _cpu_flags(), capability)


def model_names(members: list[str]) -> list[str]:
    """The models that a package holds."""
    inside = (m.removeprefix(COMPILED).split("/", 1) for m in members if m.startswith(COMPILED))
    return sorted({parts[0] for parts in inside if len(parts) > 1})


def _note(path: Path, member: str) -> dict[str, str]:
    try:
        found = json.loads(read_member(path, member))
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _lacking(instructions: str, flags: frozenset[str]) -> list[str]:
    if not flags:
        return []
    wanted = instructions.upper().split()
    return [name for name in wanted if not _FLAGS.get(name, frozenset()) <= flags]


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    found = (words for name, _, words in lines if name.strip() in ("flags", "Features"))
    return frozenset(next(found, "").split())


def _digits(capability: str) -> str:
    return "".join(filter(str.isdigit, capability))
