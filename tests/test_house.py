"""What the project promises about itself: its imports, its public names, its wheel, its commands."""

from __future__ import annotations

import ast
import gc
import inspect
import json
import os
import re
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import fargate_runner
from fargate_runner._gc import no_gc
from tests.docs.snippets import blocks

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fargate_runner"
SOURCES = sorted(PACKAGE.rglob("*.py"))

HEAVY = {"aioboto3", "aiobotocore", "aiodocker", "aiohttp", "boto3", "botocore", "click", "docker", "rich"}


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after *code*."""
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


class TestImporting:
    def test_the_package_loads_no_aws_docker_or_terminal_library(self) -> None:
        loaded = loaded_by("import fargate_runner")

        assert "fargate_runner" in loaded
        assert not loaded & HEAVY

    def test_a_local_run_loads_none_of_them_either(self) -> None:
        names = "Job, Retry, Runner, MemoryBackend, ProcessBackend"

        assert not loaded_by(f"from fargate_runner import {names}") & HEAVY

    def test_a_loaded_library_would_be_seen(self) -> None:
        assert loaded_by("import aiodocker") >= {"aiodocker", "aiohttp"}


class TestGarbage:
    """It is not looked for while modules are loaded, and afterwards as before."""

    @pytest.fixture(autouse=True)
    def as_before(self) -> Iterator[None]:
        was_on = gc.isenabled()
        yield
        gc.unfreeze()
        (gc.enable if was_on else gc.disable)()

    @pytest.mark.parametrize("was_on", [True, False])
    def test_is_looked_for_as_before(self, was_on: bool) -> None:
        (gc.enable if was_on else gc.disable)()

        with suppress(ZeroDivisionError), no_gc():
            during = gc.isenabled()
            raise ZeroDivisionError

        assert (during, gc.isenabled()) == (False, was_on)

    def test_is_found_later(self) -> None:
        class Thing:
            me: object

        frozen = gc.get_freeze_count()  # Python 3.12 begins with some of its own
        with no_gc():
            thing = Thing()
            thing.me = thing
            seen = weakref.ref(thing)
            del thing
        before = seen()
        del before
        gc.collect()

        assert gc.get_freeze_count() == frozen
        assert seen() is None

    def test_what_somebody_froze_stays_frozen(self) -> None:
        gc.freeze()
        frozen = gc.get_freeze_count()

        with no_gc():
            pass

        assert 0 < gc.get_freeze_count() <= frozen


class TestPublicNames:
    def test_they_are_sorted_and_there_once(self) -> None:
        assert list(fargate_runner.__all__) == sorted(set(fargate_runner.__all__))

    @pytest.mark.parametrize("name", fargate_runner.__all__)
    def test_each_can_be_imported(self, name: str) -> None:
        assert getattr(fargate_runner, name) is not None

    def test_dir_shows_them(self) -> None:
        assert set(fargate_runner.__all__) <= set(dir(fargate_runner))

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        name = "no_such_name"

        with pytest.raises(AttributeError, match=name):
            getattr(fargate_runner, name)

    @pytest.mark.parametrize("name", fargate_runner.__all__)
    def test_each_has_a_docstring_and_so_has_what_it_offers(self, name: str) -> None:
        silent = [where for where, doc in _docstrings(name, getattr(fargate_runner, name)) if not doc]

        assert not silent


def _docstrings(name: str, value: object) -> list[tuple[str, str | None]]:
    """The docstrings of a public object and of the public members that it defines; members may inherit theirs."""
    if not inspect.isclass(value):
        return [(name, inspect.getdoc(value))]
    offered = [
        (f"{name}.{member}", inspect.getdoc(getattr(value, member)))
        for member, thing in vars(value).items()
        if not member.startswith("_")
        and isinstance(thing, (property, classmethod, staticmethod)) | inspect.isfunction(thing)
    ]
    return [(name, _own_docstring(value)), *offered]


def _own_docstring(cls: type) -> str | None:
    """What the source says: Enum and attrs would lend a docstring of their own."""
    (definition,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return ast.get_docstring(definition)


def dangers(source: str) -> list[str]:
    """What could run foreign code: every use of it in *source*."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names):
                modules = [module, *(f"{module}.{alias.name}" for alias in names)]
            case ast.Call(func=function):
                modules = [ast.unparse(function)]
            case _:
                modules = []
        found += [name for name in modules if _DANGER.fullmatch(name)]
    return found


_DANGER = re.compile(
    r"(builtins\.)?(eval|exec)"
    r"|(pickle|marshal|shelve|dill|cloudpickle)(\..+)?"
    r"|yaml\.(unsafe_|full_)?load(_all)?"
)


class TestForeignData:
    @pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
    def test_is_never_run(self, path: Path) -> None:
        assert not dangers(path.read_text())

    @pytest.mark.parametrize(
        "source",
        [
            "eval('1')",
            "x = [exec(line) for line in y]",
            "import builtins; builtins.eval('1')",
            "import pickle",
            "import json, pickle as p",
            "from pickle import loads",
            "def f():\n    import marshal",
            "import yaml; yaml.load(x)",
            "from yaml import unsafe_load",
        ],
    )
    def test_would_be_seen(self, source: str) -> None:
        assert dangers(source)

    @pytest.mark.parametrize("source", ["re.compile('x')", "yaml.safe_load(x)", "evaluate(x)", "import json"])
    def test_plain_reading_is_fine(self, source: str) -> None:
        assert not dangers(source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(build, cwd=ROOT, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (path,) = directory.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        yield wheel


class TestTheWheel:
    def test_carries_the_type_marker_and_the_licence(self, wheel: zipfile.ZipFile) -> None:
        names = wheel.namelist()

        assert "fargate_runner/py.typed" in names
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

    def test_carries_the_whole_package_and_nothing_else(self, wheel: zipfile.ZipFile) -> None:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}

        assert {str(path.relative_to(ROOT)) for path in SOURCES} <= names
        assert {name.partition("/")[0] for name in names} == {"fargate_runner"}

    def test_brings_the_command(self, wheel: zipfile.ZipFile) -> None:
        (points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]

        assert "fargate-runner = fargate_runner.cli:main" in wheel.read(points).decode()


class TestTheCheckOfEveryChange:
    CI = ROOT / ".ci" / "run"

    def test_runs_the_readmes_test_command_word_for_word(self) -> None:
        page = blocks((ROOT / "README.md").read_text(), "README.md")
        lines = [line for block in page if block.language in {"sh", "console"} for line in block.code.splitlines()]
        (command,) = [line.removeprefix("$ ") for line in lines if "nox -s tests" in line]

        assert command in self.CI.read_text().splitlines()

    def test_insists_on_docker(self) -> None:
        assert "export FARGATE_RUNNER_DOCKER=required" in self.CI.read_text().splitlines()

    def test_can_be_started(self) -> None:
        assert os.access(self.CI, os.X_OK)
