"""The answer of ModelStatistics; nothing here knows grpc."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from microkernel import Compute, Duration, ModelStatistics, ModelStats, ResponseStats
from microkernel_grpc.schema import message


def model_statistics(models: Iterable[ModelStatistics]) -> Message:
    """The counters of model versions as a message."""
    return message("ModelStatisticsResponse")(model_stats=[_model(about) for about in models])


def _model(about: ModelStatistics) -> dict[str, Any]:
    stats = about.stats
    return {
        "name": about.name,
        "version": about.version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": _requests(stats),
        "batch_stats": [
            {"batch_size": size, **_compute(times)} for size, times in sorted(stats.batches.items())
        ],
        "response_stats": {key: _responses(entry) for key, entry in stats.responses.items()},
    }


def _requests(stats: ModelStats) -> dict[str, Any]:
    return {
        "success": _duration(stats.success),
        "fail": _duration(stats.fail),
        "queue": _duration(stats.queue),
        **_compute(stats.compute),
        "cache_hit": _duration(stats.cache_hit),
        "cache_miss": _duration(stats.cache_miss),
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


def _compute(times: Compute) -> dict[str, Any]:
    return {
        "compute_input": _duration(times.compute_input),
        "compute_infer": _duration(times.compute_infer),
        "compute_output": _duration(times.compute_output),
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
