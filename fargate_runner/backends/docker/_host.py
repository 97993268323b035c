"""
What is done on the machine itself and not through the engine: who we are, control groups, scratch file systems.

The last two need root on the engine's own machine; elsewhere there are none. Everything here blocks: for a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

__all__ = [
    "Scratch",
    "cgroup_parent",
    "is_dead",
    "limit_cgroup",
    "owner_label",
    "remove_cgroup",
    "sweep",
]

# ---- owners --------------------------------------------------------------------------------------------------------

_open_here: Final[set[str]] = set()
"""The nonces of the backends that are open in this process."""


def owner_label(nonce: str) -> str:
    """Return who we are, so that another process can tell whether we are dead."""
    return json.dumps({**_whereabouts(), "pid": os.getpid(), "born": _born(os.getpid()), "nonce": nonce})


def opened(nonce: str) -> None:
    """Note that a backend of this process is open."""
    _open_here.add(nonce)


def closed(nonce: str) -> None:
    """Note that it is not any more: what it left without starting it is nobody's."""
    _open_here.discard(nonce)


def is_dead(label: str | None) -> bool:
    """Whether the owner of that label is provably gone. False if it may live, here or on another machine."""
    try:
        owner = json.loads(label or "")
        pid, born, nonce = int(owner["pid"]), owner["born"], owner["nonce"]
        here = _whereabouts()
        if not owner["host"] or not owner["boot"] or owner["host"] != here["host"]:
            return False
        if owner["boot"] != here["boot"]:
            return True  # the same machine, started anew
        if owner["pidns"] != here["pidns"]:
            return False
    except (ValueError, KeyError, TypeError):
        return False
    if pid == os.getpid() and born == _born(pid):
        return nonce not in _open_here
    return bool(_born(pid) != born)


def _whereabouts() -> dict[str, str]:
    machine = _read("/etc/machine-id")
    return {
        "host": f"{socket.gethostname()}/{machine}",
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pidns": _link("/proc/self/ns/pid"),
    }


def _born(pid: int) -> str | None:
    """Return when *pid* was started, in ticks since boot; None if it is over."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # proc(5): the name, in parentheses, may hold anything
    return None if fields[0] in {b"Z", b"X"} else fields[19].decode()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""


# ---- control groups ------------------------------------------------------------------------------------------------

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OURS: Final = "fargate-runner"


def cgroup_parent(token: str, *, driver: str) -> str:
    """Return the control group that all containers of an attempt are put below, as the engine is told."""
    # With hyphens, systemd would make a slice below a slice.
    return f"fr{token}.slice" if driver == "systemd" else f"/{_OURS}/{token}"


def limit_cgroup(parent: str, *, version: str, memory: int, nano_cpus: int) -> bool:
    """
    Bound memory and CPU of a control group that the engine has made. Return whether memory is bounded.

    A first container has to run in it: the runtime makes the group, without limits.
    """
    quota = int(nano_cpus / 1e9 * 100_000)
    group = parent.lstrip("/")
    if version == "2":
        files = {
            _CGROUPS / group / "memory.max": str(memory),
            _CGROUPS / group / "memory.swap.max": "0",
            _CGROUPS / group / "cpu.max": f"{quota} 100000",
        }
    else:
        files = {
            _CGROUPS / "memory" / group / "memory.limit_in_bytes": str(memory),
            _CGROUPS / "memory" / group / "memory.memsw.limit_in_bytes": str(memory),
            _CGROUPS / "cpu" / group / "cpu.cfs_quota_us": str(quota),
        }
    wrote = []
    for file, value in files.items():
        try:
            file.write_text(value)
            wrote.append(True)
        except OSError:  # no swap accounting, no such controller
            wrote.append(False)
    return wrote[0]


def remove_cgroup(parent: str) -> None:
    """Remove a control group: the engine never does."""
    group = parent.lstrip("/")
    for base in (_CGROUPS, *_controllers()):
        with contextlib.suppress(OSError):
            (base / group).rmdir()


def _controllers() -> list[Path]:
    try:
        return [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


# ---- scratch space -------------------------------------------------------------------------------------------------

_SCRATCH: Final = Path("/var/lib/fargate-runner/scratch")
_FRESH: Final = 600.0
"""Seconds in which something without a container may still be about to get one."""


class Scratch:
    """A sized file system in a sparse file, mounted where a container can be given it."""

    def __init__(self, token: str, gib: int = 0) -> None:
        self.directory = _SCRATCH / token
        self._file = _SCRATCH / f"{token}.img"
        self._gib = gib

    def announce(self) -> None:
        """Make the directory, which a container can be created with."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def mount(self) -> None:
        """
        Make the file system and mount it.

        :raises OSError: it cannot be done here
        """
        with self._file.open("wb") as file:
            file.truncate(self._gib << 30)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", self._file)
        _run("mount", "-o", "loop,nosuid,nodev", self._file, self.directory)
        with contextlib.suppress(OSError):
            (self.directory / "lost+found").rmdir()
        self.directory.chmod(0o1777)  # whatever user the image runs as

    def remove(self) -> None:
        """Unmount it and delete its file. No error if there is none."""
        if self.directory.is_mount():
            with contextlib.suppress(OSError):
                _run("umount", self.directory)
        if not self.directory.is_mount():
            self._file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.directory.rmdir()


def _run(*argv: Any) -> None:
    words = [str(word) for word in argv]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=60)
    if done.returncode:
        raise OSError(f"{words[0]}: {done.stderr.strip()}")


def left_over() -> set[str]:
    """Return the tokens that something of ours on this machine is named after, and that is not brand-new."""
    found: set[str] = set()
    places = [_SCRATCH, *(base / _OURS for base in (_CGROUPS, *_controllers()))]
    now = time.time()
    for place in places:
        with contextlib.suppress(OSError):
            for path in place.iterdir():
                if (path.suffix == ".img" or path.is_dir()) and now - path.stat().st_mtime > _FRESH:
                    found.add(path.stem)
    return found


def sweep(token: str) -> None:
    """Remove what an attempt without containers has left on this machine."""
    Scratch(token).remove()
    remove_cgroup(f"/{_OURS}/{token}")
