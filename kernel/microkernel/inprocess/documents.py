"""Metadata as the dictionaries that Triton gives."""

from dataclasses import asdict
from typing import Any

from microkernel.port import ModelMetadata, ServerMetadata


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
