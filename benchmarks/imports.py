"""
What importing the package costs, beside `import anyio, attrs` and `import aioboto3`.

In instructions where valgrind is installed (the same to 1 % whatever else the machine does), else in CPU seconds.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks._report import Row

_USE = "import fargate_runner as f; f.Job; f.Runner; f.Retry; f.ProcessBackend"  # what the README's example touches


def _instructions(statement: str) -> float:
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    done = subprocess.run([*command, sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    found = re.search(r"refs:\s+([\d,]+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1].replace(",", "")) / 1e6


def _cpu(statement: str) -> float:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", statement], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return statistics.median(once() for _ in range(9)) * 1e3


def run() -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as byte_code:  # for all sides, whatever the environment says
        os.environ["PYTHONPYCACHEPREFIX"] = byte_code
        forbidden = os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            return _measured()
        finally:
            del os.environ["PYTHONPYCACHEPREFIX"]
            if forbidden is not None:
                os.environ["PYTHONDONTWRITEBYTECODE"] = forbidden


def _measured() -> list[Row]:
    measure: Callable[[str], float] = _instructions if shutil.which("valgrind") else _cpu
    unit = "M instructions" if measure is _instructions else "ms CPU"
    for statement in ("import fargate_runner", "import anyio, attrs", "import aioboto3", _USE):
        subprocess.run([sys.executable, "-c", statement], check=True)  # byte code is there for all sides
    package, floor, stock, used = map(
        measure, ("import fargate_runner", "import anyio, attrs", "import aioboto3", _USE)
    )
    return [
        Row("import fargate_runner", package, floor, unit, "import anyio, attrs", 1.3),
        Row("import fargate_runner", package, stock, unit, "import aioboto3", 0.22),
        Row("import it and touch Job, Runner, Retry, ProcessBackend", used, stock, unit, "import aioboto3"),
        Row("import it and touch Job, Runner, Retry, ProcessBackend", used, floor, unit, "import anyio, attrs"),
    ]
