"""
AWS clients that we did not write, each in an environment of its own: they pin another botocore.

An environment is made once per set of requirements under the user's cache, by pip, and used again afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = ["AwsCli", "Uninstallable", "environment", "from_pip", "from_system"]

AWSCLI: Final = "awscli>=1.40,<2"
_SYSTEM: Final = ("/usr/bin/aws", "/usr/local/bin/aws")


class Uninstallable(Exception):
    """It could not be had: says why."""


def environment(name: str, *requirements: str) -> Path:
    """
    Return the directory of an environment's programs; the first call for its requirements makes it.

    :raises Uninstallable: pip could not install them
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fargate-runner"
    wanted = json.dumps([sys.version, sys.prefix, *requirements])
    home = cache / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    complete = home / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(home, ignore_errors=True)
            venv.create(home, with_pip=True)
            install = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run([*install, *requirements], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Uninstallable(f"pip could not install {' and '.join(requirements)}:\n{done.stderr.strip()}")
            complete.touch()
    return home / "bin"


@attrs.frozen(kw_only=True)
class AwsCli:
    """AWS's command line client."""

    program: Path
    version: str
    """``aws-cli/2.9.19 Python/3.11.2 …``"""

    def command(self, url: str, *words: str) -> list[str]:
        """Return a command. Version 1 needs to be told where SQS is by an option."""
        return [str(self.program), "--endpoint-url", url, "--output", "json", *words]

    def run(self, url: str, *words: str) -> Any:
        """Run a command and return what it printed, as data."""
        done = subprocess.run(
            self.command(url, *words), capture_output=True, text=True, check=False, env=self.variables, timeout=100
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    @property
    def variables(self) -> dict[str, str]:
        """Return its environment: nothing of the caller's AWS."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYENV_ROOT") if name in os.environ}
        return kept | {
            "AWS_ACCESS_KEY_ID": "AKIATEST",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_PAGER": "",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }


def from_pip() -> AwsCli:
    """
    Return version 1, from PyPI.

    :raises Uninstallable: pip could not install it
    """
    return _known(environment("awscli", AWSCLI) / "aws")


def from_system() -> AwsCli:
    """
    Return version 2, as the system's packages have it.

    :raises Uninstallable: there is none
    """
    for place in (shutil.which("aws"), *_SYSTEM):
        if place and Path(place).exists() and (cli := _known(Path(place))).version.startswith("aws-cli/2"):
            return cli
    raise Uninstallable("no AWS CLI version 2 is here; Debian has one: apt-get install awscli")


def _known(program: Path) -> AwsCli:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return AwsCli(program=program, version=(said.stdout or said.stderr).strip())
