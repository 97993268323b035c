"""What the server that lives are forked from does once for all of them: imports, and botocore's models."""

from __future__ import annotations

import aiodocker  # noqa: F401 # pyright: ignore[reportUnusedImport]
import tenacity  # noqa: F401 # pyright: ignore[reportUnusedImport]

from fargate_runner.backends.ecs._lean import LeanSession
from tests.killed import lives  # noqa: F401 # pyright: ignore[reportUnusedImport]

for service in ("ecs", "logs", "ssm"):
    LeanSession().make(service, {}, region_name="us-east-1", endpoint_url="http://127.0.0.1:9")
