"""The cluster's certificates, made by openssl: one authority, and a client and server certificate a component.

Kubernetes reads the identity from the certificate's subject (CN: user, O: group). They hold for 30 days.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from testbed.layout import API_URL
from testbed.processes import run


def authority(folder: Path) -> None:
    """ca.crt, and the key pair sa.key, sa.pub that signs service accounts' tokens."""
    folder.mkdir(parents=True)
    for name in ("ca", "sa"):
        _key(folder / f"{name}.key")
    ca = folder / "ca.crt"
    run(
        "openssl",
        "req",
        "-x509",
        "-new",
        "-key",
        folder / "ca.key",
        "-subj",
        "/CN=testbed-ca",
        "-days",
        "30",
        "-out",
        ca,
    )
    run("openssl", "ec", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")


def certificate(folder: Path, name: str, subject: str, addresses: Sequence[str] = ()) -> None:
    """NAME.crt and NAME.key; `addresses` like DNS:localhost or IP:127.0.0.1."""
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    _key(folder / f"{name}.key")
    run("openssl", "req", "-new", "-key", folder / f"{name}.key", "-subj", subject, "-out", request)
    lines = ["extendedKeyUsage=serverAuth,clientAuth"]
    if addresses:
        lines.append(f"subjectAltName={','.join(addresses)}")
    extensions.write_text("\n".join(lines) + "\n")
    signing = ["-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-days", "30"]
    out = folder / f"{name}.crt"
    run("openssl", "x509", "-req", "-in", request, *signing, "-extfile", extensions, "-out", out)


def kubeconfig(folder: Path, name: str, out: Path) -> None:
    """A kubeconfig (JSON is YAML) with certificate NAME."""
    cluster = {"server": API_URL, "certificate-authority": str(folder / "ca.crt")}
    user = {"client-certificate": str(folder / f"{name}.crt"), "client-key": str(folder / f"{name}.key")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "testbed",
        "clusters": [{"name": "testbed", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": name}}],
    }
    out.write_text(json.dumps(config, indent=1))


def _key(path: Path) -> None:
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
