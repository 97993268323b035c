"""
The task metadata endpoint, version 4: what code on Fargate reads at ``$ECS_CONTAINER_METADATA_URI_V4``.

A small HTTP server on the address at which containers see this machine. It lives as long as the backend is open. Each
container has a path of its own that cannot be guessed; documents are made from what the engine says at that moment.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs

from fargate_runner._errors import BackendError
from fargate_runner.backends.docker._spec import LABEL, moment

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["MetadataServer", "container_document", "stats_document", "task_document"]

_MIB: Final = 1 << 20
_STATES: Final = {
    "created": "CREATED",
    "running": "RUNNING",
    "paused": "RUNNING",
    "exited": "STOPPED",
    "dead": "STOPPED",
}


@attrs.frozen(kw_only=True)
class Asked:
    """What one path stands for."""

    token: str
    container: str


class MetadataServer:
    """Serves the documents. *inspect* returns a task's containers as the engine tells them, *stats* figures of one."""

    def __init__(
        self,
        inspect: Callable[[str], Awaitable[Sequence[Mapping[str, Any]]]],
        stats: Callable[[str], Awaitable[Mapping[str, Any] | None]],
    ) -> None:
        self._inspect = inspect
        self._stats = stats
        self._paths: dict[str, Asked] = {}
        self._runner: web.AppRunner | None = None
        self._base: str | None = None
        self._before: dict[str, Mapping[str, Any]] = {}

    async def open(self, address: str) -> bool:
        """Listen on *address*. Return False if that is no address of this machine."""
        from aiohttp import web

        app = web.Application()
        app.router.add_get("/v4/{id}", self._container)
        app.router.add_get("/v4/{id}/task", self._task)
        app.router.add_get("/v4/{id}/stats", self._container_stats)
        app.router.add_get("/v4/{id}/task/stats", self._task_stats)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, address, 0)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            return False
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self._base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return True

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = self._base = None

    def add(self, token: str, container: str) -> str | None:
        """Return the address for a container, or None if there is no server."""
        if self._base is None:
            return None
        path = secrets.token_hex(16)
        self._paths[path] = Asked(token=token, container=container)
        return f"{self._base}/v4/{path}"

    def drop(self, token: str) -> None:
        """Forget the containers of a task."""
        for path in [path for path, asked in self._paths.items() if asked.token == token]:
            del self._paths[path]

    async def _found(self, request: web.Request) -> tuple[Asked, Sequence[Mapping[str, Any]]]:
        from aiohttp import web

        asked = self._paths.get(request.match_info["id"])
        if asked is None:
            raise web.HTTPNotFound(text="unknown container")
        try:
            found = await self._inspect(asked.token)
        except BackendError as exc:
            raise web.HTTPInternalServerError(text="the engine does not answer") from exc
        if not any(_name(part) == asked.container for part in found):
            raise web.HTTPNotFound(text="this container is gone")
        return asked, found

    async def _container(self, request: web.Request) -> web.Response:
        from aiohttp import web

        asked, found = await self._found(request)
        own = next(part for part in found if _name(part) == asked.container)
        return web.json_response(container_document(own, found))

    async def _task(self, request: web.Request) -> web.Response:
        from aiohttp import web

        _, found = await self._found(request)
        return web.json_response(task_document(found))

    async def _container_stats(self, request: web.Request) -> web.Response:
        from aiohttp import web

        asked, found = await self._found(request)
        own = next(part for part in found if _name(part) == asked.container)
        return web.json_response(await self._figures(own))

    async def _task_stats(self, request: web.Request) -> web.Response:
        from aiohttp import web

        _, found = await self._found(request)
        figures: dict[str, Any] = {}

        async def ask(part: Mapping[str, Any]) -> None:
            figures[part["Id"]] = await self._figures(part)

        async with anyio.create_task_group() as tasks:
            for part in found:
                if _is_visible(part):
                    tasks.start_soon(ask, part)
        return web.json_response(figures)

    async def _figures(self, part: Mapping[str, Any]) -> dict[str, Any] | None:
        number = part["Id"]
        try:
            found = await self._stats(number)
        except BackendError:
            return None
        before = self._before.get(number)
        if found is not None:
            self._before[number] = found
        return stats_document(found, before)


def _label(part: Mapping[str, Any], name: str) -> str:
    return str(part["Config"]["Labels"].get(f"{LABEL}{name}", ""))


def _name(part: Mapping[str, Any]) -> str:
    return _label(part, "container")


def _is_visible(part: Mapping[str, Any]) -> bool:
    return _label(part, "role") != "pause"


def _arns(part: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the shape that AWS's have: given by whoever runs the job, or of an account that does not exist."""
    if given := _label(part, "task-arn"):
        return _label(part, "cluster-arn"), given
    namespace, token = _label(part, "namespace"), _label(part, "token")
    base = "arn:aws:ecs:local:000000000000"
    return f"{base}:cluster/{namespace}", f"{base}:task/{namespace}/{token[:32]}"


def _definition(part: Mapping[str, Any]) -> tuple[str, str]:
    """Return the family and the revision of the task definition: of the fake AWS, or made up."""
    return _label(part, "family") or _label(part, "namespace"), _label(part, "revision") or "1"


def container_document(part: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``${ECS_CONTAINER_METADATA_URI_V4}`` answers for one container of *group*."""
    cluster, task = _arns(part)
    family, revision = _definition(part)
    state, host = part["State"], part["HostConfig"]
    known = _STATES.get(state["Status"], "RUNNING")
    document: dict[str, Any] = {
        "DockerId": part["Id"],
        "Name": _name(part),
        "DockerName": part["Name"].lstrip("/"),
        "Image": _label(part, "image"),
        "ImageID": part["Image"],
        "Labels": {
            "com.amazonaws.ecs.cluster": cluster,
            "com.amazonaws.ecs.container-name": _name(part),
            "com.amazonaws.ecs.task-arn": task,
            "com.amazonaws.ecs.task-definition-family": family,
            "com.amazonaws.ecs.task-definition-version": revision,
            **{k: v for k, v in part["Config"]["Labels"].items() if not k.startswith(LABEL)},
        },
        "DesiredStatus": "RUNNING" if known != "STOPPED" else "STOPPED",
        "KnownStatus": known,
        "Limits": {
            "CPU": round(host.get("NanoCpus", 0) / 1e9 * 1024),  # CPU units here, vCPUs at the task
            "Memory": host.get("Memory", 0) // _MIB,
        },
        "CreatedAt": part["Created"],
        "Type": "NORMAL",
        "LogDriver": host.get("LogConfig", {}).get("Type", ""),
        "LogOptions": {},
        "ContainerARN": f"{task.replace(':task/', ':container/')}/{part['Id'][:36]}",
        "Networks": _networks(part, group),
        "Snapshotter": part.get("Driver", ""),
    }
    if moment(state.get("StartedAt")):
        document["StartedAt"] = state["StartedAt"]
    if known == "STOPPED":
        document |= {"ExitCode": state["ExitCode"], "FinishedAt": state["FinishedAt"]}
    if health := state.get("Health"):
        document["Health"] = {"status": str(health.get("Status", "")).upper()}
    return document


def _networks(part: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    holder = next((other for other in group if _label(other, "role") == "pause"), part)
    found = []
    for network in ((holder.get("NetworkSettings") or {}).get("Networks") or {}).values():
        entry: dict[str, Any] = {"NetworkMode": "awsvpc", "IPv4Addresses": [network.get("IPAddress", "")]}
        entry["MACAddress"] = network.get("MacAddress", "")
        if network.get("IPPrefixLen") and network.get("Gateway"):
            entry["IPv4SubnetCIDRBlock"] = f"{network['Gateway'].rpartition('.')[0]}.0/{network['IPPrefixLen']}"
            entry["SubnetGatewayIpv4Address"] = f"{network['Gateway']}/{network['IPPrefixLen']}"
        found.append(entry)
    return found


def task_document(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``${ECS_CONTAINER_METADATA_URI_V4}/task`` answers."""
    visible = [part for part in group if _is_visible(part)]
    job = next((part for part in visible if _label(part, "role") == "job"), visible[0])
    cluster, task = _arns(job)
    family, revision = _definition(job)
    known = _STATES.get(job["State"]["Status"], "RUNNING")
    document: dict[str, Any] = {
        "Cluster": cluster,
        "TaskARN": task,
        "Family": family,
        "Revision": revision,
        "DesiredStatus": "RUNNING" if known != "STOPPED" else "STOPPED",
        "KnownStatus": known,
        "Limits": {
            "CPU": job["HostConfig"].get("NanoCpus", 0) / 1e9,
            "Memory": job["HostConfig"].get("Memory", 0) // _MIB,
        },
        "PullStartedAt": job["Created"],
        "PullStoppedAt": job["Created"],
        "AvailabilityZone": "local",
        "LaunchType": "FARGATE",
        "Containers": [container_document(part, group) for part in visible],
        "EphemeralStorageMetrics": {"Utilized": 0, "Reserved": 20496},
    }
    if known == "STOPPED":
        document["ExecutionStoppedAt"] = job["State"]["FinishedAt"]
    return document


def stats_document(figures: Mapping[str, Any] | None, before: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """
    Return the engine's figures of one container, with the rates that ECS adds; None while there are none.

    The rates are means since *before*, the figures that were asked for last.
    """
    if not figures or not (now := moment(figures.get("read"))):
        return None
    rates = {"rx_bytes_per_sec": 0.0, "tx_bytes_per_sec": 0.0}
    then = moment(before.get("read")) if before else None
    if before is not None and then is not None and now > then:
        seconds = (now - then).total_seconds()
        for way in ("rx", "tx"):
            rates[f"{way}_bytes_per_sec"] = (_bytes(figures, way) - _bytes(before, way)) / seconds
    return {**figures, "network_rate_stats": rates}


def _bytes(figures: Mapping[str, Any], way: str) -> int:
    return sum(part.get(f"{way}_bytes", 0) for part in (figures.get("networks") or {}).values())
