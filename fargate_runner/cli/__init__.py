"""The command line ``fargate-runner`` (extra ``cli``): a thin skin over `fargate_runner.Runner`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["main"]

_INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with *args* (those of this process if None) and return its exit code."""
    try:
        missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
        if missing:
            sys.stderr.write(
                f"fargate-runner: the command line needs {' and '.join(missing)}; "
                'install them with: pip install "fargate-runner[cli]"\n'
            )
            return 2
        from fargate_runner.cli import _app

        return _app.main(args)
    except KeyboardInterrupt:  # before anything was started, or after everything was over
        return _INTERRUPTED
