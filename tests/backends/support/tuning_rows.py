"""Rows of a table of tuning, without a model."""

from microkernel_torchscript.tuning.trial import Candidate, Figures, Row


def row(variant: str, cpu_ms: float, batch: int = 1, note: str = "") -> Row:
    """A variant that takes so much processor time per item in one instance of one thread."""
    return Row(Candidate(variant, batch=batch), Figures(1.0, 1000 / cpu_ms, cpu_ms), 0.0, note=note)


def arranged(variant: str, threads: int, instances: int, rate: float, batch: int = 1) -> Row:
    """An arrangement of a variant that serves so many items per second."""
    return Row(Candidate(variant, threads, instances, batch), Figures(1.0, rate, 1.0), 0.0)
