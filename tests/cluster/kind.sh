#!/usr/bin/env bash
# The end-to-end suite on a cluster that kind makes: create, build, load, run, delete. Needs a Docker engine; kind and
# helm are built from tests/cluster/programs, kubectl too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
docker info > /dev/null 2>&1 || { echo "e2e-kind: no Docker engine answers \`docker info\`; \`make e2e\` needs none" >&2; exit 1; }
PYTHONPATH=tests/support .venv/bin/python -m testbed programs kind helm kubernetes
PATH=${XDG_CACHE_HOME:-$HOME/.cache}/paceline/cluster/bin:$PATH
KUBECONFIG=$(mktemp)
export PATH KUBECONFIG
end() { kind delete cluster --name paceline-e2e; rm -f "$KUBECONFIG"; }
trap end EXIT
kind create cluster --name paceline-e2e --wait 120s
BUILDER=docker make --no-print-directory images
kind load docker-image localhost/paceline:dev --name paceline-e2e
make --no-print-directory e2e
