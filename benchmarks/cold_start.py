"""
From the start of a process to the answer to its first RunTask, beside plain boto3 and aioboto3 that do the same.

Every side is a process of its own, in turns (A B A B): see `benchmarks._cold` for what each does. The fake AWS answers
in yet another process, behind TLS: each side has to read as many certificates as botocore brings. CPU seconds and
memory are medians; instructions, where valgrind is installed, are the same to 1 % whatever else the machine does. All
sides have their byte code, as Lambda's should.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs
import botocore

from benchmarks import _cold
from benchmarks._account import account
from benchmarks._clients import KEY, definition
from benchmarks._report import Row
from fargate_runner.cli._bundle import Wanted, build

_GRIND: Final = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
_WAYS: Final[tuple[str, ...]] = ("boto3", "aioboto3", "ours", "handler", "bundle")
_CPU_GOAL: Final = 0.75
_STALL_GOAL: Final = 0.25


@attrs.frozen
class _Place:
    """Where all sides launch, and what of the environment they get."""

    url: str
    definition: str
    env: Mapping[str, str]

    task: Path
    """A bundle, unpacked."""

    def run(self, way: str, *under: str) -> subprocess.CompletedProcess[str]:
        if way == "bundle":  # what `fargate-runner bundle` builds, with its own byte code
            code = f"import sys; sys.path.insert(0, {str(self.task)!r}); import _cold"
            words = ["-I", "-c", f"{code}; _cold.WAYS['handler']({self.url!r}, {self.definition!r})"]
        else:
            words = ["-m", "benchmarks._cold", way, self.url, self.definition]
        command = [*under, sys.executable, *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True)

    def figures(self, way: str) -> tuple[float, ...]:
        """Return CPU seconds, peak KiB and modules; of a stall, its seconds."""
        return tuple(map(float, self.run(way).stdout.split()))

    def instructions(self, way: str) -> float:
        found = re.search(r"I\s+refs:\s+([\d,]+)", self.run(way, *_GRIND).stderr)
        assert found is not None
        return float(found[1].replace(",", "")) / 1e6


def _rows(name: str, unit: str, by_way: Mapping[str, float], goal: float | None = None) -> list[Row]:
    rows = []
    for way in ("ours", "handler", "bundle"):
        mine = f"cold start, {way}: {name}"
        rows.append(Row(mine, by_way[way], by_way["aioboto3"], unit, "aioboto3", goal))
        rows.append(Row(mine, by_way[way], by_way["boto3"], unit, "boto3"))
    return rows


@contextmanager
def _behind_tls(url: str, scratch: Path) -> Generator[tuple[str, Path]]:
    """Stand before *url* with a certificate of our own; yield its URL and a bundle that has botocore's and ours."""
    key, certificate, bundle = scratch / "key.pem", scratch / "certificate.pem", scratch / "bundle.pem"
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost")
    named = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate))
    subprocess.run([*made, *named], check=True, capture_output=True)
    bundle.write_bytes(Path(botocore.__file__).with_name("cacert.pem").read_bytes() + certificate.read_bytes())
    command = [sys.executable, "-m", "benchmarks.cold_start", url, str(certificate), str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"https://127.0.0.1:{int(process.stdout.readline())}", bundle
        finally:
            process.kill()


async def _forward(url: str, certificate: str, key: str) -> None:
    there = urlsplit(url)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection(there.hostname, there.port)
        await asyncio.gather(carry(reader, out), carry(back, writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def run(*, rounds: int = 11, instructions: bool = True) -> list[Row]:
    """Measure."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        aws = stack.enter_context(account(quotas="none", life="forever"))
        os.environ.update(KEY)
        arn = definition(aws.url)
        url, bundle = stack.enter_context(_behind_tls(aws.url, scratch))
        env = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": str(scratch), "AWS_CA_BUNDLE": str(bundle)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        place = _Place(url, arn, env, scratch / "task")
        archive = build(Wanted(sources=(Path(_cold.__file__),)), scratch / "lambda.zip")
        shutil.unpack_archive(archive.path, place.task)
        for way in _WAYS:
            place.run(way)  # writes the byte code
        turns = [[place.figures(way) for way in _WAYS] for _ in range(rounds)]
        columns = list(zip(*turns, strict=True))
        middle = [[statistics.median(one) for one in zip(*column, strict=True)] for column in columns]
        cpu, peak, modules = (dict(zip(_WAYS, figure, strict=True)) for figure in zip(*middle, strict=True))
        rows = _rows("CPU", "ms", {way: seconds * 1e3 for way, seconds in cpu.items()}, _CPU_GOAL)
        if instructions and shutil.which("valgrind"):
            rows += _rows("instructions", "M", {way: place.instructions(way) for way in _WAYS}, _CPU_GOAL)
        rows += _rows("peak memory", "MiB", {way: kib / 1024 for way, kib in peak.items()})
        rows += _rows("modules loaded", "", modules)
        rows.append(Row("bundle, zipped", archive.zipped / 2**20, archive.plain_zipped / 2**20, "MiB", "plain install"))
        rows.append(
            Row("bundle, unpacked", archive.unpacked / 2**20, archive.plain_unpacked / 2**20, "MiB", "plain install")
        )
        stalls = [(place.figures("ours-stall"), place.figures("aioboto3-stall")) for _ in range(rounds)]
        ours, theirs = (min(column)[0] * 1e3 for column in zip(*stalls, strict=True))
        against = "aioboto3 imported and used in the loop"
        rows.append(Row("cold start, longest stall of a running loop", ours, theirs, "ms", against, _STALL_GOAL))
    return rows


if __name__ == "__main__":
    asyncio.run(_forward(*sys.argv[1:]))
