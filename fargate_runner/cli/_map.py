"""`map`: the jobs of a file, and how they are seen through."""

from __future__ import annotations

import csv
import json
import math
import shlex
import signal
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import anyio
import anyio.to_thread
import click

from fargate_runner._backend import Backend
from fargate_runner._batch import Batch as Jobs
from fargate_runner._errors import InvalidJob
from fargate_runner._job import Job
from fargate_runner._lifecycle import JobResult, Kind
from fargate_runner._retry import Retry
from fargate_runner._runner import Runner
from fargate_runner.cli._app import BY_SIGNAL, MISUSED, Presence, duration, memory_size, refusal
from fargate_runner.cli._screen import Screen
from fargate_runner.cli._terminal import clean
from fargate_runner.progress import Progress
from fargate_runner.reports.cost import cost
from fargate_runner.telemetry import Event, JobEnded, JobQueued, JobRefused, JobRemembered

__all__ = ["Batch", "Lines"]

# ---- lines become jobs -----------------------------------------------------------------------------------------------


def _time(value: Any) -> Any:
    """A duration, as `run` takes it; a bare number is seconds."""
    return duration(None, None, str(value)) if _is_number(value) or isinstance(value, str) else value  # type: ignore[arg-type]


def _gib(value: Any) -> Any:
    return memory_size(None, None, value) if isinstance(value, str) else value  # type: ignore[arg-type]


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        raise click.BadParameter(f"{value[:40]!r} is not a number") from None
    return int(number) if math.isfinite(number) and number == int(number) else number


def _words(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_it_is(value: Any) -> Any:
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "command": ("command", _as_it_is),
    "image": ("image", _as_it_is),
    "name": ("name", _as_it_is),
    "key": ("key", _as_it_is),
    "env": ("env", _as_it_is),
    "vcpu": ("vcpu", _number),
    "memory": ("memory_gib", _gib),
    "ephemeral_storage": ("ephemeral_storage_gib", _number),
    "architecture": ("architecture", _as_it_is),
    "timeout": ("timeout", _time),
    "start_timeout": ("start_timeout", _time),
    "stop_timeout": ("stop_timeout", _time),
    "retry": ("retry", _number),
    "workdir": ("working_directory", _as_it_is),
    "entrypoint": ("entry_point", _words),
}
# As Job calls them: who knows the library writes these.
_SYNONYMS: Final = {field: name for name, (field, _) in _FIELDS.items() if field != name}


class Lines:
    """The jobs of a file. `checked` reads all of one that can be read twice; iterating reads it as there is room."""

    def __init__(
        self, file: str, form: str | None, common: Mapping[str, Any], *, needs_keys: bool, takes_images: bool
    ) -> None:
        self._path = None if file == "-" else Path(file)
        self._where = "stdin" if file == "-" else clean(file)
        self._read = _csv_rows if (form or ("csv" if file.lower().endswith(".csv") else "jsonl")) == "csv" else _rows
        self._common = dict(common)
        self._needs_keys = needs_keys
        self._takes_images = takes_images
        self.is_reading = False
        """Whether a thread waits for somebody who writes into a pipe, and may do so for ever."""

    def checked(self) -> int | None:
        """
        Return how many jobs there are; None for a pipe, which is read only once.

        :raises click.UsageError: a line cannot be right
        """
        try:
            mode = self._path.stat().st_mode if self._path is not None else 0
            if stat.S_ISDIR(mode):
                raise click.UsageError(f"FILE {self._where}: it is a directory")
            if not stat.S_ISREG(mode):
                return None
        except OSError as exc:
            raise click.UsageError(f"FILE {self._where}: {exc.strerror}") from None
        return sum(1 for _ in self._jobs())

    async def jobs(self) -> AsyncGenerator[Job]:
        """Yield the jobs, each when somebody asks for it."""
        jobs = self._jobs()
        while True:
            self.is_reading = True
            try:
                # A pipe may have nothing to read for hours; then nobody waits for the thread.
                job = await anyio.to_thread.run_sync(next, jobs, None, abandon_on_cancel=True)
            except Exception:
                self.is_reading = False
                raise
            self.is_reading = False
            if job is None:
                return
            yield job

    def _jobs(self) -> Iterator[Job]:
        first_of: dict[str, int] = {}
        try:
            with _opened(self._path) as file:
                for number, row in self._read(file):
                    try:
                        job = self._job(number, row)
                    except (click.UsageError, ValueError) as exc:
                        told = exc.format_message() if isinstance(exc, click.ClickException) else str(exc)
                        raise click.UsageError(f"{self._where}, line {number}: {clean(told)}") from None
                    if job.key is not None and first_of.setdefault(job.key, number) != number:
                        said = f"the key {job.key!r} is that of line {first_of[job.key]} already; a key names one job"
                        raise click.UsageError(f"{self._where}, line {number}: {clean(said)}")
                    yield job
        except OSError as exc:
            raise click.UsageError(f"FILE {self._where}: {exc.strerror}") from None
        except _BadLine as exc:
            raise click.UsageError(f"{self._where}, {clean(str(exc))}") from None
        except UnicodeDecodeError:
            raise click.UsageError(f"FILE {self._where}: it is not UTF-8 text") from None
        except csv.Error as exc:
            raise click.UsageError(f"FILE {self._where}: it is not CSV: {exc}") from None

    def _job(self, number: int, row: Any) -> Job:
        if not isinstance(row, Mapping):
            raise click.UsageError('it is no JSON object; write it like {"command": ["echo", "hello"]}')
        fields = dict(self._common)
        for name, value in row.items():
            plain = name.replace("-", "_")
            plain = _SYNONYMS.get(plain, plain)
            if plain not in _FIELDS:
                hint = "; use --secret, which holds for all" if plain in {"secret", "secrets"} else ""
                raise click.UsageError(f"unknown field {name[:40]!r}{hint or '; use one of ' + ', '.join(_FIELDS)}")
            field, convert = _FIELDS[plain]
            if value is None:
                continue
            try:
                fields[field] = convert(value)
            except click.BadParameter as exc:
                raise click.UsageError(f"{plain}: {exc.format_message().partition(': ')[2] or exc.message}") from None
        if isinstance(env := row.get("env"), Mapping):
            fields["env"] = {**self._common["env"], **env}
        if row.get("name") is None:
            fields["name"] = f"{fields['name']}-{number}"
        if row.get("image") is not None and not self._takes_images:
            raise click.UsageError("image: say where it runs: --backend docker, or --backend ecs")
        if self._needs_keys and fields.get("key") is None:
            raise click.UsageError("key: with --journal each line needs one; it is what the journal knows a job by")
        try:
            retry = fields.pop("retry")
            return Job(**fields, retry=Retry(failures=retry))
        except InvalidJob as exc:
            raise click.UsageError(refusal(exc)) from None


class _BadLine(Exception):
    """A line cannot be read."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(f"line {number}: {problem}")


def _opened(path: Path | None) -> TextIO:
    if path is None:
        return open(sys.stdin.fileno(), encoding="utf-8-sig", newline="", closefd=False)
    return path.open(encoding="utf-8-sig", newline="")


def _rows(file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            said = exc.msg if isinstance(exc, json.JSONDecodeError) else "nested too deeply"
            raise _BadLine(number, f"it is no JSON: {said}") from None
        yield number, row


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(file, strict=True)
    for cells in reader:
        row: dict[str, Any] = {}
        for name, text in cells.items():
            if name is None or not isinstance(text, str):
                if name is None:
                    raise _BadLine(reader.line_num, "it has more fields than the header")
                continue
            if not text:
                continue
            if name.startswith("env."):
                row.setdefault("env", {})[name.removeprefix("env.")] = text
            elif name in {"command", "entrypoint", "entry_point"}:
                row[name] = _split(text, reader.line_num)
            else:
                row[name] = text
        yield reader.line_num, row


def _split(text: str, number: int) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise _BadLine(number, f"command: {exc}; quote it as in a shell") from None


# ---- the jobs, seen through ------------------------------------------------------------------------------------------


class Batch(Presence):
    """Many jobs that somebody waits for here: their results, their progress, their end."""

    def __init__(
        self, backend: Backend, namespace: str, screen: Screen, progress: Progress, *, journal: str | None
    ) -> None:
        kept = None
        if journal is not None:
            from fargate_runner._journal import SqliteJournal

            kept = SqliteJournal(journal)
        runner = Runner(backend, namespace=namespace, journal=kept, observers=[self._hear, progress])
        super().__init__(runner, screen)
        self._progress = progress
        self._results: Jobs | None = None
        self._begun = 0
        self._succeeded = 0
        self._amiss = 0
        self._most_amiss = math.inf

    async def run(self, lines: Lines, *, concurrency: int | None, max_failures: int | None) -> int:
        """See the jobs of *lines* to their end, and return our exit code."""
        self._most_amiss = max_failures or math.inf

        async def attend() -> int:
            try:
                return await self._attend(lines, concurrency)
            except click.UsageError as exc:
                return self._fail(clean(exc.format_message()), MISUSED)

        return await self.see_through(attend)

    async def _attend(self, lines: Lines, concurrency: int | None) -> int:
        self._screen.go_above(self._progress.above)
        async with self._progress, self._runner as runner:
            jobs = lines.jobs()
            results = runner.map(jobs, concurrency=concurrency, as_completed=True, on_error="collect")
            async with results:
                self._results = results
                if self._stopped_by:
                    await results.aclose()
                async for _ in results:
                    # Nobody reads what we write: then no more jobs are started.
                    if self._screen.is_full:
                        await self._screen.room()
        if self._stopped_by:
            return BY_SIGNAL + self._stopped_by
        return 0 if self._succeeded == self._begun else 1

    def _hear(self, event: Event) -> None:
        match event:
            case JobQueued():
                self._begun += 1
            case JobEnded(result=result) | JobRemembered(result=result):
                self._screen.put(json.dumps(_plain(result)), "stdout")
                self._succeeded += result.succeeded
                if not result.succeeded and result.outcome.kind is not Kind.CANCELLED:
                    self._count_failure()
            case JobRefused(error=error):
                refused = {"key": event.key, "name": event.job, "kind": "refused", "succeeded": False, "detail": error}
                self._screen.put(json.dumps(refused), "stdout")
            case _:
                pass

    def _count_failure(self) -> None:
        self._amiss += 1
        if self._amiss == self._most_amiss and self._results is not None:
            jobs = "1 job has" if self._amiss == 1 else f"{self._amiss} jobs have"
            self._screen.say(f"{jobs} failed (--max-failures): stopping the others", style="red", always=True)
            self._tasks.start_soon(self._results.aclose)

    def _stop(self) -> None:
        told = "starting no more jobs, and stopping those under way; press Ctrl-C again to detach from them"
        self._screen.say(told, style="yellow", always=True)
        if self._results is not None:
            self._tasks.start_soon(self._results.aclose)

    def _farewell(self) -> str:
        left = self._begun - self._progress.standing.done
        state = "they were asked to stop" if self._stopped_by else "they go on"
        return f"detached from {left} jobs, {state}"

    def _output_gone(self) -> None:
        self._stopped_by = self._stopped_by or signal.SIGPIPE
        if not self._over:
            self._screen.say("nobody reads the output: stopping the jobs")
        if self._results is not None:
            self._tasks.start_soon(self._results.aclose)


def _plain(result: JobResult) -> dict[str, Any]:
    outcome, last = result.outcome, result.attempts[-1]
    spent = cost(result)
    return {
        "key": result.key,
        "name": result.name,
        "kind": outcome.kind.value,
        "succeeded": result.succeeded,
        "exit_code": outcome.exit_code,
        "detail": outcome.detail,
        "attempts": len(result.attempts),
        "started_at": last.started_at.isoformat() if last.started_at is not None else None,
        "ended_at": last.ended_at.isoformat(),
        "run_seconds": round(last.run_time.total_seconds(), 3) if last.run_time is not None else None,
        "last_line": result.last_lines[-1].text if result.last_lines else None,
        **({"usd_at_most": round(spent.usd, 6)} if spent.billed else {}),
    }
