"""When machine code is chosen over a module, and what a record says of it: nothing here runs a
model."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tuning_rows import arranged, row

from microkernel_torchscript.tuning import grid
from microkernel_torchscript.tuning.deciding import (
    Decision,
    best_arrangement,
    best_module,
    best_variant,
    decide,
)
from microkernel_torchscript.tuning.page import plot
from microkernel_torchscript.tuning.record import (
    Measured,
    Record,
    record_from_text,
    record_to_text,
)
from microkernel_torchscript.tuning.trial import (
    AOTI,
    FROZEN,
    OPTIMIZED,
    PLAIN,
    Candidate,
    Figures,
    Row,
)

DIGEST = "0123456789abcdef" * 4
RECORD = Record(
    {"cores": "2"}, Measured(Decision(Candidate(AOTI, 2, 1, 8), "faster")), "now", DIGEST
)


@pytest.mark.parametrize(
    ("rows", "expected", "module"),
    [
        ([row(PLAIN, 10), row(AOTI, 8)], AOTI, PLAIN),
        ([row(PLAIN, 10), row(AOTI, 9.6)], PLAIN, PLAIN),
        ([row(PLAIN, 10), row(AOTI, 14)], PLAIN, PLAIN),
        ([row(PLAIN, 10), row(OPTIMIZED, 8), row(AOTI, 7)], AOTI, OPTIMIZED),
        # It must be worth its price over the best of the others, too.
        ([row(PLAIN, 10), row(OPTIMIZED, 8), row(AOTI, 7.8)], OPTIMIZED, OPTIMIZED),
        ([row(PLAIN, 10), row(OPTIMIZED, 8), row(AOTI, 8.5)], OPTIMIZED, OPTIMIZED),
        # A gain at one size that costs nothing at another is one, and one that does is none.
        (
            [
                *(row(PLAIN, 10, size) for size in (1, 8)),
                *(row(OPTIMIZED, 8, size) for size in (1, 8)),
                row(AOTI, 7.9),
                row(AOTI, 7, 8),
            ],
            AOTI,
            OPTIMIZED,
        ),
        (
            [
                *(row(PLAIN, 10, size) for size in (1, 8)),
                *(row(OPTIMIZED, 8, size) for size in (1, 8)),
                row(AOTI, 8.5),
                row(AOTI, 6, 8),
            ],
            OPTIMIZED,
            OPTIMIZED,
        ),
        ([row(PLAIN, 10), Row(Candidate(AOTI), note="no compiler")], PLAIN, PLAIN),
        ([row(PLAIN, 10), row(FROZEN, 8), row(AOTI, 1, note="it differs")], FROZEN, FROZEN),
        ([row(PLAIN, 10), Row(Candidate(AOTI))], PLAIN, PLAIN),  # no time
        ([], PLAIN, PLAIN),
    ],
)
def test_machine_code_must_win_clearly_over_everything(
    rows: list[Row], expected: str, module: str
) -> None:
    assert (best_variant(rows), best_module(rows)) == (expected, module)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # One instance of it against several of the best module.
        ([arranged(AOTI, 2, 1, 150), arranged(OPTIMIZED, 1, 2, 140)], (AOTI, 2, 1, 1)),
        ([arranged(AOTI, 2, 1, 150), arranged(OPTIMIZED, 1, 2, 156)], (AOTI, 2, 1, 1)),  # noise
        ([arranged(AOTI, 2, 1, 150), arranged(OPTIMIZED, 1, 2, 220)], (OPTIMIZED, 1, 2, 1)),
        (
            [
                arranged(AOTI, 2, 1, 100),
                arranged(AOTI, 2, 1, 210, batch=8),
                arranged(OPTIMIZED, 1, 2, 218, batch=8),
            ],
            (AOTI, 2, 1, 8),
        ),
        # As many instances and as large batches: what takes less processor time.
        (
            [
                arranged(AOTI, 2, 1, 100),
                arranged(AOTI, 2, 1, 200, batch=8),
                arranged(OPTIMIZED, 1, 1, 205, batch=8),
            ],
            (AOTI, 2, 1, 8),
        ),
        ([arranged(PLAIN, 2, 1, 500), arranged(AOTI, 2, 1, 100)], (AOTI, 2, 1, 1)),
        ([arranged(OPTIMIZED, 1, 2, 500)], (AOTI, 2, 1, 1)),  # no time for what it is held against
    ],
)
def test_one_instance_of_machine_code_competes_with_several_of_the_best_module(
    rows: list[Row], expected: tuple[Any, ...]
) -> None:
    assert best_arrangement(rows, AOTI, 2, OPTIMIZED) == Candidate(*expected)


def test_a_decision_names_the_variant_that_serves_most() -> None:
    variants = [row(PLAIN, 10), row(OPTIMIZED, 8), replace(row(AOTI, 5), difference=1e-7)]
    later = [arranged(PLAIN, 2, 1, 100), arranged(AOTI, 2, 1, 160)]
    decision = decide(variants, later, AOTI, 2)
    assert decision.choice == Candidate(AOTI, 2)
    assert (decision.cpu_gain, decision.difference) == (2.0, 1e-7)
    several = decide(variants, [*later, arranged(OPTIMIZED, 1, 2, 300)], AOTI, 2)
    assert several.choice == Candidate(OPTIMIZED, 1, 2)
    assert (several.cpu_gain, several.throughput_gain, several.difference) == (1.25, 3.0, 0.0)


def test_on_a_busy_machine_it_runs_in_one_instance() -> None:
    variants = [row(PLAIN, 10), row(AOTI, 5)]
    busy = Row(Candidate(AOTI), Figures(1.0, 100.0, 5.0))  # half of a processor
    assert decide(variants, [busy], AOTI, 4).choice == Candidate(AOTI, threads=4)


def test_machine_code_is_tried_in_one_instance_only() -> None:
    made = list(grid.arranged(AOTI, 2, (1, 8), PLAIN, OPTIMIZED))
    assert made == [
        Candidate(PLAIN, 2),
        *(
            Candidate(variant, threads, instances, batch)
            for batch in (1, 8)
            for variant, threads, instances in (
                (AOTI, 2, 1),
                (OPTIMIZED, 2, 1),
                (AOTI, 1, 1),
                (OPTIMIZED, 1, 1),
                (OPTIMIZED, 1, 2),
            )
        ),
    ]
    against_plain = list(grid.arranged(AOTI, 2, (1,), PLAIN, PLAIN))
    assert len(against_plain) == len(set(against_plain)) == 5


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(record_to_text(RECORD)) | changes)


def test_a_record_names_its_package_and_an_older_one_has_none() -> None:
    assert record_from_text(record_to_text(RECORD)) == RECORD
    older = replace(RECORD, package="")
    assert "package" not in json.loads(record_to_text(older))
    assert record_from_text(record_to_text(older)) == older


@pytest.mark.parametrize("digest", [None, 1, "ab", DIGEST + "0", DIGEST.upper(), f"{DIGEST}\n"])
def test_what_is_no_digest_makes_no_record(digest: Any) -> None:
    with pytest.raises(ValueError, match="'package' must be 64 hexadecimal digits"):
        record_from_text(edited(package=digest))


def test_it_is_in_the_plot() -> None:
    rows = [row(PLAIN, 10), row(AOTI, 5)]
    assert ">AOTInductor</text>" in plot(rows)
