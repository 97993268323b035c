"""
The container that holds the network of a job with sidecars: an image of one file that does nothing, for ever.

Made here, byte by byte, because it must not depend on a registry: a static ELF program of one loop around `pause`
(x86-64) or `ppoll` (aarch64, which has no `pause`).
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from typing import Final

# mov eax, 34 (pause); syscall; jmp back
_X86_64: Final = bytes.fromhex("b822000000" "0f05" "ebf7")
# mov x0..x3, #0; mov w8, #73 (ppoll); svc 0; b back (to the first instruction)
_AARCH64: Final = struct.pack("<7I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0x52800928, 0xD4000001, 0x17FFFFFA)
_MACHINES: Final = {"amd64": (0x3E, _X86_64), "arm64": (0xB7, _AARCH64)}


def program(architecture: str) -> bytes:
    """Return the ELF file for *architecture*, in the words of images (amd64, arm64)."""
    machine, code = _MACHINES[architecture]
    base, header = 0x400000, 64 + 56
    size = header + len(code)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 2, machine, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + segment + code


def archive(architecture: str) -> tuple[str, bytes]:
    """Return the name of the image and the archive that `docker load` takes."""
    layer = _tar({"pause": program(architecture)}, mode=0o755)
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "StopSignal": "SIGKILL"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created_by": "fargate-runner"}],
        },
        sort_keys=True,
    ).encode()
    name = f"fargate-runner/pause:{hashlib.sha256(config).hexdigest()[:12]}"
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    return name, _tar({config_name: config, "layer.tar": layer, "manifest.json": manifest}, mode=0o644)


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), mode, 0
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
