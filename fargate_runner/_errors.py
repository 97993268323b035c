"""
Everything this library raises, in one tree.

::

    FargateRunnerError
    ├── InvalidJob            a field of a job is refused; names field, value and fix (also a ValueError)
    ├── KeyConflict           the key already names another job; names the difference
    ├── JobNotFound           nothing with this key is known to the backend
    ├── JobFailed             run() or map(): the job ended, and not well; carries the result (in _lifecycle)
    ├── RunnerClosed          the runner or the backend is not open (any more)
    ├── LogsUnavailable       the lines of this job can no longer be read
    ├── JournalError          the journal cannot be read or written, or is not for this runner
    ├── OutOfTime             a Lambda function was ended before its limit (in aws_lambda; also a TimeoutError)
    └── BackendError          the platform could not be asked, or refused; nothing is known about the job
        ├── BackendUnavailable    it cannot be reached at all: engine missing, stopped, no permission
        └── LaunchRejected        it refused the launch; nothing was started
            └── PlacementRefused      it has no room for it now; it may have in a while, or elsewhere

A job that fails is a result, not an exception: only ``run()`` and ``map()`` turn it into one, on request.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "FargateRunnerError",
    "InvalidJob",
    "JobNotFound",
    "JournalError",
    "KeyConflict",
    "LaunchRejected",
    "LogsUnavailable",
    "PlacementRefused",
    "RunnerClosed",
]


class FargateRunnerError(Exception):
    """The root of everything this library raises."""


class InvalidJob(FargateRunnerError, ValueError):
    """
    A field of a job cannot be right, found before anything was sent.

    ``field`` is its name, ``value`` what was given (never a secret), ``fix`` what to write instead.
    """

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        super().__init__(f"{field}={_short(value)}: {problem}; {fix}")
        self.field = field
        self.value = value
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[type[InvalidJob], tuple[str, object, str, str]]:
        return InvalidJob, (self.field, self.value, self.problem, self.fix)


class KeyConflict(FargateRunnerError):
    """The key already names another job. ``difference`` lists the fields that differ."""

    def __init__(self, key: str, difference: tuple[str, ...]) -> None:
        fields = ", ".join(difference) or "its description"
        super().__init__(
            f"key {key!r} already names a job that differs in {fields}; "
            "give the new job a key of its own, or submit the same job to meet the one that exists"
        )
        self.key = key
        self.difference = difference

    def __reduce__(self) -> tuple[type[KeyConflict], tuple[str, tuple[str, ...]]]:
        return KeyConflict, (self.key, self.difference)


class JobNotFound(FargateRunnerError):
    """Nothing with this key is known to the backend."""

    def __init__(self, key: str, backend: str, namespace: str) -> None:
        super().__init__(
            f"no job with key {key!r} in namespace {namespace!r} on backend {backend!r}; check the key and "
            "the namespace, or submit the job: a backend forgets a job some time after its end"
        )
        self.key = key
        self.backend = backend
        self.namespace = namespace

    def __reduce__(self) -> tuple[type[JobNotFound], tuple[str, str, str]]:
        return JobNotFound, (self.key, self.backend, self.namespace)


class RunnerClosed(FargateRunnerError):
    """The runner or the backend is used outside of its ``async with`` block."""


class LogsUnavailable(FargateRunnerError):
    """The lines of this job can no longer be read."""


class JournalError(FargateRunnerError):
    """
    The journal cannot be read or written, or is not for this runner. It is never taken for an empty one.

    ``journal`` names its file or table, ``retryable`` tells whether asking again may help.
    """

    def __init__(self, message: str, *, journal: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.journal = journal
        self.retryable = retryable


class BackendError(FargateRunnerError):
    """
    The platform could not be asked, or refused. It says nothing about how a job ended.

    ``operation`` is what was tried, ``code`` the platform's own word, ``retryable`` whether asking again may help.
    """

    def __init__(
        self, message: str, *, operation: str | None = None, code: str | None = None, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.code = code
        self.retryable = retryable


class BackendUnavailable(BackendError):
    """The platform cannot be reached at all. The message says what to install, start or allow."""


class LaunchRejected(BackendError):
    """The platform refused the launch, and nothing was started."""


class PlacementRefused(LaunchRejected):
    """
    The platform has no room for the launch now. Sent again as another placement, it may find some.

    ``quota`` tells that there is room, but no more for this account: the end of other jobs gives some.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        code: str | None = None,
        retryable: bool = False,
        quota: bool = False,
    ) -> None:
        super().__init__(message, operation=operation, code=code, retryable=retryable)
        self.quota = quota


def _short(value: object, limit: int = 120) -> str:
    """A repr that fits on a line: job descriptions may hold megabytes."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
