"""The commands: `run`, `map`, `attach`, `stop`, `reap`, `policy`, `init`, `doctor` and `bundle`."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
import traceback
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

import anyio
import click
from anyio import CancelScope
from anyio.abc import TaskGroup, TaskStatus

from fargate_runner._backend import Backend
from fargate_runner._errors import FargateRunnerError, InvalidJob
from fargate_runner._job import Job, Secret
from fargate_runner._lifecycle import JobResult, Kind, Phase
from fargate_runner._reaper import Reaped
from fargate_runner._retry import Retry
from fargate_runner._runner import JobHandle, Runner
from fargate_runner.cli._screen import Screen
from fargate_runner.cli._terminal import clean
from fargate_runner.progress import Mode, Progress
from fargate_runner.telemetry import (
    AttemptEnded,
    Event,
    JobAccepted,
    LaunchDelayed,
    LogsIncomplete,
    PhaseReached,
    PlatformUnanswered,
    RetryScheduled,
)

__all__ = ["BACKENDS", "app", "duration", "exit_code", "main", "memory_size", "refusal"]

MISUSED: Final = 2
OUR_BUG: Final = 70  # sysexits.h: EX_SOFTWARE
OUTPUT_FAILED: Final = 74  # sysexits.h: EX_IOERR
TAKEN_AWAY: Final = 75  # sysexits.h: EX_TEMPFAIL
NO_PROOF: Final = 76
TIMED_OUT: Final = 124  # timeout(1)
NOT_STARTED: Final = 125  # docker run
BY_SIGNAL: Final = 128

# Where jobs go on, and stops are seen through, even if we vanish: no need for an orderly leave, which would wait for
# the end of a stop. (Processes of this machine outlive us only if we leave in order, which takes no time there.)
_OUTLIVE_US: Final = frozenset({"docker", "ecs"})
_MOMENT: Final = 0.15
"""Seconds for the last words."""

_EXIT_CODES: Final = """
\b
Exit codes:
  N     the job's own exit code
  1     it failed although its own exit code was 0 or is not known
  2     the command line or the job cannot be right; nothing was started
  70    a bug in fargate-runner; please report what it printed
  74    the output could not be written
  75    the platform took the job away (safe to run again)
  76    lost, or ended in an unknown way: it may have done its work
  124   it ran into --timeout
  125   it never started, or the platform could not be asked
  126   it never started: the command cannot be executed
  127   it never started: the command was not found
  130   stopped or left by Ctrl-C, or stopped elsewhere
        (143 by SIGTERM, 129 by SIGHUP)
  137   it ran out of memory, or was killed
  141   the reader of the output went away

It is 0 only if the job provably succeeded.
"""

_OUTPUT: Final = """
The job's stdout goes to stdout, its stderr and our own talk (marked "fargate-runner:") to stderr. On a terminal,
control sequences in the output are left out, except colours; pipes and files get the output as it is.
"""

_DETACHING: Final = """
Ctrl-C (or SIGTERM) stops the job and waits for its end. A second one detaches at once: the job is left to end by
itself, and "fargate-runner attach" meets it again.
"""


def _process_backend() -> Backend:
    from fargate_runner.backends.process import ProcessBackend

    return ProcessBackend()


def _docker_backend() -> Backend:
    from fargate_runner.backends.docker import DockerBackend

    return DockerBackend()


def _ecs_backend(**options: Any) -> Backend:
    from fargate_runner.backends.ecs import EcsBackend

    return EcsBackend(**options)


BACKENDS: Final[Mapping[str, Callable[[], Backend]]] = {
    "process": _process_backend,
    "docker": _docker_backend,
    "ecs": _ecs_backend,
}


# ---- what people write ---------------------------------------------------------------------------------------------


_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration(ctx: click.Context, param: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    whole = f"{text}s" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else text
    parts = _PART.findall(whole)
    if not parts or "".join(number + unit for number, unit in parts) != whole:
        raise click.BadParameter(f"{text!r} is not a duration; write it like 90, 90s, 15m or 1h30m")
    try:
        return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))
    except OverflowError:
        raise click.BadParameter(f"{text[:40]!r} is too long; leave it out for no limit") from None


_GIB: Final = {"": 1.0, "g": 1.0, "m": 1 / 1024}


def memory_size(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:([gm])(?:i?b)?)?", text, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a size of memory; write it like 2, 0.5, 2g or 512m")
    return float(found[1]) * _GIB[(found[2] or "").lower()]


def _env(values: Sequence[str]) -> dict[str, str]:
    env = dict[str, str]()
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            if name not in os.environ:
                raise click.UsageError(f"--env {name}: no such variable is set here; export it, or write {name}=VALUE")
            text = os.environ[name]
        env[name] = text
    return env


def _secrets(names: Sequence[str]) -> dict[str, Secret]:
    secrets = dict[str, Secret]()
    for number, name in enumerate(names, 1):
        # Not shown, here and below: it may be the secret itself, given by mistake.
        if "=" in name:
            raise click.UsageError(
                f"--secret (number {number}): give only the NAME; its value is taken from the environment, "
                "because everyone on this machine can read a command line"
            )
        if name not in os.environ:
            raise click.UsageError(
                f"--secret (number {number}): no variable of that name is set here; export it first. "
                "The name is not shown, in case it is the value"
            )
        secrets[name] = Secret(os.environ[name])
    return secrets


# Names of Job's fields, and of its backends, in the words of the command line.
_OPTIONS: Final = {
    "architecture": "--architecture",
    "command": "COMMAND",
    "entry_point": "--entrypoint",
    "env": "--env",
    "ephemeral_storage_gib": "--ephemeral-storage",
    "image": "IMAGE",
    "key": "--key",
    "memory_gib": "--memory",
    "name": "--name",
    "retry.failures": "--retry",
    "secrets": "--secret",
    "start_timeout": "--start-timeout",
    "stop_timeout": "--stop-timeout",
    "timeout": "--timeout",
    "vcpu": "--vcpu",
    "working_directory": "--workdir",
}
_IN_PYTHON: Final = re.compile(
    r"\b(?P<field>vcpu|memory_gib|ephemeral_storage_gib|start_timeout|stop_timeout|working_directory)\b(?P<set>=?)"
    r"|\b(?P<backend>Process|Docker)Backend\b(?:\(\))?"
)


def _in_options(text: str) -> str:
    """Say in options what a message of the library says in Python."""

    def option(match: re.Match[str]) -> str:
        if match["backend"] is not None:
            return f"--backend {match['backend'].lower()}"
        return _OPTIONS[match["field"]] + (" " if match["set"] else "")

    return _IN_PYTHON.sub(option, text)


def refusal(exc: InvalidJob) -> str:
    """What is wrong with a job, named by the option that said so."""
    field, _, part = exc.field.partition("[")
    option = _OPTIONS.get(field, field)
    if part:
        option = f"{option} {part.strip(chr(39) + ']')}"
    elif isinstance(exc.value, timedelta):
        option = f"{option} {exc.value.total_seconds():g}s"
    elif isinstance(exc.value, (str, int, float)) and field != "secrets":
        option = f"{option} {str(exc.value)[:120]!r}" if isinstance(exc.value, str) else f"{option} {exc.value:g}"
    return clean(f"{option}: {_in_options(exc.problem)}; {_in_options(exc.fix)}")


# ---- what people are told ------------------------------------------------------------------------------------------


def exit_code(result: JobResult, stopped_by: int = 0) -> int:
    """Return the exit code that tells how a job ended; *stopped_by* is the signal with which we were asked to stop."""
    outcome = result.outcome
    # What does not fit into an exit code must not be cut down to 0.
    code = outcome.exit_code if outcome.exit_code is not None and 0 < outcome.exit_code < 256 else None
    match outcome.kind:
        case Kind.SUCCEEDED:
            return 0
        case Kind.FAILED:
            return code or 1
        case Kind.OUT_OF_MEMORY:
            return code or BY_SIGNAL + signal.SIGKILL
        case Kind.TIMED_OUT:
            return TIMED_OUT
        case Kind.NEVER_STARTED:
            return code if code is not None and code in {126, 127} else NOT_STARTED
        case Kind.CANCELLED:
            return BY_SIGNAL + (stopped_by or signal.SIGINT)
        case Kind.INTERRUPTED:
            return TAKEN_AWAY
        case Kind.LOST | Kind.UNKNOWN:
            return NO_PROOF


_SAID: Final = {
    Kind.SUCCEEDED: "succeeded",
    Kind.FAILED: "failed",
    Kind.OUT_OF_MEMORY: "ran out of memory",
    Kind.TIMED_OUT: "timed out",
    Kind.CANCELLED: "was stopped",
    Kind.INTERRUPTED: "was taken away by the platform",
    Kind.NEVER_STARTED: "never started",
    Kind.LOST: "was lost",
    Kind.UNKNOWN: "ended in an unknown way",
}

# What the library advises in Python is said here in options; what a backend knows better is said as it is.
_TRY: Final = {
    Kind.FAILED: "read its output; --retry N repeats a job that fails now and then",
    Kind.OUT_OF_MEMORY: "give it more --memory",
    Kind.TIMED_OUT: "give it a longer --timeout, or a larger size",
    Kind.INTERRUPTED: "run it again",
}


def _ending(result: JobResult) -> str:
    outcome = result.outcome
    run_time = result.attempts[-1].run_time
    told = _SAID[outcome.kind]
    if not outcome.succeeded:
        told += f": {outcome.detail}"
    if run_time is not None:
        told += f" (it ran for {run_time.total_seconds():.1f} s)"
    return told


def _advice(result: JobResult) -> str:
    outcome = result.outcome
    if "Retry(" in outcome.advice or not outcome.advice or outcome.kind is Kind.TIMED_OUT:
        return _TRY.get(outcome.kind, "")
    return _in_options(outcome.advice)


class Presence:
    """Somebody here who waits for jobs: the signals that we get, the streams that we write, our exit code."""

    can_stop = True
    """Whether the first signal asks the jobs to stop. If not, it leaves them alone."""

    def __init__(self, runner: Runner, screen: Screen) -> None:
        self._screen = screen
        self._runner = runner
        self._tasks: TaskGroup
        self._scope = CancelScope()
        self._over = False
        self._stopped_by = 0
        self._code: int | None = None
        """Decided already, whatever becomes of the jobs."""

    async def see_through(self, attend: Callable[[], Awaitable[int]]) -> int:
        """Await *attend*, heeding signals, and return our exit code."""
        code = NOT_STARTED
        async with anyio.create_task_group() as self._tasks:
            await self._tasks.start(self._screen.pump, self._output_failed)
            await self._tasks.start(self._heed_signals)
            with self._scope:
                try:
                    code = await attend()
                except InvalidJob as exc:
                    code = self._fail(refusal(exc), MISUSED)
                except (FargateRunnerError, OSError) as exc:
                    code = self._fail(str(exc) or type(exc).__name__, NOT_STARTED)
                self._over = True
                await self._screen.drained()
            if self._scope.cancelled_caught:
                # In a hurry: the last words go out if the terminal takes them.
                with anyio.move_on_after(0.1):
                    await self._screen.drained()
            self._tasks.cancel_scope.cancel()
        return self._code if self._code is not None else code

    def _stop(self) -> None:
        """Begin to stop the jobs; `_stopped_by` says for what."""
        raise NotImplementedError

    def _farewell(self) -> str:
        """What to say to somebody who leaves at once."""
        raise NotImplementedError

    def _output_gone(self) -> None:
        """Nobody takes our output any more."""
        raise NotImplementedError

    async def _heed_signals(self, *, task_status: TaskStatus[None]) -> None:
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # nohup and shells ignore some for their background jobs, and that is to stay so.
        heeded = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
        with anyio.open_signal_receiver(*heeded) as signals:
            task_status.started()
            async for number in signals:
                if self._code is not None and self._scope.cancel_called:
                    os._exit(self._code)  # asked for the third time: even an orderly leave takes too long
                elif self.can_stop and not self._stopped_by and not self._over:
                    self._stopped_by = number
                    self._stop()
                else:
                    self._leave(BY_SIGNAL + number)

    def _leave(self, code: int) -> None:
        """Detach at once. Lines that wait to be written are dropped: they can be read again."""
        self._code = code
        if not self._over:
            self._screen.drop()
            self._runner.detach()
            self._screen.say(self._farewell(), style="yellow", always=True)
            if self._runner.backend.name in _OUTLIVE_US:
                hurry = threading.Timer(_MOMENT, os._exit, [code])
                hurry.daemon = True
                hurry.start()
        self._scope.cancel()

    def _output_failed(self, exc: OSError) -> None:
        if isinstance(exc, BrokenPipeError):
            self._code = BY_SIGNAL + signal.SIGPIPE
        else:
            self._code = self._fail(f"the output cannot be written: {exc.strerror}", OUTPUT_FAILED)
        self._output_gone()

    def _fail(self, message: str, code: int) -> int:
        self._screen.say(message, style="red", always=True)
        return code


class _Session(Presence):
    """One job that somebody follows here: its lines, its end."""

    def __init__(
        self,
        backend: Backend,
        namespace: str,
        screen: Screen,
        *,
        verb: Literal["run", "attach", "stop"],
        again: Callable[[str], str],
    ) -> None:
        super().__init__(Runner(backend, namespace=namespace, observers=[self._hear]), screen)
        self._verb = verb
        self.can_stop = verb == "run"
        self._again = again
        self._key: str | None = None
        self._handle: JobHandle | None = None
        self._lines = CancelScope()
        self._last_end = ""

    async def follow(self, begin: Callable[[Runner], Awaitable[JobHandle]]) -> int:
        """See the job that *begin* gives to its end, and return our exit code."""

        async def attend() -> int:
            return self._tell_end(await self._attend(begin))

        return await self.see_through(attend)

    async def _attend(self, begin: Callable[[Runner], Awaitable[JobHandle]]) -> JobResult:
        failure: Exception | None = None
        result: JobResult | None = None
        async with self._runner as runner:
            self._handle = handle = await begin(runner)
            self._key = handle.key
            if self._verb == "stop" or self._stopped_by:
                self._tasks.start_soon(self._stop_job, handle)
            async with anyio.create_task_group() as readers:
                if self._verb != "stop":
                    readers.start_soon(self._show_lines, handle)
                try:
                    result = await handle.wait()
                except (FargateRunnerError, OSError) as exc:  # raised below, where no group wraps it
                    failure = exc
                    readers.cancel_scope.cancel()
                # Leaving the group waits for the last line.
        if failure is not None:
            raise failure
        return cast("JobResult", result)

    async def _show_lines(self, handle: JobHandle) -> None:
        screen = self._screen
        try:
            with self._lines:
                async with aclosing(handle.logs()) as lines:
                    async for line in lines:
                        screen.put(line.text, line.stream)
                        if screen.is_full:
                            await screen.room()
        except FargateRunnerError as exc:
            screen.say(f"the rest of its output cannot be shown: {exc}", style="red", always=True)

    async def _stop_job(self, handle: JobHandle) -> None:
        reason = signal.Signals(self._stopped_by).name if self._stopped_by else "fargate-runner stop"
        # Whatever goes wrong is told to whoever waits for the result.
        with suppress(FargateRunnerError, OSError):
            await handle.stop(f"stopped by {reason}")

    def _stop(self) -> None:
        self._screen.say("stopping the job; press Ctrl-C again to detach from it", style="yellow", always=True)
        if self._handle is not None:
            self._tasks.start_soon(self._stop_job, self._handle)

    def _farewell(self) -> str:
        if self._key is None:
            return "left before the job was accepted"
        state = "it was asked to stop" if self._stopped_by or self._verb == "stop" else "the job goes on"
        return f"detached, {state}; to meet it again: {self._again(self._key)}"

    def _output_gone(self) -> None:
        self._lines.cancel()
        if self._verb == "run" and self._handle is not None:
            if not self._over:
                self._screen.say("nobody reads the output: stopping the job")
            self._stopped_by = self._stopped_by or signal.SIGPIPE
            self._tasks.start_soon(self._stop_job, self._handle)
        else:
            self._scope.cancel()

    # ---- talk --------------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        say = self._screen.say
        match event:
            case JobAccepted():
                self._key = event.key
                if self._verb == "run":
                    met = "met again, it was started before" if event.adopted else "accepted"
                    say(f"job {event.job!r} {met}; key {event.key}")
            case PhaseReached(phase=Phase.STARTING | Phase.RUNNING):
                say(event.phase.name.lower())
            case AttemptEnded(outcome=outcome):
                self._last_end = f"attempt {event.attempt} {_SAID[outcome.kind]}: {outcome.detail}"
            case RetryScheduled():
                say(f"{self._last_end}; the next begins in {event.wait:.0f} s ({event.why})", style="yellow")
            case LaunchDelayed():
                say(f"no room yet: {event.why}; asking again in {event.wait:.0f} s", style="yellow")
            case PlatformUnanswered():
                say(f"the platform did not answer ({event.operation}): {event.error}; asking again", style="yellow")
            case LogsIncomplete():
                say(f"the record of the last lines is not complete: {event.reason}", style="yellow")
            case _:
                pass

    def _tell_end(self, result: JobResult) -> int:
        outcome = result.outcome
        if self._verb == "stop":
            self._screen.say(f"the job is over: it {_ending(result)}")
            return NO_PROOF if outcome.kind in {Kind.LOST, Kind.UNKNOWN} else 0
        code = exit_code(result, self._stopped_by)
        # A job's own exit code speaks for itself; where ours stands for something else, --quiet does not hide it.
        always = not outcome.succeeded and code != outcome.exit_code
        self._screen.say(_ending(result), style="green" if outcome.succeeded else "red", always=always)
        if not outcome.succeeded and (advice := _advice(result)):
            self._screen.say(f"try: {advice}", style="yellow", always=always)
        return code


def _follow(
    backends: Mapping[str, Callable[[], Backend]],
    begin: Callable[[Runner], Awaitable[JobHandle]],
    *,
    verb: Literal["run", "attach", "stop"],
    backend: str,
    namespace: str,
    quiet: bool,
    no_color: bool,
) -> int:
    def again(key: str) -> str:
        words = ["fargate-runner", "attach", "--backend", backend]
        words += ["--namespace", namespace] if namespace != "default" else []
        return shlex.join([*words, *(["--"] if key.startswith("-") else []), key])

    async def follow() -> tuple[int, bool]:
        screen = Screen(quiet=quiet, colours=not no_color)
        return await _Session(place, namespace, screen, verb=verb, again=again).follow(begin), screen.is_stuck

    place = opened(backends, backend)
    return in_loop(follow)


def opened(backends: Mapping[str, Callable[[], Backend]], name: str) -> Backend:
    """Return the backend of that name; refuse one that lacks what it needs."""
    try:
        return backends[name]()
    except ImportError as exc:
        hint = f'; install what it needs with: pip install "fargate-runner[{name}]"' if exc.name else ""
        raise click.ClickException(f"--backend {name}: {exc}{hint}") from None


def in_loop(follow: Callable[[], Awaitable[tuple[int, bool]]]) -> int:
    """Run *follow* and return the exit code that it gives; with True, some thread of ours hangs for ever."""
    with _namespace_checked():
        code, is_stuck = anyio.run(follow)
    if is_stuck:
        os._exit(code)  # the thread that writes waits for a reader who may never come
    return code


@contextmanager
def _namespace_checked() -> Generator[None]:
    """Have what a runner says of its namespace be said of the option."""
    try:
        yield
    except ValueError as exc:
        if not str(exc).startswith("namespace="):
            raise
        raise click.UsageError(f"--{str(exc).replace('=', ' ', 1)}") from None


# ---- commands --------------------------------------------------------------------------------------------------------


def _common(command: Callable[..., int]) -> Callable[..., int]:
    """The options that every command has."""
    for option in (
        click.option("--no-color", is_flag=True, help="No colours, neither the job's nor ours (as NO_COLOR does)."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
        click.option("--namespace", default="default", show_default=True, help="Whose keys these are."),
    ):
        command = option(command)
    return command


def _job_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options that say what a job is like."""
    for option in reversed(
        (
            click.option(
                "-e",
                "--env",
                multiple=True,
                metavar="NAME[=VALUE]",
                help="A variable; its value from here if left out.",
            ),
            click.option(
                "--secret", multiple=True, metavar="NAME", help="A variable whose value, taken from here, never shows."
            ),
            click.option("--vcpu", type=float, help="Virtual CPUs: 0.25, 0.5, 1, 2, 4, 8, 16 or 32."),
            click.option("-m", "--memory", callback=memory_size, metavar="GiB", help="Memory, in GiB: 0.5, 2, 512m."),
            click.option("--ephemeral-storage", type=int, metavar="GiB", help="Scratch space: 21 to 200."),
            click.option("--architecture", type=click.Choice(("X86_64", "ARM64"), case_sensitive=False)),
            click.option(
                "--timeout", callback=duration, metavar="TIME", help="How long it may run: 90, 90s, 15m, 1h30m."
            ),
            click.option(
                "--start-timeout",
                callback=duration,
                metavar="TIME",
                default="10m",
                show_default=True,
                help="How long a start may take.",
            ),
            click.option(
                "--stop-timeout",
                callback=duration,
                metavar="TIME",
                default="30s",
                show_default=True,
                help="From SIGTERM to SIGKILL.",
            ),
            click.option("--retry", type=int, default=0, metavar="N", help="Extra attempts if it fails.  [default: 0]"),
            click.option("-w", "--workdir", help="The directory it runs in."),
            click.option("--entrypoint", help="What COMMAND is handed to, in place of the image's own."),
        )
    ):
        command = option(command)
    return command


def _where(**settings: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return click.option("--backend", type=click.Choice(tuple(BACKENDS)), **settings)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def app() -> None:
    """Run one-off jobs as local processes or containers, and know truthfully how they ended."""


@app.command(
    epilog=_OUTPUT + _DETACHING + _EXIT_CODES,
    short_help="Run a command and follow it to its end.",
    context_settings={"allow_interspersed_args": False},
)
@_where(help="Where it runs.  [default: docker with an IMAGE, process with -]")
@click.option("--name", default="job", show_default=True, help="For people: shows in talk and container names.")
@click.option("--key", help="Names the job for ever: the same key is met, not run again.")
@_job_options
@_common
@click.argument("image", metavar="IMAGE_OR_-")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(
    backends: Mapping[str, Callable[[], Backend]],
    /,
    *,
    image: str,
    command: tuple[str, ...],
    backend: str | None,
    env: tuple[str, ...],
    secret: tuple[str, ...],
    name: str,
    key: str | None,
    vcpu: float | None,
    memory: float | None,
    ephemeral_storage: int | None,
    architecture: Any,
    timeout: timedelta | None,
    start_timeout: timedelta,
    stop_timeout: timedelta,
    retry: int,
    workdir: str | None,
    entrypoint: str | None,
    **common: Any,
) -> int:
    """
    Run COMMAND in a container of IMAGE, or as a process of this machine if it is "-".

    \b
        fargate-runner run - -- python3 -c 'print(6 * 7)'
        fargate-runner run --memory 1 python:3.12 -- python3 -c 'print(6 * 7)'

    With an IMAGE and "--backend process", COMMAND runs on this machine and the image is not looked at.
    """
    command = command[1:] if command[:1] == ("--",) else command
    try:
        job = Job(
            image=None if image == "-" else image,
            command=command or None,
            entry_point=None if entrypoint is None else [entrypoint],
            name=name,
            key=key,
            env=_env(env),
            secrets=_secrets(secret),
            working_directory=workdir,
            vcpu=vcpu,
            memory_gib=memory,
            ephemeral_storage_gib=ephemeral_storage,
            architecture=architecture,
            timeout=timeout,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            retry=Retry(failures=retry),
        )
    except InvalidJob as exc:
        raise click.UsageError(refusal(exc)) from None
    place = backend or ("process" if image == "-" else "docker")
    return _follow(backends, lambda runner: runner.submit(job), verb="run", backend=place, **common)


_FILE: Final = """
FILE holds one job per line, as JSON lines ({"command": ["python3", "work.py", "7"], "key": "seven"}) or, with a name
that ends with .csv, as CSV with a header; "-" is stdin. A line may have what "run" has as options: command, image,
name, key, env, vcpu, memory, ephemeral_storage, architecture, timeout, start_timeout, stop_timeout, retry, workdir,
entrypoint. It comes before the options here, which hold for all lines. In CSV, a command is written as in a shell, a
variable is a column env.NAME, and an empty field is left out. A file is checked as a whole before anything is started.
"""

_RESULTS: Final = """
The results go to stdout as JSON lines, in the order in which jobs end; the progress goes to stderr.

Ctrl-C (or SIGTERM) starts no more jobs, stops those under way, and waits for their end. A second one detaches at once.

\b
Exit codes:
  0     every job provably succeeded
  1     some did not
  2     the command line, or a line of FILE, cannot be right
  74    the output could not be written
  125   the platform could not be asked, or the journal not be written
  130   stopped or left by Ctrl-C (143 by SIGTERM, 129 by SIGHUP)
  141   the reader of the output went away
"""


@app.command("map", epilog=_FILE + _RESULTS, short_help="Run many jobs, one for each line of a file.")
@_where(help="Where they run.  [default: docker with --image, else process]")
@click.option("--image", help="What they run in.")
@click.option("--name", default="job", show_default=True, help="For people; a line of that name gets its number.")
@_job_options
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="How many run at a time.")
@click.option("--max-failures", type=click.IntRange(1), metavar="N", help="Stop once so many have not succeeded.")
@click.option(
    "--journal",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="What is done is written here, and not done again.",
)
@click.option(
    "--progress",
    type=click.Choice(("auto", "live", "plain", "none")),
    default="auto",
    show_default=True,
    help="How to show how far they are.",
)
@click.option("--format", "form", type=click.Choice(("jsonl", "csv")), help="What FILE is.  [default: by its name]")
@_common
@click.argument("file", metavar="FILE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def many(
    backends: Mapping[str, Callable[[], Backend]],
    /,
    *,
    file: str,
    form: str | None,
    backend: str | None,
    image: str | None,
    command: tuple[str, ...],
    env: tuple[str, ...],
    secret: tuple[str, ...],
    memory: float | None,
    ephemeral_storage: int | None,
    workdir: str | None,
    entrypoint: str | None,
    retry: int,
    concurrency: int | None,
    max_failures: int | None,
    journal: str | None,
    progress: Mode,
    namespace: str,
    quiet: bool,
    no_color: bool,
    **fields: Any,
) -> int:
    """
    Run the jobs of FILE, some at a time, and write their results as they come.

    COMMAND, after --, is for lines that have none of their own.
    """
    from fargate_runner.cli import _map  # it needs what stands above

    common = fields | {
        "image": image,
        "command": command or None,
        "entry_point": None if entrypoint is None else [entrypoint],
        "env": _env(env),
        "secrets": _secrets(secret),
        "working_directory": workdir,
        "memory_gib": memory,
        "ephemeral_storage_gib": ephemeral_storage,
        "retry": retry,
    }
    place = backend or ("docker" if image is not None else "process")
    lines = _map.Lines(
        file, form, common, needs_keys=journal is not None, takes_images=backend is not None or image is not None
    )
    total = lines.checked()
    where = opened(backends, place)

    async def follow() -> tuple[int, bool]:
        screen = Screen(quiet=quiet, colours=not no_color)
        shown = Progress(total, mode="none" if quiet and progress == "auto" else progress, colours=not no_color)
        batch = _map.Batch(where, namespace, screen, shown, journal=journal)
        code = await batch.run(lines, concurrency=concurrency, max_failures=max_failures)
        return code, screen.is_stuck or lines.is_reading

    return in_loop(follow)


@app.command(epilog=_OUTPUT + _EXIT_CODES, short_help="Follow a job that runs already.")
@_where(default="process", show_default=True, help="Where it runs.")
@_common
@click.argument("key")
@click.pass_obj
def attach(backends: Mapping[str, Callable[[], Backend]], /, *, key: str, **common: Any) -> int:
    """
    Show the output of the job named KEY from its beginning, follow it to its end, and exit as it does.

    Ctrl-C ends the watching, not the job. The job's --timeout and --retry ended with the command that started it.
    """
    return _follow(backends, partial(Runner.attach, key=key), verb="attach", **common)


@app.command(epilog="Exits with 0 once the job is over, however it ended; 76 if nothing proves that it is.")
@_where(default="process", show_default=True, help="Where it runs.")
@_common
@click.argument("key")
@click.pass_obj
def stop(backends: Mapping[str, Callable[[], Backend]], /, *, key: str, **common: Any) -> int:
    """Stop the job named KEY (SIGTERM, its stop timeout, SIGKILL) and wait for its end."""
    return _follow(backends, partial(Runner.attach, key=key), verb="stop", **common)


@app.command(
    epilog="Exits with 0 if everybody could be asked, and told to stop; with 125 if not.",
    short_help="Stop what outlived its deadline.",
)
@_where(default="process", show_default=True, help="Where it looks.")
@click.option(
    "--grace", callback=duration, metavar="TIME", default="5m", show_default=True, help="How long past a deadline."
)
@click.option("--max-age", callback=duration, metavar="TIME", help="The --timeout of jobs that have none.")
@click.option("--dry-run", is_flag=True, help="Say what would be stopped, and stop nothing.")
@_common
@click.pass_obj
def reap(
    backends: Mapping[str, Callable[[], Backend]],
    /,
    *,
    backend: str,
    namespace: str,
    quiet: bool,
    no_color: bool,
    grace: timedelta,
    max_age: timedelta | None,
    dry_run: bool,
) -> int:
    """
    Stop the jobs of a namespace that nobody looks after any more: those whose --timeout or --start-timeout is over for
    longer than --grace. Tells each on a line of its own.
    """
    place = opened(backends, backend)

    async def look() -> list[Reaped]:
        async with Runner(place, namespace=namespace) as runner:
            return await runner.reap(grace=grace, max_age=max_age, dry_run=dry_run)

    try:
        with _namespace_checked():
            found = anyio.run(look)
    except (FargateRunnerError, OSError) as exc:
        click.echo(clean(f"fargate-runner: {str(exc) or type(exc).__name__}"), err=True)
        return NOT_STARTED
    for one in found if not quiet else ():
        done = "stopped" if one.stopped else "would stop"
        click.echo(clean(f"{done} {one.key} (attempt {one.attempt}): {one.reason}"))
    return 0


def _together(*options: Callable[[Any], Any]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Options that several commands have, in this order."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_out = _together(
    click.option("--out", metavar="PLACE", help="A file, or a directory.  [default: stdout]"),
    click.option("--force", is_flag=True, help="Write over what is there."),
)
_source = click.option(
    "--from", "source", metavar="MODULE:NAME", help="An EcsBackend or a Runner, or a function that makes one."
)
_region = click.option("--region", metavar="NAME", help="[default: by the cluster's ARN, or from the environment]")
_log_group_is_there = click.option(
    "--log-group-is-there", is_flag=True, help="It is not to be made: LogGroup(create=False)."
)
_beside = _together(
    click.option("--events", metavar="QUEUE", help="Name or URL of the queue that is waited by."),
    click.option("--journal", metavar="TABLE", help="Name or ARN of the table of a DynamoDBJournal."),
    click.option("--spill-to", metavar="PLACE", help="s3://bucket/prefix, for long environments."),
    click.option("--secret-prefix", metavar="PATH", help="In the Parameter Store, for secrets by value."),
)
_also = click.option(
    "--also",
    multiple=True,
    type=click.Choice(("discover", "make-events", "make-journal", "prune")),
    help="What is done beside running jobs.",
)


def _variable(name: str, **settings: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    variable = f"FARGATE_RUNNER_{name.removeprefix('--').replace('-', '_').upper()}"
    return click.option(name, envvar=variable, show_envvar=True, **settings)


@app.command(
    epilog="Exits with 0, or with 2 if something is missing or cannot be right.",
    short_help="Write the IAM policy that callers need.",
)
@_source
@click.option(
    "--for",
    "whose",
    type=click.Choice(("caller", "execution", "doctor")),
    default="caller",
    show_default=True,
    help="Who runs jobs, the execution role of tasks, or who calls the doctor.",
)
@_variable("--cluster", metavar="NAME", help="Its name or ARN.")
@_region
@click.option("--account", metavar="NUMBER", help="[default: by an ARN, or that of the credentials in use]")
@_variable("--execution-role", metavar="ARN", help="What pulls images and writes lines.")
@_variable("--task-role", metavar="ARN", help="What jobs may do.")
@click.option("--role", "roles", multiple=True, metavar="ARN", help="Another that tasks get; of single jobs, say.")
@click.option("--volume-role", "volume_roles", multiple=True, metavar="ARN", help="What makes EBS volumes.")
@_variable("--log-group", metavar="NAME", help="Where lines go.  [default: /fargate-runner]")
@click.option("--retention-days", type=int, metavar="N", help="How long a log group that is made keeps them.")
@_log_group_is_there
@click.option("--read-log-group", "read_log_groups", multiple=True, metavar="NAME", help="Where existing ones write.")
@click.option("--definition", "definitions", multiple=True, metavar="NAME", help="An existing one: family, family:7.")
@click.option("--existing-only", is_flag=True, help="No definitions are derived from jobs.")
@click.option("--tags", is_flag=True, help="Tasks get tags.")
@_beside
@click.option("--namespace", metavar="NAME", help="The only one that is used.  [default: any]")
@_also
@_out
@click.pass_obj
def policy(
    backends: Mapping[str, Callable[[], Backend]], /, *, out: str | None, force: bool, whose: Any, **options: Any
) -> int:
    """
    Write the least that IAM has to allow, for the configuration in use, as JSON.

    \b
        fargate-runner policy --from app:make_runner
        fargate-runner policy --cluster jobs --execution-role arn:aws:iam::123456789012:role/jobs-execution
    """
    from fargate_runner.cli import _infrastructure

    text = _infrastructure.policy_text(backends, whose=whose, **options)
    _infrastructure.write(text, out, file_name="policy.json", force=force)
    return 0


@app.command(
    epilog="Exits with 0, or with 2 if something cannot be right or is there already.",
    short_help="Write infrastructure to deploy.",
)
@click.option(
    "--format", "form", required=True, type=click.Choice(("cloudformation", "sam", "terraform")), help="As what."
)
@click.option("--name", default="jobs", show_default=True, help="What all names begin with.")
@click.option("--namespace", metavar="NAME", help="The only one that may be used.  [default: any]")
@click.option("--retention-days", type=int, default=30, show_default=True, metavar="N", help="How long lines are kept.")
@click.option("--tags", is_flag=True, help="Tasks may get tags.")
@click.option("--spill-to", default="", metavar="PLACE", help="s3://bucket/prefix of yours, for long environments.")
@click.option("--secret-prefix", default="", metavar="PATH", help="In the Parameter Store, for secrets by value.")
@click.option("--notify", default="", metavar="ARN", help="A queue, topic or bus of yours that is told of ends.")
@click.option("--task-tokens", is_flag=True, help="Functions may answer states of Step Functions that wait.")
@_out
def init(*, form: Any, out: str | None, force: bool, **fields: Any) -> int:
    """
    Write what has to stand in an AWS account for jobs to run: cluster, log group, roles, a security group, the queue
    of events with its rule, the table of a journal, and functions for handlers of yours.

    \b
        fargate-runner init --format cloudformation --name reports --out template.yaml
    """
    from fargate_runner.cli import _infrastructure

    text = _infrastructure.stack_text(form, **fields)
    _infrastructure.write(text, out, file_name=_infrastructure.file_name(form), force=force)
    return 0


_AS_FOUND: Final = "  [default: as EcsBackend() finds it]"
_DIAGNOSIS: Final = """
Each line is ok, a warning, FAILED, or unknown where it may not look, with what to do. Nothing is changed.

Exits with 0 if nothing failed, with 1 if something did, and with 2 if an option cannot be right.
"""


@app.command(epilog=_DIAGNOSIS, short_help="Say what keeps jobs from running on ECS.")
@_source
@click.option("--job", "job_source", metavar="MODULE:NAME", help="A Job, or a function that makes one.")
@click.option("--cluster", metavar="NAME", help=f"Its name or ARN.{_AS_FOUND}")
@_region
@click.option("--subnet", "subnets", multiple=True, metavar="ID", help=f"Where tasks are plugged in.{_AS_FOUND}")
@click.option("--security-group", "security_groups", multiple=True, metavar="ID", help="Of tasks in --subnet.")
@click.option("--public-ip", is_flag=True, help="Tasks in --subnet get one.")
@click.option("--spot", is_flag=True, help="Jobs run on Fargate Spot.")
@click.option("--execution-role", metavar="ARN", help=f"What pulls images and writes lines.{_AS_FOUND}")
@click.option("--task-role", metavar="ARN", help=f"What jobs may do.{_AS_FOUND}")
@click.option("--log-group", metavar="NAME", help=f"Where lines go.{_AS_FOUND}")
@_log_group_is_there
@click.option("--definition", metavar="NAME", help="The existing one that jobs run by: family, family:7.")
@_beside
@click.option("--namespace", metavar="NAME", help="Whose keys are used.  [default: the runner's, or default]")
@_also
@click.option("--vcpu", type=float, help="Virtual CPUs of a job.")
@click.option("-m", "--memory", "memory_gib", callback=memory_size, metavar="GiB", help="Memory of a job, in GiB.")
@click.option("--architecture", type=click.Choice(("X86_64", "ARM64"), case_sensitive=False))
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many jobs run at a time.",
)
@click.option("--json", "as_json", is_flag=True, help="Write a list of findings: check, state, seen, todo.")
@click.option("--no-color", is_flag=True, help="No colours (as NO_COLOR does).")
@click.argument("image", required=False)
@click.pass_obj
def doctor(
    backends: Mapping[str, Callable[[], Backend]],
    /,
    *,
    as_json: bool,
    no_color: bool,
    vcpu: float | None,
    memory_gib: float | None,
    architecture: str | None,
    **options: Any,
) -> int:
    """
    Look at what jobs need on ECS: credentials, permissions, cluster, network, roles, logs, quotas, and IMAGE.

    \b
        fargate-runner doctor
        fargate-runner doctor --from app:make_runner --job app:nightly
        fargate-runner doctor --cluster jobs 123456789012.dkr.ecr.eu-west-1.amazonaws.com/report:7
    """
    from fargate_runner.cli import _infrastructure

    size = {"vcpu": vcpu, "memory_gib": memory_gib, "architecture": architecture}
    found = _infrastructure.examine(backends, size=size, **options)
    return _infrastructure.show(found, as_json=as_json, colours=not no_color)


@app.command(
    epilog="Exits with 0, or with 2 if something is missing, cannot be right or is there already.",
    short_help="Build a zip for AWS Lambda.",
)
@click.option("--source", "sources", multiple=True, metavar="PLACE", help="A directory or file of yours to put in.")
@click.option("--package", "packages", multiple=True, metavar="NAME", help="Another installed one, with what it needs.")
@click.option("--service", "services", multiple=True, metavar="NAME", help="Another of AWS's, such as s3.")
@click.option("--python", metavar="VERSION", help="Of the function.  [default: this one's]")
@click.option(
    "--architecture",
    type=click.Choice(("x86_64", "arm64")),
    help="Of the function; matters only if something native is in.  [default: this machine's]",
)
@click.option("--out", metavar="PLACE", default="lambda.zip", show_default=True, help="A file, or a directory.")
@click.option("--force", is_flag=True, help="Write over what is there.")
def bundle(*, out: str, force: bool, **options: Any) -> int:
    """
    Build a zip for AWS Lambda from what is installed here: this library, what it needs of its dependencies, and code
    of yours. It is a small part of a plain install, starts faster, and the same installation gives the same bytes.

    aioboto3 is left out unless --service s3 or ec2 asks for it: S3 is for spill_to=, EC2 for a network that is found.

    \b
        fargate-runner bundle --source src/ --out lambda.zip
    """
    from fargate_runner.cli import _bundle

    wanted, place = _bundle.wanted_of(**options), Path(out)
    if place.is_dir() or out.endswith(("/", os.sep)):
        place /= "lambda.zip"
    for line in _bundle.build(wanted, place, force=force).lines(wanted):
        click.echo(clean(f"fargate-runner: {line}"), err=True)
    return 0


def main(args: Sequence[str] | None = None, *, backends: Mapping[str, Callable[[], Backend]] = BACKENDS) -> int:
    """Run the command line and return its exit code; *backends* by the name of ``--backend``."""
    try:
        code = app.main(
            None if args is None else list(args), prog_name="fargate-runner", standalone_mode=False, obj=backends
        )
    except click.ClickException as exc:
        exc.show()
        return MISUSED
    except click.Abort:
        return BY_SIGNAL + signal.SIGINT
    except Exception:  # noqa: BLE001 (a bug: it must be seen, and its exit code must not be taken for the job's)
        traceback.print_exc()
        return OUR_BUG
    return code if isinstance(code, int) else 0
