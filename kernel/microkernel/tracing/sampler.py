"""Which requests are traced under one state of the settings. Pure."""

from dataclasses import replace

from microkernel.port import TraceSettings

TRITON = "triton"
OPENTELEMETRY = "opentelemetry"
OFF = "OFF"
TIMESTAMPS = "TIMESTAMPS"
TENSORS = "TENSORS"


def objection(settings: TraceSettings) -> str:
    """Why nothing can be traced under settings whose level is on, in Triton's words; "" where they
    are fine or the level is off."""
    if OFF in settings.trace_level:
        return ""
    if settings.trace_rate == 0:
        return "sample rate must be non-zero"
    if settings.trace_mode == TRITON and not settings.trace_file:
        return "trace file name is not given"
    return ""


class Sampler:
    """Counts the requests that come under one state of the settings, and samples them.

    `left` is how many traces may still be collected, -1 for any number. `group` is a number of its
    own, which its traces carry; `used` says whether there are any. A new state of the settings is
    a new sampler, so its counters start again.
    """

    def __init__(self, settings: TraceSettings, group: int) -> None:
        self._settings = settings
        self._seen = 0
        self._open = 0
        self.used = False
        self._opentelemetry = settings.trace_mode == OPENTELEMETRY
        self.left = settings.trace_count
        self.retired = False
        self.group = group
        self.wants_timestamps = TIMESTAMPS in settings.trace_level
        self.wants_tensors = TENSORS in settings.trace_level and not self._opentelemetry
        recording = self.wants_timestamps or self.wants_tensors
        # A rate of 0 in this mode traces what callers trace, and nothing else.
        self._on = recording and (self._opentelemetry or not objection(settings))

    @property
    def settings(self) -> TraceSettings:
        """The settings, with the number of traces that are left to collect."""
        return replace(self._settings, trace_count=self.left)

    @property
    def log_frequency(self) -> int:
        """After how many traces an indexed file is written, 0 for never."""
        return self._settings.log_frequency

    @property
    def indexed(self) -> bool:
        """Whether what is collected last goes to an indexed file."""
        return self.left == 0 or self.log_frequency > 0

    @property
    def active(self) -> bool:
        """Whether a request that comes now or later may be traced."""
        return self._on and (self.left != 0 or self._opentelemetry)

    def sample(self, *, forced: bool = False) -> bool:
        """Whether to trace the request that came now. One that is `forced` is counted as any other
        and traced whatever the rate and the count say."""
        if not self._on:
            return False
        hit = False
        if self._settings.trace_rate > 0:
            self._seen += 1
            hit = self.left != 0 and self._seen % self._settings.trace_rate == 0
            if hit and self.left > 0:
                self.left -= 1
        if hit or forced:
            self._open += 1
            self.used = True
        return hit or forced

    def ended(self) -> None:
        """A trace that was sampled has been handed in."""
        self._open -= 1

    @property
    def idle(self) -> bool:
        """Whether no trace is missing that was sampled."""
        return self._open == 0

    @property
    def complete(self) -> bool:
        """Whether the number of traces that was asked for has been collected."""
        return self.left == 0 and self.idle

    @property
    def over(self) -> bool:
        """Whether other settings are in force and no trace is missing."""
        return self.retired and self.idle
