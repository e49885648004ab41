"""Shapes that clients see and shapes that backends see."""

import pytest

from microkernel import ModelInput, Reshape
from microkernel.models.reshape import Reshaper, reshapers

CASES = [
    ((2, 4, -1, 6), (8, -1, 6), False, (2, 4, 7, 6), (8, 7, 6)),
    ((2, 4, -1, 6), (8, -1, 6), True, (3, 2, 4, 7, 6), (3, 8, 7, 6)),
    ((1,), (), True, (5, 1), (5,)),
    ((-1, -1), (-1, 1, -1), False, (2, 3), (2, 1, 3)),
    ((-1, 4, -1), (-1, 2, 2, -1), True, (1, 0, 4, 9), (1, 0, 2, 2, 9)),
    ((4,), (2, 2), False, (4,), (2, 2)),
]


@pytest.mark.parametrize(("outer", "inner", "batches", "clients", "backends"), CASES)
def test_a_shape_is_turned_and_turned_back(
    outer: tuple[int, ...],
    inner: tuple[int, ...],
    clients: tuple[int, ...],
    backends: tuple[int, ...],
    *,
    batches: bool,
) -> None:
    reshaper = Reshaper(outer, inner, batches)
    assert reshaper.inward(clients) == backends
    assert reshaper.outward(backends) == clients


def test_a_backend_s_shape_of_another_rank_is_left_alone() -> None:
    assert Reshaper((4,), (2, 2), True).outward((3, 4)) == (3, 4)


def test_only_tensors_with_a_reshape_have_a_reshaper() -> None:
    inputs = (ModelInput("A", dims=(4,)), ModelInput("B", dims=(4,), reshape=Reshape((2, 2))))
    assert reshapers(inputs, batches=True) == {"B": Reshaper((4,), (2, 2), True)}
