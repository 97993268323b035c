"""
What `bundle` does: one zip for AWS Lambda of this library, what it needs, and code of the user's.

The installed distributions are the source, so nothing is fetched, and what runs there is what was tested here. Most of
a plain install is botocore's descriptions of four hundred services and the stack of aiohttp. Of the descriptions, those
of the services that are called stay, without their prose; aioboto3 and all that only it needs stay away unless a
service asks for it. What is left is plain Python, for any processor.

The same installation gives the same bytes: names are sorted, times are those of the format's first day, and byte code
is made by a fresh interpreter and checked against nothing, so that a file system may be read-only.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Final

import attrs
import click
from attrs import field

import fargate_runner
from fargate_runner.backends.ecs._lean import KNOWN, LEAN

__all__ = ["ARCHITECTURES", "Built", "Wanted", "build", "wanted_of"]

# AWS Lambda Developer Guide, "Lambda quotas": of a deployment package, zipped and uploaded directly, and unzipped.
_MOST_ZIPPED: Final = 50 * 2**20
_MOST_UNPACKED: Final = 250 * 2**20
_ROOT: Final = "/var/task"
"""Where Lambda unpacks it; tracebacks name files there."""

ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "x86_64", "arm64": "aarch64"}
"""Lambda's words for processors, and those of wheels."""
_PLATFORMS: Final = ("manylinux_2_28_{0}", "manylinux_2_17_{0}", "manylinux2014_{0}")
"""Wheels that Lambda runs: Python 3.12 and later are on Amazon Linux 2023 (glibc 2.34), 3.11 on 2 (glibc 2.26)."""
_OLDEST: Final = (3, 11)

_US: Final = "fargate-runner"
_STACK: Final = "aioboto3"
_BY_STACK: Final = KNOWN - LEAN
"""Services for which the library itself takes aioboto3."""
_OURS_ELSEWHERE: Final = ("cli", "testing", "infrastructure", "backends/docker")
"""Parts of this library that no function calls."""

_NATIVE: Final = (".so", ".pyd", ".dylib")
_UNWANTED: Final = (".pyi", ".pyc", ".pth", "/py.typed", ".c", ".h", ".pyx", ".pxd", ".egg-link")
_OF_METADATA: Final = ("METADATA", "entry_points.txt", "LICEN", "NOTICE", "COPYING")
_FIRST_DAY: Final = (1980, 1, 1, 0, 0, 0)
_DATA: Final = re.compile(r"botocore/data/(?P<service>[^/]+)/(?P<version>[^/]+)/(?P<name>[^/]+)\Z")
_OF_A_SERVICE: Final = ("service-2", "service-2.sdk-extras", "endpoint-rule-set-1")
_SHARED_DATA: Final = frozenset({"_retry.json", "partitions.json", "sdk-default-configuration.json"})


@attrs.frozen(kw_only=True)
class Wanted:
    """What is to be in a bundle, and where it is to run."""

    sources: tuple[Path, ...] = ()
    services: tuple[str, ...] = ()
    """More than the library calls itself."""
    packages: tuple[str, ...] = ()
    """Installed distributions, with all that they require."""
    python: tuple[int, int] = field(factory=lambda: (sys.version_info.major, sys.version_info.minor))
    architecture: str | None = None
    """None: any, if nothing is native, else that of this machine."""

    @property
    def with_stack(self) -> bool:
        return bool(_BY_STACK.intersection(self.services)) or _STACK in map(_canonical, self.packages)

    @property
    def all_services(self) -> tuple[str, ...]:
        return tuple(sorted(LEAN.union(self.services)))

    @property
    def machine(self) -> str:
        """The processor in the word of wheels."""
        here = platform.machine()
        return ARCHITECTURES.get(self.architecture or here, here)

    @property
    def is_for_this_python(self) -> bool:
        return self.python == sys.version_info[:2]


@attrs.frozen(kw_only=True)
class Built:
    """A bundle that was written; all sizes in bytes."""

    path: Path
    zipped: int
    unpacked: int
    plain_zipped: int
    """What `pip install fargate-runner` puts down, zipped; without byte code."""
    plain_unpacked: int
    files: int
    native: tuple[str, ...]
    """Distributions that run on one kind of processor."""

    def lines(self, wanted: Wanted) -> Iterator[str]:
        """Say what came of it."""
        yield (
            f"wrote {self.path}: {_mb(self.zipped)}, unpacked {_mb(self.unpacked)}; a plain install is "
            f"{_mb(self.plain_zipped)} and {_mb(self.plain_unpacked)} "
            f"(x {self.zipped / self.plain_zipped:.2f} and x {self.unpacked / self.plain_unpacked:.2f})"
        )
        where = f"{wanted.architecture or wanted.machine} ({', '.join(self.native)})" if self.native else "any"
        yield f"for Python {_dotted(wanted.python)}, processor: {where}; services: {', '.join(wanted.all_services)}"
        if not wanted.is_for_this_python:
            here = _dotted(sys.version_info[:2])
            yield (
                f"no byte code: this is Python {here}; each cold start compiles what it imports, unless you build it "
                f"with Python {_dotted(wanted.python)}"
            )
        if self.unpacked > _MOST_UNPACKED:
            yield f"Lambda takes {_mb(_MOST_UNPACKED)} unpacked at most: leave something out, or use a container image"
        elif self.zipped > _MOST_ZIPPED:
            yield f"Lambda takes {_mb(_MOST_ZIPPED)} by direct upload at most: upload it through S3"


def build(wanted: Wanted, out: Path, *, force: bool = False) -> Built:
    """Write a bundle and return what it is; refuses what cannot be right with `click.UsageError`."""
    if out.exists() and not force:
        raise click.UsageError(f"--out {str(out)!r}: {out} is there already; say --force, or another place")
    _check_services(wanted)
    chosen = _closure(_roots(wanted), wanted)
    with tempfile.TemporaryDirectory(prefix="fargate-runner-bundle-") as scratch:
        stage = _Stage(Path(scratch, "stage"))
        native = _put_distributions(stage, chosen, wanted, Path(scratch, "fetched"))
        _put_ourselves(stage)
        for source in wanted.sources:
            stage.put_source(source, but=out.resolve())
        if wanted.is_for_this_python:
            _compile(stage.root)
        unpacked = _zip(stage.root, out)
    plain_zipped, plain_unpacked = _plain()
    files = len(stage.owners)
    return Built(
        path=out,
        zipped=out.stat().st_size,
        unpacked=unpacked,
        plain_zipped=plain_zipped,
        plain_unpacked=plain_unpacked,
        files=files,
        native=tuple(sorted(native)),
    )


def _mb(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()  # as in "Names and normalization" of the packaging guide


# ---- which distributions -------------------------------------------------------------------------------------------


def _roots(wanted: Wanted) -> list[str]:
    own = [line for line in metadata.requires(_US) or () if "extra ==" not in line]
    if not wanted.with_stack:
        own = [*(line for line in own if _name_of(line) != _STACK), "botocore"]
    return [*own, *wanted.packages]


def _name_of(requirement: str) -> str:
    return _canonical(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def _closure(requirements: Iterable[str], wanted: Wanted) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that *requirements* lead to on the target, by name."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        fix = 'pip install "fargate-runner[cli]"'
        raise click.UsageError(f"bundle needs packaging, to read what a package requires: {fix}") from None
    target = {
        "python_version": _dotted(wanted.python),
        "python_full_version": f"{_dotted(wanted.python)}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": wanted.machine,
    }
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    left = [(line, "") for line in requirements]
    while left:
        line, asked_by = left.pop()
        try:
            wish = Requirement(line)
        except InvalidRequirement:
            raise click.UsageError(f"--package {line!r}: not the name of a distribution") from None
        name = _canonical(wish.name)
        try:
            distribution = found.setdefault(name, metadata.distribution(wish.name))
        except metadata.PackageNotFoundError:
            why = f"{asked_by} needs {wish.name} there, which" if asked_by else f"--package {line!r}: it"
            raise click.UsageError(f"{why} is not installed here; pip install {wish.name!r}") from None
        if not asked_by and not wish.specifier.contains(distribution.version, prereleases=True):
            raise click.UsageError(
                f"--package {line!r}: installed here is {distribution.version}; install that, or ask for it"
            )
        for extra in ("", *sorted(wish.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for needed in distribution.requires or ():
                if name == _US and _name_of(needed) == _STACK and not wanted.with_stack:
                    continue
                marker = Requirement(needed).marker
                if not extra if marker is None else marker.evaluate(target | {"extra": extra}):
                    left.append((needed, wish.name))
    return found


def _python(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]+)\.([0-9]+)", text)
    version = (int(found[1]), int(found[2])) if found else None
    if version is None or version < _OLDEST:
        oldest = _dotted(_OLDEST)
        raise click.UsageError(f"--python {text!r}: nothing that this runs on; write it like 3.12, {oldest} or later")
    return version


def wanted_of(
    *,
    sources: Sequence[str],
    services: Sequence[str],
    packages: Sequence[str],
    python: str | None,
    architecture: str | None,
) -> Wanted:
    """Return what the options ask for."""
    target = {} if python is None else {"python": _python(python)}
    return Wanted(
        sources=tuple(map(Path, sources)),
        services=tuple(services),
        packages=tuple(packages),
        architecture=architecture,
        **target,
    )


def _check_services(wanted: Wanted) -> None:
    data = Path(str(metadata.distribution("botocore").locate_file("botocore/data")))
    for service in wanted.services:
        if not service or not (data / service).is_dir() or "/" in service:
            near = sorted(path.name for path in data.glob(f"*{service[:4]}*") if path.is_dir())[:5] if service else []
            hint = f": {', '.join(near)}?" if near else ""
            raise click.UsageError(f"--service {service!r}: this botocore knows no such service{hint}")


# ---- what goes in --------------------------------------------------------------------------------------------------


class _Stage:
    """A directory that becomes the bundle, and who has put which file there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.owners: dict[str, str] = {}
        root.mkdir(parents=True)

    def put(self, name: str, content: bytes, *, owner: str) -> None:
        path = self.root / name
        if (other := self.owners.get(name)) is not None:
            if path.read_bytes() == content:  # the empty __init__.py of a namespace, say
                return
            raise click.UsageError(f"{name} is of {other} and of {owner}: one of them has to go")
        self.owners[name] = owner
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise click.UsageError(f"{name} of {owner} is a file here and a directory there: rename one") from None

    def put_source(self, source: Path, *, but: Path) -> None:
        """Put in a file, or what is in a directory, but for hidden files, byte code and the bundle itself."""
        owner = f"--source {str(source)!r}"
        if not source.exists():
            raise click.UsageError(f"{owner}: there is no such file or directory")
        for path in [source] if source.is_file() else _walked(source):
            name = source.name if path == source else path.relative_to(source).as_posix()
            if path.resolve() == but:
                continue
            if not path.is_file():
                raise click.UsageError(
                    f"{owner}: {path} is no file, or a link to a directory; take it away, or copy it"
                )
            try:
                name.encode()
                self.put(name, path.read_bytes(), owner=owner)
            except (OSError, UnicodeEncodeError) as exc:
                raise click.UsageError(f"{owner}: {name!r} cannot be put in ({exc})") from None


def _walked(source: Path) -> Iterator[Path]:
    for where, directories, files in os.walk(source):
        links = {name for name in directories if Path(where, name).is_symlink()}
        directories[:] = sorted(name for name in directories if not _is_left_out(name) and name not in links)
        if "pyvenv.cfg" in files:  # a virtual environment: its packages are what --package is for
            directories.clear()
            continue
        yield from (Path(where, name) for name in sorted({*files, *links}) if not _is_left_out(name))


def _is_left_out(name: str) -> bool:
    # What is hidden is for tools, or secret: .git, .venv, .env.
    return name.startswith(".") or name == "__pycache__" or name.endswith(".pyc")


def _put_distributions(
    stage: _Stage, chosen: Mapping[str, metadata.Distribution], wanted: Wanted, scratch: Path
) -> list[str]:
    """Put in what each distribution has installed; return the names of those that are for one kind of processor."""
    native = [name for name, distribution in chosen.items() if _is_native(distribution)]
    elsewhere = [name for name in native if not (_fits_here(wanted) and _is_for_any_linux(chosen[name]))]
    for name, distribution in chosen.items():
        if name not in elsewhere and name != _US:
            for file, content in _contents(_files(distribution), wanted):
                stage.put(file, content, owner=name)
    if elsewhere:
        _fetch({name: chosen[name].version for name in elsewhere}, wanted, scratch)
        files = {path.relative_to(scratch).as_posix(): path for path in scratch.rglob("*") if path.is_file()}
        for file, content in _contents(files, wanted):
            stage.put(file, content, owner=", ".join(elsewhere))
    return native


def _fits_here(wanted: Wanted) -> bool:
    """Whether what is installed here runs there."""
    here = sys.platform, platform.libc_ver()[0], platform.machine()
    return wanted.is_for_this_python and here == ("linux", "glibc", wanted.machine)


def _is_for_any_linux(distribution: metadata.Distribution) -> bool:
    """Whether it was installed from a wheel that runs on an older system; what was compiled here may not."""
    return "manylinux" in (distribution.read_text("WHEEL") or "")


def _is_native(distribution: metadata.Distribution) -> bool:
    return any(name.endswith(_NATIVE) for name in _files(distribution))


def _files(distribution: metadata.Distribution) -> dict[str, Path]:
    """Return what a distribution has put beside other packages, by its place there."""
    listed, name = distribution.files, distribution.metadata["Name"]
    if listed is None:
        raise click.UsageError(f"{name}: it does not say what it has installed; pip install --force-reinstall {name}")
    if '"editable": true' in (distribution.read_text("direct_url.json") or "") and name != _US:
        fix = "name its code with --source, or install it without -e"
        raise click.UsageError(f"--package {name!r}: it is a working copy, which does not tell its files; {fix}")
    return {file.as_posix(): Path(str(file.locate())) for file in listed if ".." not in file.parts}


def _contents(files: Mapping[str, Path], wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    for name in sorted(files):
        path = PurePosixPath(name)
        if "__pycache__" in path.parts or name.endswith(_UNWANTED) or {"tests", "test"}.intersection(path.parts[:-1]):
            continue
        if path.parts[0].endswith((".dist-info", ".egg-info")):
            if path.name.startswith(_OF_METADATA):
                yield name, _brief(path.name, files[name].read_bytes())
        elif name.startswith("botocore/data/"):
            yield from _data(name, files[name], wanted)
        elif files[name].is_file():
            yield name, files[name].read_bytes()


def _brief(name: str, content: bytes) -> bytes:
    """Return metadata without the README behind it: `importlib.metadata` reads versions and requirements."""
    return content.partition(b"\n\n")[0] + b"\n" if name == "METADATA" else content


def _data(name: str, path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    found = _DATA.match(name)
    if found is None:
        if path.name in _SHARED_DATA or (path.name == "endpoints.json" and wanted.with_stack):
            yield name, path.read_bytes()
        return
    kind = found["name"].removesuffix(".gz").removesuffix(".json")
    service = found["service"]
    is_asked_for = service in wanted.services and kind != "examples-1"
    if not is_asked_for and (service not in LEAN or kind not in _OF_A_SERVICE):
        return
    if found["version"] != max(other.name for other in path.parent.parent.iterdir()) and not is_asked_for:
        return  # botocore takes the latest
    content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    plain = json.dumps(_without_prose(json.loads(content)), separators=(",", ":"), ensure_ascii=False)
    yield name.removesuffix(".gz"), plain.encode()


def _without_prose(model: Any) -> Any:
    """Return a model without what people read: nine tenths of it."""
    if isinstance(model, dict):
        return {
            key: _without_prose(part)
            for key, part in model.items()
            if not (key == "documentation" and isinstance(part, str))  # a member of that name is a mapping
        }
    return [_without_prose(part) for part in model] if isinstance(model, list) else model


def _put_ourselves(stage: _Stage) -> None:
    """Put in this package as it is imported, which may be from a working copy."""
    home = Path(fargate_runner.__file__).parent
    for path in sorted(home.rglob("*.py")):
        name = path.relative_to(home).as_posix()
        if not name.startswith(tuple(f"{part}/" for part in _OURS_ELSEWHERE)):
            stage.put(f"{home.name}/{name}", path.read_bytes(), owner=_US)
    version = metadata.version(_US)
    said = f"Metadata-Version: 2.1\nName: {_US}\nVersion: {version}\n"
    stage.put(f"fargate_runner-{version}.dist-info/METADATA", said.encode(), owner=_US)


def _fetch(versions: Mapping[str, str], wanted: Wanted, into: Path) -> None:
    """Have pip fetch what this machine's files cannot stand in for."""
    pins = [f"{name}=={version}" for name, version in sorted(versions.items())]
    runs = _PLATFORMS if wanted.python >= (3, 12) else _PLATFORMS[1:]
    there = [word for name in runs for word in ("--platform", name.format(wanted.machine))]
    there += ["--python-version", _dotted(wanted.python), "--implementation", "cp", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(into)]
    done = subprocess.run([*command, *there, *pins], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason was given")
        target = f"Python {_dotted(wanted.python)} on {wanted.architecture or wanted.machine}"
        fix = "build it on such a machine, or leave out what needs them"
        raise click.UsageError(f"{', '.join(pins)}: pip found no wheels for {target} ({said.strip()}); {fix}")


# ---- the archive ---------------------------------------------------------------------------------------------------


def _compile(root: Path) -> None:
    """Write byte code that is not checked against its source, in an interpreter that nothing here has an effect on."""
    command = [sys.executable, "-I", "-m", "compileall", "-q", "-j", "1", "-s", str(root), "-p", _ROOT]
    unchecked = ("--invalidation-mode", "unchecked-hash", str(root))
    done = subprocess.run([*command, *unchecked], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stdout.strip() or done.stderr.strip()
        raise click.UsageError(f"this does not compile: {said}")


def _zip(root: Path, out: Path) -> int:
    """Zip a directory and return the size of what is in it; nobody sees half of an archive."""
    unpacked = 0
    half = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(half, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.as_posix()):
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _FIRST_DAY)
                entry.create_system = 3  # Unix, wherever it was written
                entry.external_attr = (0o100755 if path.suffix in _NATIVE else 0o100644) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                content = path.read_bytes()
                unpacked += len(content)
                archive.writestr(entry, content)
        half.replace(out)
    except OSError as exc:
        said = f"--out {str(out)!r}: it cannot be written ({exc.strerror}); say another place"
        raise click.UsageError(said) from None
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)
    return unpacked


def _plain() -> tuple[int, int]:
    """Return how large a plain install is, zipped and unpacked."""
    files: dict[str, Path] = {}
    wanted = Wanted(packages=(_STACK,))
    for distribution in _closure(_roots(wanted), wanted).values():
        files |= {name: path for name, path in _files(distribution).items() if not name.endswith(".pyc")}
    home = Path(fargate_runner.__file__).parent
    ours = (path for path in home.rglob("*") if "__pycache__" not in path.parts)
    files |= {path.relative_to(home.parent).as_posix(): path for path in ours}
    unpacked = 0
    with tempfile.TemporaryFile() as nowhere:
        with zipfile.ZipFile(nowhere, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, path in files.items():
                if path.is_file():
                    archive.write(path, name)
                    unpacked += path.stat().st_size
        return nowhere.tell(), unpacked
