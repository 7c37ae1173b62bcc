"""The cluster of the end-to-end suite, and what its steps do with it.

KUBECONFIG names a cluster to use; otherwise the project's own is used as it stands, or brought up and taken down. What
only our own cluster can do skips elsewhere with the reason. After a failure build/e2e holds objects and logs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from testbed.cluster import Cluster
from testbed.foreign import Foreign, NotOurs
from testbed.layout import Layout
from testbed.machine import foreign_kubeconfig
from testbed.processes import CommandFailed, run
from testbed.programs import Programs

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "e2e"
CONTROL_IMAGE = "localhost/paceline:dev"
CONTROL_ARCHIVE = "paceline_dev.tar"  # what `make images` leaves in the cache

Command = Callable[..., str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.requires("e2e"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A step that needs our own cluster skips on another, with the reason."""
    try:
        yield
    except NotOurs as e:
        pytest.skip(str(e))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The first failure: what there is, before fixtures take it away."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    if report.failed and item.session.testsfailed == 0 and "cluster" in arguments:
        arguments["say"](collect(arguments["cluster"]))
    return report


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`say(line)` prints a step and its figures at once, also where pytest captures output."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print(f"\n  {line}", end="", flush=True)

    return show


@pytest.fixture(scope="session")
def cluster(say: Callable[[str], None]) -> Iterator[Cluster | Foreign]:
    if kubeconfig := foreign_kubeconfig(os.environ):
        found: Cluster | Foreign = Foreign(kubeconfig, CONTROL_IMAGE)
        yield found
        return
    own = Cluster(Layout(os.environ.get("PACELINE_CLUSTER", "paceline")), Programs.of_user())
    was_up = own.is_up()
    if not was_up:
        own.down()
        began = time.monotonic()
        own.up()
        say(f"cluster: {own.nodes} nodes in {time.monotonic() - began:.1f} s")
    yield own
    if not was_up:
        own.down()


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster | Foreign) -> Command:
    """`kubectl(*arguments, stdin=None)`: standard output; CommandFailed."""
    return cluster.kubectl


@pytest.fixture(scope="session")
def helm(cluster: Cluster | Foreign) -> Command:
    return cluster.helm


@pytest.fixture(scope="session")
def in_cluster(cluster: Cluster | Foreign) -> Command:
    """`in_cluster(*argv)`: standard output of a command that reaches pods, Services and their DNS names."""
    return cluster.in_cluster


@pytest.fixture(scope="session")
def images(cluster: Cluster | Foreign, say: Callable[[str], None]) -> str:
    """The control image's name; built, and on each node of our own cluster."""
    if isinstance(cluster, Cluster):
        began = time.monotonic()
        run("make", "--no-print-directory", "images", cwd=ROOT, timeout_s=600)
        built = time.monotonic()
        cluster.load_image(Programs.of_user().cache.parent / "images" / CONTROL_ARCHIVE)
        say(f"images: built in {built - began:.1f} s, loaded in {time.monotonic() - built:.1f} s")
    return CONTROL_IMAGE


def collect(cluster: Cluster | Foreign) -> str:
    """Says where it left objects, events and logs of pods and cluster. Best effort: what fails is left out."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    kinds = "llmservices,enginepools,deployments,replicasets,pods,services,endpointslices,poddisruptionbudgets,leases"
    for name, arguments in {
        "objects.txt": ("get", kinds, "-A", "-o", "wide"),
        "objects.yaml": ("get", "llmservices,enginepools,deployments,pods", "-A", "-o", "yaml"),
        "events.txt": ("get", "events", "-A", "--sort-by=.lastTimestamp"),
        "nodes.txt": ("describe", "nodes"),
    }.items():
        with suppress(CommandFailed, subprocess.TimeoutExpired):
            (BUILD / name).write_text(cluster.kubectl(*arguments, timeout_s=30))
    pods = ""
    columns = "custom-columns=N:.metadata.namespace,P:.metadata.name"
    with suppress(CommandFailed, subprocess.TimeoutExpired):
        pods = cluster.kubectl("get", "pods", "-A", "--no-headers", "-o", columns, timeout_s=30)
    for namespace, pod in (line.split() for line in pods.splitlines()):
        for suffix, flags in {"log": (), "previous.log": ("--previous",)}.items():
            with suppress(CommandFailed, subprocess.TimeoutExpired):
                arguments = ("logs", pod, "-n", namespace, "--all-containers", "--prefix", *flags)
                (BUILD / f"{namespace}-{pod}.{suffix}").write_text(cluster.kubectl(*arguments, timeout_s=30))
    if isinstance(cluster, Cluster):
        shutil.copytree(cluster.layout.logs, BUILD / "cluster")
    return f"objects and logs: {BUILD.relative_to(ROOT)}"
