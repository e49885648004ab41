"""What is fuzzed: for each target the bytes to begin with, how to change them, and a function that
feeds them to the server's decoders and raises only where that finds a fault."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

from fuzz_mutations import LONGEST, mutate_bytes

Mutate: TypeAlias = Callable[[bytes, Random], bytes]

PER_BYTE = 256
"""How many bytes of memory a byte of input may take. `[]`, and the comma after it, is an empty list
of 56 bytes, its place in another list and in a flat one, and an error that quotes it: 96. The rest
is room: what is looked for takes memory that is not in proportion at all."""
FIXED = 512 << 10
"""How much memory any input may take, however small: caches that fill, chunks of zlib."""


@dataclass(frozen=True, slots=True)
class Target:
    """`decode` feeds an input to the decoders: what they make of it, None where they refuse it with
    an error that they document. `check` raises AssertionError where that breaks a promise. `change`
    makes one input of another that is nearly valid. `limit` is how much the decoders may take
    beside the share of the input, by their settings."""

    name: str
    decode: Callable[[bytes], Any]
    check: Callable[[Any], None]
    seeds: Sequence[bytes]
    change: Mutate
    limit: int = 0

    def run(self, data: bytes) -> None:
        """Decode and check; raises for a finding only."""
        decoded = self.decode(data)
        if decoded is not None:
            self.check(decoded)

    def mutate(self, data: bytes, rng: Random) -> bytes:
        """Another input, of LONGEST bytes at most. Some are made of a seed in place of `data`: a
        fuzzer's own have mostly drifted away from what is valid."""
        if rng.random() < 0.2:
            data = rng.choice(self.seeds)
        for _ in range(rng.choice((1, 1, 2, 4))):
            change = mutate_bytes if rng.random() < 0.3 else self.change
            data = change(data, rng)[:LONGEST]
        return data

    def run_measured(self, data: bytes) -> None:
        """As `run`; raises AssertionError also where it took more memory than it may."""
        tracemalloc.start()
        try:
            decoded = self.decode(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        allowed = FIXED + self.limit + PER_BYTE * len(data)
        assert peak <= allowed, f"{len(data)} bytes took {peak} bytes, {allowed} are allowed"
        if decoded is not None:
            self.check(decoded)


def targets() -> dict[str, Target]:
    """Every target by its name."""
    from fuzz_configuration import CONFIGURATION
    from fuzz_grpc import GRPC_CALLS, GRPC_INFER
    from fuzz_http import HTTP_CONTROL, HTTP_GENERATE, HTTP_INFER, HTTP_TRANSFER
    from fuzz_workers import WORKER_MESSAGES

    every = (
        *(HTTP_INFER, HTTP_GENERATE, HTTP_CONTROL, HTTP_TRANSFER),
        *(GRPC_INFER, GRPC_CALLS, WORKER_MESSAGES, CONFIGURATION),
    )
    return {target.name: target for target in every}
