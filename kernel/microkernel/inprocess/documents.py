"""Metadata and statistics as the dictionaries that Triton gives."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from microkernel.port import ModelMetadata, ModelStatistics, ServerMetadata
from microkernel.stats import Duration, ModelStats

_NONE = Duration()


def server_document(metadata: ServerMetadata) -> dict[str, Any]:
    """The server's metadata."""
    return {
        "name": metadata.name,
        "version": metadata.version,
        "extensions": list(metadata.extensions),
    }


def model_document(metadata: ModelMetadata) -> dict[str, Any]:
    """A model's metadata."""
    document = asdict(metadata)
    for tensor in (*document["inputs"], *document["outputs"]):
        tensor["shape"] = list(tensor["shape"])
    return document


def statistics_document(models: Iterable[ModelStatistics]) -> dict[str, Any]:
    """The statistics of model versions."""
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
    parts = {"success": stats.success, "fail": stats.fail, "queue": stats.queue}
    parts |= {"cache_hit": _NONE, "cache_miss": _NONE}  # no model has a cache
    return {name: asdict(part) for name, part in parts.items()} | asdict(stats.compute)
