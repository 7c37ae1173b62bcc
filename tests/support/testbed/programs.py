"""Builds Kubernetes, its container runtime, DNS and Helm from their published Go modules.

One folder in tests/cluster/programs is a set of programs: its go.mod and go.sum name every version. A set is cached
under a key over those two files and the build command, so it is built once a change of either; two runs at once build
it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.processes import run

SOURCES = Path(__file__).resolve().parents[2] / "cluster" / "programs"
K8S = "k8s.io/kubernetes/cmd"
CONTAINERD = "github.com/containerd/containerd/v2/cmd"
VERSION = "k8s.io/component-base/version"
# Folder → packages. The dearest first; helm, which the cluster itself does not need, last.
SETS: Mapping[str, tuple[str, ...]] = {
    "testbed": (".",),
    "kubernetes": tuple(
        f"{K8S}/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    ),
    "etcd": ("go.etcd.io/etcd/server/v3",),
    "containerd": tuple(f"{CONTAINERD}/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
    "coredns": ("github.com/coredns/coredns",),
    "helm": ("helm.sh/helm/v4/cmd/helm",),
}
EXTRA: Mapping[str, tuple[str, ...]] = {"kind": ("sigs.k8s.io/kind",)}  # built on demand, where there is a Docker
RENAMED = {"server": "etcd"}  # Go names etcd by its folder


def program_name(package: str, folder: str) -> str:
    """The program's name: the last element of the package that is no major version, but for RENAMED."""
    last = re.sub(r"/v\d+$", "", package).rsplit("/", 1)[-1]
    return folder if last == "." else RENAMED.get(last, last)


@dataclass(frozen=True, slots=True)
class Programs:
    """The cache. `folder(set)` and `path(program)` say where things are, built or not."""

    cache: Path

    @classmethod
    def of_user(cls) -> Programs:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(home / "paceline" / "cluster")

    def folder(self, name: str) -> Path:
        sums = SOURCES / name / "go.sum"
        parts = [(SOURCES / name / "go.mod").read_bytes(), sums.read_bytes() if sums.exists() else b""]
        parts += [source.read_bytes() for source in sorted((SOURCES / name).glob("*.go"))]
        parts.append("\0".join(build_command(name, Path("."))).encode())
        return self.cache / "programs" / f"{name}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:12]}"

    def path(self, program: str) -> Path:
        for name, packages in {**SETS, **EXTRA}.items():
            if program in (program_name(package, name) for package in packages):
                return self.folder(name) / program
        raise KeyError(program)

    def command(self, program: str, *words: str | Path) -> list[str]:
        return [str(self.path(program)), *(str(word) for word in words)]

    def missing(self) -> list[str]:
        """The sets that are yet to be built."""
        return [name for name in SETS if not self.folder(name).is_dir()]

    def build(self, names: list[str]) -> None:
        """Builds what is missing of `names`, downloads beside; links all programs into bin/. CommandFailed."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with _locked(self.cache / "lock"), ThreadPoolExecutor(1) as pool:
            missing = [name for name in names if not self.folder(name).is_dir()]
            # One by one and in the order of the builds, which start as soon as theirs has come.
            downloads = {name: pool.submit(_download, name) for name in missing}
            for name in missing:
                downloads[name].result()
                self._build(name)
            for name in names:
                self._link(name)

    def _build(self, name: str) -> None:
        began = time.monotonic()
        print(f"building {name} …", flush=True)
        folder = self.folder(name)
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
            out = Path(scratch) / "out"
            out.mkdir()
            run(
                *build_command(name, out), cwd=SOURCES / name, env={"CGO_ENABLED": "0", "GOWORK": "off"}, timeout_s=5400
            )
            for built, wanted in RENAMED.items():
                if (out / built).exists():
                    (out / built).rename(out / wanted)
            out.rename(folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        print(f"built {name} in {time.monotonic() - began:.0f} s, {size:.0f} MiB", flush=True)

    def _link(self, name: str) -> None:
        bin_ = self.cache / "bin"
        bin_.mkdir(exist_ok=True)
        for program in self.folder(name).iterdir():
            link = bin_ / f".{program.name}.new"
            link.unlink(missing_ok=True)
            link.symlink_to(program)
            link.replace(bin_ / program.name)


def build_command(name: str, out: Path) -> list[str]:
    flags = ["-s", "-w", *_version_flags(name)]
    packages = {**SETS, **EXTRA}[name]
    return ["go", "build", "-trimpath", "-mod=readonly", "-ldflags", " ".join(flags), "-o", f"{out}/", *packages]


def _version_flags(name: str) -> list[str]:
    """-X flags without which the programs take themselves for v0.0.0, and clients for too old a server."""
    text = (SOURCES / name / "go.mod").read_text(encoding="utf-8")
    match name:
        case "kubernetes":
            full, major, minor = _required(text, "k8s.io/kubernetes")
            values = {"gitVersion": full, "gitMajor": major, "gitMinor": minor}
            return [flag for key, value in values.items() for flag in ("-X", f"{VERSION}.{key}={value}")]
        case "helm":
            return ["-X", f"helm.sh/helm/v4/internal/version.version={_required(text, 'helm.sh/helm/v4')[0]}"]
        case _:
            return []


def _required(go_mod: str, module: str) -> tuple[str, str, str]:
    found = re.search(rf"^(?:require)?\s*{re.escape(module)} (v(\d+)\.(\d+)\.\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise ValueError(f"go.mod does not require {module}")
    return found[1], found[2], found[3]


def _download(name: str) -> None:
    try:
        run("go", "mod", "download", cwd=SOURCES / name, env={"GOWORK": "off"}, timeout_s=1800)
    except subprocess.TimeoutExpired as e:
        raise TimeoutError(f"the modules of {name} did not come within 30 min") from e


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
