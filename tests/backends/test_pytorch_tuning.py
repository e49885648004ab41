"""Tuning's decisions, its records and how they are shown: nothing here runs a model."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_rows import arranged, row

from microkernel import DynamicBatching, ModelConfig, ModelInput, ModelParameter
from microkernel_torchscript.tuning import grid, key, places
from microkernel_torchscript.tuning.deciding import (
    Decision,
    best_arrangement,
    best_variant,
    decide,
    share,
    threads_for,
    unchanged,
)
from microkernel_torchscript.tuning.page import page, plot
from microkernel_torchscript.tuning.picture import draw
from microkernel_torchscript.tuning.record import (
    Measured,
    Record,
    differing,
    record_from_text,
    record_to_text,
)
from microkernel_torchscript.tuning.table import HEADER, cells, summary, text_table
from microkernel_torchscript.tuning.trial import (
    FROZEN,
    OPTIMIZED,
    PLAIN,
    Candidate,
    Figures,
    Row,
)

KEY = {"file": "ab", "torch": "2.13.0", "cpu": "a processor", "cores": "4", "configuration": "cd"}


@pytest.mark.parametrize(
    ("largest", "preferred", "expected"),
    [
        (0, (), (1,)),
        (1, (), (1,)),
        (4, (), (1, 4)),
        (8, (), (1, 8)),
        (32, (), (1, 8, 32)),
        (32, (4, 16), (1, 4, 16, 32)),
        (8, (64,), (1, 8)),
    ],
)
def test_batch_sizes_are_one_the_preferred_and_the_largest(
    largest: int, preferred: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    batching = DynamicBatching(preferred_batch_size=preferred) if preferred else None
    config = ModelConfig(max_batch_size=largest, dynamic_batching=batching)
    assert grid.batch_sizes(config) == expected


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, ((1, 1),)),
        (2, ((1, 2), (1, 1), (2, 1))),
        (4, ((1, 4), (1, 2), (1, 1), (2, 2), (2, 1), (4, 1))),
        (6, ((1, 6), (1, 3), (1, 1), (2, 3), (2, 1), (4, 1), (6, 1))),
    ],
)
def test_arrangements_do_not_outgrow_the_cores(
    cores: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert grid.arrangements(cores) == expected


@pytest.mark.parametrize(
    ("sizes", "per_item", "seconds", "kept", "left_out"),
    [
        ((1,), 0.001, 10.0, (1,), ()),
        ((1, 8, 32), 0.001, 30.0, (1, 8, 32), ()),
        ((1, 8, 32), 0.05, 30.0, (1, 8), (32,)),  # the largest is the first to go
        ((1, 32), 0.05, 30.0, (1, 16), (32,)),  # half of it still shows what batching gains
        ((1, 8, 32), 0.5, 30.0, (1,), (8, 32)),
        ((1, 8, 32), 10.0, 30.0, (), (1, 8, 32)),
        ((1,), 0.001, 0.5, (), (1,)),
    ],
)
def test_a_limit_keeps_single_items_and_then_the_largest_batch_that_fits(
    sizes: tuple[int, ...],
    per_item: float,
    seconds: float,
    kept: tuple[int, ...],
    left_out: tuple[int, ...],
) -> None:
    assert grid.affordable(sizes, per_item, 3, seconds) == (kept, left_out)


@given(
    st.sets(st.integers(2, 512), max_size=4),
    st.floats(1e-6, 10),
    st.floats(0, 600),
)
def test_what_is_kept_fits_the_limit(others: set[int], per_item: float, seconds: float) -> None:
    sizes = (1, *sorted(others))
    kept, left_out = grid.affordable(sizes, per_item, 3, seconds)
    calls = sum(per_item * size for size in kept)
    assert 3 * (grid.COMPARING + 2 * grid.ROUNDS) * calls <= seconds + 1e-6
    assert set(sizes) - set(kept) == set(left_out)


def test_candidates_begin_with_what_serves_where_nothing_is_configured() -> None:
    made = list(grid.arranged(OPTIMIZED, 2, (1, 4, 16), PLAIN))
    assert made[:2] == [Candidate(PLAIN, threads=2), Candidate(OPTIMIZED, threads=2)]
    assert [c.batch for c in made[1:]] == [1, 1, 1, 16, 16, 16, 4, 4, 4]
    assert len(set(made)) == len(made)
    plain = list(grid.arranged(PLAIN, 2, (1,), PLAIN))
    assert plain == [Candidate(PLAIN, threads=2), Candidate(PLAIN), Candidate(PLAIN, instances=2)]


def test_candidates_without_time_are_left_out_in_turn() -> None:
    made = [Candidate(PLAIN), Candidate(PLAIN, batch=8), Candidate(PLAIN, instances=2)]
    kept, late = grid.affordable_candidates(made, {1: 0.001, 8: 100.0}, 1.0)
    assert (kept, late) == ([made[0], made[2]], [made[1]])
    assert grid.affordable_candidates(made, {}, 1e9) == ([], made)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(PLAIN, 10), row(OPTIMIZED, 7)], OPTIMIZED),
        ([row(PLAIN, 10), row(OPTIMIZED, 9.6)], PLAIN),  # no clear gain
        ([row(PLAIN, 10), row(FROZEN, 9), row(OPTIMIZED, 8)], OPTIMIZED),
        ([row(PLAIN, 10), row(FROZEN, 8), row(OPTIMIZED, 9)], FROZEN),
        ([row(PLAIN, 10), row(FROZEN, 12)], PLAIN),
        # A gain at one size that another size pays for is none.
        ([row(PLAIN, 10), row(PLAIN, 9, 8), row(FROZEN, 5), row(FROZEN, 10, 8)], PLAIN),
        # A gain at one size that costs nothing at another is one.
        ([row(PLAIN, 10), row(PLAIN, 9, 8), row(FROZEN, 10), row(FROZEN, 6, 8)], FROZEN),
        ([row(PLAIN, 10), row(OPTIMIZED, 1, note="other values")], PLAIN),  # refused
        ([row(OPTIMIZED, 1)], PLAIN),  # nothing to hold it against
        ([row(PLAIN, 10), Row(Candidate(OPTIMIZED))], PLAIN),  # no time
        ([], PLAIN),
    ],
)
def test_a_variant_must_win_clearly_and_lose_nowhere(rows: list[Row], expected: str) -> None:
    assert best_variant(rows) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([arranged(FROZEN, 2, 1, 100), arranged(FROZEN, 1, 2, 150)], (1, 2, 1)),
        ([arranged(FROZEN, 2, 1, 100), arranged(FROZEN, 1, 2, 104)], (2, 1, 1)),  # noise
        (
            [arranged(FROZEN, 2, 1, 100), arranged(FROZEN, 1, 2, 200), arranged(FROZEN, 1, 1, 195)],
            (1, 1, 1),  # fewer instances come close enough
        ),
        (
            [
                arranged(FROZEN, 2, 1, 100),
                arranged(FROZEN, 1, 1, 200, batch=32),
                arranged(FROZEN, 1, 1, 198, batch=8),
            ],
            (1, 1, 8),  # and smaller batches
        ),
        (
            [arranged(FROZEN, 2, 1, 100), arranged(FROZEN, 1, 2, 107), arranged(FROZEN, 1, 1, 103)],
            (1, 2, 1),  # what comes close must be a clear gain, too
        ),
        ([arranged(FROZEN, 1, 2, 999)], (2, 1, 1)),  # what it is held against is missing
        ([arranged(PLAIN, 2, 1, 1), arranged(FROZEN, 2, 1, 100)], (2, 1, 1)),
        ([], (2, 1, 1)),
    ],
)
def test_an_arrangement_must_win_clearly_and_cost_least(
    rows: list[Row], expected: tuple[int, int, int]
) -> None:
    assert best_arrangement(rows, FROZEN, 2) == Candidate(FROZEN, *expected)


@pytest.mark.parametrize(
    ("instances", "usual", "threads"),
    [
        (2, 2, 1),  # as chosen
        (1, 4, 2),  # a clear gain over 4
        (3, 1, 0),  # not tried
        (1, 3, 0),  # nothing to hold it against
        (4, 1, 0),  # tried, no gain
    ],
)
def test_threads_for_other_numbers_of_instances(instances: int, usual: int, threads: int) -> None:
    rows = [
        arranged(FROZEN, 1, 2, 400),
        arranged(FROZEN, 4, 1, 100),
        arranged(FROZEN, 2, 1, 200),
        arranged(FROZEN, 1, 4, 390),
        arranged(PLAIN, 1, 1, 999),
        arranged(FROZEN, 1, 1, 999, batch=8),
    ]
    assert threads_for(rows, Candidate(FROZEN, 1, 2), instances, usual) == threads


def test_a_decision_says_what_it_gains_and_how_far_results_differ() -> None:
    variants = [row(PLAIN, 10), replace(row(OPTIMIZED, 5), difference=1e-7)]
    later = [arranged(PLAIN, 2, 1, 100), arranged(OPTIMIZED, 2, 1, 150)]
    decision = decide(variants, [*later, arranged(OPTIMIZED, 1, 2, 300)], OPTIMIZED, 2)
    assert decision.choice == Candidate(OPTIMIZED, 1, 2)
    assert (decision.cpu_gain, decision.throughput_gain, decision.difference) == (2.0, 3.0, 1e-7)
    expected = "2.00 x less processor time per item and 3.00 x the items per second"
    assert decision.reason == expected


def test_on_a_busy_machine_only_processor_time_decides() -> None:
    variants = [row(PLAIN, 10), row(OPTIMIZED, 5)]
    busy = Row(Candidate(OPTIMIZED), Figures(1.0, 100.0, 5.0))  # half of a processor
    later = [arranged(OPTIMIZED, 2, 1, 50), busy]
    assert share(later) == 0.5
    decision = decide(variants, later, OPTIMIZED, 2)
    assert decision.choice == Candidate(OPTIMIZED, threads=2)
    assert decision.reason.startswith("2.00 x less processor time per item; instances, threads and")
    assert "other programs had 50% of the processor" in decision.reason
    quiet = replace(busy, figures=Figures(1.0, 190.0, 5.0))
    assert decide(variants, [later[0], quiet], OPTIMIZED, 2).choice == Candidate(OPTIMIZED)
    assert share([]) == share(later[:1]) == 1.0


def test_a_decision_for_what_there_was_says_so() -> None:
    decision = decide([row(PLAIN, 10)], [arranged(PLAIN, 2, 1, 100)], PLAIN, 2)
    assert decision.choice == Candidate(PLAIN, threads=2)
    assert decision.reason == "nothing tried gains more than 5%"
    assert unchanged(2, "why").choice == decision.choice


MEASURED = Measured(
    Decision(Candidate(OPTIMIZED, 2, 2, 8), "faster", 1.5, 2.5, 1e-7),
    (
        row(PLAIN, 10, 8),
        Row(Candidate(OPTIMIZED, 2, 2, 8), Figures(1.5, 900.0, 4.0), 1e-7, accepted=True),
        Row(Candidate(FROZEN), None, None, note="<script>alert(1)</script>"),
    ),
    ("batches of 64: no time",),
    "float32: close",
    12.5,
)
RECORD = Record(KEY, MEASURED, "2026-01-01T00:00:00+00:00")


def test_a_record_is_read_as_it_was_written() -> None:
    assert record_from_text(record_to_text(RECORD)) == RECORD


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(record_to_text(RECORD)) | changes)


CHOICE = {"variant": OPTIMIZED, "threads": 2, "instances": 2, "batch": 8}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ("[]", "no record of format 1"),
        (edited(format=2), "no record of format 1"),
        (edited(key=None), "'key' must be an object"),
        (edited(key={**KEY, "cores": 4}), "'key' must be an object"),
        (edited(key={**KEY, "cores": "many"}), "the choice is none for 'many' cores"),
        (edited(choice=None), "'choice' must be an object"),
        (edited(choice={**CHOICE, "variant": "rm"}), "'variant' must be one of scripted, frozen"),
        (edited(choice={**CHOICE, "variant": ["frozen"]}), "'variant' must be one of"),
        (edited(choice={**CHOICE, "threads": 1000}), "the choice is none for '4' cores"),
        (edited(choice={**CHOICE, "instances": 10**6}), "the choice is none for '4' cores"),
        (edited(choice={**CHOICE, "threads": 0}), "'threads' must be a whole number"),
        (edited(choice={**CHOICE, "batch": True}), "'batch' must be a whole number"),
        (edited(choice={**CHOICE, "batch": 1.5}), "'batch' must be a whole number"),
        (edited(rows={}), "'rows' must be a list"),
        (edited(rows=[1]), "a row is no object"),
        (edited(rows=[{}]), "'variant' must be a text"),
        (edited(rows=[None] * 2000), "'rows' must be a list of at most 1024"),
        (edited(largest_difference=None), "'largest_difference' must be a number"),
        (edited(largest_difference=-1), "must be finite and not negative"),
        (edited(cpu_gain="2"), "'cpu_gain' must be a number"),
        (edited().replace("12.5", "Infinity"), "must be finite"),
        ("[" * 100_000, ""),
    ],
)
def test_an_edited_record_is_refused(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    path.write_text(text)
    with pytest.raises(places.Malformed, match=f"'{path}'.*{re.escape(fault)}"):
        places.read(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    ),
    st.sampled_from(sorted(json.loads(record_to_text(RECORD)))),
)
def test_no_edit_makes_reading_fail_otherwise(value: Any, name: str) -> None:
    try:
        record = record_from_text(edited(**{name: value}))
    except ValueError:
        return
    assert record.measured.decision.choice.variant in (PLAIN, FROZEN, OPTIMIZED)


def test_what_cannot_be_a_record_is_refused(tmp_path: Path) -> None:
    assert places.read(tmp_path / "none.json") is None
    assert places.read(tmp_path) is None  # a directory
    (tmp_path / "large").write_bytes(b" " * (5 << 20))
    with pytest.raises(places.Malformed, match="is larger than"):
        places.read(tmp_path / "large")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(places.Malformed, match="is no record"):
        places.read(tmp_path / "bytes")


def test_a_record_lies_beside_the_repository_then_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "models" / "net" / "3"
    files.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = places.places(files)
    assert first == tmp_path.resolve() / "models.tuned" / "net" / "3.json"
    assert second.is_relative_to(tmp_path / "cache" / "microkernel")
    assert second.parts[-2:] == ("net", "3.json")
    monkeypatch.chdir(files.parent.parent)
    assert places.places(Path("net/3")) == [first, second]
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", _no_home)
    assert places.places(files) == [first]


def _no_home() -> Path:
    raise RuntimeError("there is no home")


def test_a_record_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "models.tuned" / "net" / "1.json"
    places.write(path, RECORD)
    assert places.read(path) == RECORD

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        places.write(path, replace(RECORD, made="later"))
    assert places.read(path) == RECORD
    assert [entry.name for entry in path.parent.iterdir()] == ["1.json"]


CONFIG = ModelConfig(
    name="net",
    max_batch_size=8,
    input=(ModelInput("x", "TYPE_FP32", dims=(4,)),),
    parameters={"INFERENCE_MODE": ModelParameter("true")},
)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda config: config, []),
        (lambda config: replace(config, dynamic_batching=DynamicBatching()), []),
        (lambda config: replace(config, name="other"), []),
        (lambda config: replace(config, parameters={}), ["configuration"]),
        (lambda config: replace(config, max_batch_size=4), ["configuration"]),
        (
            lambda config: replace(config, input=(ModelInput("x", "TYPE_FP32", dims=(5,)),)),
            ["configuration"],
        ),
    ],
)
def test_a_key_holds_what_measuring_depends_on(
    change: Callable[[ModelConfig], ModelConfig], parts: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"one")
    before = key.key_of(CONFIG, path, "2.13.0")
    assert differing(before, key.key_of(change(CONFIG), path, "2.13.0")) == parts
    assert differing(before, key.key_of(CONFIG, path, "2.14.0")) == ["torch"]
    path.write_bytes(b"other")
    assert differing(before, key.key_of(CONFIG, path, "2.13.0")) == ["file"]


def test_a_processor_is_known_by_its_name_and_what_it_can_do(tmp_path: Path) -> None:
    def named(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        return key.processor(tmp_path / "cpuinfo")

    one = named(
        "model name : Fast One\nflags : sse avx\n\nmodel name : Fast One\nflags : sse avx\n"
    )
    assert one.startswith("Fast One ")
    assert one != named("model name : Fast One\nflags : sse\n")
    assert key.processor(tmp_path / "none") != ""


def test_gains_are_over_what_was_measured_in_the_same_rounds() -> None:
    rows = [
        row(PLAIN, 10, 8),
        row(OPTIMIZED, 5, 8),
        Row(Candidate(PLAIN, threads=4), Figures(1.0, 200.0, 12.0)),
        Row(Candidate(PLAIN, threads=2), Figures(1.0, 1.0, 1.0)),
        Row(Candidate(OPTIMIZED, 2, 2, 8), Figures(1.0, 600.0, 6.0)),
        Row(Candidate(OPTIMIZED, batch=4), Figures(1.0, 600.0, 6.0)),  # nothing to hold it against
    ]
    gains = [(line[7], line[8]) for line in cells(rows)]
    assert gains[:3] == [("1.00", "1.00"), ("2.00", "2.00"), ("1.00", "1.00")]
    assert gains[4:] == [("3.00", "2.00"), ("-", "-")]


def test_the_table_tells_what_became_of_each_row() -> None:
    plain, chosen, refused = cells(MEASURED.rows)
    assert plain == (PLAIN, "1", "1", "8", "1 ms", "100", "10 ms", "1.00", "1.00", "0", "-")
    assert chosen[4:] == ("1.5 ms", "900", "4 ms", "9.00", "2.50", "1e-07", "chosen")
    assert refused[4:10] == ("-",) * 6
    lines = text_table(MEASURED.rows).splitlines()
    assert len(lines) == 1 + len(MEASURED.rows)
    assert all(name in lines[0] for name in HEADER)
    assert "Left out: batches of 64: no time." in summary(MEASURED)


def test_the_page_is_well_formed_and_runs_nothing_of_a_model() -> None:
    document = page("net <1>, version 1", RECORD)
    assert "<script" not in document
    assert "net &lt;1&gt;" in document
    assert "http" not in document  # it needs nothing else
    picture = ET.fromstring(plot(MEASURED.rows))
    circles = [e for e in picture if e.tag == "circle" and e.find("title") is not None]
    assert len(circles) == 2
    assert plot(MEASURED.rows[2:]) == ""


def test_a_plot_of_a_single_point_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra 'tune', is missing")
    assert ET.fromstring(plot(MEASURED.rows[:1])).tag == "svg"
    assert draw(tmp_path / "one.png", "net", MEASURED.rows[:1])
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert not draw(tmp_path / "none.png", "net", ())
