"""
The image of the container that holds a job's network while its containers come and go.

It is made by hand, so that no registry is needed: one static program of some 140 bytes that waits for ever. The same
input gives the same bytes, and with them the same image id.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["IMAGES", "image_name", "image_tar"]

# pause(2) in a loop; aarch64 has no pause, there it is ppoll(NULL, 0, NULL, NULL).
_X86_64: Final = bytes.fromhex("b822000000 0f05 ebf7")
_AARCH64: Final = struct.pack(
    "<8I",
    0xD2800928,  # mov x8, 73
    0xD2800000,  # mov x0, 0
    0xD2800001,  # mov x1, 0
    0xD2800002,  # mov x2, 0
    0xD2800003,  # mov x3, 0
    0xD2800004,  # mov x4, 0
    0xD4000001,  # svc 0
    0x17FFFFF9,  # b to the beginning
)
_BASE: Final = 0x400000

IMAGES: Final[Mapping[str, tuple[int, bytes]]] = {"amd64": (62, _X86_64), "arm64": (183, _AARCH64)}
"""Architectures, in the engine's words, that there is an image for: ELF machine number and code."""


def _program(architecture: str) -> bytes:
    """Return a static ELF program: one header, one segment, the code."""
    machine, code = IMAGES[architecture]
    head, entry = 64 + 56, _BASE + 64 + 56
    size = head + len(code)
    elf = struct.pack("<4s5B7x2HI3QI6H", b"\x7fELF", 2, 1, 1, 0, 0, 2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<2I6Q", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + segment + code


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def image_name(architecture: str) -> str:
    """Return the name of the image for *architecture*; its tag tells its content."""
    return f"fargate-runner/pause:{hashlib.sha256(_program(architecture)).hexdigest()[:16]}"


def image_tar(architecture: str) -> bytes:
    """Return the image as the engine loads it."""
    layer = _tar({"pause": _program(architecture)})
    digest = hashlib.sha256(layer).hexdigest()
    config: dict[str, Any] = {
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/pause"], "StopSignal": "SIGKILL"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "fargate-runner"}],
    }
    written = json.dumps(config, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(written).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [image_name(architecture)], "Layers": [f"{digest}/layer.tar"]}]
    return _tar(
        {
            config_name: written,
            f"{digest}/layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )
