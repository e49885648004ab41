"""What an operator can set about SageMaker's front end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from microkernel import Between, InvalidArgument, Listening, Shaped, option
from microkernel_http.routes import Endpoint
from microkernel_http.shared_settings import SharedSettings

_INFERENCE = {
    "infer": Endpoint.INFER,
    "generate": Endpoint.GENERATE,
    "generate_stream": Endpoint.GENERATE_STREAM,
}
_PINGS = {"ready": Endpoint.READY, "live": Endpoint.LIVE}


class _PortRange:
    """Two ports, the first of which is not higher."""

    _form = Shaped("<from>-<to>", "[0-9]{1,5}-[0-9]{1,5}")

    def fault(self, value: str) -> str:
        """See `microkernel.options.Check`."""
        if fault := self._form.fault(value):
            return fault
        least, most = map(int, value.split("-"))
        return "" if least <= most <= 65535 else "must not end below its beginning or above 65535"


@dataclass(frozen=True, slots=True)
class SageMakerSettings(SharedSettings):
    """The settings; names and defaults of the flags are Triton's. Port 0 means any free port."""

    flag_group: ClassVar[str] = "SageMaker"

    allow_sagemaker: bool = option(
        False, flag="--allow-sagemaker", about="Serve what Amazon SageMaker asks of a container."
    )
    address: str = option("0.0.0.0", about="The address to listen on, or unix:PATH.")
    port: int = option(
        8080,
        flag="--sagemaker-port",
        check=Between(0, 65535),
        about="The port that SageMaker uses.",
    )
    safe_port_range: str = option(
        "",
        flag="--sagemaker-safe-port-range",
        check=_PortRange(),
        about="The ports that all other front ends must use, as <from>-<to>.",
    )
    thread_count: int = option(
        8,
        flag="--sagemaker-thread-count",
        check=Between(1),
        no_effect="one event loop serves every connection",
    )

    def listening(self) -> list[Listening]:
        """What is listened on."""
        if not self.allow_sagemaker:
            return []
        least, dash, most = self.safe_port_range.partition("-")
        others = (int(least), int(most)) if dash else None
        return [Listening("--sagemaker-port", self.address, self.port, others)]


@dataclass(frozen=True, slots=True)
class Container:
    """What SageMaker says of a container by its environment: what a ping asks for, what an
    invocation is, and of which model, "" where none is named."""

    ping: Endpoint = Endpoint.READY
    inference: Endpoint = Endpoint.INFER
    model: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Container":
        """That of an environment. Raises InvalidArgument naming a variable that is wrong."""
        return cls(
            _choice(environment, "SAGEMAKER_TRITON_PING_MODE", _PINGS),
            _choice(environment, "SAGEMAKER_TRITON_INFERENCE_TYPE", _INFERENCE),
            environment.get("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", ""),
        )


def _choice(
    environment: Mapping[str, str], variable: str, choices: Mapping[str, Endpoint]
) -> Endpoint:
    """What a variable stands for; the first choice where it is not set."""
    value = environment.get(variable) or next(iter(choices))
    if value not in choices:
        raise InvalidArgument(f"{variable} must be one of {', '.join(choices)}, got '{value}'")
    return choices[value]
