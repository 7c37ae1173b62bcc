"""A certificate of an authority of the test's own, made by openssl, and a client's context that trusts it alone."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from testbed import pki

HERE = ("DNS:localhost", "IP:127.0.0.1")


def make_certificate(folder: Path, name: str = "router", addresses: Sequence[str] = HERE) -> dict[str, str]:
    """For these addresses, of a new authority, ca.crt; the router's `tls` configuration."""
    pki.authority(folder)
    pki.certificate(folder, name, f"/CN={name}", addresses)
    return {"certificate": str(folder / f"{name}.crt"), "key": str(folder / f"{name}.key")}


def trust(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.crt"))
