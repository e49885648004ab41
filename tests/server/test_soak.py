"""Good and bad clients together for a while: every good answer is the right one, nothing is lost
but what a killed worker held, and neither the server nor its workers grow.

SOAK_SECONDS says how long the slow one takes; ten minutes, where it says nothing.
"""

import os
import statistics
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from server_harness import PATIENCE, Running
from soak_clients import CLIENTS, GOOD, KILLED, LEFT, LOST, REFUSED, Client
from soak_measures import MIB, Sample, report, sample, settled, slope
from soak_models import STEADY, write_models

SHORT = 10.0
LONG = float(os.environ.get("SOAK_SECONDS", "600"))
_INTERVAL = 0.25
_FEW = 4
"""How many threads or blocks may be made late, when chance has more happen at once than before."""
_STEPS = 32 * MIB
"""What memory may differ by at any time: buffers of large requests, arenas of the allocator."""
_PER_MINUTE = 1.5 * MIB
"""What the server, and the steady workers together, may seem to grow by in a long run."""
_LONG_ENOUGH = 300.0
"""Seconds after which the line through the measures means something."""


class Soak:
    """Clients on threads of their own, each taking turn after turn until told to stop."""

    def __init__(self, server: Running) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self._server = server
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=pair, daemon=True) for pair in CLIENTS.items()
        ]

    def run(self, seconds: float, measure: Callable[[], Sample]) -> list[Sample]:
        """Let them work for so long, and on a slow machine until they have done it all, or until
        one finds a fault: the measures taken meanwhile."""
        for thread in self._threads:
            thread.start()
        samples, spent = [measure()], 0.0
        while spent < seconds or not (self._have_done_all() or spent > seconds + PATIENCE):
            if self._over.wait(_INTERVAL):
                break
            samples.append(measure())
            spent = samples[-1].moment - samples[0].moment
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client waits for an answer"
        return samples

    def _have_done_all(self) -> bool:
        """Whether every client has got on, and a killed worker was missed."""
        counts = dict(self.counts)
        outcomes = {outcome for _, outcome in counts}
        got_on = {name for name, outcome in counts if outcome in (GOOD, REFUSED, LEFT)}
        return got_on == set(CLIENTS) and LOST in outcomes

    def _work(self, name: str, client: Client) -> None:
        try:
            with client(self._server) as turn:
                while not self._over.is_set():
                    self.counts[name, turn()] += 1
        except Exception:  # noqa: BLE001 - shown by the test
            self.faults.append(f"{name}: {traceback.format_exc()}")
            self._over.set()


def start(
    repository: Path, start_server: Callable[..., Running]
) -> tuple[Running, list[psutil.Process]]:
    """A server with all models but the guest, and the processes of the steady ones."""
    write_models(repository)
    flags = [f"--load-model={name}" for name in STEADY]
    flags += ["--model-control-mode=explicit", "--allow-client-shm=true"]
    server = start_server(repository, *flags)
    steady = server.processes()
    assert server.post("/v2/repository/models/mortal/load").status == 200
    return server, steady


def check_growth(samples: Sequence[Sample]) -> None:
    """Nothing grows once it is warm, which it is after a third of the time."""
    third = len(samples) // 3
    early, late = samples[: 2 * third], samples[2 * third :]
    for what in ("threads", "blocks"):
        most = max(getattr(each, what) for each in early)
        assert max(getattr(each, what) for each in late) <= most + _FEW, f"more and more {what}"
    warm = samples[third:]
    moments = [each.moment for each in warm]
    for what in ("memory", "workers"):
        values = [getattr(each, what) for each in warm]
        half = len(values) // 2
        grown = statistics.median(values[half:]) - statistics.median(values[:half])
        assert grown < _STEPS, f"{what} grew by {grown / MIB:.1f} MiB"
        if moments[-1] - moments[0] > _LONG_ENOUGH:
            assert slope(moments, values) < _PER_MINUTE, f"{what} grows"


def soak(seconds: float, repository: Path, start_server: Callable[..., Running]) -> None:
    """Run all clients, and hold the server against what it was before."""
    server, steady = start(repository, start_server)
    quiet, clients = sample(server, steady), Soak(server)
    samples = clients.run(seconds, lambda: sample(server, steady))
    print(report(samples), *sorted(clients.counts.items()), sep="\n")
    assert clients.faults == []
    check_growth(samples)
    after = settled(server, steady, quiet)
    assert after.processes == quiet.processes
    assert after.descriptors <= quiet.descriptors
    check_counts(clients, successes(server))
    assert server.stop() == 0
    assert not [line for line in server.log.lines if "unexpected" in str(line).lower()]


def successes(server: Running) -> dict[str, int]:
    """How many requests each model has answered well."""
    found = server.get("/v2/models/stats").json["model_stats"]
    return {each["name"]: each["inference_stats"]["success"]["count"] for each in found}


def check_counts(clients: Soak, ran: Mapping[str, int]) -> None:
    """Every client got on; every request of those that mean well ran once, but for those that were
    lost with a worker that was killed: the one that hit upon the dead, or upon none."""
    counts = clients.counts
    assert {name for name, outcome in counts if outcome in (GOOD, REFUSED, LEFT)} == set(CLIENTS)
    assert ran["python_echo"] == counts["JSON", GOOD] + counts["gRPC", GOOD]
    assert ran["onnx_echo"] == counts["binary HTTP", GOOD] + counts["shared memory", GOOD]
    killed = counts["mortal model", KILLED]
    assert ran["mortal"] == counts["mortal model", GOOD] + killed
    assert killed
    assert counts["mortal model", LOST] <= 2 * killed
    assert {name for name, outcome in counts if outcome == LOST} == {"mortal model"}


@pytest.mark.slow
def test_good_and_bad_clients_for_a_short_while(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    soak(SHORT, tmp_path / "models", start_server)


@pytest.mark.slow
@pytest.mark.timeout(LONG + 240)
def test_good_and_bad_clients_for_a_long_while(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    soak(LONG, tmp_path / "models", start_server)
