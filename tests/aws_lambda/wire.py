"""A wire between a client and a server, that can be cut, or lead nowhere without anybody being told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit

import anyio

Cut = Literal["closed", "reset", "silent"]


class Wire:
    """Passes bytes on, both ways. ``url`` is where clients connect to."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = str(parts.hostname), int(parts.port or 80)
        self._live: dict[asyncio.StreamWriter, anyio.CancelScope] = {}
        self._silent: list[asyncio.StreamWriter] = []
        self.url = ""
        self.connections = 0
        """How many were ever made."""

    def cut(self, how: Cut) -> int:
        """End every connection that there is, and return how many. Of a silent end, the client does not hear."""
        live, self._live = self._live, {}
        for client, scope in live.items():
            if how == "reset":
                client.transport.abort()
            elif how == "closed":
                client.close()
            else:
                self._silent.append(client)
            scope.cancel()
        return len(live)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        from_server, server = await asyncio.open_connection(*self._server)
        with anyio.CancelScope() as scope:
            self._live[client] = scope
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_pump, reader, server)
                tasks.start_soon(_pump, from_server, client)
        server.close()
        if self._live.pop(client, None) is not None:
            client.close()

    async def end(self) -> None:
        """Let go of everything."""
        self.cut("closed")
        for client in self._silent:
            client.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while read := await reader.read(65536):
            writer.write(read)
            await writer.drain()
        writer.close()
    except ConnectionError:
        writer.close()


@asynccontextmanager
async def wire(server: str) -> AsyncGenerator[Wire]:
    made = Wire(server)
    async with await asyncio.start_server(made._serve, "127.0.0.1", 0) as listening:
        made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        try:
            yield made
        finally:
            listening.close()
            await made.end()
