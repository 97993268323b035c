"""
Make this machine ready for the tests that need a Docker engine.

    python3 scripts/docker_ready.py            # start an engine if none answers, build the test images
    python3 scripts/docker_ready.py --check    # only say whether both are there: exit 0 or 1

An engine that answers on ``DOCKER_HOST`` or ``/var/run/docker.sock`` is used as it is. Otherwise root on a
Debian-like machine gets Debian's ``docker.io`` and a ``dockerd`` of its own, which outlives this script. The
images need no registry and no docker client: they are handmade ``docker load`` archives of files found here.

``fargate-runner-test/busybox:latest``
    busybox with every applet linked in /bin; ``PATH=/bin``.
``fargate-runner-test/python:latest``
    The same, and the interpreter running this script with its standard library and the shared libraries they
    need; ``PATH=/usr/local/bin:/bin``. Python stays at the path it has here, with links in /usr/local/bin, so
    that any layout works (pyenv, uv, Debian's own). No site-packages, pip, tkinter or test suite.
    There is one such image at a time: running this script with another interpreter replaces it.
``fargate-runner-test/arm64:latest``
    Made for another architecture: it cannot run.

Each image carries a hash of what went into it as a label; it is built again only when that hash changes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import http.client
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

DEFAULT_HOST = "unix:///var/run/docker.sock"
DEFAULT_HOSTS = (DEFAULT_HOST, "unix:///run/docker.sock")
RECIPE = "1"  # part of every hash: raise it when the way the images are made changes
LABEL = "fargate-runner-test.content"
BUSYBOX, PYTHON, ARM64 = (f"fargate-runner-test/{name}:latest" for name in ("busybox", "python", "arm64"))
START_SECONDS = 60.0
PIDFILE = Path("/var/run/docker.pid")
# A shell that is not root's own often lacks the sbin directories, where dockerd and its iptables live.
SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
)
PYTHON_SMOKE = "import ssl, sqlite3, asyncio, json; print('ok')"
PYTHON_LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test"}
    | {"tkinter", "turtledemo"}
)
# Wheels link against these; the interpreter does not name them all, and glibc loads the nss ones by name.
EXTRA_LIBRARIES = (
    *("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libm.so.6", "libresolv.so.2"),
    *("libgcc_s.so.1", "libstdc++.so.6", "libnss_dns.so.2", "libnss_files.so.2"),
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


class NotReadyError(Exception):
    """What failed and what to try, in one message."""


def say(line: str) -> None:
    print(f"docker_ready: {line}", flush=True)


# ----------------------------------------------------------------------------------- talking to the engine


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout, blocksize=1 << 20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Engine:
    """The few engine calls needed here; out of reach is an ``OSError``, all else a :class:`NotReadyError`."""

    host: str

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        address = urllib.parse.urlsplit(self.host)
        if address.scheme == "unix":
            return UnixConnection(address.path, timeout)
        if address.scheme in ("tcp", "http") and not os.environ.get("DOCKER_TLS_VERIFY"):
            return http.client.HTTPConnection(address.hostname or "localhost", address.port or 2375, timeout=timeout)
        raise NotReadyError(
            f"DOCKER_HOST={self.host}: this script speaks only unix:// and tcp:// without TLS;"
            " forward the engine's socket and point DOCKER_HOST at it"
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        archive: IO[bytes] | None = None,
        timeout: float = 60,
    ) -> tuple[int, bytes]:
        """Return status and body of one call, whatever the status."""
        headers: dict[str, str] = {}
        payload: bytes | IO[bytes] | None = None
        if archive is not None:
            headers = {
                "Content-Type": "application/x-tar",
                "Content-Length": str(archive.seek(0, io.SEEK_END)),
            }
            archive.seek(0)
            payload = archive
        elif body is not None:
            headers, payload = {"Content-Type": "application/json"}, json.dumps(body).encode()
        with closing(self._connection(timeout)) as connection:
            try:
                connection.request(method, path, body=payload, headers=headers)
                response = connection.getresponse()
                return response.status, response.read()
            except http.client.HTTPException as exc:
                raise ConnectionError(f"no sensible answer from {self.host}: {exc!r}") from exc

    def json(self, method: str, path: str, *, body: object = None, timeout: float = 60) -> Any:
        """Return the decoded answer of a call that has to succeed; an empty answer is ``None``."""
        status, answer = self.call(method, path, body=body, timeout=timeout)
        if status >= 300:
            raise NotReadyError(f"the engine refused {method} {path} with {status}: {_error_text(answer)}")
        return json.loads(answer) if answer.strip() else None

    def labels(self, tag: str) -> Mapping[str, str] | None:
        """Return the labels of an image, or ``None`` where there is no such image."""
        image = self._image(tag)
        return None if image is None else image.get("Config", {}).get("Labels") or {}

    def load(self, tag: str, archive: IO[bytes]) -> None:
        """Load an archive that names *tag*, and drop the image the tag meant before."""
        before = self._image(tag)
        status, answer = self.call("POST", "/images/load?quiet=1", archive=archive, timeout=300)
        # A load that fails half-way has answered 200 already; the error is then one of the lines of the body.
        if status >= 300 or b'"errorDetail"' in answer:
            raise NotReadyError(f"the engine could not load {tag} ({status}): {_error_text(answer)}")
        after = self._image(tag)
        if after is None:
            raise NotReadyError(f"the engine accepted {tag} but does not list it: {_error_text(answer)}")
        if before is not None and before["Id"] != after["Id"]:
            # Refused while a container uses it: then it just stays, without a name.
            self.call("DELETE", f"/images/{before['Id']}")

    def run(self, tag: str, command: Sequence[str]) -> tuple[int, str]:
        """Return exit code and raw output of a short container."""
        spec = {"Image": tag, "Cmd": list(command), "Tty": True, "HostConfig": {"NetworkMode": "none"}}
        container: str = self.json("POST", "/containers/create", body=spec)["Id"]
        try:
            self.json("POST", f"/containers/{container}/start")
            code: int = self.json("POST", f"/containers/{container}/wait")["StatusCode"]
            _, output = self.call("GET", f"/containers/{container}/logs?stdout=1&stderr=1")
            return code, output.decode(errors="replace").strip()
        finally:
            self.call("DELETE", f"/containers/{container}?force=1&v=1")

    def _image(self, tag: str) -> Any:
        status, answer = self.call("GET", f"/images/{tag}/json")
        if status == 404:
            return None
        if status >= 300:
            raise NotReadyError(f"the engine could not look at {tag} ({status}): {_error_text(answer)}")
        return json.loads(answer)


def _error_text(answer: bytes) -> str:
    text = answer.decode(errors="replace").strip()
    try:
        return str(json.loads(text.splitlines()[-1])["message"])
    except (ValueError, KeyError, TypeError, IndexError):
        return text or "no message"


def answering(engine: Engine) -> bool:
    """Say whether somebody answers there; not being allowed to ask is an error of its own."""
    try:
        status, _ = engine.call("GET", "/version", timeout=5)
    except PermissionError as exc:
        raise NotReadyError(f"this user may not open {engine.host}: run as root, or join the group 'docker'") from exc
    except OSError:
        return False
    return status == 200


def facts(engine: Engine) -> str:
    """Describe the engine in one line."""
    version, about = engine.json("GET", "/version"), engine.json("GET", "/info")
    return (
        f"engine {version['Version']} (API {version['ApiVersion']}, {version['Os']}/{version['Arch']}) "
        f"at {engine.host}, "
        f"storage driver {about['Driver']}, cgroup v{about.get('CgroupVersion', '1')}, "
        f"cgroup driver {about.get('CgroupDriver', 'unknown')}"
    )


# --------------------------------------------------------------------------------------- getting an engine


def install(*packages: str) -> None:
    """Install Debian packages, or say why not."""
    wanted = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise NotReadyError(f"there is no apt-get to install {wanted}; install its like by hand and run this again")
    if os.geteuid() != 0:
        raise NotReadyError(f"installing needs root; run: sudo apt-get install --no-install-recommends {wanted}")
    say(f"installing {wanted}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": SEARCH_PATH}
    lock = ("-o", "DPkg::Lock::Timeout=120")
    for command in (
        ("apt-get", *lock, "update", "-qq"),
        ("apt-get", *lock, "install", "-qq", "-y", "--no-install-recommends", *packages),
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotReadyError(
                f"{' '.join(command)} failed with {done.returncode}:\n{_tail(done.stdout + done.stderr)}\n"
                "check the package sources of this machine, or install the packages by hand"
            )


def start_engine(engine: Engine) -> None:
    """Start dockerd, installed first if need be, and wait until it answers."""
    if shutil.which("dockerd", path=SEARCH_PATH) is None:  # a docker *client* alone proves nothing
        install("docker.io")
    if answering(engine):  # installing started it
        return
    if os.geteuid() != 0:
        raise NotReadyError("no engine answers and starting one needs root; run this script with sudo")
    dockerd = shutil.which("dockerd", path=SEARCH_PATH)
    if dockerd is None:
        raise NotReadyError("docker.io is installed but there is no dockerd; reinstall docker.io")
    if Path("/run/systemd/system").is_dir():
        say("starting the docker service")
        done = subprocess.run(["systemctl", "start", "docker"], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not answering(engine):
            raise NotReadyError(f"the docker service did not start; see: journalctl -u docker\n{_tail(done.stderr)}")
        return
    _forget_dead_engine()
    directory = "/var/log" if os.access("/var/log", os.W_OK) else tempfile.gettempdir()
    log = Path(directory, "dockerd.log")
    say(f"starting {dockerd}, log in {log}")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [dockerd],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=os.environ | {"PATH": SEARCH_PATH},
            start_new_session=True,
        )
    _await_answer(engine, process, log)
    say(f"dockerd runs as process {process.pid}")


def _forget_dead_engine() -> None:
    """Remove the pid file of a killed engine: dockerd refuses to start if any process has that number now."""
    try:
        pid = int(PIDFILE.read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return
    if name != "dockerd":
        PIDFILE.unlink(missing_ok=True)


def _await_answer(engine: Engine, dockerd: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answering(engine):
        code = dockerd.poll()
        if code is None and time.monotonic() < deadline:
            time.sleep(0.1)
            continue
        happened = f"did not answer within {START_SECONDS:.0f} s" if code is None else f"ended with {code}"
        end = _tail(log.read_text(errors="replace"))
        raise NotReadyError(f"dockerd {happened}; put right what the end of {log} complains of:\n{end}")


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-lines:]) or "(nothing)"


# ----------------------------------------------------------------------------------- what goes into images


@dataclass
class Tree:
    """A file system to be: where each path comes from. Parents come by themselves."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    unhashed: dict[str, Path] = field(default_factory=dict)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(RECIPE.encode())
        for path, source in sorted(self.files.items()):
            content = source if isinstance(source, bytes) else source.read_bytes()
            digest.update(f"\0{path}\0{hashlib.sha256(content).hexdigest()}".encode())
        for path, target in sorted(self.links.items()):
            digest.update(f"\0{path}\0->{target}".encode())
        return digest.hexdigest()[:32]

    def write(self, layer: IO[bytes]) -> None:
        """Write the tree as a layer, owned by root, whatever it is made of."""
        with tarfile.open(fileobj=layer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            parents = {str(parent) for path in (*self.files, *self.links) for parent in Path(path).parents}
            for path in sorted(parents - {"."} | {"tmp", "root"}):
                entry = _entry(path, tarfile.DIRTYPE, mode=0o1777 if path == "tmp" else 0o755)
                tar.addfile(entry)
            for path, source in sorted((self.files | self.unhashed).items()):
                if isinstance(source, bytes):
                    entry = _entry(path, tarfile.REGTYPE, mode=0o644, size=len(source))
                    tar.addfile(entry, io.BytesIO(source))
                    continue
                with source.open("rb") as content:
                    status = os.fstat(content.fileno())
                    mode = 0o755 if status.st_mode & 0o100 else 0o644
                    # The time has to stay: compiled modules are valid only for sources of the same second.
                    entry = _entry(path, tarfile.REGTYPE, mode=mode, size=status.st_size, mtime=int(status.st_mtime))
                    tar.addfile(entry, content)
            for path, target in sorted(self.links.items()):
                entry = _entry(path, tarfile.SYMTYPE, mode=0o777)
                entry.linkname = target
                tar.addfile(entry)


def _entry(path: str, kind: bytes, *, mode: int, size: int = 0, mtime: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, mtime
    entry.uname = entry.gname = "root"
    return entry


def libraries(binaries: Iterable[Path]) -> dict[str, Path]:
    """Return every shared library the binaries load, loader included, by path; none for a static binary."""
    asked = [str(binary) for binary in binaries]
    if not asked or shutil.which("ldd", path=SEARCH_PATH) is None:
        return {}
    # ldd exits 1 if any one is static, and says "not found" of what an optional module misses here as well.
    told = subprocess.run(["ldd", *asked], capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH})
    found = re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", told.stdout, flags=re.MULTILINE)
    return {os.path.normpath(path): Path(path) for path in found}


def busybox_tree(busybox: Path) -> Tree:
    """Return busybox with its applets as links, the users root and nobody, and /tmp."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    tree = Tree({"bin/busybox": busybox, "etc/passwd": PASSWD.encode(), "etc/group": GROUP.encode()})
    tree.links = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    tree.files |= {path.lstrip("/"): source for path, source in libraries([busybox]).items()}
    return tree


def python_tree(busybox: Path) -> Tree:
    """Return :func:`busybox_tree` with the interpreter running this script."""
    tree = busybox_tree(busybox)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(sys.base_prefix, "bin", version)
    library = Path(os.__file__).parent
    if not interpreter.is_file():
        raise NotReadyError(f"{interpreter} is missing; run this script with an ordinary CPython")
    tree.files[_inside(interpreter)] = interpreter
    tree.files["etc/nsswitch.conf"] = b"hosts: files dns\n"
    for name in ("python", "python3", version):
        tree.links[f"usr/local/bin/{name}"] = f"/{_inside(interpreter)}"
    tree.links.pop(_inside(interpreter), None)  # a Python that lives in /usr/local is there already
    for source in _modules(library):
        tree.files[_inside(source)] = source
        compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        if source.suffix == ".py" and compiled.is_file():
            tree.unhashed[_inside(compiled)] = compiled  # a start takes half the time with them
    needed = libraries([interpreter, *(path for path in library.glob("lib-dynload/*.so") if _is_wanted(path))])
    homes = sorted({Path(path).parent for path in needed if re.match(r"libc\.so", Path(path).name)})
    extra = [home / name for home in homes for name in EXTRA_LIBRARIES if (home / name).is_file()]
    extra += [home / name for home in map(_usr, homes) for name in EXTRA_LIBRARIES if (home / name).is_file()]
    needed |= {str(path): path for path in extra} | libraries(extra)
    tree.files |= {path.lstrip("/"): source for path, source in needed.items()}
    return tree


def _usr(directory: Path) -> Path:
    return directory if directory.is_relative_to("/usr") else Path("/usr", *directory.parts[1:])


def _inside(path: Path) -> str:
    return os.path.normpath(path).lstrip("/")


def _is_wanted(path: Path) -> bool:
    return not path.name.startswith(("_tkinter", "_test", "_ctypes_test", "xxlimited", "_xxtest"))


def _modules(library: Path) -> Iterator[Path]:
    for directory, subdirectories, names in os.walk(library):
        subdirectories[:] = [
            name for name in subdirectories if name not in PYTHON_LEFT_OUT and not name.startswith("config-")
        ]
        for path in (Path(directory, name) for name in names):
            if path.suffix in (".pyc", ".a", ".exe") or not _is_wanted(path) or not path.is_file():
                continue
            yield path


# ------------------------------------------------------------------------------------- building the images


@dataclass(frozen=True)
class Recipe:
    """One image: what is in it, how it starts, and the command that proves it works, if it can work."""

    tag: str
    tree: Tree
    path: str
    command: tuple[str, ...]
    architecture: str
    proof: tuple[str, ...] = ()


def architecture() -> str:
    """Return this machine's architecture in Docker's words."""
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def recipes(busybox: Path) -> list[Recipe]:
    here = architecture()
    # On an arm64 machine the name stays and the architecture turns, so that "the wrong one" stays wrong.
    other = "amd64" if here == "arm64" else "arm64"
    nothing = Tree({"nothing": f"not a program, least of all for {other}\n".encode()})
    smoke = ("python3", "-c", PYTHON_SMOKE)
    return [
        Recipe(BUSYBOX, busybox_tree(busybox), "/bin", ("sh",), here, ("sh", "-c", "cd /tmp && echo ok")),
        Recipe(PYTHON, python_tree(busybox), "/usr/local/bin:/bin", ("python3",), here, smoke),
        Recipe(ARM64, nothing, "/bin", ("/nothing",), other),
    ]


def write_archive(recipe: Recipe, fingerprint: str, archive: IO[bytes]) -> None:
    """Write an image in the format of ``docker save``."""
    with tempfile.TemporaryFile() as layer:
        recipe.tree.write(layer)
        size = layer.tell()
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        config = {
            "architecture": recipe.architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Env": [f"PATH={recipe.path}"], "Cmd": recipe.command, "Labels": {LABEL: fingerprint}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "docker_ready.py"}],
        }
        described = json.dumps(config, sort_keys=True).encode()
        name = f"{hashlib.sha256(described).hexdigest()}.json"
        manifest = [{"Config": name, "RepoTags": [recipe.tag], "Layers": [f"{digest}/layer.tar"]}]
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path, content in ((name, described), ("manifest.json", json.dumps(manifest).encode())):
                tar.addfile(_entry(path, tarfile.REGTYPE, mode=0o644, size=len(content)), io.BytesIO(content))
            layer.seek(0)
            tar.addfile(_entry(f"{digest}/layer.tar", tarfile.REGTYPE, mode=0o644, size=size), layer)


def build(engine: Engine, recipe: Recipe) -> None:
    """Build one image unless it is there already, and prove a new one by running it."""
    fingerprint = recipe.tree.fingerprint()
    if (engine.labels(recipe.tag) or {}).get(LABEL) == fingerprint:
        say(f"{recipe.tag} is up to date")
        return
    started = time.monotonic()
    with tempfile.TemporaryFile() as archive:
        write_archive(recipe, fingerprint, archive)
        size = archive.tell()
        engine.load(recipe.tag, archive)
    if recipe.proof:
        code, output = engine.run(recipe.tag, recipe.proof)
        if (code, output) != (0, "ok"):
            engine.call("DELETE", f"/images/{recipe.tag}?force=1")  # else the next run would call it up to date
            raise NotReadyError(
                f"{recipe.tag} was built but {' '.join(recipe.proof)!r} exits {code} there:\n"
                f"{_tail(output)}\n"
                "this machine's busybox or Python cannot be moved into an image; try another interpreter"
            )
    say(f"built {recipe.tag}, {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s")


def find_busybox() -> Path | None:
    found = shutil.which("busybox", path=SEARCH_PATH)
    return None if found is None else Path(found)


# --------------------------------------------------------------------------------------------------- doing


def missing_images(engine: Engine) -> list[str]:
    """
    Return the images that are absent or out of date.

    Without busybox on this machine nothing can be compared (the images may come from a cache): then
    any image made by this script counts.
    """
    busybox = find_busybox()
    labels = {tag: engine.labels(tag) or {} for tag in (BUSYBOX, PYTHON, ARM64)}
    if busybox is None:
        return [tag for tag in labels if LABEL not in labels[tag]]
    return [each.tag for each in recipes(busybox) if labels[each.tag].get(LABEL) != each.tree.fingerprint()]


def check(engine: Engine) -> None:
    """Say what is there and change nothing."""
    if not answering(engine):
        raise NotReadyError(f"no engine answers at {engine.host}; run: python3 {sys.argv[0]}")
    missing = missing_images(engine)
    if missing:
        raise NotReadyError(f"absent or out of date: {', '.join(missing)}; run: python3 {sys.argv[0]}")
    say("all test images are there")
    say(facts(engine))


def make_ready(engine: Engine) -> None:
    """Do what is missing."""
    if answering(engine):
        say("an engine answers already")
    elif engine.host not in DEFAULT_HOSTS:
        raise NotReadyError(f"no engine answers at DOCKER_HOST={engine.host}; start it, or unset DOCKER_HOST")
    else:
        start_engine(engine)
    there = engine.json("GET", "/version")["Arch"]
    if there != architecture():
        raise NotReadyError(
            f"the engine at {engine.host} runs {there} and this machine's files are {architecture()};"
            " run this on the engine's own machine"
        )
    busybox = find_busybox()
    if busybox is None and not missing_images(engine):
        say("all test images are there; no busybox here to compare them with")
    else:
        if busybox is None:
            install("busybox-static")
            busybox = find_busybox()
        if busybox is None:
            raise NotReadyError("busybox-static is installed but there is no busybox; reinstall busybox-static")
        for recipe in recipes(busybox):
            build(engine, recipe)
    say(facts(engine))


@contextmanager
def alone() -> Iterator[None]:
    """Keep a second run of this user waiting: two of them would start two engines."""
    with Path(tempfile.gettempdir(), f"fargate-runner-docker-ready-{os.geteuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make this machine ready for the tests that need a Docker engine.")
    parser.add_argument("--check", action="store_true", help="only say whether it is, and change nothing")
    options = parser.parse_args(arguments)
    engine = Engine(os.environ.get("DOCKER_HOST") or DEFAULT_HOST)
    try:
        if options.check:
            check(engine)
        else:
            with alone():
                make_ready(engine)
    except NotReadyError as exc:
        print(f"docker_ready: {exc}", file=sys.stderr)
        return 1
    except (OSError, subprocess.SubprocessError) as exc:
        print(
            f"docker_ready: {type(exc).__name__}: {exc}; run it again, and see the engine's log",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
