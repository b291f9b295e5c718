# edgetun: `make` lists the targets. Needs Python 3.11 or newer, git and make; everything else is set up in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PURE   := tests/unit tests/golden tests/fuzz
SETUP  := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: chart-if-helm help setup demo test test-unit check lint format types layers generated generate bench fuzz soak chart kind-up kind-down clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(SETUP)  ## Make .venv with edgetun and the tools for working on it

$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edgetun needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: $(SETUP)  ## Put a real local server behind 10,000 visitors, and print what reached it
	@$(BIN)/edgetun demo

test: $(SETUP)  ## Run every test, the quick ones first (the first time with Go there: 15 minutes more, for a Kubernetes)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(PURE); pure=$$?; \
	 $(BIN)/python -m pytest $(addprefix --ignore=,$(PURE)) && exit $$pure

test-unit: $(SETUP)  ## Run the tests of pure logic: seconds
	@$(BIN)/python -m pytest -q tests/unit tests/golden

check: lint types layers generated chart-if-helm  ## What CI checks before the tests

lint: $(SETUP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(SETUP)  ## Format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(SETUP)
	@$(BIN)/mypy

layers: $(SETUP)
	@$(BIN)/lint-imports

generated: $(SETUP)
	@$(BIN)/python -m edgetun.generate --check

generate: $(SETUP)  ## Write the generated files anew (reference pages, examples' index)
	@$(BIN)/python -m edgetun.generate

bench: $(SETUP)  ## Run the benchmarks beside their peers (long; wants a quiet machine)
	@$(BIN)/python bench/all.py

fuzz: $(SETUP)  ## Fuzz every parser of network bytes for FUZZ_SECONDS (default 60) each
	@$(BIN)/python tests/fuzz/run.py --seconds $${FUZZ_SECONDS:-60}

soak: $(SETUP)  ## Put everything at once on real processes for half an hour, and look for leaks
	@$(BIN)/python tests/fault/soak.py --record docs/soak.md

# helm from PATH, or the one that the tests on a real Kubernetes have built (tests/kube)
HELM ?= $(shell command -v helm || ls $${XDG_CACHE_HOME:-$$HOME/.cache}/edgetun-kube/bin/helm 2>/dev/null)
CHART_VALUES := $(wildcard charts/edgetun/ci/*-values.yaml)

chart:  ## Lint the chart and render it with each of its sets of values (wants helm)
	@test -n "$(HELM)" || { echo "there is no helm: install it (https://helm.sh), or run make test once, which builds one"; exit 1; }
	@$(HELM) lint --quiet --strict charts/edgetun
	@set -e; for values in $(CHART_VALUES); do \
	  $(HELM) lint --quiet --strict charts/edgetun --values $$values; \
	  $(HELM) template edgetun charts/edgetun --namespace edgetun-system --values $$values > /dev/null; \
	done

chart-if-helm:
	@if test -n "$(HELM)"; then $(MAKE) --no-print-directory chart; else echo "the chart was not checked: there is no helm (make test builds one)"; fi

KIND_CLUSTER := edgetun

kind-up:  ## A kind cluster with three regions, edgetun on it (wants kind, kubectl, helm and Docker)
	@for tool in docker kind kubectl helm; do command -v $$tool > /dev/null || { echo "make kind-up wants $$tool, which is not here; without Docker, edgetun demo and edgetun serve need none of it"; exit 1; }; done
	@docker info > /dev/null 2>&1 || { echo "make kind-up wants a running Docker engine; docker info says why it does not answer"; exit 1; }
	@kind get clusters 2> /dev/null | grep -qx $(KIND_CLUSTER) || kind create cluster --config kind-config.yaml
	docker build --tag edgetun:dev .
	kind load docker-image edgetun:dev --name $(KIND_CLUSTER)
	kubectl --context kind-$(KIND_CLUSTER) apply --server-side --force-conflicts --filename charts/edgetun/crds/
	helm --kube-context kind-$(KIND_CLUSTER) upgrade --install edgetun charts/edgetun --namespace edgetun-system --create-namespace \
	  --values charts/edgetun/ci/kind-values.yaml --wait --timeout 5m

kind-down:  ## Delete the kind cluster
	@command -v kind > /dev/null || { echo "make kind-down wants kind, which is not here"; exit 1; }
	kind delete cluster --name $(KIND_CLUSTER)

clean:  ## Remove what the targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
