"""What does each parameter of a TorchScript model do to the time of a call?"""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.cases import CNN, ENCODER, MLP, Case, Network
from benchmarks.first_calls import Caller
from benchmarks.measuring import Plan
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer
from benchmarks.wire import write_requests

PLAIN = "plain"
ONE_THREAD = {"INTRA_OP_THREAD_COUNT": "1"}
VARIANTS: Mapping[str, Mapping[str, str]] = {
    PLAIN: ONE_THREAD,
    "DISABLE_OPTIMIZED_EXECUTION: true": {**ONE_THREAD, "DISABLE_OPTIMIZED_EXECUTION": "true"},
    "INFERENCE_MODE: false": {**ONE_THREAD, "INFERENCE_MODE": "false"},
    "ENABLE_JIT_PROFILING: false": {**ONE_THREAD, "ENABLE_JIT_PROFILING": "false"},
    "ENABLE_JIT_EXECUTOR: false": {**ONE_THREAD, "ENABLE_JIT_EXECUTOR": "false"},
    "ENABLE_TENSOR_FUSER: false": {**ONE_THREAD, "ENABLE_TENSOR_FUSER": "false"},
    "INTRA_OP_THREAD_COUNT: 2": {"INTRA_OP_THREAD_COUNT": "2"},
}
CALLS: Mapping[str, int] = {MLP.name: 300, ENCODER.name: 20, CNN.name: 8}


def flags(models: Path, folder: Path, plan: Plan) -> Report:
    """One model per parameter and network, called in turn; times are those that the server counts
    as inference."""
    report = Report()
    for network in (MLP, ENCODER, CNN):
        report.checks += _network(network, models, folder / network.name, plan)
    return report


def _network(network: Network, models: Path, folder: Path, plan: Plan) -> Iterator[Check]:
    folder.mkdir()
    names = {variant: f"{network.name}_{number}" for number, variant in enumerate(VARIANTS)}
    for variant, name in names.items():
        case = Case(name, network, parameters=VARIANTS[variant])
        add_model(folder / "models", case, models)
        write_requests(case, folder)
    with RunningServer(folder / "models") as server:
        caller = Caller(server.ports["http"])

        def one() -> dict[str, float]:
            return {
                variant: _infer_time(server, caller, folder, name, CALLS[network.name])
                for variant, name in names.items()
            }

        rounds = calm_rounds(2 * plan.large.rounds, one)
        caller.close()
    for variant in VARIANTS:
        usual = median(seen[variant] for seen in rounds) * 1e6
        yield Check(
            f"a call of {network.name}, {variant}, of that without",
            median(seen[variant] / seen[PLAIN] for seen in rounds),
            "x",
            note=f"{usual:.0f} µs",
        )


def _infer_time(
    server: RunningServer, caller: Caller, folder: Path, name: str, calls: int
) -> float:
    """Seconds of inference per call, over some calls."""
    request = (folder / f"{name}.http").read_bytes()
    before = _counted(server, name)
    for _ in range(calls):
        caller.ask(request)
    after = _counted(server, name)
    return (after[0] - before[0]) / (after[1] - before[1]) / 1e9


def _counted(server: RunningServer, name: str) -> tuple[int, int]:
    """Nanoseconds of inference so far, and of how many calls."""
    address = f"http://127.0.0.1:{server.ports['http']}/v2/models/{name}/stats"
    with urllib.request.urlopen(address) as answer:
        stats = json.load(answer)["model_stats"][0]["inference_stats"]["compute_infer"]
    return int(stats["ns"]), int(stats["count"])
