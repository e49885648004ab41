"""The workers of a crew, which of their instances are free, and which of those runs next."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from microkernel.backend import Placement
from microkernel.binding import Binding
from microkernel.request import InferRequest
from microkernel.scheduling.pending import Runner
from microkernel.scheduling.rate_limiter import RateLimiter, Turn
from microkernel.workers.contract import Worker, WorkerInstance

FIRST_DELAY = 0.1


@dataclass(slots=True, eq=False)
class Seat:
    """A place for one worker, which instances belong there, and the turn of each that serves where
    instances take turns. `posts` are those that are there; `busy` is what runs, with the requests
    of each. The next restart waits for `delay` seconds; the worker lives `since` a time on the
    loop's clock."""

    placements: Sequence[Placement]
    turns: Sequence[Turn | None]
    worker: Worker | None = None
    posts: "Sequence[Post]" = ()
    busy: dict[object, Sequence[InferRequest]] = field(default_factory=dict)
    delay: float = FIRST_DELAY
    since: float = 0.0


@dataclass(slots=True, eq=False)
class Post:
    """An instance that serves, and its turn where instances take turns."""

    seat: Seat
    instance: WorkerInstance
    turn: Turn | None = None


class Roster:
    """Any free instance runs; the one that became free last comes first."""

    def __init__(self) -> None:
        self._free: list[Post] = []

    def idle(self, on: Runner | None = None) -> bool:
        """Whether an instance may run a batch now, or that one."""
        if on is None:
            return bool(self._free)
        return any(post.instance is on for post in self._free)

    def take(self, on: Runner | None) -> Post:
        """An instance for a batch, or that one; only while `idle(on)`."""
        if on is None:
            return self._free.pop()
        at = next(i for i, post in enumerate(self._free) if post.instance is on)
        return self._free.pop(at)

    def admit(self, posts: Sequence[Post]) -> None:
        """These are there from now on, and free."""
        self._free += posts

    def ran(self, post: Post, *, there: bool) -> None:
        """One that was taken has run its batch; it is free where it is still there."""
        if there:
            self._free.append(post)

    def dismiss(self, posts: Sequence[Post]) -> None:
        """These are gone."""
        self._free = [post for post in self._free if post not in posts]


class LimitedRoster(Roster):
    """An instance runs when it is its turn among those of all models. After instances came, ran or
    went the limiter is to `serve`."""

    def __init__(self, limiter: RateLimiter) -> None:
        super().__init__()
        self._limiter = limiter
        self._posts: list[Post] = []
        self._claimed: Turn | None = None

    def idle(self, on: Runner | None = None) -> bool:
        """See `Roster.idle`. Where not, the limiter wakes the crew when it should ask again."""
        wanted = (post.turn for post in self._posts if on is None or post.instance is on)
        self._claimed = self._limiter.claim(turn for turn in wanted if turn is not None)
        return self._claimed is not None

    def take(self, on: Runner | None) -> Post:
        """See `Roster.take`."""
        claimed, self._claimed = self._claimed, None
        able = [post for post in self._free if on is None or post.instance is on]
        post = next((post for post in able if post.turn is claimed), able[0])
        assert post.turn is not None
        self._limiter.start(post.turn)
        self._free.remove(post)
        return post

    def admit(self, posts: Sequence[Post]) -> None:
        """See `Roster.admit`."""
        super().admit(posts)
        self._posts += posts
        for post in posts:
            if post.turn is not None:
                post.turn.free = True

    def ran(self, post: Post, *, there: bool) -> None:
        """See `Roster.ran`."""
        super().ran(post, there=there)
        if post.turn is not None:
            self._limiter.finish(post.turn, free=there)

    def dismiss(self, posts: Sequence[Post]) -> None:
        """See `Roster.dismiss`."""
        super().dismiss(posts)
        self._posts = [post for post in self._posts if post not in posts]
        for post in posts:
            if post.turn is not None:
                self._limiter.withdraw(post.turn)


def seats(placements: Sequence[Placement], worker: str) -> list[list[Placement]]:
    """Which instances share a worker: those that are bound alike, or each has its own where
    `worker` is `instance`. Threads of the server are bound each by itself."""
    if worker == "instance":
        return [[placement] for placement in placements]
    if worker == "thread":
        return [list(placements)]
    shared: dict[Binding, list[Placement]] = {}
    for placement in placements:
        shared.setdefault(placement.binding, []).append(placement)
    return list(shared.values())
