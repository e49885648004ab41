"""What do more instances of a model cost in memory, with their weights shared and apart, and how
much of it comes back?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import CNN, EMPTY, Case
from benchmarks.first_calls import LOAD, Caller
from benchmarks.lifecycle import MIB
from benchmarks.measuring import Plan
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer, memory_of
from benchmarks.wire import write_requests

INSTANCES = 8
REQUESTS = 24
UNLOAD = LOAD.replace(b"/load ", b"/unload ")

ONE, SHARED, APART = "cnn_one", "cnn_shared", "cnn_apart"
MAPPED, ALONE = "cnn_mapped", "cnn_alone"
PROCESSES = 2
SHARES = {"ENABLE_WEIGHT_SHARING": "true"}
CASES: Mapping[str, Case] = {
    case.model: case
    for case in (
        Case(ONE, CNN),
        Case(SHARED, CNN, instances=INSTANCES, parameters=SHARES),
        Case(APART, CNN, instances=INSTANCES),
        Case(MAPPED, CNN, instances=PROCESSES, parameters={"WORKER": "instance", **SHARES}),
        Case(ALONE, CNN, instances=PROCESSES, parameters={"WORKER": "instance"}),
    )
}


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes of the worker of a model: resident, and its proportional share; of all processes of the
    server while the model was there, and after it was gone."""

    resident: int
    proportional: int
    everything: int
    afterwards: int


def sharing(models: Path, folder: Path, plan: Plan) -> Report:
    """Load, ask and unload a network of 45 MiB with one instance, and with eight of both kinds."""
    for case in (*CASES.values(), Case(EMPTY.name, EMPTY)):
        add_model(folder / "models", case, models)
        write_requests(case, folder)
    with RunningServer(folder / "models", "--model-control-mode=explicit") as server:
        caller = Caller(server.ports["http"])
        # The first model starts what stays: the fork server, which has imported torch.
        _cycle(server, caller, folder, EMPTY.name)
        bare = _everything(server)
        held = {name: _cycle(server, caller, folder, name) for name in CASES}
        caller.close()
    return Report(checks=_checks(held, bare))


def _cycle(server: RunningServer, caller: Caller, folder: Path, name: str) -> _Held:
    caller.ask(LOAD % name.encode())
    request = (folder / f"{name}.http").read_bytes()
    for _ in range(REQUESTS):
        caller.ask(request)
    memories = [memory_of(pid) for pid in server.workers()]
    everything = _everything(server)
    caller.ask(UNLOAD % name.encode())
    server.wait_workers(0)
    resident, proportional = (
        sum(m.resident for m in memories),
        sum(m.proportional for m in memories),
    )
    return _Held(resident, proportional, everything, _everything(server))


def _everything(server: RunningServer) -> int:
    """The proportional shares of all processes of the server."""
    return sum(memory_of(pid).proportional for pid in server.processes())


def _checks(held: Mapping[str, _Held], bare: int) -> list[Check]:
    one = held[ONE]

    def more(name: str) -> tuple[float, str]:
        extra = (held[name].proportional - one.proportional) / MIB
        resident = (held[name].resident - one.resident) / MIB
        return extra, f"proportional set; {resident:.0f} resident"

    shared, shared_note = more(SHARED)
    apart, apart_note = more(APART)
    mapped, mapped_note = more(MAPPED)
    alone, alone_note = more(ALONE)
    back = [
        100 * (held[name].everything - held[name].afterwards) / (held[name].everything - bare)
        for name in CASES
    ]
    what = f"memory of {INSTANCES} instances of a network of 45 MiB beyond one"
    return [
        Check(f"{what}, weights shared", shared, "MiB", 60.0, note=shared_note),
        Check(f"{what}, weights apart", apart, "MiB", note=apart_note),
        Check("a second process of it, weights mapped", mapped, "MiB", note=mapped_note),
        Check("a second process of it, weights apart", alone, "MiB", note=alone_note),
        Check(
            "memory that comes back when a model is unloaded",
            min(back),
            "%",
            95.0,
            at_least=True,
            note=", ".join(f"{name} {part:.1f}" for name, part in zip(CASES, back, strict=True)),
        ),
    ]
