"""What plug-ins and models may add to the dynamic batcher: a say in which requests run together."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from microkernel.config.model import ModelConfig
from microkernel.request import InferRequest


class OpenBatch(ABC):
    """A batch that is being looked for; made anew for every look along the queue."""

    @abstractmethod
    def include(self, request: InferRequest) -> bool:
        """Whether the next request may join; asked after the batcher's own rules, of each request
        in turn. No closes the batch, and the request begins the next one. It is asked of the first
        request too, which runs whatever the answer is; not of one that runs without having waited.

        Called on the server's event loop: it must be quick, and must change nothing outside this
        object. The request is read-only. An exception is logged and counts as yes.
        """


class BatchingStrategy(ABC):
    """What decides for one model; made when the model is loaded."""

    @abstractmethod
    def open_batch(self) -> OpenBatch:
        """A batch without requests."""


StrategyFactory: TypeAlias = Callable[[ModelConfig], BatchingStrategy]
"""Makes the strategy of a model from its complete configuration."""
