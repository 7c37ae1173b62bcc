"""`make cluster`, `make cluster-down` and `make cluster-build`: `python -m testbed up`, `down` and `programs`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from testbed.cluster import Cluster
from testbed.layout import Layout
from testbed.machine import ALL_PACKAGES, absent, missing
from testbed.processes import CommandFailed
from testbed.programs import EXTRA, SETS, Programs


def up(cluster: Cluster) -> None:
    if lacking := list(missing()):
        raise SystemExit("\n".join(lacking))
    if cluster.is_up():
        print("the test cluster is up already")
    else:
        cluster.programs.build(list(SETS))
        cluster.down()
        began = time.monotonic()
        cluster.up()
        print(f"the test cluster is up: {cluster.nodes} nodes in {time.monotonic() - began:.1f} s")
    print(f"export KUBECONFIG={cluster.layout.kubeconfig} PATH={cluster.programs.cache}/bin:$PATH")
    print(f"clients run inside its network: nsenter --net=/run/netns/{cluster.layout.netns} kubectl get nodes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="testbed", description="The project's own Kubernetes for tests")
    parser.add_argument("--name", default="paceline", help="two names, two clusters")
    parser.add_argument("--nodes", type=int, default=3, choices=range(1, 10), metavar="1..9")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="build the programs where they are missing, and start the cluster")
    commands.add_parser("down", help="end it; nothing is left but the cached programs")
    programs = commands.add_parser("programs", help="build the programs")
    programs.add_argument(
        "sets", nargs="*", metavar="SET", help=f"of {', '.join([*SETS, *EXTRA])}; default: all but kind"
    )
    commands.add_parser("packages", help="print Debian's packages that the suites on it need and this machine lacks")
    load = commands.add_parser("load", help="import OCI archives into every node")
    load.add_argument("archives", nargs="+", type=Path)
    arguments = parser.parse_args()
    cluster = Cluster(Layout(arguments.name), Programs.of_user(), arguments.nodes)
    try:
        match arguments.command:
            case "up":
                up(cluster)
            case "down":
                cluster.down()
            case "programs":
                cluster.programs.build(arguments.sets or list(SETS))
            case "packages":
                print(*absent(ALL_PACKAGES))
            case "load":
                for image in arguments.archives:
                    cluster.load_image(image)
    except (CommandFailed, TimeoutError, subprocess.TimeoutExpired) as e:
        print(f"{e}\nlogs: {cluster.layout.logs}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
