"""Does the server keep its budget? `python -m benchmarks` measures all of it in one run."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from benchmarks.adaptive import adaptive
from benchmarks.cache import cache
from benchmarks.calm import Others, probe
from benchmarks.children import ROOT
from benchmarks.deciding import decisions
from benchmarks.fairness import fairness
from benchmarks.first_calls import beside, first, loading
from benchmarks.flags import flags
from benchmarks.inside import kernel, worker
from benchmarks.large import large
from benchmarks.lifecycle import memory, start
from benchmarks.measuring import QUICK, THOROUGH, Plan
from benchmarks.padding import padding
from benchmarks.report import Report
from benchmarks.sharing import sharing
from benchmarks.small import small
from benchmarks.streams import streams
from benchmarks.tuned import tuned

TOLERATED = 0.1
"""The part of the processors that other programs may take without spoiling the figures."""

Section: TypeAlias = Callable[[Path, Path, Plan], Report]

SECTIONS: Mapping[str, Section] = {
    section.__name__: section
    for section in (
        start,
        memory,
        kernel,
        worker,
        decisions,
        small,
        large,
        tuned,
        first,
        loading,
        beside,
        flags,
        sharing,
        padding,
        cache,
        fairness,
        streams,
        adaptive,
    )
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="rough figures in some minutes")
    parser.add_argument(
        "--only", action="append", choices=list(SECTIONS), help="one part; may be repeated"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the report there, too, and plots beside it",
    )
    options = parser.parse_args()
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"there is no folder '{options.json.parent}' for the report")
    # Ended by a signal, the server and the other processes are stopped all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = run(options.only or list(SECTIONS), QUICK if options.quick else THOROUGH)
    print(report.text())
    if options.json is not None:
        report.write(options.json)


def run(names: list[str], plan: Plan) -> Report:
    """Measure the named sections one after the other."""
    report, others, probes = Report(), Others(), [probe()]
    with tempfile.TemporaryDirectory(prefix="microkernel-benchmarks-") as name:
        folder = Path(name)
        networks = folder / "networks"
        networks.mkdir()
        subprocess.run(
            [sys.executable, "-m", "benchmarks.models", str(networks)], check=True, cwd=ROOT
        )
        for section in names:
            place, began = folder / section, time.monotonic()
            place.mkdir()
            report.add(SECTIONS[section](networks, place, plan))
            probes.append(probe())
            print(f"{section}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    report.remarks.append(_disturbance(others.share(), probes))
    return report


def _disturbance(share: float, probes: Sequence[float]) -> str:
    """What is to be known about the machine before the figures are believed."""
    fast, slow = min(probes) * 1e3, max(probes) * 1e3
    verdict = (
        " That is too much: no verdict on a time or a rate holds." if share > TOLERATED else ""
    )
    return (
        f"Meanwhile other programs took {share:.0%} of the processors, and between the sections "
        f"a fixed piece of Python took from {fast:.1f} to {slow:.1f} ms.{verdict}"
    )


if __name__ == "__main__":
    main()
