"""The front end that Amazon SageMaker expects of a container."""

import os
from typing import Any

from microkernel import Frontend, Port, RegisterFrontend, RegisterOptions, hookimpl
from microkernel_http.sagemaker.settings import SageMakerSettings


def make_sagemaker(server: Port, settings: Any) -> Frontend:
    """SageMaker's paths over HTTP, by the environment of the process."""
    from microkernel_http.sagemaker.frontend import SageMakerFrontend  # noqa: PLC0415 - aiohttp

    return SageMakerFrontend(server, settings, os.environ)


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(SageMakerSettings)


@hookimpl
def register_frontends(register: RegisterFrontend) -> None:
    register("sagemaker", make_sagemaker, requires=("aiohttp",), extra="http")
