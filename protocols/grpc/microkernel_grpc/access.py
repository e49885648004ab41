"""Who may call at all: the keys of `--grpc-auth-file`; nothing here knows grpc."""

from dataclasses import dataclass

from microkernel import REFUSAL, AccessKeys, MicrokernelError
from microkernel_grpc.restricted import Metadata

OPEN = frozenset({"ServerLive", "ServerReady", "Check"})
"""The calls of probes, which have no key."""


class Unauthenticated(MicrokernelError):
    """The caller brings no key that opens the server."""


@dataclass(frozen=True, slots=True)
class KeyGuard:
    """The keys that a call must bring one of."""

    keys: AccessKeys

    def check(self, metadata: Metadata) -> None:
        """Raise Unauthenticated unless `authorization` or `x-api-key` holds a key."""
        given = {key: value for key, value in metadata if isinstance(value, str)}
        if not self.keys.admits(given.get("authorization", ""), given.get("x-api-key", "")):
            raise Unauthenticated(REFUSAL)
