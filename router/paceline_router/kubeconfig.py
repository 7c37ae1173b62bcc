"""Where the API server is and who we are to it: from the pod's service account, or from a kubeconfig.

KUBECONFIG (its first file that exists) or ~/.kube/config counts before the service account, as it does for kubectl.
Understood are client certificates, tokens, token files, exec plug-ins and a CA, each as data or as a file. Token files
are read again once a minute, because the kubelet renews them. Invariant: no credential is ever part of an error.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_AGE_S = 60.0
EXEC_TIMEOUT_S = 60.0

Json = dict[str, Any]


class ConfigError(Exception):
    """No way to reach a cluster is configured; the message says what to change."""


class Bearer(httpx.Auth):
    """A token, asked of `read` at most once in TOKEN_AGE_S."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._token = ""
        self._until = 0.0

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        now = time.monotonic()
        if now >= self._until:
            self._token, self._until = self._read(), now + TOKEN_AGE_S
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request


@dataclass(frozen=True, slots=True)
class Access:
    """`namespace` is the one meant where none is said."""

    server: str
    tls: ssl.SSLContext | bool
    auth: httpx.Auth | None
    namespace: str


def find_access(environ: Mapping[str, str] = os.environ, context: str = "") -> Access:
    """How to reach the cluster; ConfigError when nothing says so. `context` names one of the kubeconfig."""
    home = Path(environ.get("HOME", "/")) / ".kube" / "config"
    paths = [Path(p) for p in environ.get("KUBECONFIG", "").split(os.pathsep) if p] or [home]
    found = next((p for p in paths if p.exists()), None)
    if found:
        return from_kubeconfig(found, context)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(environ)
    raise ConfigError(f"no cluster is configured: {paths[0]} does not exist; set KUBECONFIG to a kubeconfig file")


def in_cluster(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Access:
    """As the pod's service account."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        namespace = (folder / "namespace").read_text().strip()
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{folder}: {e}; let the pod mount its service account's token") from e
    host = f"[{host}]" if ":" in host else host
    return Access(f"https://{host}:{port}", tls, Bearer((folder / "token").read_text), namespace)


def from_kubeconfig(path: Path, context: str = "") -> Access:
    """The current context of a kubeconfig, or the one named."""
    try:
        config = yaml.safe_load(path.read_text())
        name = context or config.get("current-context", "")
        chosen = _named(config, "contexts", name)["context"]
        cluster = _named(config, "clusters", chosen["cluster"])["cluster"]
        user = _named(config, "users", chosen["user"])["user"] or {}
        tls = _tls(cluster, user, path.parent) if cluster["server"].startswith("https:") else True
        return Access(
            cluster["server"].rstrip("/"), tls, _auth(user, path.parent), chosen.get("namespace") or "default"
        )
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError, binascii.Error, ssl.SSLError) as e:
        raise ConfigError(f"{path}: no usable context ({type(e).__name__}: {e}); correct the kubeconfig") from e


def _named(config: Json, kind: str, name: str) -> Json:
    found: Json | None = next((entry for entry in config.get(kind) or () if entry["name"] == name), None)
    if found is None:
        raise LookupError(f"{kind} has no {name!r}")
    return found


def _tls(cluster: Json, user: Json, folder: Path) -> ssl.SSLContext:
    tls = ssl.create_default_context()
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    elif ca := _bytes(cluster, "certificate-authority", folder):
        tls = ssl.create_default_context(cadata=ca.decode())
    certificate, key = _bytes(user, "client-certificate", folder), _bytes(user, "client-key", folder)
    if certificate and key:
        with ExitStack() as stack:  # the ssl module loads a key from a file only
            files = [stack.enter_context(tempfile.NamedTemporaryFile()) for _ in range(2)]
            for file, data in zip(files, (certificate, key), strict=True):
                file.write(data)
                file.flush()
            tls.load_cert_chain(files[0].name, files[1].name)
    return tls


def _bytes(entry: Json, field: str, folder: Path) -> bytes | None:
    """A field given as base64 (`<field>-data`) or as a file, relative to the kubeconfig."""
    if data := entry.get(f"{field}-data"):
        return base64.b64decode("".join(data.split()), validate=True)
    return (folder / entry[field]).read_bytes() if entry.get(field) else None


def _auth(user: Json, folder: Path) -> httpx.Auth | None:
    if token := user.get("token"):
        return Bearer(lambda: str(token))
    if token_file := user.get("tokenFile"):
        return Bearer(lambda: (folder / token_file).read_text().strip())
    if plugin := user.get("exec"):
        return Bearer(lambda: _run_plugin(plugin))
    return None


def _run_plugin(plugin: Json) -> str:
    """The token of an exec credential plug-in (client-go's ExecCredential); ConfigError where it gives none."""
    env = os.environ | {e["name"]: e["value"] for e in plugin.get("env") or ()}
    env["KUBERNETES_EXEC_INFO"] = json.dumps(
        {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    )
    argv = [plugin["command"], *(plugin.get("args") or ())]
    try:
        done = subprocess.run(argv, env=env, capture_output=True, check=True, timeout=EXEC_TIMEOUT_S)
        return str(json.loads(done.stdout)["status"]["token"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError) as e:
        raise ConfigError(f"{argv[0]} gave no token ({type(e).__name__}); run it by hand to see why") from e
