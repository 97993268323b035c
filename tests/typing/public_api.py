"""What user code looks like to a type checker. Checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, assert_type

from tenacity import wait_fixed

from fargate_runner import (
    Attempt,
    Batch,
    HealthCheck,
    InvalidJob,
    Job,
    JobFailed,
    JobHandle,
    JobResult,
    Kind,
    LogLine,
    MemoryBackend,
    Outcome,
    ProcessBackend,
    Proof,
    Retry,
    Rule,
    Runner,
    Secret,
    SecretRef,
    Sidecar,
    Size,
    Snapshot,
)
from fargate_runner.aws_lambda import (
    Handler,
    S3Object,
    StillRunning,
    Trigger,
    for_each,
    lambda_handler,
    make_key,
    triggers_of,
    wait,
)
from fargate_runner.progress import Progress, Standing, Tally
from fargate_runner.reports.cost import Cost, cost
from fargate_runner.telemetry import Event, JobEnded, log_events


def a_job_takes_what_people_write() -> None:
    Job(command=["python3", "-c", "print(1)"])
    Job(image="img", command=("a", "b"), entry_point=[])
    Job(image="img", env={"A": "b"}, secrets={"B": Secret("x"), "C": SecretRef("arn:x"), "D": "arn:x"}, tags={"k": "v"})
    Job(image="img", env=None, secrets=None, tags=None, timeout=None, retry=None, depends_on=None)
    Job(image="img", vcpu=1, memory_gib=2.0, ephemeral_storage_gib=50, architecture="ARM64")
    Job(image="img", timeout=timedelta(hours=1), stop_timeout=timedelta(seconds=5), start_timeout=timedelta(minutes=1))
    proxy = Sidecar(name="proxy", image="p", health_check=HealthCheck(command=["true"]), depends_on={"a": "START"})
    Job(image="img", sidecars=[proxy], depends_on={"proxy": "HEALTHY"})
    Job(image="img", retry=Retry(failures=3, rules=[Rule(then="give_up", exit_codes={2, 3})], wait=wait_fixed(5)))
    Rule(then="retry", kinds=Kind.FAILED, exit_codes=75)
    Rule(then="retry", kinds=[Kind.FAILED, Kind.LOST], exit_codes=range(64, 79))


def a_job_refuses_what_people_mistype() -> None:
    # Each ignore is needed, or the type checker says so.
    Job(command=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Job(command=["a", 1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Job(command=["a"], env={"A": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Job(command=["a"], timeout=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Job(command=["a"], architecture="arm64")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Job(command=["a"], retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Job(command=["a"], cpu=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Job("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Rule(then="again")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_job_tells_what_it_is(job: Job) -> None:
    assert_type(job.image, str | None)
    assert_type(job.command, tuple[str, ...] | None)
    assert_type(job.env, Mapping[str, str])
    assert_type(job.secrets, Mapping[str, Secret | SecretRef])
    assert_type(job.sidecars, tuple[Sidecar, ...])
    assert_type(job.size, Size)
    assert_type(job.size.memory_gib, float)
    assert_type(job.fingerprint, str)
    assert_type(job.with_(vcpu=2), Job)
    job.name = "x"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def a_runner_runs_jobs(jobs: list[Job], more: AsyncIterator[Job]) -> None:
    async with Runner() as runner:
        assert_type(runner, Runner)
        assert_type(await runner.run(jobs[0]), JobResult)
        handle = await runner.submit(jobs[0])
        assert_type(handle, JobHandle)
        assert_type(await runner.attach("key"), JobHandle)
        assert_type(handle.key, str)
        assert_type(handle.snapshot, Snapshot | None)
        assert_type(handle.result, JobResult | None)
        assert_type(await handle.wait(), JobResult)
        assert_type(await handle.stop("enough"), JobResult)
        assert_type(handle.logs(follow=True), AsyncGenerator[LogLine])
        async for line in handle.logs():
            assert_type(line.text, str)
        results = runner.map(jobs, concurrency=4, as_completed=True, on_error="collect")
        assert_type(results, Batch)
        async for result in results:
            assert_type(result, JobResult)
        async with runner.map(more) as ordered:
            assert_type([r async for r in ordered], list[JobResult])
    async with Runner(ProcessBackend(), namespace="app", on_exit="detach", observers=[log_events, noticed]):
        pass
    async with MemoryBackend() as backend:
        assert_type(backend, MemoryBackend)
    Runner(on_exit="kill")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_result_is_read(result: JobResult) -> None:
    assert_type(result.attempts, tuple[Attempt, ...])
    assert_type(result.outcome, Outcome)
    assert_type(result.outcome.kind, Kind)
    assert_type(result.outcome.proof, Proof)
    assert_type(result.exit_code, int | None)
    assert_type(result.succeeded, bool)
    assert_type(result.last_lines, tuple[LogLine, ...])
    assert_type(result.started_at, datetime | None)
    assert_type(result.attempts[0].run_time, timedelta | None)
    assert_type(result.raise_unless_succeeded(), JobResult)


def errors_are_caught(job: Job) -> None:
    try:
        job.with_(vcpu=3)
    except InvalidJob as error:
        assert_type(error.field, str)
        assert_type(error.fix, str)
    except JobFailed as failed:
        assert_type(failed.result, JobResult)


def noticed(event: Event) -> None:
    assert_type(event.title, str)
    if isinstance(event, JobEnded):
        assert_type(event.result, JobResult)


async def progress_is_an_observer_and_a_block(jobs: list[Job]) -> None:
    def show(standing: Standing) -> None:
        assert_type(standing.cost, Cost | None)

    async with (
        Progress(len(jobs), mode="plain", listener=show) as progress,
        Runner(observers=[progress, Tally(), log_events]) as runner,
    ):
        progress.total = 5
        results = [result async for result in runner.map(jobs)]
    assert_type(progress.standing, Standing)
    assert_type(cost(results), Cost)
    assert_type(cost(results[0]) + cost(results[0].attempts[0]), Cost)


def a_handler_takes_what_people_write(runner: Runner) -> None:
    @lambda_handler
    async def plain(event: dict[str, Any], context: object) -> str:
        return "done"

    @lambda_handler(runner=lambda: Runner(MemoryBackend()), margin=timedelta(seconds=5))
    async def with_a_runner(event: dict[str, Any], context: object, runner: Runner) -> object:
        async def do(trigger: Trigger) -> JobResult | StillRunning:
            assert_type(trigger.object, S3Object | None)
            return await wait(await runner.submit(Job(command=["true"], key=trigger.key)))

        return await for_each(event, do, concurrency=5)

    assert_type(plain, Handler)
    assert_type(with_a_runner, Handler)
    assert_type(triggers_of({}), list[Trigger])
    assert_type(make_key("report", 7), str)
    lambda_handler(runner=runner)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
