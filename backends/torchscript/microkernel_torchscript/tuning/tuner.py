"""Measuring one TorchScript model: which variant, then which arrangement of it."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from microkernel import ModelConfig, processors
from microkernel_torchscript.flags import compiling, enter_modes
from microkernel_torchscript.inputs import InputPlan, plan_inputs
from microkernel_torchscript.kinds import RUNTIME
from microkernel_torchscript.module.options import module_options
from microkernel_torchscript.options import Options, parse_options
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.script.files import load_module, model_file
from microkernel_torchscript.signature import signature_of
from microkernel_torchscript.tuning import grid
from microkernel_torchscript.tuning.answering import Say
from microkernel_torchscript.tuning.closeness import TOLERANCE
from microkernel_torchscript.tuning.compiled.trying import Workpiece, try_compiled
from microkernel_torchscript.tuning.deciding import (
    Decision,
    best_variant,
    decide,
    rival,
    unchanged,
)
from microkernel_torchscript.tuning.measuring import Runner, measure
from microkernel_torchscript.tuning.record import Measured
from microkernel_torchscript.tuning.samples import NoSample, Sampler, complaint, find_sampler
from microkernel_torchscript.tuning.subject import Tried, try_variants, unbatchable, unsteady
from microkernel_torchscript.tuning.trial import (
    PLAIN,
    VARIANTS,
    Candidate,
    Figures,
    Row,
)


def tune(
    config: ModelConfig, files: Path, seconds: float, say: Say, folder: Path | None = None
) -> Measured:
    """Measure a model of a complete configuration for about so many seconds; `say` hears what is
    going on. Given a `folder` the model is compiled there as well, which takes its time, where that
    may pay. Changes the settings of torch in this process.

    Raises what loading the model raises. A model that cannot be measured stays as it is, and the
    decision's reason says why.
    """
    began = time.monotonic()
    found = _Tuning(config, files, seconds, say, folder).run()
    return replace(found, tolerance=TOLERANCE, seconds=round(time.monotonic() - began, 1))


@dataclass(frozen=True, slots=True)
class _Subject:
    """The plain module, what to call it with, and the batch sizes that the time suffices for."""

    module: torch.jit.ScriptModule
    sampler: Sampler
    sizes: tuple[int, ...]
    left_out: tuple[str, ...]


class _Unmeasurable(Exception):
    """The model is left as it is; the text says why."""


class _Tuning:
    def __init__(
        self, config: ModelConfig, files: Path, seconds: float, say: Say, folder: Path | None
    ) -> None:
        self._config, self._seconds, self._say = config, seconds, say
        self._deadline = time.monotonic() + seconds
        self._options: Options = (
            module_options(config) if config.runtime == RUNTIME else parse_options(config)
        )
        self._cores = processors()
        torch.set_num_threads(1)
        path = model_file(config, files)
        with torch.inference_mode(self._options.inference_mode):
            self._module = load_module(config.name, path, device="cpu")
        self._plan: InputPlan = plan_inputs(config, signature_of(self._module))
        plan_outputs(config)
        self._piece = Workpiece(config, files, self._module, self._plan, folder)

    def run(self) -> Measured:
        try:
            # A module keeps the flags that were set in its first calls.
            with compiling(self._options), contextlib.ExitStack() as modes:
                enter_modes(modes, self._options)
                subject = self._subject()
                tried = self._tried(subject)
        except _Unmeasurable as reason:
            return Measured(unchanged(self._cores, str(reason)))
        tried = [*tried, self._compiled(subject)]
        rows = self._variants(subject, tried)
        variant = best_variant(rows)
        arranged, left_out = self._arranged(subject, tried, rows, variant)
        decision = decide(rows, arranged, variant, self._cores)
        # Of a candidate that was measured twice those figures are shown that its neighbours are
        # from, since other programs may have run between the two times.
        shown_already = {row.candidate for row in rows}
        table = [*rows, *(row for row in arranged if row.candidate not in shown_already)]
        shown = tuple(_judged(row, decision, variant) for row in table)
        return Measured(decision, shown, (*subject.left_out, *left_out))

    def _subject(self) -> _Subject:
        config, module = self._config, self._module
        if config.sequence_batching is not None:
            raise _Unmeasurable("a model of sequences is not tuned")
        try:
            sampler = find_sampler(config, self._plan, module.forward)
        except NoSample as reason:
            raise _Unmeasurable(f"it runs on no inputs made up for it: {reason}") from None
        with _called():
            per_item = self._per_item(sampler)
        if not self._affordable((1,), per_item)[0]:
            raise _Unmeasurable("the time does not suffice for a single variant")
        with _called():
            fault = unsteady(module, sampler)
        if fault:
            raise _Unmeasurable(fault)
        return self._sized(sampler, per_item)

    def _sized(self, sampler: Sampler, per_item: float) -> _Subject:
        """The batch sizes to try, with what is left out of them and why."""
        sizes, left_out = grid.batch_sizes(self._config), []
        if large := [size for size in sizes if not sampler.fits(size)]:
            left_out.append(f"batches of {_listed(large)}: their inputs are too large to make up")
            sizes = tuple(size for size in sizes if size not in large)
        with _called():
            reason = unbatchable(self._module, sampler, sizes[1]) if len(sizes) > 1 else ""
        if reason:
            left_out.append(f"batches: {reason}")
            sizes = sizes[:1]
        kept, late = self._affordable(sizes, per_item)
        if late:
            left_out.append(f"batches of {_listed(late)}: no time")
        return _Subject(self._module, sampler, kept or sizes[:1], tuple(left_out))

    def _affordable(
        self, sizes: tuple[int, ...], per_item: float
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The batch sizes that half of the time left suffices for, and the others."""
        half = (self._deadline - time.monotonic()) / 2
        return grid.affordable(sizes, per_item, len(VARIANTS), half)

    def _per_item(self, sampler: Sampler) -> float:
        """Seconds of a call for one item, once the module is warm."""
        took = []
        for seed in range(3):
            arguments = sampler.arguments(1, seed)
            began = time.perf_counter()
            self._module.forward(*arguments)
            took.append(time.perf_counter() - began)
        return min(took)

    def _tried(self, subject: _Subject) -> Sequence[Tried]:
        self._say("comparing the results of the variants")
        with _called():
            return list(try_variants(subject.module, subject.sampler, subject.sizes))

    def _compiled(self, subject: _Subject) -> Tried:
        """The compiled model; the time that this takes is none of that for measuring."""
        began = time.monotonic()
        found = try_compiled(self._piece, subject.sizes, self._seconds, self._say)
        self._deadline += time.monotonic() - began
        return found

    def _variants(self, subject: _Subject, tried: Sequence[Tried]) -> list[Row]:
        """A row for each variant and batch size, of one instance with one thread."""
        usable = [one for one in tried if not one.comparison.fault]
        self._say(f"measuring {_listed([one.variant for one in usable])}")
        candidates = [Candidate(o.variant, batch=b) for b in subject.sizes for o in usable]
        half = time.monotonic() + (self._deadline - time.monotonic()) / 2
        figures = self._measure(subject, tried, candidates, half)
        rows = [_row(candidate, figures, tried) for candidate in candidates]
        refused = [
            Row(Candidate(one.variant), None, one.difference, False, note)
            for one in tried
            if (note := one.comparison.fault)
        ]
        return [*rows, *refused]

    def _arranged(
        self, subject: _Subject, tried: Sequence[Tried], rows: Sequence[Row], variant: str
    ) -> tuple[list[Row], list[str]]:
        """Rows of the best variant in different numbers of instances and threads, and what there
        was no time for."""
        self._say(f"measuring instances and threads of '{variant}'")
        instead = rival(rows, variant)
        calls: dict[int, float] = {}
        for row in rows:
            if row.candidate.variant in (variant, instead) and row.figures is not None:
                longest = max(calls.get(row.candidate.batch, 0.0), row.figures.latency_ms / 1e3)
                calls[row.candidate.batch] = longest
        wanted = list(grid.arranged(variant, self._cores, subject.sizes, PLAIN, instead))
        left = self._deadline - time.monotonic()
        kept, late = grid.affordable_candidates(wanted, calls, left)
        figures = self._measure(subject, tried, kept, self._deadline)
        late += [candidate for candidate in kept if candidate not in figures]
        return [_row(c, figures, tried) for c in kept if c in figures], [_told(c) for c in late]

    def _measure(
        self,
        subject: _Subject,
        tried: Sequence[Tried],
        candidates: Sequence[Candidate],
        deadline: float,
    ) -> Mapping[Candidate, Figures]:
        modules: dict[str, Any] = {one.variant: one.module for one in tried}
        arguments = {b: subject.sampler.arguments(b, seed=0) for b in subject.sizes}
        runners = {
            candidate: Runner(modules[candidate.variant], arguments[candidate.batch], self._options)
            for candidate in candidates
        }
        return measure(runners, deadline)


@contextlib.contextmanager
def _called() -> Iterator[None]:
    """Around calls of the model, which may raise anything on one kind of inputs and not on
    another."""
    try:
        yield
    except Exception as error:
        told = f"it fails on some of the inputs made up for it: {complaint(error)}"
        raise _Unmeasurable(told) from error


def _row(candidate: Candidate, figures: Mapping[Candidate, Figures], tried: Sequence[Tried]) -> Row:
    own = next(one for one in tried if one.variant == candidate.variant)
    return Row(candidate, figures.get(candidate), own.difference)


def _judged(row: Row, decision: Decision, best: str) -> Row:
    """The row with what became of it; `best` is the variant that takes the least processor time."""
    if row.note:
        return row
    if row.figures is None:
        return replace(row, note="no time")
    choice = decision.choice
    if row.candidate.variant in (choice.variant, PLAIN):
        return replace(row, accepted=row.candidate == choice)
    outdone = row.candidate.variant == best
    note = "one instance serves fewer items than several" if outdone else "no clear gain"
    return replace(row, note=note)


def _told(candidate: Candidate) -> str:
    return (
        f"{candidate.variant}, {candidate.instances} x {candidate.threads} threads, batches of "
        f"{candidate.batch}: no time"
    )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
