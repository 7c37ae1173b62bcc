"""`paceline crds`: prints the CustomResourceDefinitions, generated from the models of this very version."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "crds",
        help="print the CustomResourceDefinitions",
        description="Print the CRDs of paceline.dev as YAML: paceline crds | kubectl apply --server-side -f -",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from paceline_api.crdgen import RESOURCES, render

    print("---\n".join(render(resource) for resource in RESOURCES), end="")
    return 0
