"""What SageMaker asks for by a path and a method; nothing here knows aiohttp."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote


class Action(Enum):
    """What can be asked for."""

    PING = auto()
    INVOCATION = auto()
    LIST = auto()
    LOAD = auto()
    DESCRIBE = auto()
    UNLOAD = auto()
    INVOKE = auto()


@dataclass(frozen=True, slots=True)
class Call:
    """An action, None where the path has none for the method, the methods that the path knows, and
    the model it names, "" where it names none."""

    action: Action | None
    methods: Collection[str]
    model: str = ""


_TABLE: tuple[tuple[re.Pattern[str], Mapping[str, Action]], ...] = (
    (re.compile("/ping"), {"GET": Action.PING}),
    (re.compile("/invocations"), {"POST": Action.INVOCATION}),
    (re.compile("/models/?"), {"GET": Action.LIST, "POST": Action.LOAD}),
    (re.compile("/models/([^/]+)"), {"GET": Action.DESCRIBE, "DELETE": Action.UNLOAD}),
    (re.compile("/models/([^/]+)/invoke"), {"POST": Action.INVOKE}),
)


def find(method: str, target: str) -> Call | None:
    """What a request line asks for, None where there is no such path."""
    path = target.partition("?")[0]
    for pattern, actions in _TABLE:
        found = pattern.fullmatch(path)
        if found is not None:
            return Call(actions.get(method), actions.keys(), *map(unquote, found.groups()))
    return None
