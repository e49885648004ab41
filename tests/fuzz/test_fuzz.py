"""Inputs that are nearly valid: the decoders refuse them with the errors that they document, take
memory in proportion, and what they accept holds what it promises."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from fuzz_targets import Target, targets
from hypothesis import given, settings
from hypothesis import strategies as st

TARGETS = targets()
SECONDS = 5
"""How long each target is fuzzed by `make test-slow`; `make fuzz` takes longer."""

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


@every_target
def test_the_inputs_to_begin_with_hold_what_is_promised(target: Target) -> None:
    for seed in target.seeds:
        target.run_measured(seed)


@every_target
@given(numbers=st.integers(0, 2**64), place=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_input_that_is_nearly_valid_finds_no_fault(
    target: Target, numbers: int, place: int
) -> None:
    seed = target.seeds[place % len(target.seeds)]
    target.run_measured(target.mutate(seed, Random(numbers)))


@every_target
@given(data=st.binary(max_size=300))
@settings(max_examples=30, deadline=None)
def test_any_bytes_find_no_fault(target: Target, data: bytes) -> None:
    target.run_measured(data)


@pytest.mark.slow
@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzzer_that_follows_the_code_finds_no_fault(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris, of the group 'dev', is missing")
    command = [sys.executable, str(Path(__file__).with_name("run_fuzzers.py")), name]
    command += ["--seconds", str(SECONDS), "--findings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    executions = int(done.stdout.split()[1])
    assert executions > len(TARGETS[name].seeds)
