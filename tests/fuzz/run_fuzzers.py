"""Fuzz the decoders with atheris: `python tests/fuzz/run_fuzzers.py [TARGET...]`.

Each target is fuzzed in a process of its own, `--jobs` of them side by side, for its share of
`--seconds` of time in all: with two jobs, half of that passes. By default the seconds are those of
the environment variable FUZZ_SECONDS, else an hour. What was found is printed and lies in the
folder `--findings`, an input a file; `run_fuzzers.py --replay FILE TARGET` runs it again. The exit
code is 1 where something was found.
"""

import argparse
import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3600"))
_MEASURED = 64
"""Memory is measured in one run of so many, for that costs several times the run."""
_SLOWEST = 5
"""Seconds of the processor after which an input is too slow, however busy the machine is."""
_HANGS = 120
"""Seconds after which an input that does not end at all is given up."""
_ENDING = 600
"""Seconds that a fuzzer may take to start and to end, beside the time that it fuzzes."""
_MEMORY_MB = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target that was fuzzed: how many inputs were run, and the story of what was found, "" for
    nothing."""

    name: str
    executions: int
    story: str


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
        began = time.thread_time()
        try:
            (target.run if count % _MEASURED else target.run_measured)(data)
            took = time.thread_time() - began
            assert took < _SLOWEST, f"{len(data)} bytes took {took:.1f} seconds of the processor"
        except BaseException:  # libFuzzer may be ended before it has written the input itself
            digest = hashlib.sha256(data).hexdigest()[:16]
            (findings / f"{name}-fault-{digest}").write_bytes(data)
            raise

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        return target.mutate(data, Random(seed))[:size]

    flags = {
        "max_total_time": max(1, round(seconds)),
        "max_len": LONGEST,
        "timeout": _HANGS,
        "report_slow_units": _HANGS,
        "rss_limit_mb": _MEMORY_MB,
        "artifact_prefix": f"{findings}/{name}-",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, run, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz_all(
    names: Sequence[str], seconds: float, findings: Path, jobs: int = 1
) -> Iterator[Outcome]:
    """Fuzz targets, `jobs` at a time, for so many seconds in all; the inputs of what is found are
    in `findings`. Outcomes come in the order of the names."""
    findings.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        one = partial(_fuzz_apart, seconds=seconds / len(names), findings=findings)
        yield from pool.map(one, names)


def _fuzz_apart(name: str, seconds: float, findings: Path) -> Outcome:
    """Fuzz one target in another process."""
    before = set(findings.iterdir())
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, __file__, "--one", corpus, "--findings", str(findings)]
        command += ["--seconds", str(seconds), name]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds + _ENDING,
                check=False,
            )
            output, ending = done.stdout, done.returncode and f"exit code {done.returncode}"
        except subprocess.TimeoutExpired as late:
            output, ending = late.stdout or b"", "did not end"
    text = output.decode(errors="replace")
    found = {p for p in findings.iterdir() if p.name.startswith(f"{name}-")} - before
    story = f"{name}: {ending}\n{_shown(found)}\n{_told(text)}" if ending else ""
    return Outcome(name, _executions(text), story)


def _told(output: str) -> str:
    """What a fuzzer said, less a line for each module that it follows."""
    lines = output.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("INFO: Instrumenting"))


def _shown(found: Iterable[Path]) -> str:
    """The inputs in files, to be read and to be run again where the files are gone."""
    told = []
    for path in sorted(found):
        data = path.read_bytes()
        coded = base64.b64encode(data).decode()
        told.append(f"{path}: {len(data)} bytes: {data[:500]!r}\nin base64: {coded}")
    return "\n".join(told)


def _executions(output: str) -> int:
    found = [line for line in output.splitlines() if "number_of_executed_units" in line]
    return int(found[-1].split()[-1]) if found else 0


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="which targets; all of them by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them together")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
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
    names = given.targets or list(targets())
    failed = False
    for outcome in fuzz_all(names, given.seconds, given.findings, given.jobs):
        print(f"{outcome.name}: {outcome.executions} executions", outcome.story, flush=True)
        failed = failed or bool(outcome.story)
    sys.exit(failed)


if __name__ == "__main__":
    main()
