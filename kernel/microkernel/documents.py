"""Statistics as the document that Triton gives over HTTP and in process."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from microkernel.port import ModelStatistics
from microkernel.stats import ModelStats


def statistics_document(models: Iterable[ModelStatistics]) -> dict[str, Any]:
    """The statistics of model versions, in names and numbers. What no model of this server has
    (memory reports) is empty."""
    return {"model_stats": [_model(model) for model in models]}


def _model(model: ModelStatistics) -> dict[str, Any]:
    stats = model.stats
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": _requests(stats),
        "response_stats": {key: asdict(one) for key, one in stats.responses.items()},
        "batch_stats": [
            {"batch_size": size, **asdict(compute)}
            for size, compute in sorted(stats.batches.items())
        ],
        "memory_usage": [],
    }


def _requests(stats: ModelStats) -> dict[str, Any]:
    return {
        "success": asdict(stats.success),
        "fail": asdict(stats.fail),
        "queue": asdict(stats.queue),
        **asdict(stats.compute),
        "cache_hit": asdict(stats.cache_hit),
        "cache_miss": asdict(stats.cache_miss),
    }
