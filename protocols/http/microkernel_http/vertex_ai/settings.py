"""What an operator, and Vertex AI itself, can set about its front end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from microkernel import Between, InvalidArgument, Listening, option
from microkernel_http.shared_settings import SharedSettings, of_http


@dataclass(frozen=True, slots=True)
class VertexAiSettings(SharedSettings):
    """The settings; names and defaults of the flags are Triton's. Port 0 means any free port."""

    flag_group: ClassVar[str] = "Vertex AI"

    allow_vertex_ai: bool = option(
        False,
        flag="--allow-vertex-ai",
        about="Serve what Google Vertex AI asks of a container. Where AIP_MODE is PREDICTION this "
        "is true by default, and --allow-http and --allow-grpc are false.",
    )
    address: str = option("0.0.0.0", about="The address to listen on, or unix:PATH.")
    port: int = option(
        8080,
        flag="--vertex-ai-port",
        check=Between(0, 65535),
        about="The port that Vertex AI uses; AIP_HTTP_PORT by default.",
    )
    default_model: str = option(
        "",
        flag="--vertex-ai-default-model",
        about="The model of a prediction that names none; not needed where one is loaded.",
    )
    thread_count: int = option(
        8,
        flag="--vertex-ai-thread-count",
        check=Between(1),
        no_effect="one event loop serves every connection",
    )
    allow_metrics: bool = of_http("allow_metrics")
    metrics_auth_file: str = of_http("metrics_auth_file")

    def listening(self) -> list[Listening]:
        """What is listened on."""
        place = Listening("--vertex-ai-port", self.address, self.port)
        return [place] if self.allow_vertex_ai else []


def presets(environment: Mapping[str, str]) -> dict[str, Any]:
    """The defaults of flags by what Vertex AI says to a container."""
    found: dict[str, Any] = {}
    if environment.get("AIP_MODE") == "PREDICTION":
        found = {"--allow-vertex-ai": True, "--allow-http": False, "--allow-grpc": False}
    if port := environment.get("AIP_HTTP_PORT"):
        found["--vertex-ai-port"] = int(port) if port.isdecimal() else port
    if models := environment.get("AIP_STORAGE_URI"):
        found["--model-repository"] = (models,)
    return found


@dataclass(frozen=True, slots=True)
class Paths:
    """Where Vertex AI asks whether the server is ready, and for predictions."""

    health: str
    predict: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Paths":
        """Those of an environment. Raises InvalidArgument for one that is missing."""
        return cls(_path(environment, "AIP_HEALTH_ROUTE"), _path(environment, "AIP_PREDICT_ROUTE"))


def _path(environment: Mapping[str, str], variable: str) -> str:
    path = environment.get(variable, "")
    if not path:
        raise InvalidArgument(f"{variable} is not defined for Vertex AI endpoint")
    return path
