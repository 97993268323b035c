"""`bundle`: what goes into the zip and what does not, that it runs where nothing else is, what it says of bad input."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import anyio
import click
import pytest

from fargate_runner.backends.ecs._lean import LEAN
from fargate_runner.cli import _bundle
from fargate_runner.cli._app import main
from fargate_runner.testing.aws import FakeAws

Said = Callable[..., tuple[int, str]]

APP = """
import json, sys

from fargate_runner import EcsBackend, Job, Network, Roles, Runner
from fargate_runner.aws_lambda import lambda_handler


def make_runner():
    roles = Roles(execution="arn:aws:iam::123456789012:role/execution")
    return Runner(EcsBackend("jobs", network=Network(subnets=["subnet-0a1b2c3d4e5f67890"]), roles=roles))


@lambda_handler(runner=make_runner)
async def handler(event, context, runner):
    return (await runner.submit(Job(image="registry.example/job:1", command=["work"], key=event["key"]))).key


def main():
    key = handler({"key": "reports/1"}, None)
    handler.close()
    elsewhere = [m.__file__ for m in sys.modules.values() if "site-packages" in (getattr(m, "__file__", None) or "")]
    print(json.dumps({"key": key, "modules": sorted(sys.modules), "elsewhere": elsewhere}))
"""


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"  # processes take real time


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def run(*words: str) -> tuple[int, str]:
        code = main(["bundle", *words])
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Code of a user's, with what does not belong into a bundle."""
    source = tmp_path_factory.mktemp("source")
    (source / "app.py").write_text(APP)
    (source / "templates").mkdir()
    (source / "templates" / "mail.txt").write_text("Dear …")
    for hidden in (".env", ".git/config", "__pycache__/app.cpython-311.pyc", "stale.pyc"):
        (source / hidden).parent.mkdir(exist_ok=True)
        (source / hidden).write_text("secret")
    return source


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> _bundle.Built:
    out = tmp_path_factory.mktemp("built") / "lambda.zip"
    return _bundle.build(_bundle.Wanted(sources=(source,)), out)


@pytest.fixture(scope="module")
def files(built: _bundle.Built) -> Mapping[str, bytes]:
    with zipfile.ZipFile(built.path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class TestWhatIsIn:
    def test_is_the_library_and_what_it_needs(self, files: Mapping[str, bytes]) -> None:
        packages = {name.partition("/")[0].partition(".")[0] for name in files if ".dist-info" not in name}

        assert packages >= {"fargate_runner", "anyio", "attr", "attrs", "botocore", "structlog", "tenacity", "urllib3"}
        assert not packages & {"aioboto3", "aiobotocore", "aiohttp", "boto3", "s3transfer", "click", "rich", "docker"}

    def test_is_no_part_that_no_function_calls(self, files: Mapping[str, bytes]) -> None:
        parts = {name.split("/")[1] for name in files if name.startswith("fargate_runner/")}

        assert {"__init__.py", "_runner.py", "aws_lambda", "backends", "reports"} <= parts
        assert not parts & {"cli", "testing", "infrastructure"}
        assert not [name for name in files if "/tests/" in name or name.endswith((".pyi", "py.typed"))]

    def test_of_botocores_models_are_those_of_services_that_are_called(self, files: Mapping[str, bytes]) -> None:
        data = [name.removeprefix("botocore/data/") for name in files if name.startswith("botocore/data/")]

        assert {name.partition("/")[0] for name in data if "/" in name} == LEAN
        assert {name.rpartition("/")[2] for name in data if "/" in name} == {
            *("service-2.json", "endpoint-rule-set-1.json")
        }
        assert {name for name in data if "/" not in name} == {
            *("_retry.json", "partitions.json", "sdk-default-configuration.json")
        }

    def test_models_are_without_prose_and_otherwise_whole(self, files: Mapping[str, bytes]) -> None:
        model = json.loads(files["botocore/data/ecs/2014-11-13/service-2.json"])

        assert "RunTask" in model["operations"]
        assert b'"documentation":"' not in files["botocore/data/ecs/2014-11-13/service-2.json"]

    def test_is_the_users_code_but_nothing_hidden(self, files: Mapping[str, bytes]) -> None:
        theirs = {name for name in files if name.startswith(("app", "templates", ".", "stale", "lambda"))}

        assert theirs == {"app.py", "templates/mail.txt"}
        assert b"secret" not in files.values()

    def test_is_byte_code_that_nobody_checks(self, files: Mapping[str, bytes]) -> None:
        tag = sys.implementation.cache_tag
        sources = {name for name in files if name.endswith(".py")}
        compiled = {name: content for name, content in files.items() if name.endswith(".pyc")}

        assert compiled.keys() == {
            f"{name.rpartition('/')[0]}/__pycache__/{name.rpartition('/')[2][:-3]}.{tag}.pyc".lstrip("/")
            for name in sources
        }
        assert {content[4:8] for content in compiled.values()} == {b"\x01\0\0\0"}  # PEP 552: by hash, unchecked
        assert b"/var/task/app.py" in compiled[f"__pycache__/app.{tag}.pyc"]
        assert not [name for name, content in compiled.items() if b"fargate-runner-bundle-" in content]

    def test_versions_can_be_asked_for(self, files: Mapping[str, bytes]) -> None:
        version = metadata.version("botocore")

        assert f"Version: {version}\n".encode() in files[f"botocore-{version}.dist-info/METADATA"]
        about = {name.rpartition("/")[2].partition(".")[0] for name in files if ".dist-info/" in name}
        assert about <= {"METADATA", "entry_points", "LICENSE", "LICENSE-APACHE", "LICENSE-MIT", "NOTICE"}

    def test_is_a_part_of_a_plain_install(self, built: _bundle.Built) -> None:
        assert built.zipped < 0.3 * built.plain_zipped
        assert built.unpacked < 0.5 * built.plain_unpacked
        assert built.native == ()

    def test_is_not_itself_nor_a_virtual_environment(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        for name in ("app.py", "lambda.zip", "venv/pyvenv.cfg", "venv/lib/big.py"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).touch()
        stage = _bundle._Stage(tmp_path / "stage")

        stage.put_source(source, but=(source / "lambda.zip").resolve())

        assert set(stage.owners) == {"app.py"}

    def test_may_have_the_same_file_of_two(self, tmp_path: Path) -> None:
        stage = _bundle._Stage(tmp_path / "stage")

        stage.put("shared/__init__.py", b"", owner="one")
        stage.put("shared/__init__.py", b"", owner="another")

        assert stage.owners == {"shared/__init__.py": "one"}

    @pytest.mark.sweep
    def test_is_the_same_next_time(self, built: _bundle.Built, source: Path, tmp_path: Path) -> None:
        os.utime(source / "app.py", (0, 0))

        again = _bundle.build(_bundle.Wanted(sources=(source,)), tmp_path / "lambda.zip")

        assert again.path.read_bytes() == built.path.read_bytes()
        with zipfile.ZipFile(again.path) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert archive.namelist() == sorted(archive.namelist())


class TestWhereItRuns:
    async def test_a_job_is_submitted_without_home_packages_or_a_place_to_write(
        self, built: _bundle.Built, tmp_path: Path
    ) -> None:
        task = tmp_path / "task"
        with zipfile.ZipFile(built.path) as archive:
            archive.extractall(task)
        for path in (task, *task.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = sorted(path.relative_to(task) for path in task.rglob("*"))
        aws = FakeAws(clusters=("jobs",))
        code = f"import sys; sys.path.insert(0, {str(task)!r}); import app; app.main()"

        async with aws.serve(moto=False) as url:
            env = {"AWS_ACCESS_KEY_ID": "AKIAFAKE", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": aws.region}
            env |= {"AWS_ENDPOINT_URL": url, "HOME": "", "PATH": ""}
            done = await anyio.run_process([sys.executable, "-I", "-S", "-c", code], env=env, cwd="/", check=False)

        assert done.returncode == 0, done.stderr.decode()
        said = json.loads(done.stdout)
        assert said["key"] == "reports/1"
        assert said["elsewhere"] == []
        assert not {"aiohttp", "aioboto3", "boto3", "click"}.intersection(said["modules"])
        assert len(aws.world.tasks) == 1
        assert sorted(path.relative_to(task) for path in task.rglob("*")) == before


class TestClosure:
    def test_s3_brings_aioboto3_and_all_endpoints(self) -> None:
        wanted = _bundle.Wanted(services=("s3",))
        chosen = _bundle._closure(_bundle._roots(wanted), wanted)

        data = dict(_bundle._contents(_bundle._files(chosen["botocore"]), wanted))

        assert {"aioboto3", "aiobotocore", "aiohttp", "boto3", "multidict"} <= set(chosen)
        assert "botocore/data/endpoints.json" in data
        assert "botocore/data/s3/2006-03-01/paginators-1.json" in data
        assert "botocore/data/s3/2006-03-01/examples-1.json" not in data
        assert "aiohttp" in [name for name, distribution in chosen.items() if _bundle._is_native(distribution)]

    def test_another_package_brings_what_it_requires(self) -> None:
        wanted = _bundle.Wanted(packages=("rich",))

        chosen = _bundle._closure(_bundle._roots(wanted), wanted)

        assert {"rich", "markdown-it-py", "mdurl"} <= set(chosen)

    def test_extras_of_this_library_bring_no_aioboto3(self) -> None:
        wanted = _bundle.Wanted(packages=("fargate-runner[cli]",))

        chosen = _bundle._closure(_bundle._roots(wanted), wanted)

        assert {"click", "rich"} <= set(chosen)
        assert "aioboto3" not in chosen

    def test_an_extra_brings_what_it_requires(self) -> None:
        wanted = _bundle.Wanted(packages=("anyio[trio]",))

        chosen = _bundle._closure(_bundle._roots(wanted), wanted)

        assert "trio" in chosen

    @pytest.mark.parametrize(("python", "needs"), [((3, 14), True), ((3, 15), False)])
    def test_what_is_needed_is_asked_of_the_target(self, python: tuple[int, int], needs: bool) -> None:
        wanted = _bundle.Wanted(python=python)

        requires = metadata.distribution("anyio").requires or []
        chosen = _bundle._closure(["anyio"], wanted)

        assert [line for line in requires if 'python_version < "3.15"' in line] != []
        assert ("typing-extensions" in chosen) == needs


def test_a_member_called_documentation_is_no_prose() -> None:
    model = {"shapes": {"A": {"documentation": "of A", "members": {"documentation": {"shape": "B"}}}}, "l": [{"x": 1}]}

    assert _bundle._without_prose(model) == {
        "shapes": {"A": {"members": {"documentation": {"shape": "B"}}}},
        "l": [{"x": 1}],
    }


BAD: dict[str, tuple[list[str], str]] = {
    "a service that is none": (["--service", "secretmanager"], r"--service 'secretmanager': .* secretsmanager"),
    "a service that is no name": (["--service", "../s3"], "knows no such service"),
    "no service": (["--service", ""], "knows no such service"),
    "a package that is not here": (["--package", "no-such-thing"], "not installed here; pip install 'no-such-thing'"),
    "a package that is no name": (["--package", "a b"], "--package 'a b': not the name of a distribution"),
    "a package in another version": (["--package", "attrs<1"], r"--package 'attrs<1': installed here is \d+"),
    "a source that is not there": (["--source", "/no/such/place"], "--source '/no/such/place': there is no such"),
    "no version": (["--python", "three"], "write it like 3.12"),
    "a version that we do not run on": (["--python", "3.9"], "--python '3.9'"),
    "a place that cannot be": (["--out", "/proc/no/lambda.zip"], "--out '/proc/no/lambda.zip': it cannot be written"),
}


class TestBadInput:
    @pytest.mark.parametrize(("words", "told"), BAD.values(), ids=BAD.keys())
    def test_is_told(self, said: Said, tmp_path: Path, words: list[str], told: str) -> None:
        out = [] if "--out" in words else ["--out", str(tmp_path / "lambda.zip")]

        code, err = said(*words, *out)

        assert code == 2
        assert re.search(told, err.replace("\n", " "))
        assert not list(tmp_path.iterdir())

    def test_a_missing_packaging_is_told(self, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "packaging.requirements", None)

        code, err = said("--out", str(tmp_path / "lambda.zip"))

        assert code == 2
        assert 'pip install "fargate-runner[cli]"' in err.replace("\n", " ")

    def test_what_is_there_stays_there(self, said: Said, tmp_path: Path) -> None:
        out = tmp_path / "lambda.zip"
        out.write_text("mine")

        code, err = said("--out", str(out))

        assert (code, out.read_text()) == (2, "mine")
        assert "say --force" in err

    def test_a_source_that_hides_a_package_is_told(self, said: Said, tmp_path: Path) -> None:
        (tmp_path / "six.py").write_text("")

        code, err = said("--source", str(tmp_path), "--out", str(tmp_path / "lambda.zip"))

        assert code == 2
        assert "six.py is of six and of --source" in err

    def test_a_file_where_a_directory_has_to_be_is_told(self, said: Said, tmp_path: Path) -> None:
        (tmp_path / "anyio").write_text("")

        code, err = said("--source", str(tmp_path), "--out", str(tmp_path / "lambda.zip"))

        assert code == 2
        assert "a file here and a directory there" in err

    def test_code_that_does_not_compile_is_told(self, said: Said, tmp_path: Path) -> None:
        (tmp_path / "app.py").write_text("def handler(:\n")

        code, err = said("--source", str(tmp_path / "app.py"), "--out", str(tmp_path / "lambda.zip"))

        assert code == 2
        assert "this does not compile" in err
        assert "handler(:" in err

    def test_a_link_to_a_directory_is_told(self, said: Said, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "shared").symlink_to(tmp_path)

        code, err = said("--source", str(tmp_path / "source"), "--out", str(tmp_path / "lambda.zip"))

        assert code == 2
        assert "a link to a directory" in err.replace("\n", " ")

    def test_a_name_that_is_no_text_is_told(self, said: Said, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "\udcff.txt").touch()

        code, err = said("--source", str(tmp_path / "source"), "--out", str(tmp_path / "lambda.zip"))

        assert code == 2
        assert "cannot be put in" in err

    def test_a_directory_is_not_written_over(self, said: Said, tmp_path: Path) -> None:
        (tmp_path / "lambda.zip").mkdir()

        code, err = said("--force", "--out", str(tmp_path))

        assert code == 2
        assert "Is a directory" in err
        assert list(tmp_path.iterdir()) == [tmp_path / "lambda.zip"]

    def test_a_working_copy_is_told(self, tmp_path: Path) -> None:
        about = tmp_path / "mine-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
        (about / "RECORD").write_text("mine.pth,,\n")
        (about / "direct_url.json").write_text('{"dir_info": {"editable": true}, "url": "file:///mine"}')

        with pytest.raises(click.UsageError, match=r"--package 'mine': it is a working copy.*--source"):
            _bundle._files(metadata.Distribution.at(about))

    def test_an_installation_without_a_record_is_told(self, tmp_path: Path) -> None:
        about = tmp_path / "mine-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")

        with pytest.raises(click.UsageError, match="does not say what it has installed"):
            _bundle._files(metadata.Distribution.at(about))


class TestForElsewhere:
    def test_another_python_gets_sources_only_and_is_told_so(self, said: Said, tmp_path: Path) -> None:
        code, err = said("--python", "3.14", "--out", f"{tmp_path}/out/")

        assert code == 0
        assert "for Python 3.14" in err
        assert "no byte code" in err
        with zipfile.ZipFile(tmp_path / "out" / "lambda.zip") as archive:
            assert not [name for name in archive.namelist() if name.endswith(".pyc")]

    @pytest.mark.sweep
    def test_wheels_are_fetched_for_it(self, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wheels(tmp_path, "multidict", metadata.version("multidict"))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        out = tmp_path / "lambda.zip"

        code, err = said("--package", "multidict", "--architecture", OTHER, "--out", str(out))

        assert (code, f"processor: {OTHER} (multidict)" in err) == (0, True), err
        with zipfile.ZipFile(out) as archive:
            assert archive.read("multidict/native.so") == b"of another processor"
            assert archive.getinfo("multidict/native.so").external_attr >> 16 == 0o100755
            assert archive.getinfo("botocore/client.py").external_attr >> 16 == 0o100644

    def test_wheels_that_cannot_be_had_are_told(
        self, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")

        code, err = said("--package", "multidict", "--architecture", OTHER, "--out", str(tmp_path / "lambda.zip"))

        assert code == 2
        assert f"multidict=={metadata.version('multidict')}: pip found no wheels for Python" in err
        assert "No matching distribution" in err

    @pytest.mark.parametrize(
        ("architecture", "here", "machine"),
        [
            (None, "x86_64", "x86_64"),
            (None, "aarch64", "aarch64"),
            (None, "arm64", "aarch64"),  # macOS
            ("arm64", "x86_64", "aarch64"),
            ("x86_64", "arm64", "x86_64"),
        ],
    )
    def test_processors_have_the_names_of_wheels(
        self, monkeypatch: pytest.MonkeyPatch, architecture: str | None, here: str, machine: str
    ) -> None:
        monkeypatch.setattr(platform, "machine", lambda: here)

        assert _bundle.Wanted(architecture=architecture).machine == machine

    @pytest.mark.parametrize(
        ("libc", "system", "fits"), [("glibc", "linux", True), ("", "linux", False), ("glibc", "darwin", False)]
    )
    def test_what_is_installed_on_another_system_does_not_run_there(
        self, monkeypatch: pytest.MonkeyPatch, libc: str, system: str, fits: bool
    ) -> None:
        monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))
        monkeypatch.setattr(sys, "platform", system)

        assert _bundle._fits_here(_bundle.Wanted()) == fits

    @pytest.mark.parametrize(("tag", "fits"), [("manylinux_2_17_x86_64", True), ("linux_x86_64", False)])
    def test_what_was_compiled_here_may_not_run_there(self, tmp_path: Path, tag: str, fits: bool) -> None:
        (tmp_path / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: cp311-cp311-{tag}\n")

        assert _bundle._is_for_any_linux(metadata.Distribution.at(tmp_path)) == fits


OTHER = "arm64" if platform.machine() == "x86_64" else "x86_64"


def wheels(directory: Path, name: str, version: str) -> None:
    """Write a wheel of that name for the other processor."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    machine = _bundle.ARCHITECTURES[OTHER]
    tag = f"{python}-{python}-manylinux_2_17_{machine}"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{name}/native.so", "of another processor")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{about}/RECORD", "")


class TestWhatItSays:
    def test_is_sizes_and_shares_and_what_runs_it(self, built: _bundle.Built) -> None:
        first, second, *others = built.lines(_bundle.Wanted())

        assert re.fullmatch(
            rf"wrote {re.escape(str(built.path))}: \d\.\d MiB, unpacked \d+\.\d MiB; a plain install is "
            r"\d+\.\d MiB and \d+\.\d MiB \(x 0\.\d\d and x 0\.\d\d\)",
            first,
        )
        assert second.endswith(f"processor: any; services: {', '.join(sorted(LEAN))}")
        assert others == []

    @pytest.mark.parametrize(
        ("zipped", "unpacked", "told"),
        [
            (50 * 2**20, 250 * 2**20, None),
            (50 * 2**20 + 1, 250 * 2**20, "50.0 MiB by direct upload"),
            (60 * 2**20, 250 * 2**20 + 1, "250.0 MiB unpacked"),
        ],
    )
    def test_names_lambdas_limits_when_they_are_passed(self, zipped: int, unpacked: int, told: str | None) -> None:
        built = _bundle.Built(
            path=Path("a.zip"), zipped=zipped, unpacked=unpacked, plain_zipped=1, plain_unpacked=1, files=1, native=()
        )

        limits = [line for line in built.lines(_bundle.Wanted()) if line.startswith("Lambda takes")]

        assert len(limits) == (told is not None)
        assert told is None or told in limits[0]
