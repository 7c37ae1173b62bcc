# Paceline's commands. `make help` lists them; CONTRIBUTING.md says when to use which.
# The set-up is in two steps, so that the demo need not wait for the developer's tools: .venv/.runtime, then .venv/.dev.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
COMPILE := $(UV) pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-header
COMPILE_VLLM := $(UV) pip compile --quiet --generate-hashes --no-header --python-version 3.11 --only-binary :all: --python-platform x86_64-manylinux_2_31
CHECKS := check-format check-lint check-types check-imports check-generated

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: $(VENV)/.runtime ## Serve examples/chat.yaml on simulated engines, replay load, leave report and figure in build/demo/; ENGINE=vllm: real vLLM on the CPU
	@$(if $(filter vllm,$(ENGINE)),examples/vllm.sh build/demo,examples/run.sh chat build/demo --synthetic chat --rate 4 --duration 30)

.PHONY: bench-2p1d
bench-2p1d: $(VENV)/.dev ## DistServe's 2P1D example: capacities on the virtual clock, three points over HTTP; 25 minutes
	@$(BIN)/python benchmarks/distserve_2p1d.py

.PHONY: bench-law
bench-law: $(VENV)/.dev ## The autoscaling law's sizes against what the fleet simulator needs, and two rivals; 6 minutes
	@$(BIN)/python benchmarks/autoscale.py

.PHONY: bench-autoscale
bench-autoscale: $(VENV)/.dev ## Real load (PACELINE_TRACES) under the law, static fleets, HPA, KEDA and a clairvoyant; 35 minutes (--others-once: 15)
	@$(BIN)/python benchmarks/autoscale_replay.py

.PHONY: bench-measured-runs
bench-measured-runs: $(VENV)/.dev ## Real A100 runs of DistServe and vLLM beside their replay (PACELINE_TRACES names the folder); seconds
	@$(BIN)/python benchmarks/measured_runs.py

.PHONY: papers
papers: $(VENV)/.dev ## The results of DistServe and Sarathi-Serve beside ours (PACELINE_TRACES names the folder); 35 minutes
	@$(BIN)/python benchmarks/papers.py

.PHONY: bench-roofline
bench-roofline: $(VENV)/.dev ## Rooflines beside the calibration grid (PACELINE_TRACES), models and GPUs left out of their fit; seconds
	@$(BIN)/python benchmarks/roofline.py

.PHONY: bench-sim
bench-sim: $(VENV)/.runtime ## 64 simulated engines in one process at 0.25 requests/s each: fails unless its report is valid
	@REQUIRE_VALID=1 examples/run.sh fleet-64 build/fleet-64 --synthetic chat --rate 16 --duration 120

.PHONY: bench-engine
bench-engine: $(VENV)/.dev ## Real vLLM beside fixed budgets: gaps, shifting load, two classes, overhead (needs make vllm)
	@PYTHONPATH=tests/support $(BIN)/python benchmarks/engine.py

.PHONY: bench-sim-speed
bench-sim-speed: $(VENV)/.dev ## The simulator's tokens per second and core, beside what is asked of it; a minute
	@$(BIN)/python benchmarks/sim_speed.py

.PHONY: bench-served
bench-served: $(VENV)/.dev ## One load on the virtual clock and over HTTP, side by side (PACELINE_TRACES); 22 minutes
	@$(BIN)/python benchmarks/served.py

.PHONY: bench-router
bench-router: $(VENV)/.dev ## The router beside vllm-router and sglang-router (PyPI): requests/s, streams, memory; 7 minutes
	@$(BIN)/python benchmarks/router.py

.PHONY: bench-routing
bench-routing: $(VENV)/.dev ## The router's policies on simulated fleets (PACELINE_TRACES), and the time of a decision
	@$(BIN)/python benchmarks/routing.py
	@$(BIN)/python benchmarks/routing.py --speed

.PHONY: bench-policies
bench-policies: $(VENV)/.dev ## Batching policies over objectives and workloads, whole curves; 30 minutes
	@$(BIN)/python benchmarks/policies.py

.PHONY: test
test: $(VENV)/.dev ## Run every suite that this machine can, and end with a table (PACELINE_REQUIRE=traces: skips fail)
	@$(BIN)/python tests/support/suites.py

.PHONY: check
check: $(VENV)/.dev ## Check format, lint, types, import contracts and generated files, and run the unit tests: < 1 min
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(CHECKS) unit

.PHONY: check-static
check-static: $(VENV)/.dev ## The checks alone, without the unit tests
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(CHECKS)

.PHONY: check-format
check-format: $(VENV)/.dev
	$(BIN)/ruff format --check --quiet .

.PHONY: check-lint
check-lint: $(VENV)/.dev
	$(BIN)/ruff check --quiet .

.PHONY: check-types
check-types: $(VENV)/.dev
	$(BIN)/mypy

.PHONY: check-imports
check-imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-logo

.PHONY: check-generated
check-generated: $(VENV)/.dev
	$(BIN)/python -m paceline_api.crdgen --check
	$(BIN)/python -m paceline_api.chartgen --check
	$(BIN)/python -m paceline_dashboards --check
	$(BIN)/python -m paceline_planner.roofline.documents --check

.PHONY: unit
unit: $(VENV)/.dev ## Run the unit tests
	$(BIN)/pytest tests/unit

.PHONY: format
format: $(VENV)/.dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: crds
crds: $(VENV)/.dev ## Write the CRDs from the API models
	$(BIN)/python -m paceline_api.crdgen
	$(BIN)/python -m paceline_api.chartgen

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Write Grafana's dashboards from charts/paceline_dashboards
	$(BIN)/python -m paceline_dashboards

.PHONY: golden
golden: $(VENV)/.dev ## Write the golden files again; review them as a diff
	$(BIN)/pytest --golden tests/unit

.PHONY: images
images: $(VENV)/.runtime ## Build the control image with buildah or docker; ENGINE_BASE=vllm/vllm-openai:TAG builds the engine image too
	@images/build.sh

.PHONY: vllm
vllm: ## Make the environment in which vLLM runs on a CPU, and its models, cached outside the tree (7 GB, 4 min)
	@PYTHON="$(PYTHON)" images/vllm/build.sh

.PHONY: clients
clients: ## Make the environment of public clients that tests run against a router (1.3 GB, 1 min; needs make vllm)
	@PYTHON="$(PYTHON)" images/clients/build.sh

.PHONY: cluster
cluster: $(VENV)/.dev ## Start the test cluster: a real Kubernetes of 3 nodes in network namespaces (root; first time 20 min)
	@PYTHONPATH=tests/support $(BIN)/python -m testbed up

.PHONY: cluster-down
cluster-down: $(VENV)/.dev ## End the test cluster; only its cached programs stay
	@PYTHONPATH=tests/support $(BIN)/python -m testbed down

.PHONY: cluster-build
cluster-build: $(VENV)/.dev ## Build the test cluster's programs from their Go modules, cached outside the tree
	@PYTHONPATH=tests/support $(BIN)/python -m testbed programs

.PHONY: e2e
e2e: $(VENV)/.dev ## Run the end-to-end suite on the test cluster, or on the cluster that KUBECONFIG names
	@PACELINE_REQUIRE=e2e $(BIN)/pytest tests/e2e

.PHONY: e2e-kind
e2e-kind: $(VENV)/.dev ## Run the end-to-end suite on a cluster that kind makes (needs a Docker engine)
	@tests/cluster/kind.sh

.PHONY: setup
setup: $(VENV)/.dev ## Make .venv with the pinned, hashed requirements and Paceline itself, editable

.PHONY: lock
lock: ## Compile requirements/*.txt from pyproject.toml anew (needs uv; UV=path names it)
	$(COMPILE) pyproject.toml --extra dev --extra otel --upgrade -o requirements/dev.txt
	$(COMPILE) pyproject.toml -c requirements/dev.txt --upgrade -o requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra otel -c requirements/dev.txt --upgrade -o requirements/image.txt
	$(COMPILE) requirements/build.in -c requirements/dev.txt --upgrade -o requirements/build.txt
	$(COMPILE_VLLM) --override requirements/vllm-overrides.in requirements/vllm.in --upgrade -o requirements/vllm.txt
	$(COMPILE_VLLM) --override requirements/clients-overrides.in requirements/clients.in --upgrade -o requirements/clients.txt
	$(COMPILE_VLLM) requirements/rivals.in --upgrade -o requirements/rivals.txt

.PHONY: clean
clean: ## Remove build outputs and caches; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Paceline needs Python 3.11 or later: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runtime: requirements/runtime.txt requirements/build.txt pyproject.toml | $(VENV)/.made
	$(BIN)/pip install --quiet --require-hashes -r requirements/runtime.txt -r requirements/build.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	touch $@
