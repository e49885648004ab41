"""How slow is the first request, how much does a load disturb, and what do two models do to each
other?"""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.cases import CNN, EMPTY, ENCODER, HEAVY, LARGE, Case, Network
from benchmarks.children import ROOT, Child
from benchmarks.load import body_size
from benchmarks.measuring import Plan
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer
from benchmarks.wire import write_requests
from microkernel.host import processors

STEADY = 30
"""How many requests after the first tell what is usual."""

REST = 0.5
"""Seconds without a request, or for which a bare loop does nothing."""

RESTS = 5
"""How often a model rests in a round."""

QUIET = 2.0
"""Seconds for which probes are sent before a load."""

ALIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LOAD = (
    b"POST /v2/repository/models/%s/load HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
)
PAIR = ("left", "right")


class Caller:
    """A blocking keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> float:
        """Seconds until the whole answer is there. Raises ValueError where it is no 200."""
        began = time.perf_counter()
        self._socket.sendall(request)
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._more()
        missing = body_size(answer[:end]) - (len(answer) - end - 4)
        while missing > 0:
            missing -= len(self._more())
        return time.perf_counter() - began

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def first(models: Path, folder: Path, plan: Plan) -> Report:
    """The first request to each large model, right after the server says that it is ready."""
    cases = [
        Case(network.name, network, max_batch_size=8)
        for network in LARGE
        if (models / f"{network.name}.pt").exists()
    ]
    for case in cases:
        add_model(folder / "models", case, models)
        write_requests(case, folder)
    with ExitStack() as stack:
        loops = {
            case.model: stack.enter_context(_bare_loop(case.network, models, processors()))
            for case in cases
        }
        rounds = calm_rounds(plan.large.rounds, lambda: _first_ones(folder, cases, loops))
    seen = {case.model: [round_[case.model] for round_ in rounds] for case in cases}
    firsts = [_first(model, found) for model, found in seen.items()]
    return Report(checks=[*firsts, *(_rested(model, found) for model, found in seen.items())])


def _bare_loop(network: Network, models: Path, threads: int) -> Child:
    return Child(
        "yardsticks", "model", network.name, str(models / f"{network.name}.pt"), f"{threads}"
    )


@dataclass(frozen=True, slots=True)
class _Cold:
    """Seconds of the first request, of what is usual after that and of a request after a rest; and
    what a bare loop that is warm takes for its first call after a rest, and usually."""

    first: float
    usual: float
    rested: float
    bare_rested: float
    bare_usual: float


def _first_ones(
    folder: Path, cases: Sequence[Case], loops: Mapping[str, Child]
) -> dict[str, _Cold]:
    """What each model did, in a server that has just started."""
    served, bare = {}, {}
    with RunningServer(folder / "models") as server:
        caller = Caller(server.ports["http"])
        for case in cases:
            request = (folder / f"{case.model}.http").read_bytes()
            began, *others = [caller.ask(request) for _ in range(1 + STEADY)]
            rested = [_after_rest(caller, request) for _ in range(RESTS)]
            served[case.model] = (began, median(others), median(rested))
        caller.close()
    for name, loop in loops.items():
        loop.begin("run", rows=1, warm_up=0.5, seconds=0.5)
        usual = loop.answer()["p50"]
        time.sleep(REST)
        loop.begin("run", rows=1, warm_up=0.0, seconds=1e-6)  # one call
        bare[name] = (loop.answer()["first"], usual)
    return {name: _Cold(*served[name], *bare[name]) for name in served}


def _after_rest(caller: Caller, request: bytes) -> float:
    time.sleep(REST)
    return caller.ask(request)


def _first(model: str, seen: Sequence[_Cold]) -> Check:
    slow, steady = median(one.first for one in seen), median(one.usual for one in seen)
    return Check(
        f"first request to {model} after ready, of the median",
        median(one.first / one.usual for one in seen),
        "x",
        1.5,
        note=f"{slow * 1e3:.1f} ms, then {steady * 1e3:.1f} ms",
    )


def _rested(model: str, seen: Sequence[_Cold]) -> Check:
    bare = median(one.bare_rested / one.bare_usual for one in seen)
    return Check(
        f"request to {model} after a rest, of the median",
        median(one.rested / one.usual for one in seen),
        "x",
        note=f"after {REST} s without any; a call of a bare loop after that: {bare:.2f} x",
    )


def loading(models: Path, folder: Path, plan: Plan) -> Report:
    """Health probes, one after the other, while a model with 400 MiB of weights is loaded."""
    command = [sys.executable, "-m", "benchmarks.models", str(folder), HEAVY.name]
    subprocess.run(command, check=True, cwd=ROOT)
    add_model(folder / "models", Case(EMPTY.name, EMPTY), models)
    add_model(folder / "models", Case(HEAVY.name, HEAVY), folder)
    rounds = calm_rounds(plan.large.rounds, lambda: _probed(folder / "models"))
    quiet, busy = (median(column) * 1e3 for column in zip(*rounds, strict=True))
    return Report(
        checks=[
            Check(
                "longest stop of the server while it loads 400 MiB",
                busy,
                "ms",
                20.0,
                note=f"the slowest health probe; {quiet:.1f} ms while nothing is loaded",
            )
        ]
    )


def _probed(repository: Path) -> tuple[float, float]:
    """The slowest probe while nothing happens, and while the heavy model is loaded, in seconds."""
    with RunningServer(
        repository, "--model-control-mode=explicit", f"--load-model={EMPTY.name}"
    ) as server:
        port = server.ports["http"]
        until = time.monotonic() + QUIET
        quiet = _slowest_probe(port, lambda: time.monotonic() < until)
        loader = Caller(port)
        thread = threading.Thread(target=loader.ask, args=(LOAD % HEAVY.name.encode(),))
        thread.start()
        busy = _slowest_probe(port, thread.is_alive)
        thread.join()
        loader.close()
    return quiet, busy


def _slowest_probe(port: int, going: Callable[[], bool]) -> float:
    caller = Caller(port)
    slowest = 0.0
    while going():
        slowest = max(slowest, caller.ask(ALIVE))
    caller.close()
    return slowest


@dataclass(frozen=True, slots=True)
class _Pair:
    """What one of two did alone and beside the other: its rate, the processor seconds of a request
    of both, and what bare loops did."""

    alone: float
    together: float
    cpu_alone: float
    cpu_together: float
    bare_alone: float
    bare_together: float


def beside(models: Path, folder: Path, plan: Plan) -> Report:
    """Two models with a thread each: alone, then at once, and two bare loops likewise."""
    report = Report()
    for network in (ENCODER, CNN):
        report.add(_pair(network, models, folder / f"two_{network.name}", plan))
    return report


def _pair(network: Network, models: Path, folder: Path, plan: Plan) -> Report:
    folder.mkdir()
    for name in PAIR:
        case = Case(name, network, parameters={"INTRA_OP_THREAD_COUNT": "1"})
        add_model(folder / "models", case, models)
        write_requests(case, folder)
    with ExitStack() as stack:
        server = stack.enter_context(RunningServer(folder / "models"))
        loads = [stack.enter_context(Child("load")) for _ in PAIR]
        loops = [stack.enter_context(_bare_loop(network, models, 1)) for _ in PAIR]
        one = _Beside(server, folder, loads, loops, plan)
        rounds = calm_rounds(plan.large.rounds, one.round)
    return Report(checks=_beside_checks(network.name, rounds))


class _Beside:
    def __init__(
        self,
        server: RunningServer,
        folder: Path,
        loads: Sequence[Child],
        loops: Sequence[Child],
        plan: Plan,
    ) -> None:
        self._server = server
        self._folder = folder
        self._loads = loads
        self._loops = loops
        self._pace = plan.large

    def round(self) -> _Pair:
        """Everything once."""
        bare_alone, bare_together = self._bare(1), self._bare(2)
        alone, cpu_alone = self._served(1)
        together, cpu_together = self._served(2)
        return _Pair(alone, together, cpu_alone, cpu_together, bare_alone, bare_together)

    def _bare(self, count: int) -> float:
        for loop in self._loops[:count]:
            loop.begin("run", rows=1, warm_up=self._pace.warm_up, seconds=self._pace.seconds)
        return median(float(loop.answer()["rate"]) for loop in self._loops[:count])

    def _served(self, count: int) -> tuple[float, float]:
        """The rate of one, and the server's processor seconds per request of all."""
        before = self._server.cpu()
        for name, load in zip(PAIR[:count], self._loads, strict=False):
            load.begin(
                "measure",
                protocol="http",
                port=self._server.ports["http"],
                files=[str(self._folder / f"{name}.http")],
                concurrency=2,
                warm_up=self._pace.warm_up,
                seconds=self._pace.seconds,
            )
        seen = [load.answer() for load in self._loads[:count]]
        spent = self._server.cpu() - before
        return median(s["rate"] for s in seen), spent / sum(s["total"] for s in seen)


def _beside_checks(model: str, rounds: Sequence[_Pair]) -> list[Check]:
    bare = median(100 * (1 - r.bare_together / r.bare_alone) for r in rounds)
    served = median(100 * (1 - r.together / r.alone) for r in rounds)
    return [
        Check(
            f"slow-down of {model} with one thread by another",
            served,
            "%",
            15.0,
            note=f"two bare loops slow each other by {bare:.1f} %",
        ),
        Check(
            f"processor time per call of {model} beside another, of that alone",
            median(r.cpu_together / r.cpu_alone for r in rounds),
            "x",
            1.2,
        ),
    ]
