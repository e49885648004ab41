"""How long batches of a model take: what was observed, as a line over their size."""

FORGET = 0.98
"""What an observation weighs after the next one: some fifty of them are remembered."""


class ServiceTimes:
    """Learns the seconds that a batch takes as `fixed + per_item * size`.

    It is a least-squares line over the latest executions. Where they all had one size, half of the
    time is taken for fixed, which is between the two extremes.
    """

    __slots__ = ("_mean_size", "_mean_time", "_together", "_varied", "_weight", "fixed", "per_item")

    def __init__(self) -> None:
        self._weight = self._mean_size = self._mean_time = 0.0
        self._varied = self._together = 0.0
        self.fixed = 0.0
        self.per_item = 0.0

    @property
    def known(self) -> bool:
        """Whether anything has been observed."""
        return self._weight > 0

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` took so long."""
        self._weight = weight = self._weight * FORGET + 1
        to_size, to_time = size - self._mean_size, seconds - self._mean_time
        self._mean_size += to_size / weight
        self._mean_time += to_time / weight
        rest = (weight - 1) / weight
        self._varied = self._varied * FORGET + rest * to_size * to_size
        self._together = self._together * FORGET + rest * to_size * to_time
        self._fit()

    def _fit(self) -> None:
        half = self._mean_time / 2 / max(self._mean_size, 1)
        # As if a quarter of a size's variance had been seen along the line between the extremes:
        # it decides where sizes do not vary, and counts for nothing where they do.
        slope = (self._together + half * 0.25) / (self._varied + 0.25)
        most = self._mean_time / max(self._mean_size, 1)
        self.per_item = min(max(slope, 0.0), most)
        self.fixed = max(self._mean_time - self.per_item * self._mean_size, 0.0)

    def expected(self, size: int) -> float:
        """The seconds that a batch of that size should take; 0 before anything was observed."""
        return self.fixed + self.per_item * size
