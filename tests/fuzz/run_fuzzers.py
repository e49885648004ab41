"""Fuzz the decoders with atheris: `python tests/fuzz/run_fuzzers.py [TARGET...]`.

Each target is fuzzed in a process of its own, for its share of `--seconds` of time in all, by
default those of the environment variable FUZZ_SECONDS, else ten minutes. What was found lies in the
folder `--findings`, an input a file; `run_fuzzers.py --replay FILE TARGET` runs it again. The exit
code is 1 where something was found.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))
_MEASURED = 64
"""Memory is measured in one run of so many, for that costs several times the run."""
_SLOWEST = 5
"""Seconds after which an input hangs."""


def fuzz(name: str, seconds: float, corpus: Path, findings: Path) -> None:
    """Fuzz one target in this process, which libFuzzer then ends."""
    import atheris

    with atheris.instrument_imports(
        include=["microkernel", "microkernel_http", "microkernel_grpc"]
    ):
        from fuzz_mutations import LONGEST
        from fuzz_targets import targets

        target = targets()[name]
    count = 0
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)

    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        try:
            (target.run if count % _MEASURED else target.run_measured)(data)
        except BaseException:  # libFuzzer may be ended before it has written the input itself
            digest = hashlib.sha256(data).hexdigest()[:16]
            (findings / f"{name}-fault-{digest}").write_bytes(data)
            raise

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        return target.mutate(data, Random(seed))[:size]

    flags = {
        "max_total_time": int(seconds),
        "max_len": LONGEST,
        "timeout": _SLOWEST,
        "rss_limit_mb": 1024,
        "artifact_prefix": f"{findings}/{name}-",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, run, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz_all(names: Sequence[str], seconds: float, findings: Path) -> list[str]:
    """Fuzz targets one after the other; those in which something was found, whose inputs are in
    `findings` and whose stories have been printed."""
    findings.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        with tempfile.TemporaryDirectory() as corpus:
            command = [sys.executable, __file__, "--one", corpus, "--findings", str(findings)]
            command += ["--seconds", str(seconds / len(names)), name]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        print(f"{name}: {_executions(done.stderr)} executions, exit code {done.returncode}")
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr)
    return failed


def _executions(output: str) -> str:
    found = [line for line in output.splitlines() if "number_of_executed_units" in line]
    return found[-1].split()[-1] if found else "no"


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="which targets; all of them by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them together")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="run this input instead")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.targets[0], given.seconds, given.one, given.findings)
        return
    from fuzz_targets import targets

    if given.replay:
        targets()[given.targets[0]].run_measured(given.replay.read_bytes())
        return
    sys.exit(bool(fuzz_all(given.targets or list(targets()), given.seconds, given.findings)))


if __name__ == "__main__":
    main()
