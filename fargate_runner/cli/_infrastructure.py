"""What `policy`, `init` and `doctor` do: options become values of `fargate_runner.infrastructure`, and values text."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import anyio
import attrs
import click

from fargate_runner._backend import Backend
from fargate_runner._errors import FargateRunnerError, InvalidJob
from fargate_runner._job import Job
from fargate_runner._runner import Runner
from fargate_runner.backends.ecs import Capacity, EcsBackend, EcsOptions, LogGroup, Network, Roles
from fargate_runner.cli._app import refusal
from fargate_runner.cli._screen import Stream
from fargate_runner.cli._terminal import clean
from fargate_runner.infrastructure import (
    Access,
    Finding,
    Format,
    Stack,
    State,
    caller_policy,
    diagnose,
    doctor_policy,
    execution_policy,
    template,
)
from fargate_runner.infrastructure._stack import FILE_NAMES

__all__ = ["examine", "file_name", "policy_text", "show", "stack_text", "write"]

# Names of fields in the words of the command line.
_OPTIONS: Final[Mapping[str, str]] = {
    "account": "--account",
    "chores": "--also",
    "cluster": "--cluster",
    "concurrency": "--concurrency",
    "definitions": "--definition",
    "ecs.task_definition": "--definition",
    "events": "--events",
    "journal": "--journal",
    "log_group.name": "--log-group",
    "log_group.retention_days": "--retention-days",
    "name": "--name",
    "namespace": "--namespace",
    "network.security_groups": "--security-group",
    "network.subnets": "--subnet",
    "notify": "--notify",
    "read_log_groups": "--read-log-group",
    "region": "--region",
    "roles": "--role",
    "roles.execution": "--execution-role",
    "roles.task": "--task-role",
    "secret_prefix": "--secret-prefix",
    "spill_to": "--spill-to",
    "volume_roles": "--volume-role",
}


def _refused(exc: InvalidJob) -> click.UsageError:
    """Say of an option what the library says of a field."""
    option = _OPTIONS.get(exc.field, exc.field)
    shown = f" {exc.value!r}" if exc.value not in ("", ()) else ""
    return click.UsageError(f"{option}{shown}: {exc.problem}; {exc.fix}")


# ---- policy --------------------------------------------------------------------------------------------------------


def policy_text(
    backends: Mapping[str, Callable[[], Backend]],
    *,
    source: str | None,
    whose: Literal["caller", "doctor", "execution"],
    **options: Any,
) -> str:
    """Return the policy as JSON; asks AWS for account and region if nothing that was said names them."""
    try:
        access = _access(backends, source, options)
    except InvalidJob as exc:
        raise _refused(exc) from None
    return json.dumps(_POLICIES[whose](access), indent=2) + "\n"


_POLICIES: Final = {"caller": caller_policy, "doctor": doctor_policy, "execution": execution_policy}


def _access(backends: Mapping[str, Callable[[], Backend]], source: str | None, options: Mapping[str, Any]) -> Access:
    backend, journal, namespace = _in_use(source) if source is not None else (EcsBackend(), None, None)
    cluster = options["cluster"] or backend.cluster
    if not cluster:
        raise click.UsageError("--cluster: none was said; say --cluster NAME, or set FARGATE_RUNNER_CLUSTER")
    roles = [options["execution_role"], options["task_role"], *options["roles"]]
    told = [cluster, *roles, *_roles_of(backend)]
    region = options["region"] or _part(3, [cluster]) or backend.api.region or _region_here()
    account = options["account"] or _part(4, told)
    if not region or not account:
        found = _asked(backends["ecs"] if source is None else lambda: backend, region)
        region, account = region or found[0], account or found[1]
    more: dict[str, Any] = {
        field: options[field]
        for field in ("definitions", "read_log_groups", "volume_roles", "events", "spill_to", "secret_prefix", "tags")
        if options[field]
    }
    more |= {"cluster": cluster, "region": region, "namespace": options["namespace"] or namespace}
    more |= {"roles": [role for role in roles if role], "log_group": _log_group(backend.log_group, options)}
    more |= {"chores": options["also"], "journal": options["journal"] or journal, "account": account}
    if options["existing_only"]:
        more["derives"] = False
    return Access.of(backend, **more)


def _in_use(source: str) -> tuple[EcsBackend, Any, str | None]:
    """Return the backend that *source* gives, and journal and namespace if it is a runner's."""
    found = _loaded(source)
    runner = found if isinstance(found, Runner) else None
    backend = runner.backend if runner is not None else found
    if not isinstance(backend, EcsBackend):
        given = type(backend).__name__
        raise click.UsageError(f"--from {source!r}: it gives a {given}; name an EcsBackend, or a Runner on one")
    return (backend, None, None) if runner is None else (backend, runner.journal, runner.namespace)


def _loaded(source: str, option: str = "--from") -> Any:
    module, colon, name = source.partition(":")
    if not (module and colon and name):
        raise click.UsageError(f"{option} {source!r}: not a place in Python; write it like app:make_runner")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)

        async def make() -> Any:  # a Runner is made in an event loop
            return found()

        return anyio.run(make) if callable(found) else found
    except Exception as exc:
        said = f"{type(exc).__name__}: {exc}"
        raise click.UsageError(
            f"{option} {source!r}: it cannot be loaded ({said}); correct it, or leave it out"
        ) from exc
    finally:
        sys.path.remove(here)


def _roles_of(backend: EcsBackend) -> list[str | None]:
    roles = backend.options.roles
    return [] if roles is None else [roles.execution, roles.task]


def _part(number: int, arns: Iterable[str | None]) -> str:
    """Return a part of the first ARN that has it: 3 is the region, 4 the account."""
    parts = [arn.split(":") for arn in arns if arn and arn.startswith("arn:")]
    return next((part[number] for part in parts if len(part) > number and part[number]), "")


def _region_here() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""


def _asked(make: Callable[[], Backend], region: str) -> tuple[str, str]:
    """Return region (the one that was said, if it was) and account of the credentials in use."""
    fix = "say --region NAME and --account NUMBER, or give credentials (aws configure)"

    async def ask() -> tuple[str, str]:
        backend = make()
        assert isinstance(backend, EcsBackend)
        backend.api._region_said = backend.api._region_said or region
        async with backend._door() as api:
            return api.region, await api.account()

    try:
        found = anyio.run(ask)
    except (FargateRunnerError, OSError) as exc:
        raise click.UsageError(f"--account: AWS does not tell it ({exc}); {fix}") from None
    if not found[1]:
        raise click.UsageError(f"--account: AWS does not tell it; {fix}")
    return found


def _log_group(known: LogGroup, options: Mapping[str, Any]) -> LogGroup:
    changes: dict[str, Any] = {}
    if options["log_group"]:
        changes["name"] = options["log_group"]
    if options["retention_days"] is not None:
        changes["retention_days"] = options["retention_days"]
    if options["log_group_is_there"]:
        changes["create"] = False
    return attrs.evolve(known, **changes)


# ---- doctor --------------------------------------------------------------------------------------------------------


def examine(
    backends: Mapping[str, Callable[[], Backend]],
    *,
    source: str | None,
    job_source: str | None,
    image: str | None,
    size: Mapping[str, Any],
    journal: str | None,
    namespace: str | None,
    concurrency: int,
    also: Sequence[Any],
    **place: Any,
) -> tuple[Finding, ...]:
    """Return what the doctor finds in the place that options or code say, for the job that they say."""
    try:
        job = _job_of(job_source, image, size, place["definition"])
        more: dict[str, Any] = {"concurrency": concurrency, "chores": also}
        if source is None:
            backend, used, used_namespace = _place_of(backends["ecs"], place), None, None
            more["discover"] = True  # as for "run --backend ecs"
        else:
            _refuse_beside("--from", source, {name: value for name, value in place.items() if value})
            backend, used, used_namespace = _in_use(source)

        async def look() -> tuple[Finding, ...]:
            whose = namespace or used_namespace or "default"
            return await diagnose(backend, job=job, journal=journal or used, namespace=whose, **more)

        return anyio.run(look)
    except InvalidJob as exc:
        raise _refused(exc) if exc.field in _OPTIONS else click.UsageError(refusal(exc)) from None


def _job_of(source: str | None, image: str | None, size: Mapping[str, Any], definition: str | None) -> Job | None:
    said = {name: value for name, value in size.items() if value is not None}
    if source is not None:
        _refuse_beside("--job", source, said | ({"image": image} if image else {}))
        found = _loaded(source, "--job")
        if not isinstance(found, Job):
            raise click.UsageError(f"--job {source!r}: it gives a {type(found).__name__}; name a Job")
        return found
    if definition is not None:
        if image is not None:
            raise click.UsageError(f"IMAGE {image!r}: --definition says its own; leave one of the two out")
        return Job(ecs=EcsOptions(task_definition=definition), **said) if said else None
    if image is None:
        if said:
            raise click.UsageError(f"{_option(min(said))}: of a job without an image; say IMAGE too, or leave it out")
        return None
    return Job(image=image, **said)


def _refuse_beside(option: str, value: str, said: Mapping[str, Any]) -> None:
    if said:
        raise click.UsageError(f"{_option(min(said))}: {option} {value!r} says it already; leave one of the two out")


def _option(parameter: str) -> str:
    """Return the option, or the argument, that gives a parameter of `doctor`."""
    by_parameter = {
        "image": "IMAGE",
        "memory_gib": "--memory",
        "subnets": "--subnet",
        "security_groups": "--security-group",
    }
    return by_parameter.get(parameter, f"--{parameter.replace('_', '-')}")


def _place_of(make: Callable[..., Backend], place: Mapping[str, Any]) -> EcsBackend:
    """Return a backend of which the options say something; what they do not say is looked for."""
    names = ("region", "events", "spill_to", "secret_prefix")
    said: dict[str, Any] = {name: place[name] for name in names if place[name]}
    if place["cluster"]:
        said["cluster"] = place["cluster"]
    if place["subnets"]:
        groups, public = place["security_groups"], bool(place["public_ip"])
        said["network"] = Network(subnets=place["subnets"], security_groups=groups, public_ip=public)
    elif place["security_groups"] or place["public_ip"]:
        option = _option("security_groups" if place["security_groups"] else "public_ip")
        raise click.UsageError(f"{option}: of which subnets? Say --subnet ID too, or leave it out")
    if place["execution_role"] or place["task_role"]:
        said["roles"] = Roles(execution=place["execution_role"], task=place["task_role"])
    if place["log_group"] or place["log_group_is_there"]:
        name = place["log_group"] or LogGroup().name
        said["log_group"] = LogGroup(name=name, create=not place["log_group_is_there"])
    if place["spot"]:
        said["capacity"] = Capacity.spot()
    if place["definition"]:
        said["options"] = EcsOptions(task_definition=place["definition"])
    backend = make(**said)
    assert isinstance(backend, EcsBackend)
    return backend


# How each state is shown: the word, and its colour on a terminal.
_MARKS: Final[Mapping[State, tuple[str, str]]] = {
    State.OK: ("ok", "green"),
    State.WARNING: ("warning", "yellow"),
    State.FAILED: ("FAILED", "red"),
    State.UNKNOWN: ("unknown", "yellow"),
}


def show(found: Sequence[Finding], *, as_json: bool, colours: bool) -> int:
    """Write findings to stdout, a line for each and one for what to do, or as JSON; return the exit code."""
    code = int(any(finding.state is State.FAILED for finding in found))
    out = Stream(sys.stdout, colours=colours)
    if as_json:
        shown = [{**attrs.asdict(finding), "state": finding.state.value} for finding in found]
        out.write_trusted(json.dumps(shown, indent=2) + "\n")
        return code
    colours = colours and out.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for finding in found:
        mark, colour = _MARKS[finding.state]
        word = click.style(f"{mark:<8}", fg=colour) if colours else f"{mark:<8}"
        lines = [f"{word} {out.fenced(clean(f'{finding.check}: {finding.seen}'))}"]
        if finding.todo:
            lines.append(f"{'':8} to do: {out.fenced(clean(finding.todo))}")
        out.write_trusted("\n".join(lines) + "\n")
    counts = [(sum(one.state is state for one in found), mark) for state, (mark, _) in _MARKS.items()]
    out.write_trusted("\n" + ", ".join(f"{count} {mark.lower()}" for count, mark in counts if count) + "\n")
    return code


# ---- init ----------------------------------------------------------------------------------------------------------


def stack_text(form: Format, **fields: Any) -> str:
    """Return the infrastructure as text."""
    try:
        return template(Stack(**fields), form)
    except InvalidJob as exc:
        raise _refused(exc) from None


def write(text: str, out: str | None, *, file_name: str, force: bool) -> None:
    """Write *text* to stdout, or to the file *out*, or into the directory *out* as *file_name*."""
    if out is None or out == "-":
        click.echo(text, nl=False)
        return
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)):
        path /= file_name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as exc:
        if isinstance(exc, FileExistsError) and path.exists():
            raise click.UsageError(f"--out {out!r}: {path} is there already; say --force, or another place") from None
        raise click.UsageError(f"--out {out!r}: {path} cannot be written ({exc.strerror}); say another place") from None
    click.echo(f"fargate-runner: wrote {path}", err=True)


def file_name(form: Format) -> str:
    """Return what a file of that format is called."""
    return FILE_NAMES[form]
