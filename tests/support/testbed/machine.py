"""What the test cluster needs of its machine, and what to type where something is missing.

It needs root, Debian's packages for containers and networks, and its programs, which Go builds. Installs nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from testbed.layout import Layout
from testbed.node import CNI_PLUGINS
from testbed.programs import Programs

# Debian's package → a program of it.
PACKAGES: Mapping[str, str] = {
    "runc": "runc",
    "containernetworking-plugins": str(CNI_PLUGINS / "ptp"),
    "iproute2": "ip",
    "procps": "sysctl",
    "nftables": "nft",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "openssl": "openssl",
    "util-linux": "nsenter",
}
PROMETHEUS: Mapping[str, str] = {"prometheus": "promtool"}  # the server, and what checks and tests rules
CHROMIUM: Mapping[str, str] = {"chromium": "chromium", "chromium-driver": "chromedriver"}
# With them the end-to-end suite's: `make images` without Docker, metrics, the console in a browser.
ALL_PACKAGES: Mapping[str, str] = {
    **PACKAGES,
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    **PROMETHEUS,
    **CHROMIUM,
}


def absent(packages: Mapping[str, str]) -> list[str]:
    return [package for package, program in packages.items() if shutil.which(program) is None]


def missing(packages: Mapping[str, str] = PACKAGES) -> list[str]:
    """One line a lack; Debian's packages are one, with the command that installs them."""
    lacks = [] if os.geteuid() == 0 else ["the test cluster needs root (network namespaces, mounts and cgroups)"]
    if names := " ".join(absent(packages)):
        install = f"apt-get update && apt-get install -y --no-install-recommends {names}"
        lacks.append(f"the test cluster needs {names}: {install}")
    return lacks


def tool_missing(packages: Mapping[str, str]) -> str | None:
    """Why tests that need these programs cannot run; they need no root."""
    names = " ".join(absent(packages))
    return f"PATH has no {names}: apt-get install -y --no-install-recommends {names}" if names else None


def unbuilt(programs: Programs) -> list[str]:
    if not (sets := programs.missing()):
        return []
    build = "make cluster-build" if shutil.which("go") else "install Go 1.26 or later, then make cluster-build"
    return [f"the test cluster's programs are not built ({', '.join(sets)}; up to 20 min, once): {build}"]


def cluster_missing() -> str | None:
    """Why `make cluster` cannot start at once; None where it can."""
    return "; ".join([*missing(), *unbuilt(Programs.of_user())]) or None


def foreign_kubeconfig(environ: Mapping[str, str]) -> str | None:
    """What KUBECONFIG names, unless that is our own cluster, as `make cluster` tells one to export it."""
    kubeconfig = environ.get("KUBECONFIG")
    return None if not kubeconfig or Path(kubeconfig) == Layout().kubeconfig else kubeconfig


def e2e_missing(environ: Mapping[str, str]) -> str | None:
    """Why the end-to-end suite cannot run: on the cluster that KUBECONFIG names, or else on our own."""
    if foreign_kubeconfig(environ):
        lacks = absent({"kubectl": "kubectl", "helm": "helm"})
        return f"KUBECONFIG is set, but PATH has no {' and no '.join(lacks)}" if lacks else None
    return "; ".join([*missing(ALL_PACKAGES), *unbuilt(Programs.of_user())]) or None
