"""The front end that Google Vertex AI expects of a container."""

import os
from typing import Any

from microkernel import (
    Frontend,
    Port,
    RegisterFrontend,
    RegisterOptions,
    RegisterPreset,
    hookimpl,
)
from microkernel_http.vertex_ai.settings import VertexAiSettings, presets


def make_vertex_ai(server: Port, settings: Any) -> Frontend:
    """The paths of Vertex AI over HTTP, by the environment of the process."""
    from microkernel_http.vertex_ai.frontend import VertexAiFrontend  # noqa: PLC0415 - aiohttp

    return VertexAiFrontend(server, settings, os.environ)


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(VertexAiSettings)


@hookimpl
def register_presets(register: RegisterPreset) -> None:
    for flag, value in presets(os.environ).items():
        register(flag, value)


@hookimpl
def register_frontends(register: RegisterFrontend) -> None:
    register("vertex_ai", make_vertex_ai, requires=("aiohttp",), extra="http")
