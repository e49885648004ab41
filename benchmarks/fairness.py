"""How long does a polite client wait beside one that floods, with and without fair queueing?

One client keeps many requests in flight, the other asks one thing at a time.
"""

from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.cases import MLP, Case
from benchmarks.children import Child
from benchmarks.measuring import Pace, Plan
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer
from benchmarks.wire import write_requests

FLOOD = 64
LARGEST = 4
FAIR = 'parameters { key: "FAIR_QUEUE_KEY" value { string_value: "header:x-client" } }\n'
MODELS = {"first in, first out": "", "fair": FAIR}


def fairness(models: Path, folder: Path, plan: Plan) -> Report:
    """The median latency of the polite client, flooded, and alone."""
    files = {}
    for number, (name, parameters) in enumerate(MODELS.items()):
        case = Case(f"model{number}", MLP, max_batch_size=LARGEST)
        add_model(folder / "models", case, models)
        config = folder / "models" / case.model / "config.pbtxt"
        config.write_text(config.read_text() + parameters)
        write_requests(case, folder)
        files[name] = {who: _signed(folder / f"{case.model}.http", who) for who in _WHO}
    flag = "--http-header-forward-pattern=x-client"
    with (
        RunningServer(folder / "models", flag) as server,
        Child("load") as polite,
        Child("load") as flood,
    ):
        port, pace = server.ports["http"], plan.large
        alone = calm_rounds(
            pace.rounds, partial(_ask, polite, port, files["fair"]["polite"], 1, pace)
        )
        flooded = {
            name: calm_rounds(pace.rounds, partial(_both, polite, flood, port, own, pace))
            for name, own in files.items()
        }
    note = f"{median(alone) * 1e3:.2f} ms alone; {FLOOD} requests of the other in flight"
    return Report(
        checks=[
            Check(f"a polite client beside a flood, {name}", median(seen) * 1e3, "ms", note=note)
            for name, seen in flooded.items()
        ]
    )


_WHO = ("polite", "flood")


def _signed(request: Path, who: str) -> str:
    """The file of a request with a header that says whose it is."""
    head, _, rest = request.read_bytes().partition(b"\r\n")
    place = request.with_name(f"{request.stem}.{who}.http")
    place.write_bytes(head + f"\r\nX-Client: {who}\r\n".encode() + rest)
    return str(place)


def _ask(load: Child, port: int, file: str, concurrency: int, pace: Pace) -> float:
    """The median latency in seconds."""
    _begin(load, port, file, concurrency, pace)
    latency: float = load.answer()["p50"]
    return latency


def _begin(load: Child, port: int, file: str, concurrency: int, pace: Pace) -> None:
    load.begin(
        "measure",
        protocol="http",
        port=port,
        files=[file],
        concurrency=concurrency,
        warm_up=pace.warm_up,
        seconds=pace.seconds,
    )


def _both(polite: Child, flood: Child, port: int, files: dict[str, str], pace: Pace) -> float:
    """The median latency of the polite client in seconds."""
    _begin(flood, port, files["flood"], FLOOD, pace)
    latency = _ask(polite, port, files["polite"], 1, pace)
    flood.answer()
    return latency
