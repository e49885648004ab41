"""What the first calls of a model took, on the server's metrics page."""

import logging

from microkernel import Metric, MetricFamily, MicrokernelError
from microkernel_torchscript.source import Warmth

logger = logging.getLogger(__name__)


class CallGauges:
    """The gauges of one version. They are on the page as long as this object is there."""

    def __init__(self, model: str, version: str, warmth: Warmth) -> None:
        """Show what warming up took. Without a server there is no page, and nothing happens."""
        self._families: list[MetricFamily] = []
        self._series: list[Metric] = []
        labels = {"model": model, "version": version}
        calls = {"first": warmth.first, "steady": warmth.steady}
        try:
            self._show(
                "microkernel_pytorch_warmup_seconds",
                "Seconds that the first calls of a model took before it was ready",
                [(labels, warmth.seconds)],
            )
            self._show(
                "microkernel_pytorch_call_seconds",
                "Seconds of the first and of a steady call of a model with its smallest batch",
                [({**labels, "call": call}, seconds) for call, seconds in calls.items()],
            )
        except MicrokernelError as error:
            logger.debug("model '%s': no gauges of its calls: %s", model, error)

    def _show(self, name: str, about: str, values: list[tuple[dict[str, str], float]]) -> None:
        family = MetricFamily(name, about, "gauge")
        self._families.append(family)
        for labels, value in values:
            series = family.metric(labels)
            series.set(value)
            self._series.append(series)
