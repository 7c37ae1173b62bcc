"""Writes a container image of one static program as an OCI archive: no Docker, no buildah. Same program, same bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEDIA = "application/vnd.oci.image"


def write(program: Path, name: str, out: Path) -> None:
    """An archive at `out` with image `name`; its entry point is the program with argument `pause`, as user 65532."""
    layer = _tar({program.name: (program.read_bytes(), 0o755)})
    packed = gzip.compress(layer, mtime=0)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"User": "65532:65532", "Entrypoint": [f"/{program.name}"], "Cmd": ["pause"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    config_bytes = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _descriptor(config_bytes, "config.v1+json"),
        "layers": [_descriptor(packed, "layer.v1.tar+gzip")],
    }
    manifest_bytes = json.dumps(manifest).encode()
    named = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    index = {
        "schemaVersion": 2,
        "manifests": [{**_descriptor(manifest_bytes, "manifest.v1+json"), "annotations": named}],
    }
    blobs = [packed, config_bytes, manifest_bytes]
    files = {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": (blob, 0o644) for blob in blobs}
    files["index.json"] = (json.dumps(index).encode(), 0o644)
    files["oci-layout"] = (b'{"imageLayoutVersion": "1.0.0"}', 0o644)
    out.write_bytes(_tar(files))


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(blob: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": f"{MEDIA}.{kind}", "digest": _digest(blob), "size": len(blob)}


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
