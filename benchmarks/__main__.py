"""
`python -m benchmarks [PART …] [--json FILE] [--quick]`: every benchmark, beside its reference, in one table.

Parts: imports, cold-start, process, progress, docker, logs, ecs-api, ecs-jobs, fanout, virtual, memory, streams, storm,
trouble, fanout-most.
Without any, all but the last, which is ten thousand jobs at AWS's own rate. A missed goal is said, and exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    bad_days,
    cold_start,
    docker_jobs,
    docker_logs,
    ecs_api,
    ecs_jobs,
    fanout,
    imports,
    many_streams,
    process_jobs,
    progress,
)
from benchmarks._report import Row, show, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="see above; without any, nearly all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: figures for a glance only")
    given = parser.parse_args()
    parts: dict[str, Callable[[], list[Row]]] = {
        "imports": imports.run,
        "cold-start": lambda: cold_start.run(rounds=3 if given.quick else 11, instructions=not given.quick),
        "process": lambda: process_jobs.run(rounds=2 if given.quick else 5),
        "progress": lambda: progress.run(**({"jobs": 2000, "rounds": 2} if given.quick else {})),
        "docker": lambda: docker_jobs.run(**({"jobs": 5, "at_once": 10, "rounds": 1} if given.quick else {})),
        "logs": lambda: docker_logs.run(lines=30_000 if given.quick else 1_000_000),
        "ecs-api": lambda: ecs_api.run(rounds=3 if given.quick else 15, instructions=not given.quick),
        "ecs-jobs": lambda: ecs_jobs.run(jobs=200 if given.quick else 1000),
        "fanout": lambda: fanout.run(quick=given.quick),
        "virtual": lambda: fanout.run_virtual(jobs=(200,) if given.quick else (1000, 10_000)),
        "memory": lambda: fanout.run_memory(jobs=500 if given.quick else 10_000),
        "streams": lambda: many_streams.run(**({"streams": 200, "seconds": 20, "rounds": 5} if given.quick else {})),
        "storm": lambda: bad_days.run_storm(jobs=200 if given.quick else 1000),
        "trouble": lambda: bad_days.run_trouble(jobs=500 if given.quick else 10_000),
        "fanout-most": fanout.run_most,
    }
    if unknown := set(given.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    rows: list[Row] = []
    for part in given.parts or [part for part in parts if part != "fanout-most"]:
        print(f"… {part}", file=sys.stderr, flush=True)
        rows += parts[part]()
    show(rows)
    if given.json is not None:
        write(rows, given.json)
    return int(any(row.verdict.startswith("MISSED") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
