"""Blocks of shared memory, and who holds them."""

import gc
import mmap
import os
from collections.abc import Callable

import numpy as np
import pytest

from microkernel.workers.arena import SMALLEST, Block, BlockPool, aligned, block_size


class Pool:
    """A pool on real blocks. `made` and `retired` hold the numbers of the blocks."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.retired: list[int] = []
        self.pool = BlockPool(self._create, self._retire)

    def _create(self, size: int) -> Block:
        self.made.append(len(self.made) + 1)
        return Block.create(self.made[-1], size)

    def _retire(self, block: Block) -> None:
        self.retired.append(block.number)
        block.close()


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.mark.parametrize(("size", "place"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_tensors_begin_at_multiples_of_64(size: int, place: int) -> None:
    assert aligned(size) == place


@pytest.mark.parametrize(
    ("needed", "size"),
    [(1, SMALLEST), (SMALLEST, SMALLEST), (SMALLEST + 1, 2 * SMALLEST), (10**6, 2**20)],
)
def test_blocks_are_powers_of_two(needed: int, size: int) -> None:
    assert block_size(needed) == size


def test_a_block_is_seen_through_its_descriptor() -> None:
    block = Block.create(1, SMALLEST)
    block.view[:3] = b"abc"
    other = Block(1, os.dup(block.descriptor), SMALLEST)
    assert bytes(other.view[:4]) == b"abc\0"
    block.close()
    other.close()


def test_a_worker_cannot_shrink_or_grow_a_block() -> None:
    block = Block.create(1, SMALLEST)
    for size in (0, 2 * SMALLEST):
        with pytest.raises(OSError, match="Operation not permitted"):
            os.ftruncate(block.descriptor, size)
    block.close()


def test_a_system_without_memory_files_uses_an_unlinked_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    block = Block.create(1, SMALLEST)
    assert os.fstat(block.descriptor).st_nlink == 0
    assert os.fstat(block.descriptor).st_size == SMALLEST
    block.close()


def test_a_closed_block_stays_readable_where_it_is_viewed() -> None:
    block = Block.create(1, SMALLEST)
    view = block.view[:2]
    view[:] = b"hi"
    block.close()
    assert bytes(view) == b"hi"
    assert block.view.nbytes == 0


def test_nobody_knows_what_is_needed_at_first(pool: Pool) -> None:
    assert pool.pool.take() is None
    assert pool.made == []


def test_a_pool_makes_blocks_of_the_size_last_needed(pool: Pool) -> None:
    grown = pool.pool.grow(SMALLEST + 1, None)
    assert grown.size == 2 * SMALLEST
    other = pool.pool.take()
    assert other is not None
    assert (other.number, other.size) == (2, 2 * SMALLEST)
    for block in (grown, other):
        block.close()


def test_a_block_that_was_too_small_goes(pool: Pool) -> None:
    small = pool.pool.grow(1, None)
    large = pool.pool.grow(10 * SMALLEST, small)
    assert (pool.retired, large.size) == ([small.number], 16 * SMALLEST)
    large.close()


def test_a_free_block_that_is_large_enough_is_used_in_place_of_a_new_one(pool: Pool) -> None:
    large = pool.pool.grow(10 * SMALLEST, None)
    pool.pool.give_back(large)
    assert pool.pool.grow(SMALLEST, None) is large
    assert len(pool.made) == 1
    large.close()


def test_a_leased_block_is_free_only_when_its_last_view_is_gone(pool: Pool) -> None:
    block = pool.pool.grow(1, None)
    lease = pool.pool.lease(block)
    slices, array = [lease[i : i + 8] for i in range(0, 64, 8)], np.frombuffer(lease, np.int32)
    del lease
    taken = pool.pool.take()
    assert taken is not None
    assert taken is not block
    while slices:
        assert block.number not in free_numbers(pool)
        slices.pop()
    assert block.number not in free_numbers(pool)
    del array
    assert block.number in free_numbers(pool)
    pool.pool.close()
    taken.close()


def free_numbers(pool: Pool) -> list[int]:
    """The free blocks, found by taking them all and giving them back."""
    blocks = []
    while pool.pool._free:
        taken = pool.pool.take()
        assert taken is not None
        blocks.append(taken)
    for block in blocks:
        pool.pool.give_back(block)
    return [block.number for block in blocks]


def test_only_some_free_blocks_are_kept_and_the_smallest_go(pool: Pool) -> None:
    blocks = [pool.pool.grow(SMALLEST << i, None) for i in (3, 0, 5, 1, 2, 4)]
    leases = [pool.pool.lease(block) for block in blocks]
    leases.clear()
    assert len(pool.pool._free) == BlockPool.KEPT
    gone = {block.size for block in blocks if block.number in pool.retired}
    assert gone == {SMALLEST, SMALLEST << 1}
    pool.pool.close()


def test_a_closed_pool_gives_everything_back(
    pool: Pool, open_files: Callable[[], list[str]]
) -> None:
    before = len(open_files())
    blocks = [pool.pool.grow(SMALLEST, None) for _ in range(3)]
    per_block = (len(open_files()) - before) // 3  # a mapping may hold a copy of its descriptor
    lease = pool.pool.lease(blocks[0])
    lease[:2] = b"ok"
    for block in blocks[1:]:
        pool.pool.give_back(block)
    pool.pool.close()
    assert len(open_files()) == before + per_block
    assert bytes(lease[:2]) == b"ok"
    del lease
    gc.collect()
    assert len(open_files()) == before
    assert pool.retired == []  # the worker has ended: nobody to tell


def test_a_block_is_as_large_as_it_says() -> None:
    block = Block.create(1, SMALLEST)
    with mmap.mmap(block.descriptor, 0) as whole:
        assert len(whole) == block.size == block.view.nbytes
    block.close()
