"""What `policy` and `init` do: options become values of `fargate_runner.infrastructure`, and text goes to its place."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import anyio
import attrs
import click

from fargate_runner._backend import Backend
from fargate_runner._errors import FargateRunnerError, InvalidJob
from fargate_runner._runner import Runner
from fargate_runner.backends.ecs import EcsBackend, LogGroup
from fargate_runner.infrastructure import Access, Format, Stack, caller_policy, execution_policy, template
from fargate_runner.infrastructure._stack import FILE_NAMES

__all__ = ["file_name", "policy_text", "stack_text", "write"]

# Names of fields in the words of the command line.
_OPTIONS: Final[Mapping[str, str]] = {
    "account": "--account",
    "chores": "--also",
    "cluster": "--cluster",
    "definitions": "--definition",
    "events": "--events",
    "journal": "--journal",
    "log_group.name": "--log-group",
    "log_group.retention_days": "--retention-days",
    "name": "--name",
    "namespace": "--namespace",
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
    whose: Literal["caller", "execution"],
    **options: Any,
) -> str:
    """Return the policy as JSON; asks AWS for account and region if nothing that was said names them."""
    try:
        access = _access(backends, source, options)
    except InvalidJob as exc:
        raise _refused(exc) from None
    document = caller_policy(access) if whose == "caller" else execution_policy(access)
    return json.dumps(document, indent=2) + "\n"


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


def _loaded(source: str) -> Any:
    module, colon, name = source.partition(":")
    if not (module and colon and name):
        raise click.UsageError(f"--from {source!r}: not a place in Python; write it like app:make_runner")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)

        async def make() -> Any:  # a Runner is made in an event loop
            return found()

        return anyio.run(make) if callable(found) else found
    except Exception as exc:
        said = f"{type(exc).__name__}: {exc}"
        raise click.UsageError(f"--from {source!r}: it cannot be loaded ({said}); correct it, or leave it out") from exc
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
