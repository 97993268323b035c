"""What the server that lives are forked from does once for all of them: imports, and botocore's models."""

from __future__ import annotations

import asyncio

import aiodocker  # noqa: F401 # pyright: ignore[reportUnusedImport]
import tenacity  # noqa: F401 # pyright: ignore[reportUnusedImport]

from tests.killed import lives  # noqa: F401 # pyright: ignore[reportUnusedImport]
from tests.killed.batch import SESSION


async def _warm() -> None:
    for service in ("ecs", "logs", "ssm"):
        async with SESSION.client(service, endpoint_url="http://127.0.0.1:9"):
            pass


asyncio.run(_warm())
