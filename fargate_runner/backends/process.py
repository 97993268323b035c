"""
A backend that runs commands of this machine: the embedded default, needs nothing installed.

Each attempt is a process group of its own. Its stdout and stderr go straight to two files in
a private directory, so that it never waits for us and nothing is lost with us. What keeps the promises:

- One watcher per process waits for its pidfd, kills what is left of its group, and reaps it exactly once. A process
  that leaves its group (``setsid``, a daemon) outlives the job, unless we crash.
- If this Python process dies without closing the backend, a small guardian process kills every process that still
  carries our mark (Linux only). What lives when the backend is closed was left on purpose, and goes on.
- A file beside the logs tells other processes of the same user who runs there (Linux only): `find` reads it.

Layout: ``<temp>/fargate-runner-<uid>/<owner>/`` holds ``lock`` (locked while its owner lives), ``left`` (if the owner
left live jobs) and for each attempt ``<n>.out``, ``<n>.err`` and ``<n>.json``: who it is, and once it is over how it
ended. ``<path up to n>:<process id>`` is the attempt's address.

A launch happens on the event loop, in one go: CPython holds its lock from fork to exec, so that a thread would not free
the loop, and without a wait in it no cancellation can leave its effect unknown. The files are made ahead in a thread,
and used again once an attempt is forgotten: making and deleting files is what short jobs would cost most for (ext4
walks over all that were deleted in the last minute). A lock that the job's own descriptors carry tells whether anybody
can still write to them.
"""

# Paths are plain text here: this file speaks to the operating system, many times a second.
# ruff: noqa: PTH100, PTH102, PTH104, PTH108, PTH110, PTH112, PTH113, PTH115, PTH118, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import sys

if sys.platform == "win32":
    raise ImportError("ProcessBackend needs Linux or macOS: it runs process groups; use DockerBackend here")

import contextlib
import errno
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, cast

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskGroup

from fargate_runner._backend import Backend, Identity, Launch, TaskRef, is_token_of, launch_token, sheltered_tasks
from fargate_runner._errors import (
    BackendUnavailable,
    InvalidJob,
    KeyConflict,
    LaunchRejected,
    LogsUnavailable,
    RunnerClosed,
)
from fargate_runner._job import Job, Secret, SecretRef
from fargate_runner._lifecycle import Cause, LogLine, Phase, Proof, Snapshot

__all__ = ["ProcessBackend"]

_MARK: Final = "FARGATE_RUNNER_OWNER"
"""The environment variable that says whose a process is, and that all its children inherit."""

_BASICS: Final = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")

# A job that opens /dev/stdout or /dev/stderr anew truncates the file behind it; without this head we would not notice.
_HEAD: Final = b"fr1\n"

_EMPTY: Final = (len(_HEAD), len(_HEAD))

_CHUNK: Final = 65_536
_QUICK, _QUIET = 0.005, 0.1
"""Seconds between two looks at a log that is followed: at first, and after a long silence."""
_MOST_READY: Final = 16
_MOST_OPEN_AFTER_END: Final = 32
"""Ended attempts whose files stay open until they are forgotten."""
_MOST_REUSED: Final = 1 << 20
"""Larger files are not truncated to be used again but deleted, in a thread."""
_RUBBISH_PAUSE: Final = 0.05
_NOTE_PATIENCE: Final = 5.0
"""Seconds that the parent of a job has for noting how it ended."""
_KILL_PATIENCE: Final = 5.0
_LEFTOVERS_PATIENCE: Final = 1.0
"""Seconds to wait for a killed process group to be gone: longer only if one of it hangs in the kernel."""
_DAY: Final = 86_400
_MINUTE: Final = 60

# What a full machine answers; all of it passes.
_NO_ROOM: Final = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}

# Ignored ones are inherited: CPython ignores the first two, a program that is stopped by its parent perhaps the third.
_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM)

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")

_ARCHITECTURES: Final = {"x86_64": "X86_64", "amd64": "X86_64", "aarch64": "ARM64", "arm64": "ARM64"}


# ---- processes -----------------------------------------------------------------------------------------------------


class _CouldNotStart(Exception):
    """The command never ran. ``exit_code`` is what a shell would say."""

    def __init__(self, reason: str, advice: str, exit_code: int, evidence: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.exit_code = exit_code
        self.evidence = evidence


@attrs.define(eq=False)
class _Files:
    """The files of one attempt, as we hold them. The job has descriptors of its own."""

    path: str
    out: int
    err: int
    card: int
    note_at: int = 0
    """Where the card takes the note on how it ended."""

    def for_job(self) -> tuple[int, int]:
        """Open both logs once more, for the job: to append, and with a lock that lasts as long as anybody has them."""
        fds: list[int] = []
        try:
            for ending in (".out", ".err"):
                fds.append(_above_two(os.open(self.path + ending, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)))
                fcntl.flock(fds[-1], fcntl.LOCK_SH)
        except OSError:
            _close_all(fds)
            raise
        return fds[0], fds[1]

    def sizes(self) -> tuple[int, int]:
        return os.fstat(self.out).st_size, os.fstat(self.err).st_size

    def are_untouched(self) -> bool:
        """Whether nobody has written to the logs, or cut them."""
        return self.sizes() == _EMPTY and _base(self.out) == _base(self.err) == len(_HEAD)

    def write_card(self, card: bytes) -> None:
        # What a longer card before it has left comes after the empty line of the note, and is not read.
        os.pwrite(self.card, card + b"\n\n", 0)
        self.note_at = len(card) + 1

    def write_note(self, code: int, stopped: str | None) -> None:
        os.pwrite(self.card, f"[{code},{'null' if stopped is None else json.dumps(stopped)}]\n".encode(), self.note_at)

    def clean(self) -> bool:
        """Make them as good as new, if they are small and nobody else has them open. Quick: no thread for this."""
        try:
            if max(self.sizes()) > _MOST_REUSED:
                return False
            for fd in (self.out, self.err):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(fd, fcntl.LOCK_UN)
            if not self.are_untouched():
                for fd in (self.out, self.err):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, _HEAD, 0)
            os.pwrite(self.card, b"\n", 0)
        except OSError:
            return False
        return True

    def close(self) -> None:
        _close_all((self.out, self.err, self.card))


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


@attrs.define(eq=False)
class _Process:
    """A process group that we watch: our child's, or one that another process of this user started."""

    pid: int
    pidfd: int | None
    files: _Files
    is_ours: bool
    parent: int = 0
    """Who started it, if we did not."""

    def has_exited(self) -> bool:
        """Whether the leader is over. It stays a zombie, and its number taken, until it is reaped."""
        if self.pidfd is not None:
            return _is_readable(self.pidfd)
        if not self.is_ours or not hasattr(os, "waitid"):
            return False  # macOS: only the waiting thread knows
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return True

    def signal(self, number: int) -> None:
        """Signal the whole group. The caller knows that the leader is not reaped yet."""
        # macOS answers EPERM for a group of zombies; so does Linux if a member has changed its user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def reap(self, stopped: str | None) -> tuple[int | None, str]:
        """
        Wait for our child, note how it ended, kill what is left of its group. Return its exit code and words for it.

        *stopped* is why it was told to stop, if it was: for whoever watches it from another process.
        """
        try:
            if not hasattr(os, "waitid"):
                _, status = os.waitpid(self.pid, 0)
                self.signal(signal.SIGKILL)
                code = os.waitstatus_to_exitcode(status)
            else:
                # The zombie leader keeps the number of the group from being given to another until it is reaped.
                found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                assert found is not None
                code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                # Before it is reaped: whoever sees that it is gone finds the note.
                with contextlib.suppress(OSError):
                    self.files.write_note(_as_shell(code), stopped)
                self.signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
        except ChildProcessError:
            return None, "its exit status was taken by another part of this program, or SIGCHLD is ignored"
        said = f"exit code {code}" if code >= 0 else f"signal {-code} ({_signal_name(-code)})"
        return _as_shell(code), said

    def close(self) -> None:
        """Let go of it and of its files. It is not touched."""
        self.files.close()
        self.unwatch()

    def unwatch(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)


def _as_shell(code: int) -> int:
    return code if code >= 0 else 128 - code


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names here
        return f"SIG{number}"


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # no Linux, an old one (< 5.3), or a sandbox that forbids it
        return None


_DEAD: Final = (b"Z", b"X")


def _stat(pid: int) -> list[bytes] | None:
    """What the kernel says of a process, from its state on (field 3 of proc(5)). None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    return text[text.rindex(b")") + 2 :].split()  # the name before, in parentheses, may hold anything


def _born(pid: int) -> str | None:
    """Return when *pid* was started, in ticks since boot: with its number it names a process. None if it is over."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in _DEAD else fields[19].decode()


def _ticks() -> int:
    """Now, in ticks since boot: what a process that is started now will have been born at."""
    if sys.platform != "linux":
        return 0
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_SECOND)


def _inheritable() -> list[int]:
    """Files beyond stdin, stdout and stderr that our own parent left to us: not meant for our jobs."""
    found: list[int] = []
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return []
    for name in names:
        with contextlib.suppress(OSError):  # the one that lists them is gone by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _has_terminal() -> bool:
    """
    Whether jobs need a session of their own, to be kept from our terminal: one that reads it there would hang, stopped.

    Otherwise a process group is enough, and better: Linux schedules each session as one, and puts a new one behind all
    others; on a busy machine a launch, and our event loop with it, waits for that (5 ms instead of 0.3 ms).
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _boot() -> str:
    """What process numbers are good for: this boot of the machine, and our part of its processes (a container)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


# Runs as `python -I -S -c` beside us, with the read end of a pipe as stdin. It ends when it is killed (the backend was
# closed) or when the pipe or our process ends. Then it either finishes the stops that it was told of, one line each
# (process, birth, seconds left), or, told nothing, kills all that carry the mark. Pidfds, so that no reused number is
# ever hit; at least two rounds, because a process may be between fork and exec, without the mark, in the first.
_GUARDIAN: Final = """
import os, select, sys, time
import _signal as signal  # the public one loads enum, which is half of the start of this process

def born(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    return text[text.rindex(b")") + 2:].split()[19].decode()

def is_marked(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read():
                return True
        return any(os.readlink(f"/proc/{pid}/fd/{fd}").startswith(directory) for fd in (1, 2))
    except OSError:
        return False

def kill_marked():
    found = False
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            process = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            if is_marked(name):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                found = True
        except OSError:
            pass
        finally:
            os.close(process)
    return found

mark, directory, parent = sys.argv[1].encode(), sys.argv[2], int(sys.argv[3])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.set_blocking(0, False)
poll = select.poll()
poll.register(0, select.POLLIN)
try:
    watched = os.pidfd_open(parent)
    if os.getppid() == parent:
        poll.register(watched, select.POLLIN)
        poll.poll()
except OSError:
    poll.poll()
try:
    told = os.read(0, 65536).decode()
except BlockingIOError:
    told = ""
if told:
    begun = time.monotonic()
    stops = sorted((float(left), int(pid), birth) for pid, birth, left in map(str.split, told.splitlines()))
    for left, pid, birth in stops:
        time.sleep(max(0.0, begun + left - time.monotonic()))
        if born(pid) == birth:
            try:
                os.killpg(pid, signal.SIGKILL)
            except OSError:
                pass
else:
    clean = 0
    while clean < 2:
        clean = 0 if kill_marked() else clean + 1
        time.sleep(0.02)
os._exit(0)
"""


def _start_guardian(owner: str, directory: str) -> tuple[subprocess.Popen[bytes], int] | None:
    """Start the guardian; return it and the pipe to it. None where there can be none."""
    # A frozen program's sys.executable is the program itself: starting it would not give a Python.
    if not hasattr(os, "pidfd_open") or not sys.executable or getattr(sys, "frozen", False):
        return None
    theirs, ours = os.pipe()
    try:
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARDIAN, f"{_MARK}={owner}", directory, str(os.getpid())],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Not the mark of an outer backend whose job we may be: its guardian would kill ours before our jobs.
            env={name: value for name, value in os.environ.items() if name != _MARK},
            start_new_session=True,
        )
    except OSError:
        os.close(ours)
        return None
    finally:
        os.close(theirs)
    return guardian, ours


# ---- attempts ------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Record:
    """What we know of one attempt."""

    ref: TaskRef
    namespace: str
    container: str
    grace: float
    snapshot: Snapshot
    process: _Process | None = None
    files: _Files | None = None
    """Still open after its end, to be read and used again."""
    readers: int = 0
    sizes: tuple[int, int] | None = None
    """How much its files hold, known once it is over."""
    quiet: bool = False
    """Whether it is over and wrote nothing."""
    stop_reason: str | None = None
    signalled: bool = False
    kill_at: float = 0.0
    changed: anyio.Event = attrs.field(factory=anyio.Event)

    @property
    def ended(self) -> bool:
        return self.snapshot.ended

    def advance(self, **changes: Any) -> None:
        """Tell whoever waits that more is known."""
        self.snapshot = attrs.evolve(self.snapshot, **changes)
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class ProcessBackend(Backend):
    """
    Runs a job's command as a process group of this machine.

    A job with an image needs a command as well (or an entry point): the image is ignored and the command run as it
    is, so that the same job runs here and in a container. vCPU, memory and scratch space are not enforced. Sidecars
    and secrets by ARN are refused: there is nothing here that could run or resolve them.

    The command runs as the same user, so keeping variables from it would protect nothing that it could not read from
    ``/proc`` or the home directory: it gets the whole environment, as with `subprocess`, and the job's own variables
    and secrets over it. With ``inherit_env=False`` it gets only what programs need to find their way (PATH, HOME,
    USER, SHELL, LANG, LC_*, TZ, TMPDIR), which shows whether a job depends on more, before it meets a container.

    Log lines carry no time. ``logs(tail=n)`` gives the last lines of stdout, then those of stderr, n in all and each
    stream at least half of that if it has so many. A job should write to stderr with ``>&2``: ``> /dev/stderr``
    truncates the file that is behind it here, which `logs` reports as `LogsUnavailable` after the lines that are left.

    Exit codes are a shell's: 128 + n for signal n, 127 and 126 for a command that is not there or cannot be executed.
    """

    name: ClassVar[str] = "process"

    def __init__(self, *, inherit_env: bool = True) -> None:
        self.default_concurrency = max(2, 2 * _processors())
        self._inherit_env = inherit_env
        self._records: dict[str, _Record] = {}
        self._by_token: dict[str, _Record] = {}
        self._counter = itertools.count(1)
        self._ready: list[_Files] = []
        self._batch = 1
        self._open_after_end = 0
        self._rubbish: list[str] = []
        self._programs: dict[tuple[str, str], str] = {}
        self._root = ""
        self._directory = ""
        self._owner = ""
        self._boot = ""
        self._lock = self._nothing = -1
        self._has_terminal = False
        self._not_theirs: list[tuple[int, int]] = []
        self._guardian: tuple[subprocess.Popen[bytes], int] | None = None
        self._guarded = False

    @property
    def place(self) -> str:
        return f"{self.name}/{os.uname().nodename}"

    # ---- its own life ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        self._records.clear()
        self._by_token.clear()
        self._rubbish.clear()
        self._programs.clear()
        self._guarded, self._batch, self._open_after_end = False, 1, 0
        self._refill = anyio.Lock()
        # Ours, so that a program whose threads are all busy can still start and stop jobs.
        self._threads = anyio.CapacityLimiter(max(4, _processors()))
        self._waiters = anyio.CapacityLimiter(float("inf"))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._make_directory, limiter=self._threads)
        try:
            async with sheltered_tasks() as tasks:
                self._tasks: TaskGroup = tasks
                yield
                await self._until_stops_are_done()
        finally:
            records = tuple(self._records.values())
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._leave, anyio.current_time(), limiter=self._threads)
            for record in records:
                record.wake()  # whoever still waits is told that we are closed

    async def _until_stops_are_done(self) -> None:
        for record in tuple(self._records.values()):
            # What SIGKILL does not end within seconds hangs in the kernel: no use waiting for it.
            with anyio.move_on_after(record.grace + _KILL_PATIENCE):
                while record.stop_reason is not None and not record.ended:
                    await record.changed.wait()

    def _make_directory(self) -> None:
        """Make a directory of our own, and remove those that nobody needs any more."""
        self._root = os.path.join(tempfile.gettempdir(), f"fargate-runner-{os.geteuid()}")
        self._boot = _boot()
        self._has_terminal = _has_terminal()
        self._not_theirs = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
        self._owner = os.urandom(16).hex()
        self._directory = os.path.join(self._root, self._owner)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._root, 0o700)
            found = os.lstat(self._root)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise BackendUnavailable(
                    f"{self._root} is not a private directory of this user; remove it, or set TMPDIR to another place",
                    operation="open",
                )
            self._sweep()
            os.mkdir(self._directory, 0o700)
            # Locked before it has its name: whoever sees a lock that is free sees the lock of a dead owner.
            new = os.path.join(self._directory, "lock.new")
            self._lock = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            os.rename(new, os.path.join(self._directory, "lock"))
            self._nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise BackendUnavailable(
                f"cannot keep the output of jobs in {self._directory}: {exc.strerror}; "
                "make room there, or set TMPDIR to another place",
                operation="open",
                code=errno.errorcode.get(exc.errno or 0),
            ) from exc

    def _sweep(self) -> None:
        for name in os.listdir(self._root):
            directory = os.path.join(self._root, name)
            with contextlib.suppress(OSError):
                if _is_stale(directory, self._boot):
                    shutil.rmtree(directory, ignore_errors=True)

    def _leave(self, now: float) -> None:
        """Close up. What is still alive was left on purpose, except what nobody ever knew of."""
        left: list[_Record] = []
        stops: list[_Record] = []
        for record in self._records.values():
            process = record.process
            if process is None:
                continue
            if process.is_ours and process.has_exited():
                process.reap(record.stop_reason if record.signalled else None)
                process.close()
                continue
            if record.stop_reason is not None and not process.has_exited():
                if not record.signalled:
                    process.signal(signal.SIGTERM)
                    record.kill_at = now + record.grace
                stops.append(record)
            if process.is_ours:
                left.append(record)
        self._dismiss_guardian(stops, now)
        for record in self._records.values():
            if record.process is not None and not record.process.is_ours:
                record.process.close()
        if left:
            keep = {"lock", *(os.path.basename(_path_of(record.ref)) for record in left)}
            for name in os.listdir(self._directory):
                if name.partition(".")[0] not in keep:
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(self._directory, name))
            os.close(os.open(os.path.join(self._directory, "left"), os.O_CREAT | os.O_WRONLY, 0o600))
            orphans = [(cast("_Process", record.process), record.stop_reason) for record in left]
            threading.Thread(target=_reap_left, args=(orphans,), name="fargate-runner-reaper", daemon=True).start()
        else:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._unlink(self._rubbish)
        for files in (*self._ready, *(record.files for record in self._records.values() if record.files is not None)):
            files.close()
        os.close(self._lock)
        os.close(self._nothing)
        self._ready.clear()
        self._records.clear()
        self._by_token.clear()

    def _dismiss_guardian(self, stops: Sequence[_Record], now: float) -> None:
        if stops and self._guardian is None:
            self._guardian = _start_guardian(self._owner, self._directory)
        if self._guardian is None:
            return
        guardian, pipe = self._guardian
        self._guardian = None
        if stops:
            # We leave in the middle of a stop: the guardian sees it through.
            lines = [
                f"{process.pid} {_born(process.pid) or 0} {max(0.0, record.kill_at - now):.3f}\n"
                for record in stops
                if (process := record.process) is not None
            ]
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, "".join(lines).encode())
            threading.Thread(target=guardian.wait, name="fargate-runner-guardian", daemon=True).start()
        else:
            guardian.kill()
            guardian.wait()
        os.close(pipe)

    def _check_open(self) -> None:
        if not self.is_open:
            raise RunnerClosed("the process backend is not open: use it inside 'async with'")

    # ---- launching -------------------------------------------------------------------------------------------------

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        self._check_open()
        argv = [*(job.entry_point or ()), *(job.command or ())]
        if not argv:
            fix = "give the command that the image would run, or use DockerBackend"
            raise InvalidJob("command", None, "a process needs a command, the image is not looked into", fix)
        if job.sidecars:
            names = [sidecar.name for sidecar in job.sidecars]
            fix = "use DockerBackend"
            if all(sidecar.is_watchdog for sidecar in job.sidecars):
                fix = "leave it out: if this program is killed, its jobs are killed with it (Linux)"
            raise InvalidJob("sidecars", names, "a process has no containers beside it", fix)
        for variable, secret in job.secrets.items():
            if isinstance(secret, SecretRef):
                problem = "an ARN cannot be resolved on this machine"
                raise InvalidJob(f"secrets[{variable!r}]", secret.arn, problem, "give the value as Secret(…)")
        if job.architecture is not None:
            machine = os.uname().machine
            here = _ARCHITECTURES.get(machine.lower(), machine)
            if job.architecture != here:
                fix = f"leave it out, or write {here!r}" if here in _ARCHITECTURES.values() else "leave it out"
                raise InvalidJob("architecture", job.architecture, f"this machine is {here}", fix)
        directory = job.working_directory
        if directory is not None:
            directory = await anyio.to_thread.run_sync(_existing_directory, directory, limiter=self._threads)
        return Launch(
            token=launch_token("process", identity),
            identity=identity,
            job_name=job.name,
            description=job.describe(),
            request={
                "argv": argv,
                "env": dict(job.env),
                "working_directory": directory,
                "stop_timeout": job.stop_timeout.total_seconds(),
                "container": job.container_name,
            },
            secrets=job.secrets,
        )

    async def submit(self, launch: Launch) -> TaskRef:
        self._check_open()
        if (known := self._known(launch)) is not None:
            return known
        if missing := set(launch.description.get("secrets", ())) - set(launch.secrets):
            names = ", ".join(sorted(missing))
            raise LaunchRejected(
                f"the launch of {launch.job_name!r} came without the values of its secrets ({names}); "
                "prepare it again from the job",
                operation="spawn",
            )
        await self._make_ready()
        # No await from here on: what is started is in our table, or was not started.
        self._check_open()
        if (known := self._known(launch)) is not None:
            return known
        return self._start(launch, self._ready.pop())

    def _known(self, launch: Launch) -> TaskRef | None:
        record = self._by_token.get(launch.token)
        if record is None:
            return None
        there, here = record.ref.description or {}, launch.description
        if there != here:
            different = {name for name in (*there, *here) if there.get(name) != here.get(name)}
            raise KeyConflict(launch.identity.key, tuple(sorted(different)))
        return record.ref

    async def _make_ready(self) -> None:
        """See to it that there are files for the next launch, and before the first one a guardian."""
        while not self._ready:
            async with self._refill:
                if not self._ready:
                    try:
                        await anyio.to_thread.run_sync(self._make_files, limiter=self._threads)
                    except OSError as exc:
                        raise _rejected(f"cannot keep the output of a job in {self._directory}", exc) from exc

    def _make_files(self) -> None:
        if not self._guarded:
            self._guardian, self._guarded = _start_guardian(self._owner, self._directory), True
        for _ in range(self._batch):
            path, fds = os.path.join(self._directory, str(next(self._counter))), list[int]()
            try:
                for ending in _ENDINGS:
                    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                    fds.append(_above_two(os.open(path + ending, flags, 0o600)))
                for fd in fds[:2]:
                    os.write(fd, _HEAD)
            except OSError:
                _close_all(fds)
                raise
            self._ready.append(_Files(path, *fds))
        # One thread for many launches: where one job follows another, there will be more.
        self._batch = min(2 * self._batch, 8)

    def _start(self, launch: Launch, files: _Files) -> TaskRef:
        now, before, pid = _utcnow(), _ticks(), 0
        unborn: _CouldNotStart | None = None
        try:
            pid = self._spawn(launch, files)
        except _CouldNotStart as exc:
            self._ready.append(files)
            unborn = exc
        except OSError as exc:
            files.close()
            self._throw_away(files.path)
            raise _rejected(f"this machine could not start {launch.job_name!r}", exc) from exc
        identity = launch.identity
        ref = TaskRef(
            backend=self.name,
            address=f"{files.path}:{pid or f'not-started-{next(self._counter)}'}",
            key=identity.key,
            attempt=identity.attempt,
            token=launch.token,
            description=launch.description,
            created_at=now,
        )
        record = _Record(
            ref=ref,
            namespace=identity.namespace,
            container=launch.request["container"],
            grace=launch.request["stop_timeout"],
            snapshot=Snapshot(
                phase=Phase.RUNNING if pid else Phase.STARTING, created_at=now, started_at=now if pid else None
            ),
        )
        if unborn is not None:
            record.sizes, record.quiet = _EMPTY, True
            proof = Proof(source="exec", seen_at=_utcnow(), evidence=unborn.evidence)
            _end(record, Cause.COULD_NOT_START, unborn.exit_code, proof, reason=unborn.reason, advice=unborn.advice)
        else:
            record.process = _Process(pid, _pidfd(pid), files, is_ours=True)
            with contextlib.suppress(OSError):  # a full disk must not cost a job that runs: it is only harder to find
                files.write_card(self._card(record, pid, (before, _ticks())))
            self._tasks.start_soon(self._watch, record, record.process)
        self._records[ref.address] = self._by_token[ref.token] = record
        return ref

    def _spawn(self, launch: Launch, files: _Files) -> int:
        """Start the command in a process group of its own and return its process id."""
        argv: list[str] = launch.request["argv"]
        directory: str | None = launch.request["working_directory"]
        inherited = os.environ if self._inherit_env else _basics()
        revealed = {name: value.reveal() for name, value in launch.secrets.items() if isinstance(value, Secret)}
        env = {**inherited, **launch.identity.variables, **launch.request["env"], **revealed, _MARK: self._owner}
        # As a shell does: what was found once is looked at there first.
        wanted = (argv[0], env.get("PATH", os.defpath))
        program = self._programs.get(wanted)
        if program is None or not os.access(program, os.X_OK):
            program = self._programs[wanted] = _find_program(*wanted)
        out, err = files.for_job()
        try:
            if directory is None and sys.platform == "linux":
                group: dict[str, Any] = {"setsid": True} if self._has_terminal else {"setpgroup": 0}
                # Twice as quick as Popen, which is what a short job costs most for.
                return os.posix_spawn(
                    program,
                    argv,
                    env,
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, self._nothing, 0),
                        (os.POSIX_SPAWN_DUP2, out, 1),
                        (os.POSIX_SPAWN_DUP2, err, 2),
                        *self._not_theirs,
                    ],
                    **group,
                    setsigmask=(),
                    setsigdef=_DEFAULT_SIGNALS,
                )
            popen = subprocess.Popen(
                argv,
                executable=program,
                stdin=self._nothing,
                stdout=out,
                stderr=err,
                cwd=directory,
                env=env,
                start_new_session=self._has_terminal,
                process_group=None if self._has_terminal else 0,
            )
            popen.returncode = 0  # we reap it; Popen would warn that it is still running
            return popen.pid
        except UnicodeEncodeError as exc:
            # A lone surrogate, or a locale other than UTF-8. The text itself may be a secret.
            advice = "use text that can be encoded, or a UTF-8 locale"
            raise _CouldNotStart("an argument or variable cannot be encoded", advice, 126, type(exc).__name__) from None
        except OSError as exc:
            if exc.errno in _NO_ROOM or exc.filename is None:
                raise
            raise _why_not(exc, argv[0], directory) from None
        finally:
            _close_all((out, err))

    def _card(self, record: _Record, pid: int, born: tuple[int, int]) -> bytes:
        """Who runs there, for other processes: one line of JSON."""
        ref = record.ref
        card = {
            "key": ref.key,
            "namespace": record.namespace,
            "pid": pid,
            "parent": os.getpid(),
            "born": born,
            "boot": self._boot,
            "attempt": ref.attempt,
            "token": ref.token,
            "description": ref.description,
            "created_at": ref.created_at.isoformat() if ref.created_at else None,
            "container": record.container,
            "stop_timeout": record.grace,
        }
        return json.dumps(card).encode()

    # ---- watching --------------------------------------------------------------------------------------------------

    async def _watch(self, record: _Record, process: _Process) -> None:
        """Wait for the end of our child, reap it once, and say how it ended."""
        if process.pidfd is not None:
            await anyio.wait_readable(process.pidfd)
            code, evidence = process.reap(record.stop_reason if record.signalled else None)
        else:
            code, evidence = await anyio.to_thread.run_sync(
                process.reap, None, abandon_on_cancel=True, limiter=self._waiters
            )
        try:
            await _until_gone(process.pid)
        finally:
            cause = Cause.STOPPED_ON_REQUEST if record.signalled else Cause.EXITED
            reason = record.stop_reason if record.signalled else None
            self._conclude(record, process)
            proof = Proof(source="wait-status", seen_at=_utcnow(), evidence=evidence)
            _end(record, cause, code, proof, reason=reason or evidence)

    async def _watch_other(self, record: _Record, process: _Process) -> None:
        """Wait for the end of a process that is not our child. Its exit status is its parent's to read, not ours."""
        assert process.pidfd is not None
        await anyio.wait_readable(process.pidfd)
        note = await anyio.to_thread.run_sync(_read_note, process, limiter=self._threads)
        self._conclude(record, process)
        _end_other(record, note)

    def _conclude(self, record: _Record, process: _Process) -> None:
        files, record.process = process.files, None
        record.sizes, record.quiet = files.sizes(), files.are_untouched()
        process.unwatch()
        if process.is_ours and self._open_after_end < _MOST_OPEN_AFTER_END:
            self._open_after_end += 1
            record.files = files
        else:
            files.close()

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        record = await self._record(ref)
        if record is None:
            reason = "this machine knows of no such attempt"
            proof = Proof(source="process-table", seen_at=_utcnow(), evidence=f"nothing at {ref.address}")
            return Snapshot(phase=Phase.ENDED, cause=Cause.VANISHED, reason=reason, proof=proof)
        while after is not None and record.snapshot.phase <= after.phase and not record.ended:
            await record.changed.wait()
            self._check_open()
        return record.snapshot

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        record = await self._record(ref)
        if record is None or record.ended or record.stop_reason is not None:
            return
        record.stop_reason = reason
        if record.process is not None:
            self._tasks.start_soon(self._terminate, record)

    async def _terminate(self, record: _Record) -> None:
        process = record.process
        # One that is over by now ended by itself, even if its watcher has not run yet.
        if process is None or process.has_exited():
            return
        record.signalled = True
        record.kill_at = anyio.current_time() + record.grace
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)  # a stopped process takes no SIGTERM
        record.advance(phase=Phase.STOPPING)
        with anyio.CancelScope(deadline=record.kill_at):
            while not record.ended:
                await record.changed.wait()
        if record.process is not None and not process.has_exited():
            process.signal(signal.SIGKILL)

    # ---- finding again ---------------------------------------------------------------------------------------------

    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        self._check_open()
        ours = [
            record.ref for record in self._records.values() if (record.namespace, record.ref.key) == (namespace, key)
        ]
        known = {ref.address for ref in ours}
        others = await anyio.to_thread.run_sync(self._find_others, namespace, key, limiter=self._threads)
        refs = [*ours, *(ref for ref in others if ref.address not in known)]
        return sorted(refs, key=lambda ref: (ref.attempt, ref.created_at or _utcnow()))

    def _find_others(self, namespace: str, key: str) -> list[TaskRef]:
        """Read who runs in the directories of other backends of this user."""
        # Of thousands of cards most are of other keys: this is cheaper to see than JSON is to read.
        begin = json.dumps({"key": key, "namespace": namespace}).removesuffix("}").encode()
        return [_ref_of(path, card) for path, card in self._cards_of_others(begin)]

    def _cards_of_others(self, begin: bytes = b"") -> Iterator[tuple[str, dict[str, Any]]]:
        """Read the cards in the directories of other backends of this user, of those that begin so."""
        for owner in os.listdir(self._root):
            directory = os.path.join(self._root, owner)
            if owner == self._owner:
                continue
            with contextlib.suppress(OSError):
                for name in os.listdir(directory):
                    if name.endswith(".json"):
                        path = os.path.join(directory, name.removesuffix(".json"))
                        card, _ = _read_card(path, begin)
                        if card is not None:
                            yield path, card

    async def living(self, namespace: str) -> list[TaskRef]:
        self._check_open()
        ours = [record.ref for record in self._records.values() if record.namespace == namespace and not record.ended]
        others = await anyio.to_thread.run_sync(self._living_others, namespace, limiter=self._threads)
        return [*ours, *others]

    def _living_others(self, namespace: str) -> list[TaskRef]:
        """Read who still runs in the directories of other backends of this user, and was launched as its card says."""
        refs: list[TaskRef] = []
        for path, card in self._cards_of_others():
            if card["namespace"] != namespace or not _is_alive(card, self._boot):
                continue
            if is_token_of(card["token"], self.name, namespace, card["key"], card["attempt"]):
                refs.append(_ref_of(path, card))
        return refs

    async def _record(self, ref: TaskRef) -> _Record | None:
        """What we know of *ref*; one of another process is looked up and watched from now on."""
        self._check_open()
        record = self._records.get(ref.address)
        if record is None and os.path.dirname(_path_of(ref)) != self._directory:
            found = await anyio.to_thread.run_sync(self._adopt, ref, limiter=self._threads)
            # Another call may have been quicker.
            record = self._records.setdefault(ref.address, found) if found is not None else None
            if found is not None and record is not found and found.process is not None:
                found.process.close()
            elif found is not None and found.process is not None:
                self._tasks.start_soon(self._watch_other, found, found.process)
        return record

    def _adopt(self, ref: TaskRef) -> _Record | None:
        path = _path_of(ref)
        card, note = _read_card(path)
        if card is None or card["token"] != ref.token:
            return None
        ref = _ref_of(path, card)
        record = _Record(
            ref=ref,
            namespace=card["namespace"],
            container=card["container"],
            grace=card["stop_timeout"],
            snapshot=Snapshot(phase=Phase.RUNNING, created_at=ref.created_at, started_at=ref.created_at),
        )
        pid, fds = card["pid"], list[int]()
        try:
            for ending in _ENDINGS:
                fds.append(os.open(path + ending, os.O_RDONLY | os.O_CLOEXEC))
                fcntl.flock(fds[-1], fcntl.LOCK_SH)  # its owner does not use them again while we hold them
        except OSError:
            _close_all(fds)
            return None
        process = _Process(pid, _pidfd(pid), _Files(path, *fds), is_ours=False, parent=card["parent"])
        # The pidfd first, then the look at who it is: the other way round the number could change hands between.
        if process.pidfd is None or not _is_alive(card, self._boot):
            # Neither running nor a zombie that its parent is about to make a note on: the number is another's by now.
            note = note or (_read_note(process) if _born(pid) is None else None)
            self._conclude(record, process)
            _end_other(record, note)
        else:
            record.process = process
        return record

    async def forget(self, ref: TaskRef) -> None:
        record = await self._record(ref)
        if record is None or not record.ended:
            return
        del self._records[ref.address]
        if self._by_token.get(ref.token) is record:
            del self._by_token[ref.token]
        if record.files is not None:
            self._open_after_end -= 1
            if not record.readers and len(self._ready) < _MOST_READY and record.files.clean():
                self._ready.append(record.files)
                return
            record.files.close()
        if record.snapshot.cause is not Cause.COULD_NOT_START:
            self._throw_away(_path_of(ref))

    def _throw_away(self, path: str) -> None:
        self._rubbish.append(path)
        if len(self._rubbish) == 1:
            self._tasks.start_soon(self._take_out_rubbish)

    async def _take_out_rubbish(self) -> None:
        # A thread for the files of one job costs as much as they do: wait for some more. A close takes them all.
        await anyio.sleep(_RUBBISH_PAUSE)
        rubbish, self._rubbish = self._rubbish, []
        await anyio.to_thread.run_sync(self._unlink, rubbish, limiter=self._threads)

    def _unlink(self, paths: Sequence[str]) -> None:
        for path in paths:
            directory = os.path.dirname(path)
            # What another backend started is its own to delete, as long as that is open.
            if directory == self._directory or os.path.exists(os.path.join(directory, "left")):
                for ending in _ENDINGS:
                    with contextlib.suppress(OSError):
                        os.unlink(path + ending)

    # ---- logs ------------------------------------------------------------------------------------------------------

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        record = await self._record(ref)
        if record is None:
            raise LogsUnavailable(f"the lines of attempt {ref.attempt} of {ref.key!r} are gone: it was forgotten")
        if record.quiet:
            return
        record.readers += 1
        files: list[_LogFile] = []
        pause, attempt, container = _QUICK, record.ref.attempt, record.container
        try:
            files = await self._open_logs(record, tail)
            while True:
                # Asked before reading: what was written before the end is in the files by now, and counted.
                sizes, changed, moved = record.sizes, record.changed, False
                for file, limit in zip(files, sizes or (None, None), strict=True):
                    more, texts = await file.read(limit, limiter=self._threads)
                    moved = moved or more
                    for text in texts:
                        yield LogLine(text=text, stream=file.stream, container=container, attempt=attempt)
                if moved:
                    pause = _QUICK
                    await anyio.lowlevel.checkpoint()
                elif sizes is not None or not follow:
                    break
                else:
                    with anyio.CancelScope(deadline=anyio.current_time() + pause):
                        await changed.wait()
                    self._check_open()
                    pause = min(pause * 1.25, _QUIET)
            for file in files:
                # Without an end a line is whole only when nothing can follow it any more.
                if sizes is not None and (last := file.rest()) is not None:
                    yield LogLine(text=last, stream=file.stream, container=container, attempt=attempt)
            if cut := [file.stream for file in files if file.was_cut()]:
                raise LogsUnavailable(
                    f"lines of {ref.key!r} are lost: it opened /dev/{cut[0]} anew, which truncates the file behind it; "
                    f"write >&{1 if cut[0] == 'stdout' else 2} or >> /dev/{cut[0]} instead"
                )
        finally:
            record.readers -= 1
            for file in files:
                file.close()

    async def _open_logs(self, record: _Record, tail: int | None) -> list[_LogFile]:
        held = record.process.files if record.process is not None else record.files
        if held is not None and (tail is None or max(record.sizes or held.sizes()) <= _CHUNK):
            return _log_files([os.dup(held.out), os.dup(held.err)], record.sizes, tail)
        try:
            return await anyio.to_thread.run_sync(
                _open_logs, _path_of(record.ref), record.sizes, tail, limiter=self._threads
            )
        except OSError as exc:
            key = record.ref.key
            raise LogsUnavailable(f"the lines of {key!r} are gone: {exc.strerror}: {exc.filename}") from exc


_Stream = Literal["stdout", "stderr"]
_STREAMS: Final[tuple[_Stream, _Stream]] = ("stdout", "stderr")


def _end(
    record: _Record, cause: Cause, exit_code: int | None, proof: Proof, *, reason: str = "", advice: str = ""
) -> None:
    record.advance(
        phase=Phase.ENDED,
        cause=cause,
        exit_code=exit_code,
        reason=reason,
        advice=advice,
        ended_at=proof.seen_at,
        proof=proof,
    )


def _end_other(record: _Record, note: tuple[int, str | None] | None) -> None:
    """End an attempt of another process by its parent's note. Without one nobody knows how it ended."""
    if note is None:
        evidence = "the process is gone; its exit status went to its parent, which left no note of it"
        proof = Proof(source="process-table", seen_at=_utcnow(), evidence=evidence)
        code, stopped = None, record.stop_reason if record.signalled else None
    else:
        code, stopped = note
        evidence = f"exit code {code}, as its parent noted"
        proof = Proof(source="wait-status", seen_at=_utcnow(), evidence=evidence)
        if stopped is None and record.signalled:
            stopped = record.stop_reason
    cause = Cause.EXITED if stopped is None else Cause.STOPPED_ON_REQUEST
    _end(record, cause, code, proof, reason=stopped or evidence)


def _utcnow() -> datetime:
    return datetime.now(UTC)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _basics() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name in _BASICS or name.startswith("LC_")}


def _existing_directory(path: str) -> str:
    whole = os.path.abspath(path)
    if not os.path.isdir(whole):
        fix = "make it, or give one that exists on this machine"
        raise InvalidJob("working_directory", path, "there is no such directory", fix)
    return whole


def _rejected(what: str, exc: OSError) -> LaunchRejected:
    return LaunchRejected(
        f"{what}: {exc.strerror}; make room, or run fewer jobs at a time",
        operation="spawn",
        code=errno.errorcode.get(exc.errno or 0),
        retryable=exc.errno in _NO_ROOM,
    )


def _find_program(command: str, path: str) -> str:
    """Look *command* up as execvp does, on the PATH that it will have itself."""
    if os.sep in command:
        return command
    places = [os.path.join(place or ".", command) for place in path.split(os.pathsep)]
    for place in places:
        if os.access(place, os.X_OK) and not os.path.isdir(place):
            return place
    if there := [place for place in places if os.path.isfile(place)]:
        raise _CouldNotStart(f"{there[0]!r} is not executable", "make it executable (chmod +x)", 126, "EACCES")
    advice = "install it, write its full path, or put its directory on PATH"
    raise _CouldNotStart(f"command not found: {command!r}", advice, 127, "ENOENT")


def _why_not(exc: OSError, command: str, directory: str | None) -> _CouldNotStart:
    """Say why a command could not be executed, and what to try."""
    said = f"{errno.errorcode.get(exc.errno or 0, exc.errno)}: {exc.strerror}"
    if directory is not None and exc.filename == directory:
        return _CouldNotStart(
            f"cannot enter {directory}: {exc.strerror}", "make the working_directory again", 126, said
        )
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        if os.path.exists(os.path.join(directory or "", command)):
            reason = f"{command!r} names an interpreter that is not there"
            return _CouldNotStart(reason, "look at its first line (#!), and install what it names", 127, said)
        return _CouldNotStart(f"command not found: {command!r}", "check the path, or install it", 127, said)
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EISDIR):
        return _CouldNotStart(f"{command!r} is not executable", "make it executable (chmod +x)", 126, said)
    if exc.errno == errno.ENOEXEC:
        advice = "give a script a first line like #!/bin/sh, and a program the architecture of this machine"
        return _CouldNotStart(f"{command!r} is no program that this machine can run", advice, 126, said)
    if exc.errno == errno.E2BIG:
        return _CouldNotStart("its arguments and variables are too long", "hand them over in a file", 126, said)
    return _CouldNotStart(f"{command!r} cannot be executed: {exc.strerror}", "try it in a shell", 126, said)


async def _until_gone(group: int) -> None:
    """Wait until a killed process group has no members; mostly that is so at once."""
    pause, deadline = 0.001, anyio.current_time() + _LEFTOVERS_PATIENCE
    while anyio.current_time() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass
        if not await anyio.to_thread.run_sync(_lives, group):
            return
        await anyio.sleep(pause)
        pause = min(pause * 2, 0.05)


def _lives(group: int) -> bool:
    """Whether a process group has members that are not zombies: those wait for init, which may take its time."""
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit() and (fields := _stat(int(name))) is not None:
            state, members_of = fields[0], int(fields[2])
            if members_of == group and state not in _DEAD:
                return True
    return sys.platform != "linux"


def _reap_left(orphans: Sequence[tuple[_Process, str | None]]) -> None:
    """Reap jobs that a closed backend left alive, as long as this program lives, and note how they ended."""
    waiting = list(orphans)
    while waiting:
        poll = select.poll()
        for process, _ in waiting:
            if process.pidfd is not None:
                poll.register(process.pidfd, select.POLLIN)
        poll.poll(None if all(process.pidfd is not None for process, _ in waiting) else 1000)
        for entry in tuple(waiting):
            process, stopped = entry
            if process.has_exited():
                process.reap(stopped)
                process.close()
                waiting.remove(entry)


# ---- what lies on the disk -----------------------------------------------------------------------------------------


_CARD_KEYS: Final = {
    "attempt", "boot", "born", "container", "created_at", "description", "key", "namespace", "parent", "pid",
    "stop_timeout", "token",
}  # fmt: skip
_ENDINGS: Final = (".out", ".err", ".json")


def _above_two(fd: int) -> int:
    """Move a descriptor that is there because somebody closed our own stdin, stdout or stderr."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _path_of(ref: TaskRef) -> str:
    return ref.address.rpartition(":")[0]


def _read_card(path: str, begin: bytes = b"") -> tuple[dict[str, Any] | None, tuple[int, str | None] | None]:
    """Read who runs there, if it begins so, and the note on how it ended, if there is one."""
    try:
        with open(path + ".json", "rb") as file:
            text = file.read()
    except OSError:  # gone
        return None, None
    return _parse_card(text) if text.startswith(begin) else (None, None)


def _parse_card(text: bytes) -> tuple[dict[str, Any] | None, tuple[int, str | None] | None]:
    try:
        card, note, *_ = text.split(b"\n", 2)
        code, stopped = json.loads(note) if note else (None, None)
        found = json.loads(card)
        if not found.keys() >= _CARD_KEYS:  # of another version of this library
            return None, None
        return found, (code, stopped) if code is not None else None
    except (ValueError, TypeError, AttributeError):  # being written, or no card at all
        return None, None


def _read_note(process: _Process) -> tuple[int, str | None] | None:
    """How a job of another process ended, as its parent noted just before it reaped it. In a worker thread."""
    deadline = time.monotonic() + _NOTE_PATIENCE
    # A parent that is dead will make no note: its zombie is then with init.
    while (fields := _stat(process.pid)) and int(fields[1]) == process.parent and time.monotonic() < deadline:
        time.sleep(0.01)
    # Through the descriptor: the file has gone with its owner, if that ends at once.
    card = process.files.card
    return _parse_card(os.pread(card, os.fstat(card).st_size, 0))[1]


def _ref_of(path: str, card: Mapping[str, Any]) -> TaskRef:
    return TaskRef(
        backend=ProcessBackend.name,
        address=f"{path}:{card['pid']}",
        key=card["key"],
        attempt=card["attempt"],
        token=card["token"],
        description=card["description"],
        created_at=datetime.fromisoformat(card["created_at"]),
    )


def _is_alive(card: Mapping[str, Any], boot: str) -> bool:
    if card["boot"] != boot or (born := _born(card["pid"])) is None:
        return False
    earliest, latest = card["born"]
    return bool(earliest <= int(born) <= latest)


def _is_stale(directory: str, boot: str) -> bool:
    """Whether the owner of *directory* is dead, its jobs too, and nobody will ask for their logs any more."""
    try:
        lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # being made right now, or never finished
        return time.time() - os.lstat(directory).st_mtime > _MINUTE
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    names = os.listdir(directory)
    for name in names:
        if name.endswith(".json"):
            card, _ = _read_card(os.path.join(directory, name.removesuffix(".json")))
            if card is not None and _is_alive(card, boot):
                return False
    if "left" not in names or not any(name.endswith(".json") for name in names):
        return True
    return time.time() - os.lstat(directory).st_mtime > _DAY


class _LogFile:
    """The whole lines of one log, as they come. Reads chunks, so that a slow reader costs no memory."""

    def __init__(self, stream: _Stream, fd: int, offset: int | None = None) -> None:
        self.stream: Final = stream
        self._fd = fd
        self._offset = offset if offset is not None else _base(fd)
        self._parts: list[bytes] = []
        self._buffer = bytearray(_CHUNK)

    async def read(self, limit: int | None, *, limiter: anyio.CapacityLimiter) -> tuple[bool, list[str]]:
        """Read a chunk: whether there was one, and the lines that it completed."""
        size = limit if limit is not None else os.fstat(self._fd).st_size
        if size <= self._offset:
            if size == self._offset:
                return False, []
            # Somebody truncated the file. What is left begins anew.
            self._offset, self._parts = 0, []
            return True, []
        got = _read_if_cached(self._fd, self._buffer, self._offset)
        if got is None:
            got = await anyio.to_thread.run_sync(_read, self._fd, self._buffer, self._offset, limiter=limiter)
        got = min(got, size - self._offset)
        if got == 0:
            return False, []
        self._offset += got
        head, newline, rest = bytes(self._buffer[:got]).rpartition(b"\n")
        if not newline:
            self._parts.append(rest)
            return True, []
        block = b"".join((*self._parts, head)).decode("utf-8", "replace")
        self._parts = [rest] if rest else []
        lines = block.split("\n")
        return True, [line.removesuffix("\r") for line in lines] if "\r" in block else lines

    def rest(self) -> str | None:
        """The last line, if it has no end."""
        return b"".join(self._parts).decode("utf-8", "replace") if self._parts else None

    def was_cut(self) -> bool:
        """Whether somebody truncated the file."""
        return _base(self._fd) == 0

    def close(self) -> None:
        os.close(self._fd)


def _base(fd: int) -> int:
    """Where the output of a job begins in its file: after the head, unless that was cut off."""
    return len(_HEAD) if os.pread(fd, len(_HEAD), 0) == _HEAD else 0


_NOWAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)


def _read_if_cached(fd: int, buffer: bytearray, offset: int) -> int | None:
    """Read what is in memory already; None if that would have to wait for the disk."""
    if _NOWAIT is None:
        return None
    try:
        return os.preadv(fd, [buffer], offset, _NOWAIT)
    except OSError:  # EAGAIN: not in memory. EOPNOTSUPP: a file system that cannot tell
        return None


def _read(fd: int, buffer: bytearray, offset: int) -> int:
    found = os.pread(fd, len(buffer), offset)
    buffer[: len(found)] = found
    return len(found)


def _open_logs(path: str, sizes: tuple[int, int] | None, tail: int | None) -> list[_LogFile]:
    """Open both logs by name. In a worker thread."""
    fds: list[int] = []
    try:
        for ending in (".out", ".err"):
            fds.append(os.open(path + ending, os.O_RDONLY | os.O_CLOEXEC))
            fcntl.flock(fds[-1], fcntl.LOCK_SH)
    except BaseException:
        _close_all(fds)
        raise
    return _log_files(fds, sizes, tail)


def _log_files(fds: list[int], sizes: tuple[int, int] | None, tail: int | None) -> list[_LogFile]:
    """Both logs, to be read from their beginning or so that *tail* lines are left."""
    try:
        if tail is None:
            return [_LogFile(stream, fd) for stream, fd in zip(_STREAMS, fds, strict=True)]
        bases = [_base(fd) for fd in fds]
        # Of a job that goes on, what comes after the last line end is no line yet.
        ends = sizes or [_after_last_line(fd, base) for fd, base in zip(fds, bases, strict=True)]
        out, err = (_line_starts(*where, tail) for where in zip(fds, bases, ends, strict=True))
        of_err = min(len(err), max((tail + 1) // 2, tail - len(out)))
        of_out = min(len(out), tail - of_err)
        offsets = (out[len(out) - of_out] if of_out else ends[0], err[len(err) - of_err] if of_err else ends[1])
        return [_LogFile(*which) for which in zip(_STREAMS, fds, offsets, strict=True)]
    except BaseException:
        _close_all(fds)
        raise


def _after_last_line(fd: int, base: int) -> int:
    end = os.fstat(fd).st_size
    while end > base:
        begin = max(end - _CHUNK, base)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return base


def _line_starts(fd: int, base: int, end: int, count: int) -> list[int]:
    """Where the last *count* lines between *base* and *end* begin, in order."""
    starts: list[int] = []
    position = end - 1  # the last byte ends a line or belongs to it; it never begins another
    while len(starts) < count and position > base:
        begin = max(position - _CHUNK, base)
        block = os.pread(fd, position - begin, begin)
        at = len(block)
        while len(starts) < count and (at := block.rfind(b"\n", 0, at)) >= 0:
            starts.append(begin + at + 1)
        position = begin
    if len(starts) < count and end > base:
        starts.append(base)
    return starts[::-1]
