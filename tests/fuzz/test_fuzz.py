"""Inputs that are nearly valid: the decoders refuse them with the errors that they document, take
memory in proportion, and what they accept holds what it promises."""

import os
from pathlib import Path
from random import Random

import pytest
import run_fuzzers
from fuzz_targets import Target, targets
from hypothesis import given, settings
from hypothesis import strategies as st

TARGETS = targets()
SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))
"""How long all targets together are fuzzed by `make test-slow`, two at a time; `make fuzz` takes
longer."""

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
@pytest.mark.timeout(2 * SECONDS + 1800)
def test_fuzzers_that_follow_the_code_find_no_fault(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris, of the group 'dev', is missing")
    outcomes = list(run_fuzzers.fuzz_all(list(TARGETS), SECONDS, tmp_path, jobs=2))
    for outcome in outcomes:
        print(f"{outcome.name}: {outcome.executions} executions")
    assert not [outcome.name for outcome in outcomes if outcome.story], "".join(
        outcome.story for outcome in outcomes
    )
    few = [o.name for o in outcomes if o.executions <= len(TARGETS[o.name].seeds)]
    assert not few, f"the fuzzers of these ran hardly more than the first inputs: {few}"


FAULTY = """
import sys

sys.path.insert(0, {folder!r})
import fuzz_targets
import run_fuzzers


def decode(data):
    assert data != b"bad\\xff", "this one"


only = fuzz_targets.Target("faulty", decode, len, [b"good", b"bad\\xff"], lambda data, rng: data)
fuzz_targets.targets = lambda: {{"faulty": only}}
run_fuzzers.main()
"""


def test_a_fault_is_told_with_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("atheris", reason="atheris, of the group 'dev', is missing")
    script, findings = tmp_path / "faulty.py", tmp_path / "findings"
    script.write_text(FAULTY.format(folder=str(Path(run_fuzzers.__file__).parent)))
    monkeypatch.setattr(run_fuzzers, "__file__", str(script))
    (outcome,) = run_fuzzers.fuzz_all(["faulty"], 60, findings)
    assert "AssertionError: this one" in outcome.story
    assert "4 bytes: b'bad\\xff'\nin base64: YmFk/w==" in outcome.story
    assert {path.read_bytes() for path in findings.iterdir()} == {b"bad\xff"}
