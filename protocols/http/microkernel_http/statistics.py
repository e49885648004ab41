"""Statistics as JSON; nothing here knows aiohttp."""

from collections.abc import Sequence
from typing import Any

from microkernel import Compute, Duration, ModelStatistics, ModelStats, ResponseStats

_NONE = Duration()


def statistics(models: Sequence[ModelStatistics]) -> dict[str, Any]:
    """The answer of the statistics routes. What no model of this server has (a cache, memory
    reports) is zero or empty."""
    return {"model_stats": [_model(model) for model in models]}


def _model(model: ModelStatistics) -> dict[str, Any]:
    stats = model.stats
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": _inferences(stats),
        "response_stats": {key: _responses(entry) for key, entry in stats.responses.items()},
        "batch_stats": [
            {"batch_size": size, **_compute(compute)}
            for size, compute in sorted(stats.batches.items())
        ],
        "memory_usage": [],
    }


def _inferences(stats: ModelStats) -> dict[str, Any]:
    return {
        "success": _duration(stats.success),
        "fail": _duration(stats.fail),
        "queue": _duration(stats.queue),
        **_compute(stats.compute),
        "cache_hit": _duration(_NONE),
        "cache_miss": _duration(_NONE),
    }


def _responses(stats: ResponseStats) -> dict[str, Any]:
    return {
        "compute_infer": _duration(stats.compute_infer),
        "compute_output": _duration(stats.compute_output),
        "success": _duration(stats.success),
        "fail": _duration(stats.fail),
        "empty_response": _duration(stats.empty_response),
        "cancel": _duration(stats.cancel),
    }


def _compute(compute: Compute) -> dict[str, Any]:
    return {
        "compute_input": _duration(compute.compute_input),
        "compute_infer": _duration(compute.compute_infer),
        "compute_output": _duration(compute.compute_output),
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
