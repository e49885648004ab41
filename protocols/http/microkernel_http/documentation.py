"""The server described: the OpenAPI document, and a page that shows it and tries calls."""

import asyncio
import contextlib
import re
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

from aiohttp import web

from microkernel import NotFound, Port, ServerMetadata, Unavailable
from microkernel_http.answers import EndpointCall
from microkernel_http.encode import JSON, to_bytes
from microkernel_http.openapi import Guards, document
from microkernel_http.openapi_models import ModelEntry
from microkernel_http.routes import Endpoint, Route

_CODE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Documentation:
    """Answers with what describes the server as it is now."""

    def __init__(self, server: Port, guards: Guards) -> None:
        self._server = server
        self._guards = guards
        self._described: tuple[ServerMetadata, list[ModelEntry]] | None = None
        self._document = b""

    def endpoints(self) -> Mapping[Endpoint, EndpointCall]:
        """What answers each endpoint."""
        return {Endpoint.OPENAPI: self._openapi, Endpoint.DOCS: self._page}

    async def _openapi(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=await self._current(), headers={"Content-Type": JSON})

    async def _current(self) -> bytes:
        """The document, made again only where something has changed: with many models that takes
        its time, and anybody may ask."""
        about, models = await self._server.metadata(), await self._models()
        if self._described != (about, models):
            made = await asyncio.to_thread(_bytes, about, models, self._guards)
            self._described, self._document = (about, models), made
            return made
        return self._document

    async def _models(self) -> list[ModelEntry]:
        lines = await self._server.repository_index(ready=True)
        found = [await self._entry(name) for name in sorted({line.name for line in lines})]
        return [entry for entry in found if entry is not None]

    async def _entry(self, name: str) -> ModelEntry | None:
        """What is told of a model; None for one that was unloaded just now."""
        with contextlib.suppress(NotFound, Unavailable):
            about = await self._server.model_metadata(name)
            config = await self._server.model_config(name)
            optional = frozenset(entry.name for entry in config.input if entry.optional)
            return ModelEntry(about, optional, config.decoupled)
        return None

    async def _page(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        page = docs_page()
        return web.Response(
            body=page.encode(),
            headers={
                "Content-Type": "text/html; charset=utf-8",
                "Content-Security-Policy": policy(page),
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
        )


def _bytes(about: ServerMetadata, models: list[ModelEntry], guards: Guards) -> bytes:
    return to_bytes(document(about, models, guards))


@cache
def docs_page() -> str:
    """The page, which needs nothing but `/openapi.json`."""
    return Path(__file__).with_name("docs.html").read_text(encoding="utf-8")


@cache
def policy(page: str) -> str:
    """The content security policy under which a page may run its own inline code, call its own
    server, and do nothing else."""
    hashes = {
        kind: b64encode(sha256(code.encode()).digest()).decode()
        for kind, code in _CODE.findall(page)
    }
    code = "; ".join(f"{kind}-src 'sha256-{digest}'" for kind, digest in hashes.items())
    return (
        f"default-src 'none'; {code}; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
