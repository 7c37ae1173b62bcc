"""The test cluster's pure parts: what is built from what, how images are written, what a machine lacks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from testbed import archive, machine, processes
from testbed.layout import Layout
from testbed.programs import EXTRA, SETS, SOURCES, Programs, build_command, program_name


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        pytest.param("k8s.io/kubernetes/cmd/kubelet", "kubelet", id="a program is called like its folder"),
        pytest.param("go.etcd.io/etcd/server/v3", "etcd", id="but etcd's folder is a major version under server"),
        pytest.param(".", "testbed", id="our own program is called like its set"),
    ],
)
def test_program_names(package: str, expected: str) -> None:
    assert program_name(package, "testbed") == expected


@pytest.mark.parametrize("name", [*SETS, *EXTRA])
def test_every_set_of_programs_is_pinned(name: str) -> None:
    go_mod = (SOURCES / name / "go.mod").read_text(encoding="utf-8")
    for package in {**SETS, **EXTRA}[name]:
        assert package == "." or re.search(rf"^(tool )?\s*{re.escape(package)}$", go_mod, re.MULTILINE), package
    required = set(re.findall(r"^(?:require )?\s*(\S+) v\d", go_mod, re.MULTILINE))
    sums = (SOURCES / name / "go.sum").read_text(encoding="utf-8") if required else ""
    replaced = dict(re.findall(r"^\s*(\S+) => (\S+) v", go_mod, re.MULTILINE))
    assert {module for module in required if f"{replaced.get(module, module)} v" not in sums} == set()


def test_kubernetes_and_its_staging_modules_are_of_one_version() -> None:
    go_mod = (SOURCES / "kubernetes" / "go.mod").read_text(encoding="utf-8")
    kubernetes = re.search(r"k8s\.io/kubernetes v1\.(\S+)", go_mod)
    assert kubernetes
    assert set(re.findall(r"=> k8s\.io/\S+ v0\.(\S+)", go_mod)) == {kubernetes[1]}
    assert f"gitVersion=v1.{kubernetes[1]}" in " ".join(build_command("kubernetes", Path()))


def test_a_cached_set_is_keyed_by_its_sources(tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    assert programs.path("kubectl").parent == programs.folder("kubernetes")
    assert re.fullmatch(r"kubernetes-[0-9a-f]{12}", programs.folder("kubernetes").name)
    assert programs.missing() == list(SETS)
    with pytest.raises(KeyError):
        programs.path("dockerd")


def test_an_image_archive_holds_the_program_and_is_the_same_each_time(tmp_path: Path) -> None:
    program = tmp_path / "prog"
    program.write_bytes(b"#!/bin/true")
    archives = [tmp_path / "a.tar", tmp_path / "b.tar"]
    for out in archives:
        archive.write(program, "localhost/prog:1", out)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as tar:
        files = {name: (tar.extractfile(name) or pytest.fail(name)).read() for name in tar.getnames()}
    [manifest] = json.loads(files["index.json"])["manifests"]
    assert manifest["annotations"]["io.containerd.image.name"] == "localhost/prog:1"
    blobs = {name.rpartition("/")[2]: blob for name, blob in files.items() if name.startswith("blobs/")}
    assert all(hashlib.sha256(blob).hexdigest() == name for name, blob in blobs.items())
    assert manifest["digest"].removeprefix("sha256:") in blobs


def test_missing_packages_are_one_message_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    [message] = machine.missing({"socat": "socat", "runc": "runc"})
    install = "apt-get update && apt-get install -y --no-install-recommends socat runc"
    assert message == f"the test cluster needs socat runc: {install}"
    assert machine.e2e_missing({"KUBECONFIG": "some"}) == "KUBECONFIG is set, but PATH has no kubectl and no helm"


def test_our_own_kubeconfig_is_no_foreign_cluster() -> None:
    assert machine.foreign_kubeconfig({"KUBECONFIG": "/home/me/.kube/config"}) == "/home/me/.kube/config"
    assert machine.foreign_kubeconfig({"KUBECONFIG": str(Layout().kubeconfig)}) is None


def test_without_root_there_is_no_test_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.missing({}) == ["the test cluster needs root (network namespaces, mounts and cgroups)"]


def test_nodes_have_addresses_and_names_of_their_own() -> None:
    nodes = [Layout(name).node(number) for name in ("a", "b") for number in range(1, 10)]
    assert len({node.cgroup for node in nodes}) == len({node.netns for node in nodes}) == len(nodes)
    assert len({node.pods for node in nodes[:9]}) == len({node.ip for node in nodes[:9]}) == 9


def test_a_reused_pid_is_not_taken_for_the_program(tmp_path: Path) -> None:
    pid_file = tmp_path / "program"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = processes._started(process.pid)
        pid_file.write_text(f"{process.pid} {started}")
        assert processes.pid_of(pid_file) == process.pid
        pid_file.write_text(f"{process.pid} {(started or 0) - 1}")
        assert processes.pid_of(pid_file) is None
        process.kill()
    assert processes.pid_of(tmp_path / "absent") is None


def test_a_failed_command_says_what_it_was_and_what_it_said() -> None:
    with pytest.raises(processes.CommandFailed, match=r"sh -c .*exit code 3\nno such thing"):
        processes.run("sh", "-c", "echo no such thing >&2; exit 3")
