"""``python -m fargate_runner.cli`` is ``fargate-runner``."""

from __future__ import annotations

import sys

from fargate_runner.cli import main

if __name__ == "__main__":
    sys.exit(main())
