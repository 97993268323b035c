"""One container under Fargate's rules, on a real engine."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from fargate_runner import (
    BackendUnavailable,
    Cause,
    DockerBackend,
    Identity,
    InvalidJob,
    Job,
    KeyConflict,
    Phase,
    Secret,
    SecretRef,
)
from fargate_runner.backends.docker import AwsCredentials
from tests.docker.conftest import (
    IMAGE,
    PYTHON,
    containers,
    docker,
    end_of,
    first_line,
    inspected,
    launched,
    shell,
    texts_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.anyio]

TWO_SECONDS = timedelta(seconds=2)
EATER = "a = bytearray(700 << 20)"


# ---- memory and CPU ------------------------------------------------------------------------------------------------


async def test_a_process_over_its_memory_is_told_as_out_of_memory(backend: DockerBackend, key: str) -> None:
    job = Job(image=PYTHON, command=["python3", "-c", EATER], memory_gib=0.5)

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.OUT_OF_MEMORY, 137)
    assert "0.5 GiB" in end.reason


async def test_a_killed_child_is_out_of_memory_though_the_exit_code_is_0(backend: DockerBackend, key: str) -> None:
    job = Job(image=PYTHON, command=["sh", "-c", f"python3 -c '{EATER}'; exit 0"], memory_gib=0.5)

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.OUT_OF_MEMORY, 0)


async def test_another_137_is_not_out_of_memory(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("sh -c 'kill -9 $$'; exit 137"), key) as ref:
        end = await end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 137)


async def test_memory_is_a_hard_limit_without_swap(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("sleep 60", vcpu=0.5, memory_gib=2), key) as ref:
        await running(backend, ref)
        host = inspected(ref.address)["HostConfig"]

    assert host["Memory"] == host["MemorySwap"] == 2 << 30
    assert host["NanoCpus"] == 500_000_000


async def test_a_job_larger_than_the_machine_gets_all_of_its_cpus(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("exit 0", vcpu=16, memory_gib=32), key) as ref:
        end = await end_of(backend, ref)

    assert end.exit_code == 0


# ---- stopping ------------------------------------------------------------------------------------------------------


async def test_a_job_that_ignores_sigterm_is_killed_after_its_stop_timeout(backend: DockerBackend, key: str) -> None:
    job = shell("trap '' TERM; echo ready; while :; do sleep 1; done", stop_timeout=TWO_SECONDS)

    async with launched(backend, job, key) as ref:
        await first_line(backend, ref)
        asked = anyio.current_time()
        await backend.stop(ref, reason="enough")
        end = await end_of(backend, ref)
        waited = anyio.current_time() - asked

    assert (end.cause, end.exit_code, end.reason) == (Cause.STOPPED_ON_REQUEST, 137, "enough")
    assert waited >= 2


async def test_the_init_process_passes_sigterm_on(backend: DockerBackend, key: str) -> None:
    # As process 1, sleep would ignore it.
    async with launched(backend, Job(image=IMAGE, command=["sleep", "60"]), key) as ref:
        await running(backend, ref)
        await backend.stop(ref, reason="enough")
        end = await end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.STOPPED_ON_REQUEST, 143)


async def test_the_init_process_reaps_orphans(backend: DockerBackend, key: str) -> None:
    script = "sh -c 'sleep 0.1 & exec true'; sleep 0.5; ps -o stat | grep -c Z"

    async with launched(backend, shell(script), key) as ref:
        assert await texts_of(backend, ref) == ["0"]


async def test_a_stop_before_the_start_wins(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("sleep 60"), key) as ref:
        snapshot = await backend.observe(ref)
        await backend.stop(ref, reason="changed my mind")
        end = await end_of(backend, ref)

    assert snapshot.phase < Phase.RUNNING
    assert (end.cause, end.started_at) == (Cause.STOPPED_ON_REQUEST, None)
    assert containers(ref.token) == []


@pytest.mark.parametrize("moment", range(12))
async def test_a_stop_at_any_moment_of_the_launch_wins(backend: DockerBackend, key: str, moment: int) -> None:
    async with launched(backend, Job(image=IMAGE, command=["sleep", "60"]), key) as ref:
        await anyio.sleep(0.004 * moment**2)
        await backend.stop(ref, reason="changed my mind")
        end = await end_of(backend, ref)
        running = docker("ps", "--quiet", "--filter", f"label=fargate-runner.token={ref.token}")

    assert end.cause is Cause.STOPPED_ON_REQUEST
    assert running == ""


async def test_a_container_stopped_by_hand_has_not_just_exited(backend: DockerBackend, key: str) -> None:
    # It takes SIGTERM politely and exits with 0, its work undone.
    async with launched(backend, shell("trap 'exit 0' TERM; echo ready; sleep 60 & wait"), key) as ref:
        await first_line(backend, ref)
        await anyio.to_thread.run_sync(docker, "stop", ref.address)
        end = await end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.STOPPED_ON_REQUEST, 0)


async def test_a_container_removed_by_hand_has_vanished(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("sleep 60"), key) as ref:
        await running(backend, ref)
        await anyio.to_thread.run_sync(docker, "rm", "--force", ref.address)
        end = await end_of(backend, ref)

    assert end.cause is Cause.VANISHED


# ---- starting ------------------------------------------------------------------------------------------------------


class FakeRegistry(http.server.BaseHTTPRequestHandler):
    """Answers every request with the same status and body."""

    status = 404
    code = "MANIFEST_UNKNOWN"

    def do_GET(self) -> None:
        body = json.dumps({"errors": [{"code": self.code, "message": self.code.replace("_", " ").lower()}]}).encode()
        is_ping = self.path == "/v2/" and self.status == 404
        self.send_response(200 if is_ping else self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 (the name in the base class)
        """Say nothing."""


@contextmanager
def registry(status: int, code: str) -> Generator[str]:
    handler = type("Handler", (FakeRegistry,), {"status": status, "code": code})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "said", "transient"),
    [
        (404, "MANIFEST_UNKNOWN", "there is no image", False),
        (401, "UNAUTHORIZED", "refused to give out", False),
        (429, "TOOMANYREQUESTS", "refuses more pulls", True),
        (503, "UNAVAILABLE", "could not be reached", True),
    ],
)
async def test_a_registrys_refusal_is_told_in_plain_words(
    backend: DockerBackend, key: str, status: int, code: str, said: str, transient: bool
) -> None:
    with registry(status, code) as host:
        async with launched(backend, Job(image=f"{host}/nothing/here:1", command=["true"]), key) as ref:
            end = await end_of(backend, ref)

    assert (end.cause, end.transient) == (Cause.COULD_NOT_START, transient), end
    assert said in end.reason
    assert end.advice


async def test_a_registry_that_is_not_there_may_be_there_later(backend: DockerBackend, key: str) -> None:
    async with launched(backend, Job(image="127.0.0.1:1/nothing/here:1", command=["true"]), key) as ref:
        end = await end_of(backend, ref)

    assert (end.cause, end.transient) == (Cause.COULD_NOT_START, True)
    assert "could not be reached" in end.reason


@pytest.mark.parametrize(
    ("job", "said", "code"),
    [
        (Job(image=IMAGE, command=["/no/such/program"]), "was not found", 127),
        (Job(image=IMAGE, command=["nosuch"]), "was not found", 127),
        (Job(image=IMAGE, command=["/etc/passwd"]), "cannot be executed", 126),
        (Job(image=IMAGE, command=["true"], working_directory="/etc/passwd"), "working directory", None),
        (Job(image=IMAGE, command=["true"], architecture="ARM64"), "another platform", None),
    ],
    ids=["path", "name", "file", "directory", "platform"],
)
async def test_what_cannot_start_says_why(
    backend: DockerBackend, key: str, job: Job, said: str, code: int | None
) -> None:
    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)
        lines = await texts_of(backend, ref)

    assert (end.cause, end.exit_code, end.started_at) == (Cause.COULD_NOT_START, code, None), end
    assert said in end.reason
    assert end.transient is False
    assert lines == []


async def test_a_shells_own_127_is_an_exit(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("nosuch"), key) as ref:
        end = await end_of(backend, ref)
        (line,) = await texts_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 127)
    assert "nosuch" in line


async def test_words_like_the_init_processs_are_output_if_the_job_runs(backend: DockerBackend, key: str) -> None:
    words = "[FATAL tini (7)] exec me failed: No such file or directory"

    async with launched(backend, shell(f"echo '{words}' >&2; echo more; exit 3"), key) as ref:
        lines = await texts_of(backend, ref)
        end = await end_of(backend, ref)

    assert sorted(lines) == [words, "more"]
    assert (end.cause, end.exit_code) == (Cause.EXITED, 3)


# ---- what is refused -----------------------------------------------------------------------------------------------


async def test_a_job_without_an_image_is_refused(backend: DockerBackend, identity: Identity) -> None:
    with pytest.raises(InvalidJob, match="ProcessBackend"):
        await backend.prepare(Job(command=["true"]), identity)


async def test_a_secret_by_arn_is_refused(backend: DockerBackend, identity: Identity) -> None:
    job = shell("true", secrets={"PASSWORD": SecretRef("arn:aws:ssm:eu-west-1:111122223333:parameter/p")})

    with pytest.raises(InvalidJob, match=r"Secret\("):
        await backend.prepare(job, identity)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("unix:///no/such/docker.sock", "/no/such/docker.sock"),
        ("tcp://127.0.0.1:1", "127.0.0.1:1"),
        ("ftp://127.0.0.1", "no address of an engine"),
    ],
)
async def test_a_missing_engine_is_told_with_what_to_do(url: str, said: str) -> None:
    with pytest.raises(BackendUnavailable, match="DOCKER_HOST") as told:
        async with DockerBackend(url):
            pass

    assert said in str(told.value)


async def test_an_engine_beyond_the_machine_needs_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")

    with pytest.raises(BackendUnavailable, match="TLS"):
        async with DockerBackend():
            pass


# ---- what a job finds ----------------------------------------------------------------------------------------------


async def test_a_jobs_fields_reach_the_container(backend: DockerBackend, key: str) -> None:
    job = Job(
        image=IMAGE,
        entry_point=["sh", "-c"],
        command=['echo "$PWD $NAME"'],
        env={"NAME": "value"},
        working_directory="/srv",
        tags={"team": "data"},
    )

    async with launched(backend, job, key) as ref:
        lines = await texts_of(backend, ref)
        found = inspected(ref.address)

    assert lines == ["/srv value"]
    assert found["Config"]["Labels"]["team"] == "data"


async def test_a_container_gets_no_more_rights_than_it_needs(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("sleep 60"), key) as ref:
        await running(backend, ref)
        found = inspected(ref.address)

    host = found["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert found["Mounts"] == []
    assert host["LogConfig"] == {"Type": "json-file", "Config": {}}


async def test_no_aws_credentials_reach_a_job_by_default(
    backend: DockerBackend, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")

    async with launched(backend, shell("env; ls -a / ~"), key) as ref:
        lines = await texts_of(backend, ref)

    assert not [line for line in lines if "AWS" in line or "canary" in line or line == ".aws"]


async def test_aws_credentials_that_were_asked_for_show_nowhere(engine: None, key: str) -> None:
    def credentials() -> AwsCredentials:
        return AwsCredentials(access_key_id="AKIA", secret_access_key="canary-4711", session_token="canary-4712")

    async with DockerBackend(aws_credentials=credentials) as backend:
        async with launched(backend, shell('cat "$AWS_SHARED_CREDENTIALS_FILE"'), key) as ref:
            lines = await texts_of(backend, ref)
            shown = docker("inspect", ref.address)

    assert "aws_secret_access_key = canary-4711" in lines
    assert "canary" not in shown
    assert "canary" not in repr(credentials())


async def test_a_secret_is_not_in_the_labels(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("sleep 60", secrets={"PASSWORD": Secret("canary-4711")}), key) as ref:
        await running(backend, ref)
        labels = inspected(ref.address)["Config"]["Labels"]

    assert "canary" not in str(labels)


METADATA = """
import json, os, urllib.request
base = os.environ["ECS_CONTAINER_METADATA_URI_V4"]
for path in ("", "/task", "/stats", "/task/stats"):
    print(json.dumps(json.load(urllib.request.urlopen(base + path))))
"""


async def test_the_metadata_endpoint_answers_inside_the_container(backend: DockerBackend, key: str) -> None:
    job = Job(image=PYTHON, command=["python3", "-c", METADATA], vcpu=0.5, memory_gib=1)

    async with launched(backend, job, key) as ref:
        own, task, stats, all_stats = map(json.loads, await texts_of(backend, ref))
        number = inspected(ref.address)["Id"]

    assert own["DockerId"] == number
    assert (own["Name"], own["KnownStatus"], own["Limits"]) == ("main", "RUNNING", {"CPU": 512, "Memory": 1024})
    assert own["Networks"][0]["NetworkMode"] == "awsvpc"
    assert own["Networks"][0]["IPv4Addresses"][0].count(".") == 3
    assert (task["LaunchType"], task["Limits"]) == ("FARGATE", {"CPU": 0.5, "Memory": 1024})
    assert [container["DockerId"] for container in task["Containers"]] == [number]
    assert own["ContainerARN"].startswith("arn:aws:ecs:")
    assert stats["memory_stats"]["limit"] == 1 << 30
    assert set(all_stats) == {number}


FILL = """
import os
fd = os.open("/tmp/big", os.O_CREAT | os.O_RDWR)
os.posix_fallocate(fd, 0, 19 << 30)
print("19 GiB fit")
try:
    os.posix_fallocate(fd, 0, 30 << 30)
except OSError as exc:
    print(exc.errno)
print(sorted(os.listdir("/tmp")))
"""


async def test_scratch_space_is_as_large_as_asked_for(backend: DockerBackend, key: str) -> None:
    job = Job(image=PYTHON, command=["python3", "-c", FILL], ephemeral_storage_gib=21)

    async with launched(backend, job, key) as ref:
        lines = await texts_of(backend, ref)

    assert lines == ["19 GiB fit", "28", "['big']"]  # 28 is ENOSPC
    assert ref.token not in Path("/proc/mounts").read_text()


# ---- tokens --------------------------------------------------------------------------------------------------------


async def test_another_backend_meets_what_the_token_started(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("echo ready; sleep 60"), key) as ref:
        await first_line(backend, ref)
        async with DockerBackend() as other:
            launch = await other.prepare(
                shell("echo ready; sleep 60"), Identity(namespace="docker", key=key, attempt=1)
            )
            again = await other.submit(launch)

            assert again.address == ref.address
            assert len(containers(ref.token)) == 1


async def test_another_backend_starts_no_other_job_of_the_same_token(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("echo ready; sleep 60"), key) as ref:
        await first_line(backend, ref)
        async with DockerBackend() as other:
            launch = await other.prepare(shell("exit 3"), Identity(namespace="docker", key=key, attempt=1))

            with pytest.raises(KeyConflict, match="command"):
                await other.submit(launch)


async def test_two_backends_that_submit_at_once_start_one(backend: DockerBackend, key: str) -> None:
    ends: list[int | None] = []

    async def submit(where: DockerBackend) -> None:
        job = shell("echo once; sleep 0.5; exit 4")
        ref = await where.submit(await where.prepare(job, Identity(namespace="docker", key=key, attempt=1)))
        end = await end_of(where, ref)
        assert end.cause is Cause.EXITED, end
        ends.append(end.exit_code)
        assert await texts_of(where, ref) == ["once"]

    async with DockerBackend() as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, backend)
            tasks.start_soon(submit, other)
        for ref in await backend.find("docker", key):
            await backend.forget(ref)

    assert ends == [4, 4]


async def running(backend: DockerBackend, ref: object) -> None:
    snapshot = await backend.observe(ref)  # type: ignore[arg-type]
    while snapshot.phase < Phase.RUNNING:
        snapshot = await backend.observe(ref, after=snapshot)  # type: ignore[arg-type]
    assert not snapshot.ended, snapshot
