"""
Take a census of the Python standard library: 41 jobs over real files, a retry, a failure, and a table at the end.

Each job is a program of its own (`_count.py`) that reads its share of the files and prints one line of JSON. Share 7 is
told to fail at its first attempt, and one job is sent for a module that left the library with Python 2: it fails for
good, and the others go on.

    python examples/census.py                       # local processes: needs nothing but Python
    python examples/census.py --backend docker      # containers: each counts the library of its own image
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio

from fargate_runner import Backend, FargateRunnerError, Job, JobResult, ProcessBackend, Retry, Runner
from fargate_runner.telemetry import Event, RetryScheduled

PROGRAM = Path(__file__).with_name("_count.py").read_text()
FLAKY, LOST = "share-7", "urllib2"


def jobs(shares: int, python: str, image: str | None) -> Iterator[Job]:
    """One job for each share of the files, and the one that cannot succeed."""

    def job(name: str, *arguments: str) -> Job:
        command = [python, "-c", PROGRAM, *arguments]
        return Job(name=name, image=image, command=command, vcpu=0.5, retry=Retry(failures=1))

    for n in range(shares):
        name = f"share-{n}"
        yield job(name, f"--share={n}", f"--of={shares}", *(["--fail-first"] if name == FLAKY else []))
    yield job(LOST, f"--module={LOST}")


def answer(result: JobResult) -> dict[str, Any]:
    """What a job found out: the last line that it wrote to stdout."""
    found: dict[str, Any] = json.loads([line.text for line in result.last_lines if line.stream == "stdout"][-1])
    return found


async def take(backend: Backend, census: list[Job]) -> list[JobResult]:
    """Run the jobs, and tell what happens while it does."""

    def on_event(event: Event) -> None:
        if isinstance(event, RetryScheduled):
            print(f"          {event.job}: attempt {event.attempt - 1} failed, again in {event.wait:.1f} s", flush=True)

    results: list[JobResult] = []
    async with Runner(backend, observers=[on_event]) as runner:
        async for result in runner.map(census, as_completed=True, on_error="collect"):
            results.append(result)
            found = result.outcome.detail
            if result.succeeded:
                counts = answer(result)["packages"].values()
                found = f"{sum(c['lines'] for c in counts):,} lines in {sum(c['files'] for c in counts)} files"
            print(
                f"[{len(results):>3}/{len(census)}] {result.name:<9} {result.outcome.kind.value:<9}  {found}",
                flush=True,
            )
    return results


def report(results: list[JobResult], seconds: float) -> str:
    """Sum up what the jobs found, and how they ended."""
    answers = [answer(result) for result in results if result.succeeded]
    failed = [result for result in results if not result.succeeded]
    lines = table(answers) if answers else []
    attempts = sum(len(result.attempts) for result in results)
    lines.append(
        f"{len(results)} jobs, {attempts} attempts, {seconds:.1f} s: {len(answers)} succeeded, {len(failed)} failed"
    )
    for result in results:
        if result.succeeded and len(result.attempts) > 1:
            first = result.attempts[0].outcome
            lines.append(f"  retried: {result.name}, {first.detail} at first, then {result.outcome.detail}")
    for result in failed:
        lines.append(f"  failed:  {result.name}, {result.outcome.detail}, {len(result.attempts)} attempts")
        lines += [f"           | {line}" for line in result.last_lines[-3:]]
    return "\n".join(lines)


def table(answers: list[dict[str, Any]]) -> list[str]:
    """The ten largest packages, the others, and all of them."""
    packages: dict[str, Counter[str]] = {}
    for found in answers:
        for name, counts in found["packages"].items():
            packages.setdefault(name, Counter()).update(counts)
    largest = sorted(packages, key=lambda name: -packages[name]["lines"])
    rows = [(name, packages[name]) for name in largest[:10]]
    rows.append((f"{len(largest[10:])} others", sum((packages[name] for name in largest[10:]), Counter())))
    rows.append(("total", sum(packages.values(), Counter())))
    columns = ("files", "lines", "functions", "classes")
    longest = max((found["longest"] for found in answers), key=lambda one: one["lines"])
    return [
        f"The standard library of Python {', '.join(sorted({found['python'] for found in answers}))}",
        "",
        f"  {'package':<16}" + "".join(f"{column:>11}" for column in columns),
        *(f"  {name:<16}" + "".join(f"{counts[column]:>11,}" for column in columns) for name, counts in rows),
        "",
        f"  longest function: {longest['name']}() in {longest['file']}, {longest['lines']} lines",
        "",
    ]


def surprises(results: list[JobResult]) -> list[str]:
    """What did not go as this example means it to go."""
    told = []
    for result in results:
        if result.succeeded is (result.name == LOST):
            told.append(f"{result.name}: {result.outcome.detail}. {result.outcome.advice}")
        elif (len(result.attempts) > 1) is not (result.name in {FLAKY, LOST}):
            told.append(f"{result.name}: {len(result.attempts)} attempts")
    return told


def main() -> int:
    """Take the census; exit code 0 if it went as meant, surprises and all."""
    parser = argparse.ArgumentParser(description="Take a census of the Python standard library with many small jobs.")
    parser.add_argument("--backend", choices=["process", "docker"], default="process", help="where the jobs run")
    parser.add_argument("--image", default="fargate-runner-test/python:latest", help="with python3 in it, for docker")
    parser.add_argument("--shares", type=int, default=40, help="how many jobs share the files, at least 8")
    args = parser.parse_args()
    if args.shares < 8:
        parser.error("--shares: at least 8, share 7 is the one that is retried")

    backend: Backend
    if args.backend == "docker":
        from fargate_runner import DockerBackend  # wants the extra: pip install '.[docker]'

        backend, census = DockerBackend(), [*jobs(args.shares, "python3", args.image)]
    else:
        backend, census = ProcessBackend(), [*jobs(args.shares, sys.executable, None)]
    begun = time.monotonic()
    try:
        results = anyio.run(take, backend, census)
    except FargateRunnerError as exc:
        print(f"the census could not be taken: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; every job was stopped", file=sys.stderr)
        return 130

    print(f"\n{report(results, time.monotonic() - begun)}")
    told = surprises(results)
    for surprise in told[:3]:
        print(f"unexpected: {surprise}", file=sys.stderr)
    if told[3:]:
        print(f"unexpected: and {len(told) - 3} more", file=sys.stderr)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
