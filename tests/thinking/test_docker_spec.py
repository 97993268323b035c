"""What the Docker backend says and reads, without an engine."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fargate_runner import BackendUnavailable, Cause, HealthCheck, Identity, InvalidJob, Job, Secret, SecretRef, Sidecar
from fargate_runner.backends.docker import _engine, _host, _metadata, _pause, _spec
from fargate_runner.backends.docker._spec import End

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ME = Identity(namespace="n", key="k", attempt=2)
ID = "sha256:" + "1" * 64


def planned(job: Job, **changes: Any) -> dict[str, Any]:
    images = {"busybox": (ID, "linux/amd64")}
    options: dict[str, Any] = {"images": images, "cpus": 2, "network": "bridge", "scratch_path": "/tmp"} | changes
    return _spec.plan(job, ME, "token", **options)


def own(job: Job, **changes: Any) -> dict[str, Any]:
    part: dict[str, Any] = planned(job, **changes)["containers"][-1]
    return part


# ---- what is asked for ---------------------------------------------------------------------------------------------


def test_a_plan_is_json_and_free_of_secrets() -> None:
    side = Sidecar(name="s", image="x", secrets={"B": Secret("canary")})
    job = Job(image="busybox", secrets={"A": Secret("canary")}, sidecars=[side])

    assert "canary" not in json.dumps(planned(job))


def test_the_limits_are_the_sizes() -> None:
    host = own(Job(image="busybox", vcpu=0.5, memory_gib=2))["create"]["HostConfig"]

    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (500_000_000, 2 << 30, 2 << 30)


def test_more_cpus_than_there_are_become_all_of_them() -> None:
    assert own(Job(image="busybox", vcpu=16, memory_gib=32))["create"]["HostConfig"]["NanoCpus"] == 2_000_000_000


def test_an_image_that_is_there_is_pinned_with_its_platform() -> None:
    part = own(Job(image="busybox"))

    assert (part["create"]["Image"], part["platform"]) == (ID, "linux/amd64")


def test_an_image_that_is_not_there_is_asked_for_by_name() -> None:
    part = own(Job(image="registry/other:1", architecture="ARM64"))

    assert (part["create"]["Image"], part["platform"]) == ("registry/other:1", "linux/arm64")


def test_a_job_alone_has_the_network_itself() -> None:
    assert own(Job(image="busybox"))["create"]["HostConfig"]["NetworkMode"] == "bridge"


def test_containers_together_share_the_holders_network_and_the_jobs_is_last() -> None:
    parts = planned(Job(image="busybox", sidecars=[Sidecar(name="s", image="x", memory_gib=0.125)]))["containers"]

    assert [part["name"] for part in parts] == ["fr-token-s", "fr-token"]
    assert {part["create"]["HostConfig"]["NetworkMode"] for part in parts} == {"container:fr-token--net"}
    assert parts[0]["create"]["HostConfig"]["Memory"] == 128 << 20


def test_a_job_that_names_no_condition_waits_for_all_sidecars_to_start() -> None:
    assert own(Job(image="busybox", sidecars=[Sidecar(name="s", image="x")]))["waits"] == {"s": "START"}
    assert own(Job(image="busybox", sidecars=[Sidecar(name="s", image="x")], depends_on={}))["waits"] == {}


@pytest.mark.parametrize(
    ("command", "test"),
    [
        (["true"], ["CMD", "true"]),
        (["CMD", "true"], ["CMD", "true"]),
        (["CMD-SHELL", "true || false"], ["CMD-SHELL", "true || false"]),
    ],
)
def test_a_health_check_is_a_command(command: list[str], test: list[str]) -> None:
    side = Sidecar(name="s", image="x", health_check=HealthCheck(command=command, interval=timedelta(seconds=5)))

    body = planned(Job(image="busybox", sidecars=[side]))["containers"][0]["create"]

    assert body["Healthcheck"]["Test"] == test
    assert body["Healthcheck"]["Interval"] == 5_000_000_000


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (Job(command=["true"]), "image"),
        (Job(image="x", secrets={"A": SecretRef("arn:aws:ssm:r:1:parameter/a")}), r"secrets\['A'\]"),
        (
            Job(image="x", sidecars=[Sidecar(name="s", image="x", secrets={"A": SecretRef("arn:aws:ssm:r:1:p")})]),
            r"sidecar.secrets\['A'\]",
        ),
        (Job(image="x", tags={"fargate-runner.token": "mine"}), "tags"),
    ],
)
def test_what_no_engine_can_run_is_refused(job: Job, field: str) -> None:
    with pytest.raises(InvalidJob, match=field):
        _spec.check(job)


def test_credentials_are_a_file_that_every_user_of_the_container_can_read() -> None:
    with tarfile.open(fileobj=io.BytesIO(_spec.credentials_tar("[default]\n"))) as tar:
        member = tar.getmember(".fargate-runner/aws-credentials")

        assert (member.mode, member.uid) == (0o444, 0)


@pytest.mark.parametrize(
    ("image", "whole", "registry"),
    [
        ("busybox", "docker.io/library/busybox:latest", "https://index.docker.io/v1/"),
        ("user/app:1", "docker.io/user/app:1", "https://index.docker.io/v1/"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest", "ghcr.io"),
        ("busybox@sha256:abc", "docker.io/library/busybox@sha256:abc", "https://index.docker.io/v1/"),
    ],
)
def test_an_image_is_pulled_by_its_whole_name(image: str, whole: str, registry: str) -> None:
    assert _spec.qualified(image) == whole
    assert _spec.registry_of(image) == registry


# ---- what it answers -----------------------------------------------------------------------------------------------


def inspected(
    code: int = 0,
    *,
    oom: bool = False,
    error: str = "",
    ended: float = 10.0,
    started: bool = True,
    parent: str = "",
    name: str = "main",
    essential: str = "yes",
    running: bool = False,
) -> dict[str, Any]:
    stamp = (NOW + timedelta(seconds=ended)).isoformat()
    return {
        "Created": NOW.isoformat(),
        "Path": "run",
        "Config": {
            "Labels": {
                "fargate-runner.container": name,
                "fargate-runner.image": "app:1",
                "fargate-runner.essential": essential,
            }
        },
        "HostConfig": {"Memory": 1 << 29, "CgroupParent": parent},
        "State": {
            "ExitCode": code,
            "OOMKilled": oom,
            "Error": error,
            "Running": running,
            "StartedAt": NOW.isoformat() if started else "0001-01-01T00:00:00Z",
            "FinishedAt": stamp,
        },
    }


SIDE: dict[str, Any] = {"name": "side", "ended": 5.0}
WATCHDOG: dict[str, Any] = {"name": "fargate-runner-deadline", "ended": 10.1}


def ended(container: dict[str, Any], at: float) -> dict[str, Any]:
    return {**container, "ended": at}


@pytest.mark.parametrize(
    ("job", "sidecars", "facts", "cause"),
    [
        (inspected(0), [], {}, Cause.EXITED),
        (inspected(137), [], {}, Cause.EXITED),
        (inspected(137, oom=True), [], {}, Cause.OUT_OF_MEMORY),
        (inspected(0, oom=True), [], {}, Cause.OUT_OF_MEMORY),
        (inspected(143), [], {"stopped": "enough"}, Cause.STOPPED_ON_REQUEST),
        (inspected(0), [], {"stopped": "enough"}, Cause.STOPPED_ON_REQUEST),
        (inspected(137, oom=True), [], {"stopped": "enough"}, Cause.STOPPED_ON_REQUEST),
        (inspected(0), [], {"killed_by": 15}, Cause.STOPPED_ON_REQUEST),
        (inspected(137), [], {"outage": True}, Cause.HOST_FAILED),
        (inspected(0), [], {"outage": True}, Cause.EXITED),
        (inspected(0), [], {"outage": True, "killed_by": 15}, Cause.HOST_FAILED),
        (inspected(143), [inspected(1, **SIDE)], {"killed_by": 15}, Cause.SIDECAR_ENDED),
        (inspected(3), [inspected(143, name="side", ended=11)], {}, Cause.EXITED),
        (inspected(3), [inspected(1, essential="no", **SIDE)], {}, Cause.EXITED),
        (inspected(143, oom=True, parent="/x"), [inspected(137, oom=True, **SIDE)], {}, Cause.OUT_OF_MEMORY),
        (inspected(143), [inspected(137, oom=True, **SIDE)], {}, Cause.SIDECAR_ENDED),
        (inspected(0, oom=True, parent="/x"), [inspected(137, oom=True, essential="no", **SIDE)], {}, Cause.EXITED),
        (inspected(0, oom=True, parent="/x"), [inspected(0, essential="no", **SIDE)], {}, Cause.OUT_OF_MEMORY),
        (
            inspected(137, oom=True, parent="/x"),
            [inspected(137, oom=True, essential="no", **SIDE)],
            {},
            Cause.OUT_OF_MEMORY,
        ),
        # The watchdog had slept its time, and the kernel killed the job with it; either may be reported first.
        (inspected(137), [inspected(0, **WATCHDOG)], {}, Cause.DEADLINE),
        (inspected(137), [inspected(0, **ended(WATCHDOG, 9.9))], {}, Cause.DEADLINE),
        (inspected(137), [inspected(137, **SIDE), inspected(0, **WATCHDOG)], {}, Cause.DEADLINE),
        # It was told to end, slept on after the job, or is no watchdog.
        (inspected(0), [inspected(143, **WATCHDOG)], {}, Cause.EXITED),
        (inspected(137), [inspected(143, **WATCHDOG)], {}, Cause.EXITED),
        (inspected(0), [inspected(0, **WATCHDOG)], {}, Cause.EXITED),
        (inspected(3), [inspected(0, **WATCHDOG)], {}, Cause.EXITED),
        (inspected(137), [inspected(0, **ended(WATCHDOG, 30.0))], {}, Cause.EXITED),
        (inspected(137), [inspected(0, running=True, **WATCHDOG)], {}, Cause.EXITED),
        (inspected(137), [inspected(0, name="side", ended=10.1)], {}, Cause.EXITED),
        (inspected(137, oom=True), [inspected(0, **WATCHDOG)], {}, Cause.OUT_OF_MEMORY),
        (inspected(137), [inspected(0, **WATCHDOG)], {"stopped": "enough"}, Cause.STOPPED_ON_REQUEST),
        # It failed.
        (inspected(137), [inspected(127, **ended(WATCHDOG, 5.0))], {}, Cause.SIDECAR_ENDED),
    ],
)
def test_the_cause_of_an_end(
    job: Mapping[str, Any], sidecars: list[Mapping[str, Any]], facts: dict[str, Any], cause: Cause
) -> None:
    end = _spec.ended(job, sidecars, End(seen_at=NOW, **facts))

    assert end.cause is cause
    assert end.exit_code == job["State"]["ExitCode"]


def test_a_failed_start_carries_the_engines_words_and_never_started() -> None:
    words = 'exec: "run": executable file not found in $PATH: unknown'

    end = _spec.ended(inspected(127, error=words, started=False), [], End(seen_at=NOW))

    assert (end.cause, end.started_at, end.exit_code) == (Cause.COULD_NOT_START, None, 127)
    assert "'run' was not found in the image 'app:1'" in end.reason
    assert end.proof is not None
    assert words in end.proof.evidence


def test_a_container_never_ends_before_it_has_begun() -> None:
    # The engine was seen to stamp the end 0.4 ms before the start.
    end = _spec.ended(inspected(0, ended=-0.0004), [], End(seen_at=NOW))

    assert end.started_at == end.ended_at


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        (None, None),
        ("2026-11-22T12:00:00.123456789Z", NOW.replace(microsecond=123456)),
        ("2026-11-22T12:00:00Z", NOW),
        ("2026-11-22T13:00:00.5+01:00", NOW.replace(microsecond=500_000)),
    ],
)
def test_the_engines_times(text: str | None, moment: datetime | None) -> None:
    assert _spec.moment(text) == moment


# The engine's own words, noted on Docker 20.10.24 and docker-registry 2.8.2.
@pytest.mark.parametrize(
    ("words", "said", "transient"),
    [
        ("No such image: x", "there is no image", False),
        ("invalid reference format: repository name must be lowercase", "not the name of an image", False),
        ("manifest for r/x:1 not found: manifest unknown: manifest unknown", "there is no image", False),
        ("repository r/x not found: name unknown", "there is no image", False),
        ("name unknown", "there is no image", False),
        ("Head https://r/v2/x/manifests/1: no basic auth credentials", "refused to give out", False),
        ("unauthorized: authentication required", "refused to give out", False),
        (
            "pull access denied for r/x, repository does not exist or may require 'docker login': denied",
            "refused to give out",
            False,
        ),
        ("error parsing HTTP 403 response body: unexpected end of JSON input", "refused to give out", False),
        ("toomanyrequests: too many", "refuses more pulls", True),
        ('Get "http://r:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused', "could not be reached", True),
        ('Get "https://r.invalid/v2/": dial tcp: lookup r.invalid: no such host', "could not be reached", True),
        ("received unexpected HTTP status: 500 Internal Server Error", "could not be reached", True),
        (
            "image with reference x was found but does not match the specified platform: wanted linux/arm64, "
            "actual: linux/amd64",
            "another platform",
            False,
        ),
        ("no matching manifest for linux/arm64 in the manifest list entries", "another platform", False),
        ("Cannot mkdir: /etc/passwd is not a directory", "working directory", False),
        ('exec: "nosuch": executable file not found in $PATH: unknown', "was not found", False),
        ('exec: "/etc/passwd": permission denied: unknown', "cannot be executed", False),
        ("unable to find user ghost: no matching entries in passwd file", "user or group", False),
        ("No command specified", "says no command", False),
        ("write /var/lib/docker/x: no space left on device", "disk is full", True),
        ("network nosuch not found", "does not exist", False),
        ("something that nobody has seen", "something that nobody has seen", False),
    ],
)
def test_what_the_engines_words_mean(words: str, said: str, transient: bool) -> None:
    trouble = _spec.explain(words, image="x", command="run", directory="/srv")

    assert said in trouble.reason
    assert trouble.transient is transient
    assert trouble.advice


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[FATAL tini (7)] exec nosuch failed: No such file or directory", "'nosuch' was not found"),
        ("[FATAL tini (7)] exec /etc/passwd failed: Permission denied", "cannot be executed"),
        ("[FATAL tini (12)] exec /bin/app failed: Exec format error", "another platform"),
    ],
)
def test_what_the_init_process_says(line: str, said: str) -> None:
    assert _spec.is_init_failure(line)
    assert said in _spec.explain_init(line, image="x").reason


@pytest.mark.parametrize("line", ["exec nosuch failed: No such file", "[WARN  tini (7)] something", ""])
def test_what_it_does_not_say(line: str) -> None:
    assert not _spec.is_init_failure(line)


# ---- the pause image -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_pause_image_is_the_same_bytes_each_time(architecture: str) -> None:
    assert _pause.image_tar(architecture) == _pause.image_tar(architecture)


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_pause_image_holds_together(architecture: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(_pause.image_tar(architecture))) as tar:
        (manifest,) = json.load(_opened(tar, "manifest.json"))
        config = json.load(_opened(tar, manifest["Config"]))
        layer = _opened(tar, manifest["Layers"][0]).read()

    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert config["architecture"] == architecture
    assert manifest["RepoTags"] == [_pause.image_name(architecture)]


def _opened(tar: tarfile.TarFile, name: str) -> Any:
    return tar.extractfile(name)


# ---- finding an engine ---------------------------------------------------------------------------------------------


def test_what_was_given_is_all_that_is_tried(tmp_path: Path) -> None:
    (found,) = _engine.discover("tcp://192.0.2.1:2375", {"DOCKER_HOST": "unix:///other"}, tmp_path)

    assert found.url == "tcp://192.0.2.1:2375"


def test_docker_host_goes_before_the_context(tmp_path: Path) -> None:
    (found,) = _engine.discover(None, {"DOCKER_HOST": "unix:///a", "DOCKER_CONTEXT": "nosuch"}, tmp_path)

    assert (found.url, found.why) == ("unix:///a", "DOCKER_HOST")


def test_the_current_context_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / ".docker/contexts/meta" / hashlib.sha256(b"far").hexdigest()
    folder.mkdir(parents=True)
    (tmp_path / ".docker/config.json").write_text(json.dumps({"currentContext": "far"}))
    (folder / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": "ssh://me@far"}}}))

    (found,) = _engine.discover(None, {}, tmp_path)

    assert found.url == "ssh://me@far"


def test_a_context_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="docker context ls"):
        _engine.discover(None, {"DOCKER_CONTEXT": "nosuch"}, tmp_path)


@pytest.mark.parametrize("host", ["tcp://192.0.2.1:2375", "http://engine.example:2375"])
def test_a_way_that_anybody_may_read_is_refused_unless_it_was_given(tmp_path: Path, host: str) -> None:
    with pytest.raises(BackendUnavailable, match="TLS"):
        _engine.discover(None, {"DOCKER_HOST": host}, tmp_path)


def test_the_usual_sockets_are_tried_in_turn_and_podmans_last(tmp_path: Path) -> None:
    found = [endpoint.url for endpoint in _engine.discover(None, {"XDG_RUNTIME_DIR": "/run/me"}, tmp_path)]

    assert found[0] == "unix:///var/run/docker.sock"
    assert found[-2:] == ["unix:///run/me/podman/podman.sock", "unix:///run/podman/podman.sock"]


# ---- owners --------------------------------------------------------------------------------------------------------


def changed(**parts: Any) -> str:
    return json.dumps(json.loads(_host.owner_label("nonce")) | parts)


@pytest.mark.parametrize(
    ("label", "dead"),
    [
        (None, False),
        ("not json", False),
        (changed(host=""), False),
        (changed(host="another"), False),
        (changed(boot="another"), True),
        (changed(pidns="another"), False),
        (changed(born="1"), True),
        (changed(pid=1), True),  # that number, born at another time
        (changed(), True),  # this process, but none of its backends that are open
    ],
)
def test_only_a_provable_death_counts(label: str | None, dead: bool) -> None:
    assert _host.is_dead(label) is dead


def test_an_open_backend_of_this_process_lives() -> None:
    _host.opened("nonce")
    alive = _host.is_dead(changed())
    _host.closed("nonce")

    assert alive is False


# ---- the metadata endpoint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "parts", "address"),
    [
        ("bridge", [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}], "172.17.0.1"),
        ("bridge", [{"Subnet": "fd01::/64"}, {"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.254"}], "10.1.0.254"),
        ("bridge", [{"Subnet": "172.17.0.0/16"}], "172.17.0.1"),  # Docker 20.10 at its very first start
        ("bridge", [{"Subnet": "10.1.0.129/25"}], "10.1.0.129"),
        ("macvlan", [{"Subnet": "10.1.0.0/24"}], None),
        ("bridge", [], None),
        ("bridge", None, None),
    ],
)
def test_containers_see_the_machine_at_the_gateway(
    driver: str, parts: list[dict[str, str]] | None, address: str | None
) -> None:
    assert _spec.gateway({"Driver": driver, "IPAM": {"Config": parts}}) == address


def test_rates_are_means_since_the_figures_before() -> None:
    def figures(second: int, received: int) -> dict[str, Any]:
        read = (NOW + timedelta(seconds=second)).isoformat()
        return {"read": read, "networks": {"eth0": {"rx_bytes": received, "tx_bytes": 0}}}

    document = _metadata.stats_document(figures(2, 300), figures(0, 100))

    assert document is not None
    assert document["network_rate_stats"] == {"rx_bytes_per_sec": 100.0, "tx_bytes_per_sec": 0.0}


def test_there_are_no_figures_of_what_does_not_run() -> None:
    assert _metadata.stats_document({"read": "0001-01-01T00:00:00Z"}) is None
