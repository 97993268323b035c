"""
Jobs from AWS Lambda: a handler that starts, waits and leaves, and a stable key for whatever triggered it.

::

    def make_runner() -> Runner:
        return Runner(EcsBackend("jobs", …), journal=DynamoDBJournal("fargate-jobs"))


    @lambda_handler(runner=make_runner)
    async def handler(event, context, runner):
        async def convert(trigger):
            return await wait(await runner.submit(Job(image=…, command=[trigger.object.key], key=trigger.key)))

        return await for_each(event, convert)

A job that outlives the call is seen to its end by another function, from ECS's events::

    @lambda_handler(runner=make_runner)
    async def supervise(event, context, runner):
        return await on_task_event(event, runner, notify="arn:aws:sqs:…:jobs-done")

Importing this loads none of its parts: each name is fetched at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fargate_runner.aws_lambda._handler import Handler, OutOfTime, StillRunning, for_each, lambda_handler, wait
    from fargate_runner.aws_lambda._supervisor import on_task_event, submit_with_callback
    from fargate_runner.aws_lambda._triggers import S3Object, Trigger, make_key, triggers_of

__all__ = [
    "Handler",
    "OutOfTime",
    "S3Object",
    "StillRunning",
    "Trigger",
    "for_each",
    "lambda_handler",
    "make_key",
    "on_task_event",
    "submit_with_callback",
    "triggers_of",
    "wait",
]

_HOMES = {
    "_handler": ("Handler", "OutOfTime", "StillRunning", "for_each", "lambda_handler", "wait"),
    "_supervisor": ("on_task_event", "submit_with_callback"),
    "_triggers": ("S3Object", "Trigger", "make_key", "triggers_of"),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
