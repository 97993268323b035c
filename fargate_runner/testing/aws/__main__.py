"""
A fake AWS on a port of this machine, for any AWS client: ``python -m fargate_runner.testing.aws --port 4566 --docker``.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial

import anyio

from fargate_runner._errors import BackendError
from fargate_runner.testing.aws import _moto
from fargate_runner.testing.aws._docker import DockerEngine
from fargate_runner.testing.aws._fake import FakeAws
from fargate_runner.testing.aws._logs import Ingestion
from fargate_runner.testing.aws._script import ContainerRun, ContainerScript, Pace

__all__ = ["main"]

_EPILOG = """\
Without --docker no container runs. A task runs for two seconds and exits 0, unless its command says otherwise: of the
words "sleep SECONDS", "echo TEXT" and "exit CODE", separated by semicolons, alone or in a shell's -c, it does as they
say. Everything else in a command is taken for something that works.

    aws ecs run-task … --overrides '{"containerOverrides":
        [{"name": "main", "command": ["sh", "-c", "echo hello; sleep 5; exit 3"]}]}'
"""


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{number} is no port: they go from 0 to 65535")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fargate_runner.testing.aws",
        description="Answer as AWS does: ECS, CloudWatch Logs, EventBridge, SQS; and by moto, if that is installed, "
        "what else moto knows. Runs until it is stopped.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=_port, default=0, help="0, the default, is one that is free")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)")
    parser.add_argument("--docker", action="store_true", help="tasks are real containers of the local Docker engine")
    parser.add_argument("--network", default="bridge", help="of the containers (default: %(default)s)")
    parser.add_argument("--no-moto", action="store_true", help="answer nothing by moto")
    parser.add_argument("--region", default="us-east-1", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="what chance draws from (default: %(default)s)")
    parser.add_argument(
        "--pace",
        type=float,
        default=0.05,
        metavar="FACTOR",
        help="how slow the platform is: 1 is about as Fargate, 0 takes no time (default: %(default)s)",
    )
    parser.add_argument(
        "--hidden",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="for how long at most a new task is MISSING, as it may be at AWS (default: %(default)s)",
    )
    parser.add_argument(
        "--log-delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long at most until a log line can be read, as at AWS (default: %(default)s)",
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code."""
    options = _parser().parse_args(words)
    try:
        anyio.run(partial(_serve, options))
    except KeyboardInterrupt:
        return 130
    except (BackendError, _Unusable) as exc:
        sys.stderr.write(f"fake AWS: {exc}\n")
        return 1
    return 0


class _Unusable(Exception):
    """The address cannot be used."""


async def _serve(options: argparse.Namespace) -> None:
    engine = DockerEngine(network=options.network, region=options.region) if options.docker else None
    aws = FakeAws(
        region=options.region,
        seed=options.seed,
        engine=engine,
        script=_script,
        pace=Pace().scaled(options.pace),
        visible_after=(0.0, options.hidden),
        ingestion=Ingestion(least=0.0, most=options.log_delay),
    )
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with AsyncExitStack() as stack:
            if engine is not None:
                await stack.enter_async_context(engine.running())
            serving = aws.serve(host=options.host, port=options.port, moto=False if options.no_moto else None)
            try:
                url = await stack.enter_async_context(serving)
            except OSError as exc:
                where = f"port {options.port} of {options.host}"
                if exc.errno == errno.EADDRINUSE:
                    raise _Unusable(f"{where} is taken; choose another --port, or 0 for a free one") from exc
                raise _Unusable(f"cannot listen at {where}: {exc.strerror or exc}") from exc
            _say(url, options)
            async for _ in signals:
                break


def _say(url: str, options: argparse.Namespace) -> None:
    lines = [
        f"fake AWS at {url}",
        f"export AWS_ENDPOINT_URL={url} AWS_REGION={options.region} AWS_DEFAULT_REGION={options.region} "
        "AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test",
    ]
    if not options.no_moto and not _moto.is_installed():
        lines.append("without moto there is no S3, IAM, DynamoDB, …: pip install 'moto[server]' adds them")
    sys.stdout.write("\n".join([*lines, ""]))
    sys.stdout.flush()


def _script(run: ContainerRun) -> ContainerScript:
    """Do as a command says, as far as it is said in simple words."""
    seconds, code, lines = 0.0, 0, list[str]()
    known = False
    for verb, rest in _statements([*run.entry_point, *run.command]):
        if verb == "echo":
            lines.append(rest)
        elif verb == "sleep" and rest.replace(".", "", 1).isdecimal():
            seconds += float(rest)
        elif verb == "exit" and rest.isdecimal():
            code = int(rest) % 256
        else:
            continue
        known = True
        if verb == "exit":
            break
    return ContainerScript(run_for=seconds if known else 2.0, exit_code=code, lines=tuple(lines))


def _statements(words: list[str]) -> Iterator[tuple[str, str]]:
    if "-c" in words[1:-1]:
        words = [words[words.index("-c") + 1]]
    else:
        words = [shlex.join(words)]
    for statement in words[0].replace("&&", ";").replace("\n", ";").split(";"):
        verb, _, rest = statement.strip().partition(" ")
        yield verb, rest.strip().strip("'\"")


if __name__ == "__main__":
    sys.exit(main())
