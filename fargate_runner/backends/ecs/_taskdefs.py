"""
Task definitions: found by the hash of their content, registered where there is none, pinned to one revision.

RegisterTaskDefinition sustains one call a second for a whole account, so a definition is registered once for all jobs
that can share it. The family's name ends in the hash: one cheap look tells whether it is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Self

import anyio
import attrs

from fargate_runner._errors import BackendError, InvalidJob, LaunchRejected
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble

__all__ = ["Definition", "TaskDefinitions"]

_HASH_TAG: Final = "fargate-runner:definition"
"""Marks what we registered, and so what we may deregister."""
_NAMESPACE_TAG: Final = "fargate-runner:namespace"
"""Whose it is: the name of a family does not tell, "fr-a-b-c" may belong to "a" or "a-b"."""

_LONGEST_FAMILY: Final = 255


@attrs.frozen(kw_only=True)
class Definition:
    """One pinned revision, and what a launch has to know of it."""

    arn: str
    body: Mapping[str, Any] = attrs.field(repr=False)
    """As AWS describes it."""
    ours: bool
    """Registered by this library: may be registered again, and pruned."""

    @classmethod
    def draft(cls, body: Mapping[str, Any]) -> Self:
        """Return what *body* would be, to see what a launch of it looks like."""
        return cls(arn="", body=body, ours=True)


class TaskDefinitions:
    """What is registered, as far as this process knows."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[str, Definition] = {}
        self._locks: dict[str, anyio.Lock] = {}

    async def ensure(self, body: Mapping[str, Any], *, namespace: str, job_name: str) -> Definition:
        """
        Return the definition that holds *body*: the one that is there, or a new revision. One call at a time for each.

        :raises LaunchRejected: AWS refuses the body
        :raises BackendError: AWS could not be asked
        """
        content = _wire.definition_hash(body)
        family = _family(namespace, job_name, content)
        async with self._lock(family):
            known = self._known.get(family)
            if known is None:
                known = await self._look_up(family, content)
                known = known or await self._register(family, content, namespace, body)
                self._known[family] = known
        return known

    async def pinned(self, name: str) -> Definition:
        """
        Return the revision that *name* (``family``, ``family:revision`` or an ARN) means now.

        :raises InvalidJob: there is none, or it is no longer active
        :raises BackendError: AWS could not be asked
        """
        async with self._lock(name):
            known = self._known.get(name)
            if known is None:
                known = await self._describe(name)
                if known is None:
                    fix = "register it, or name an active one as 'family' or 'family:revision'"
                    raise InvalidJob("ecs.task_definition", name, "ECS knows no active definition of this name", fix)
                if _names_a_revision(name):  # a bare family may get a new revision at any time
                    self._known[name] = known
        return known

    async def described(self, arn: str) -> Definition | None:
        """Return the definition of *arn*, whatever its state; None if AWS does not tell."""
        async with self._lock(arn):
            if arn not in self._known:
                try:
                    found = await self._describe(arn, any_state=True)
                except BackendError:
                    return None
                if found is None:
                    return None
                self._known[arn] = found
        return self._known[arn]

    def distrust(self, arn: str) -> None:
        """Look *arn* up again next time: AWS said that it is no longer active."""
        for name in [name for name, known in self._known.items() if known.arn == arn]:
            del self._known[name]

    async def prune(
        self, namespace: str, *, unused_since: timedelta, utcnow: Callable[[], datetime], in_use: frozenset[str]
    ) -> list[str]:
        """
        Deregister revisions that this library registered for *namespace* longer than *unused_since* ago.

        Those in *in_use*, and those that this process has used, stay. Returns the ARNs of what is gone.
        """
        used = in_use | {known.arn for known in self._known.values()}
        pruned: list[str] = []
        for family in await self._families(f"fr-{namespace}-"):
            found = await self._describe(family)
            if found is None or not found.ours or found.arn in used:
                continue
            if _tags(found.body).get(_NAMESPACE_TAG) != namespace:
                continue
            registered = _wire.registered_at(found.body)
            if registered is None or utcnow() - registered < unused_since:
                continue
            await self._api.call("ecs.DeregisterTaskDefinition", taskDefinition=found.arn)
            pruned.append(found.arn)
        return pruned

    async def _families(self, prefix: str) -> list[str]:
        # All of them first: pages that are read while families end may skip some.
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = await self._api.call(
                "ecs.ListTaskDefinitionFamilies", familyPrefix=prefix, status="ACTIVE", maxResults=100, **token
            )
            found += page.get("families") or ()
            if not page.get("nextToken"):
                return found
            token = {"nextToken": page["nextToken"]}

    def _lock(self, name: str) -> anyio.Lock:
        return self._locks.setdefault(name, anyio.Lock())

    async def _look_up(self, family: str, content: str) -> Definition | None:
        found = await self._describe(family)
        # The tag is proof that the latest revision is the one that we mean: anybody may register into a family.
        return found if found is not None and _tags(found.body).get(_HASH_TAG) == content else None

    async def _describe(self, name: str, *, any_state: bool = False) -> Definition | None:
        try:
            reply = await self._api.call("ecs.DescribeTaskDefinition", taskDefinition=name, include=["TAGS"])
        except ApiError as exc:
            if exc.trouble in {Trouble.NOT_FOUND, Trouble.INVALID}:  # ClientException: Unable to describe …
                return None
            raise
        body = _described(reply, "DescribeTaskDefinition")
        if not any_state and body.get("status") != "ACTIVE":
            return None
        return Definition(arn=body["taskDefinitionArn"], body=body, ours=_HASH_TAG in _tags(body))

    async def _register(self, family: str, content: str, namespace: str, body: Mapping[str, Any]) -> Definition:
        tags = [{"key": _HASH_TAG, "value": content}, {"key": _NAMESPACE_TAG, "value": namespace}]
        try:
            reply = await self._api.call("ecs.RegisterTaskDefinition", family=family, tags=tags, **body)
        except ApiError as exc:
            if exc.trouble in {Trouble.INVALID, Trouble.DENIED, Trouble.NOT_FOUND}:
                advice = _wire.launch_error(exc.code or "", exc.aws_message).advice
                said = f"ECS refuses the task definition of this job: {exc}; {advice}"
                raise LaunchRejected(said, operation=exc.operation, code=exc.code) from exc
            raise
        registered = _described(reply, "RegisterTaskDefinition")
        return Definition(arn=registered["taskDefinitionArn"], body=registered, ours=True)


def _described(reply: Mapping[str, Any], operation: str) -> dict[str, Any]:
    """Return the definition that a reply tells of, with its tags."""
    body = reply.get("taskDefinition")
    if not isinstance(body, Mapping) or not isinstance(body.get("taskDefinitionArn"), str):
        said = f"ECS answered {operation} with something that is no task definition"
        raise BackendError(said, operation=operation, retryable=True)
    return {**body, "tags": reply.get("tags") or []}


def _family(namespace: str, job_name: str, content: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", job_name)
    start = f"fr-{namespace}-"
    room = _LONGEST_FAMILY - len(start) - 13
    return f"{start}{name[:room]}-{content[:12]}"


def _names_a_revision(name: str) -> bool:
    return name.rpartition(":")[2].isdigit()


def _tags(body: Mapping[str, Any]) -> dict[str, str]:
    return {tag.get("key", ""): tag.get("value", "") for tag in body.get("tags") or ()}
