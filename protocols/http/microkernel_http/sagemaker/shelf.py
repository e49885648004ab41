"""The models of an endpoint that serves many: SageMaker unpacks each and has it loaded."""

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from microkernel import AlreadyExists, InvalidArgument, Port
from microkernel_http.document import parse, required, text

UNLOAD_SECS = 350.0
"""How long an unload may take; SageMaker waits for it for 360 seconds."""
_INTERVAL = 0.1
_LARGEST = 64 << 10
_NO_FILES = ("/dev", "/proc", "/sys")

log = structlog.get_logger(__name__)


def load_request(body: bytes) -> tuple[str, str]:
    """The name and the directory that a request names. Raises InvalidArgument for a body that is
    too large, Internal for one of another form."""
    if len(body) > _LARGEST:
        raise InvalidArgument(f"the request must have at most {_LARGEST} bytes")
    document = parse(body)
    return text(required(document, "model_name"), "model_name"), text(
        required(document, "url"), "url"
    )


def model_directory(url: str) -> Path:
    """The directory of the model that was unpacked at `url`: there itself, or in the only directory
    there. Raises InvalidArgument where there is none."""
    place = Path(url).resolve()
    if not Path(url).is_absolute() or any(place.is_relative_to(no) for no in _NO_FILES):
        raise InvalidArgument(f"'url' must be the path of an unpacked model, got '{url}'")
    try:
        inside = sorted(path.name for path in place.iterdir() if path.is_dir())
    except OSError as error:
        raise InvalidArgument(f"'url': cannot read '{url}': {error.strerror}") from None
    if (place / "config.pbtxt").is_file() or any(name.isdecimal() for name in inside):
        return place
    models = [name for name in inside if not name.startswith(".")]
    if len(models) != 1:
        found = ", ".join(models) or "none"
        raise InvalidArgument(f"'url': '{url}' must hold one model, there are: {found}")
    return place / models[0]


class Shelf:
    """The models that were loaded here, by the names that SageMaker gave them, and from where."""

    def __init__(self, server: Port, unload_secs: float = UNLOAD_SECS) -> None:
        self._server = server
        self._unload_secs = unload_secs
        self._urls: dict[str, str] = {}
        self._loading: set[str] = set()
        self._work: set[asyncio.Task[None]] = set()

    def url(self, name: str) -> str | None:
        """Where a model was loaded from, None for one that was not."""
        return self._urls.get(name)

    async def ready(self) -> Mapping[str, str]:
        """Where each model was loaded from that is ready, by its name."""
        found = list(self._urls.items())
        return {name: url for name, url in found if await self._server.model_ready(name)}

    async def load(self, name: str, url: str) -> None:
        """Load what was unpacked at `url`. Raises AlreadyExists for a name that is taken,
        InvalidArgument where there is no model, and what the port raises. What has begun goes on
        when its caller gives up, so that what is loaded is known here."""
        taken = await self._server.model_ready(name)
        if taken or name in self._urls or name in self._loading:
            raise AlreadyExists(f"model '{name}' already exists")
        self._loading.add(name)
        await self._lasting(self._load(name, url))

    async def _load(self, name: str, url: str) -> None:
        try:
            directory = await asyncio.to_thread(model_directory, url)
            await self._server.load_model(name, directory=str(directory))
            self._urls[name] = url
        finally:
            self._loading.discard(name)

    async def unload(self, name: str) -> None:
        """Take a model down, and wait until it is. One that takes too long goes on ending, and so
        does one whose caller gives up."""
        await self._lasting(self._unload(name))

    def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._work:
            task.cancel()

    async def _lasting(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # its caller, who is told, may be gone

    async def _unload(self, name: str) -> None:
        await self._server.unload_model(name, unload_dependents=True)
        try:
            async with asyncio.timeout(self._unload_secs):
                while await self._lingers(name):  # noqa: ASYNC110 - the port does not tell
                    await asyncio.sleep(_INTERVAL)
        except TimeoutError:
            log.error("unloading takes long", model=name, seconds=self._unload_secs)  # noqa: TRY400
        self._urls.pop(name, None)

    async def _lingers(self, name: str) -> bool:
        lines = await self._server.repository_index()
        return any(line.name == name and line.state in ("READY", "UNLOADING") for line in lines)
