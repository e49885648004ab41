"""The cache in memory keeps to its size and forgets what was not used for longest."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from microkernel import InvalidArgument
from microkernel_local_cache import LocalSettings
from microkernel_local_cache.cache import LocalCache, cost_of

SIZE = 4096
KEYS = st.integers(0, 9).map(lambda number: bytes([number]) * 32)


def run(work: object) -> object:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)  # type: ignore[attr-defined]
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


class Model(RuleBasedStateMachine):
    """A list of pairs, those that were used last at its end, beside the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = LocalCache(LocalSettings(size=SIZE))
        self.pairs: list[tuple[bytes, bytes]] = []

    @rule(key=KEYS, length=st.integers(0, 1500))
    def insert(self, key: bytes, length: int) -> None:
        value = bytes([len(self.pairs)]) * length
        run(self.cache.insert(key, value))
        self.pairs = [pair for pair in self.pairs if pair[0] != key]
        self.pairs.append((key, value))
        while sum(cost_of(*pair) for pair in self.pairs) > SIZE:
            self.pairs.pop(0)

    @rule(key=KEYS, length=st.integers(SIZE - 287, 2 * SIZE))
    def insert_what_does_not_fit(self, key: bytes, length: int) -> None:
        with pytest.raises(InvalidArgument, match="does not fit a cache of 4096 bytes"):
            run(self.cache.insert(key, bytes(length)))

    @rule(key=KEYS)
    def lookup(self, key: bytes) -> None:
        found = [pair for pair in self.pairs if pair[0] == key]
        assert run(self.cache.lookup(key)) == (found[0][1] if found else None)
        self.pairs = [pair for pair in self.pairs if pair[0] != key] + found

    @invariant()
    def counts_what_it_holds(self) -> None:
        assert self.cache.used == sum(cost_of(*pair) for pair in self.pairs) <= SIZE
        assert len(self.cache) == len(self.pairs)


TestAgainstAModel = Model.TestCase


@given(st.integers(1, 600))
def test_the_memory_is_bounded_whatever_is_asked(length: int) -> None:
    cache = LocalCache(LocalSettings(size=SIZE))
    for number in range(200):
        run(cache.insert(number.to_bytes(32, "big"), bytes(length)))
    entries = cache._entries
    held = sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in entries.items())
    assert held <= SIZE
    assert len(entries) == SIZE // cost_of(bytes(32), bytes(length))


def test_a_size_must_be_given() -> None:
    with pytest.raises(
        InvalidArgument, match="needs its size in bytes, as in --cache-config=local"
    ):
        LocalCache(LocalSettings())


async def test_a_value_in_use_outlives_its_entry() -> None:
    cache = LocalCache(LocalSettings(size=1024))
    await cache.insert(bytes(32), b"a" * 500)
    found = await cache.lookup(bytes(32))
    await cache.insert(bytes([1]) * 32, b"b" * 500)
    assert await cache.lookup(bytes(32)) is None
    assert found == b"a" * 500
    await cache.close()
    assert (len(cache), cache.used) == (0, 0)
